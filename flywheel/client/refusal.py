"""What a call of the client may raise."""

from __future__ import annotations

from flywheel.errors import FlywheelError


class UnavailableError(FlywheelError):
    """No useful answer for as long as the client's patience lasted; the same call may be made again."""


class RejectedError(FlywheelError):
    """The server refused the request as it is: `status` (401, 403, 409, 413, 422) and the `field` that is wrong."""

    def __init__(self, status: int, sentence: str, field: str = "") -> None:
        """Keep status, sentence and field."""
        super().__init__(sentence)
        self.status, self.field = status, field
