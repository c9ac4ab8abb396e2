"""What a user runs on a task of theirs, and public fakes for tests; without Ray and without torch.

`check_task(task)` tries everything the wheel will ask of a task and names all that is wrong. `try_task(task)` takes a
few steps, and `check_worlds(task)` compares worlds played alone and among others. In: a Task. Out: a report, or a
UsageError; linear policies. Never: Ray, torch.
"""

from flywheel.testing.attempt import try_task
from flywheel.testing.check import check_task
from flywheel.testing.fakes import (
    BAD,
    GOOD,
    SHORT_POLE,
    check_worlds,
    linear_policy,
    load_linear,
    write_linear_artifact,
)

__all__ = [
    "BAD",
    "GOOD",
    "SHORT_POLE",
    "check_task",
    "check_worlds",
    "linear_policy",
    "load_linear",
    "try_task",
    "write_linear_artifact",
]
