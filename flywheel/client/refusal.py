"""What a call of the client may raise."""

from __future__ import annotations

import os

from flywheel.errors import FlywheelError, UsageError


class UnavailableError(FlywheelError):
    """No useful answer for as long as the client's patience lasted; the same call may be made again."""


class FullError(FlywheelError):
    """The spool has no room for what was to be kept, or its disk takes nothing; the same call may be made again."""


class DamagedError(FlywheelError):
    """A file of the spool can't be read, or is gone: what was in it is not to be had from there any more."""


class RejectedError(FlywheelError):
    """The server refused the request as it is: its `status` (401, 403, 404, …) and the `field` that is wrong."""

    def __init__(self, status: int, sentence: str, field: str = "") -> None:
        """Keep status, sentence and field."""
        super().__init__(sentence)
        self.status, self.field = status, field


_num_forks = 0


def _forked() -> None:
    global _num_forks
    _num_forks += 1


os.register_at_fork(after_in_child=_forked)


def process() -> int:
    """Return a number that another one of a fork's two processes doesn't have."""
    return _num_forks


def check_process(made_in: int) -> None:
    """Raise UsageError where `process()` was another: two must not act under one lease, or write to one file."""
    if _num_forks != made_in:
        raise UsageError("This client was made before a fork: make one in each process.")
