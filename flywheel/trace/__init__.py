"""Time travel: where two courses of an episode part, and what would have happened had something been otherwise.

In: Episodes, the policies that acted in them, the task. Out: Differences, and forks of episodes that are run again.
Never: Ray, torch, a guess: what can't be run again raises NotReproducible with the reason.
"""

from flywheel.trace.diverge import against_policy, first_difference, recheck
from flywheel.trace.fork import Fork
from flywheel.trace.residuals import against_simulator, noise_of
from flywheel.trace.result import Result
from flywheel.trace.snapshots import NotReproducible

__all__ = [
    "Fork",
    "NotReproducible",
    "Result",
    "against_policy",
    "against_simulator",
    "first_difference",
    "noise_of",
    "recheck",
]
