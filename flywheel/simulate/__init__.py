"""Where everything is tried: seeded worlds in lockstep, and a policy playing in them.

In: a Task, a Policy, seeds, parameters, draw keys. Out: Episodes.
Never: a clock, a global random state, Ray, torch.
"""

from flywheel.simulate.play import play
from flywheel.simulate.worlds import Worlds, make_worlds

__all__ = ["Worlds", "make_worlds", "play"]
