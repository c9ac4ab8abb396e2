"""Control groups as the registry keeps them: which policy some new episodes stay on after a release, and until when."""

from __future__ import annotations

import dataclasses
import sqlite3

from flywheel import sqlite
from flywheel.arms import Control
from flywheel.records import Release

_COLUMNS = "policy, champion, share, begun_at, settled_at, ended_at, reason"


class Controls:
    """The part of a Registry that is about control groups; the Registry says what may serve.

    One runs at most, and only beside the champion whose release began it.
    """

    _db: sqlite3.Connection

    def _begin_control(self, release: Release, share: float) -> None:
        """Let a share of new episodes stay on the policy that a quiet release replaced, if it may; in a transaction.

        There is none where no policy was in service before, or that one is condemned or wasn't passed when it was
        judged last.
        """
        policy = release.previous
        if share > 0.0 and policy is not None and policy != release.digest and self._may_control(policy):
            self._db.execute(
                f"INSERT INTO controls ({_COLUMNS}) VALUES (?, ?, ?, ?, NULL, NULL, '')",
                (policy, release.digest, share, release.released_at),
            )

    def _may_control(self, policy: str) -> bool:
        row = self._db.execute(
            "SELECT outcome FROM verdicts WHERE digest = ? ORDER BY id DESC LIMIT 1", (policy,)
        ).fetchone()
        return row == ("pass",) and policy not in self.condemned()

    def end_control(self, reason: str, now: float, policy: str | None = None) -> None:
        """Give the control no more episodes, for a reason as a clause; nothing happens where none runs.

        With a `policy` nothing happens where it is another one's, either.
        """
        self._db.execute(
            "UPDATE controls SET ended_at = ?, reason = ? WHERE ended_at IS NULL AND policy = ifnull(?, policy)",
            (now, reason, policy),
        )

    def settle_control(self, settled_at: float) -> None:
        """Note from when on every replica knows of the control that runs: what begins from then on counts."""
        self._db.execute(
            "UPDATE controls SET settled_at = ? WHERE ended_at IS NULL AND settled_at IS NULL", (settled_at,)
        )

    def control(self) -> Control | None:
        """Return the control that runs; None where none does, or its policy may answer no more."""
        found = self.controls()[-1:]
        return next((each for each in found if each.ended_at is None and self._may_control(each.policy)), None)

    def controls(self) -> list[Control]:
        """Return every control, over or not, oldest first; [] in a file from before there were any."""
        if not sqlite.has_table(self._db, "controls"):
            return []
        names = [name.strip() for name in _COLUMNS.split(",")]
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM controls ORDER BY id")
        return [Control(**dict(zip(names, row, strict=True))) for row in rows]

    def control_at(self, t: float) -> Control | None:
        """Return the control that ran at `t`, None where none did."""
        return next((c for c in self.controls() if c.begun_at <= t and (c.ended_at is None or t < c.ended_at)), None)

    def beside_control(self, release: Release) -> Release:
        """Return the release in service with the share of new episodes that its control leaves it."""
        control = self.control()
        return release if control is None else dataclasses.replace(release, share=1.0 - control.share)

    def condemned(self) -> frozenset[str]:
        """Return the digests that may not come back."""
        raise NotImplementedError
