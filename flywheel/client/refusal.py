"""What a call of the client may raise."""

from __future__ import annotations

from flywheel.errors import FlywheelError


class UnavailableError(FlywheelError):
    """No useful answer for as long as the client's patience lasted; the same call may be made again."""


class FullError(FlywheelError):
    """The spool has no room for what was to be kept, or its disk takes nothing; the same call may be made again."""


class RejectedError(FlywheelError):
    """The server refused the request as it is: its `status` (401, 403, 404, …) and the `field` that is wrong."""

    def __init__(self, status: int, sentence: str, field: str = "") -> None:
        """Keep status, sentence and field."""
        super().__init__(sentence)
        self.status, self.field = status, field
