"""Challengers as the registry keeps them: which is on its way, and what became of the others."""

from __future__ import annotations

import dataclasses
import json

import msgspec

from flywheel import sqlite
from flywheel.challenge import Word
from flywheel.config import canonical
from flywheel.deploy.admission import Served
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.controls import Controls
from flywheel.deploy.suite import Suite
from flywheel.errors import Refused, UsageError
from flywheel.records import Release


class Challenges(Controls, Suite):
    """The part of a Registry that is about challengers; the Registry says what may serve, and puts it into service."""

    def challenge(
        self, digest: str, ramp: Ramp, now: float, *, alarmed: bool | None = None, urgent: bool = False,
        slowly: bool = False,
    ) -> Canary:  # fmt: skip
        """Begin to try a digest beside the champion, as Ramp.begin, and return its canary; the one on its way keeps it.

        Another challenger that is on its way makes room. Raises Refused, changing nothing, as `promote`, and where no
        policy is in service: there `promote` is enough.
        """
        with sqlite.transaction(self._db):
            champion, present = self.champion(), self.canary()
            if champion is None:
                raise Refused("No policy is in service that a challenger could be tried beside: promote it at once.")
            if present is not None and not present.is_over:
                if present.challenger == digest:
                    return present
                self._keep(ramp.replace(present, digest, now))
            self.check_promotable(digest, now)
            canary = ramp.begin(digest, champion, now, alarmed=alarmed, urgent=urgent, slowly=slowly)
            self._db.execute(
                "INSERT INTO canaries (challenger, champion, state, begun_at, record) VALUES (?, ?, ?, ?, ?)",
                (canary.challenger, canary.champion, canary.state, canary.begun_at, _encode(canary)),
            )
            self.end_control(f"policy {digest[:12]} is tried beside the champion", now)
            return canary

    def keep_canary(self, canary: Canary) -> Release | None:
        """Keep how far a canary is; its end, what follows from it, and the alias change in one commit.

        A promoted challenger is in service then, by the Release that is returned; where it may not be promoted any
        more, as `promote` would say, it is stopped for that reason. One that is rolled back is condemned. Raises
        Refused, changing nothing, when it is over already.
        """
        with sqlite.transaction(self._db):
            present = self.canary()
            if present is None or present.is_over or not present.is_same(canary):
                raise Refused(f"The canary of policy {canary.challenger[:12]} is over: nothing becomes of it any more.")
            canary = self._promotable(canary)
            self._keep(canary)
            if canary.state == "rolled_back":
                self._condemn(canary.challenger, canary.reason, canary.changed_at)
            if canary.state != "promoted":
                return None
            release = self._release(canary.challenger, canary.changed_at)
            if canary.is_quiet and canary.course is not None:
                self._begin_control(release, canary.course.control_share)
            return release

    def _promotable(self, canary: Canary) -> Canary:
        """Return a canary as it is, but one that ends in a promotion which is refused as stopped."""
        if canary.state != "promoted":
            return canary
        try:
            self.check_promotable(canary.challenger, canary.changed_at)
        except Refused as error:
            return dataclasses.replace(canary, state="stopped", reason=f"it may not be promoted any more: {error}")
        return canary

    def decide(self, word: Word, reason: str, now: float, digest: str = "") -> tuple[Canary, Release | None]:
        """Do what a person says to the challenger on its way, for a reason that is kept.

        Return its canary as it is then, and the Release of one that is promoted. `digest` is what the challenger's
        begins with, so that no other one can be meant. Raises UsageError without a reason, and Refused, changing
        nothing, where no such challenger is on its way, or that can't be said to it now.
        """
        reason, canary = " ".join(reason.split()), self.canary()
        if not reason:
            raise UsageError("What becomes of a challenger is decided for a reason, which is kept: give one.")
        if canary is None or canary.is_over:
            raise Refused("No challenger is on its way, so nothing can be decided about one.")
        who = f"Policy {canary.challenger[:12]}"
        if not canary.challenger.startswith(digest):
            raise Refused(f"{who} is on its way by now, and not {digest[:12]}: look at it before you decide.")
        decided = Ramp().decide(canary, word, reason, now)
        if decided != canary:
            release = self.keep_canary(decided)
            return self.canary() or decided, release
        if canary.state == "frozen":
            raise Refused(f"{who} is frozen: it can be dropped, or make room for another challenger.")
        raise Refused(f"{who} can't be approved before its outcomes have proven it: `flywheel canary` shows how far.")

    def end_canary(self, by: str, now: float) -> None:
        """Let the challenger on its way make room for a digest that goes into service otherwise; in a transaction."""
        canary = self.canary()
        if canary is not None and not canary.is_over:
            self._keep(Ramp().replace(canary, by, now))

    def _keep(self, canary: Canary) -> None:
        self._db.execute(
            "UPDATE canaries SET state = ?, record = ? WHERE id = (SELECT max(id) FROM canaries)",
            (canary.state, _encode(canary)),
        )

    def canary(self) -> Canary | None:
        """Return the last canary, over or not; None where there never was one."""
        found = self.canaries(last=1)
        return found[0] if found else None

    def canaries(self, last: int = -1) -> list[Canary]:
        """Return every canary, or the `last` so many, oldest first; [] in a file from before there were any."""
        if not sqlite.has_table(self._db, "canaries"):
            return []
        rows = self._db.execute("SELECT record FROM canaries ORDER BY id DESC LIMIT ?", (last,)).fetchall()
        return [msgspec.convert(json.loads(text), Canary) for (text,) in rows][::-1]

    def tried(self) -> dict[str, bool]:
        """Return by digest whether a challenger may answer: whether it was not frozen when it was tried last."""
        rows = self._db.execute(  # of a group SQLite gives the row that has the maximum
            "SELECT challenger, max(id), json_extract(record, '$.frozen') FROM canaries GROUP BY challenger ORDER BY 2"
        )
        return {challenger: frozen is None for challenger, _, frozen in rows}

    def present(self) -> Release | None:
        """Return the release that says who answers now: the challenger's on its way, else the champion's."""
        canary = self.canary()
        tried = None if canary is None or canary.is_over else canary.release
        present = self._present()
        return tried or (present and self.beside_control(present))

    def aliases(self) -> dict[str, str]:
        """Return the digests of `@champion`, `@challenger` and `@previous`, of each that there is."""
        canary = self.canary()
        found = {
            "@champion": self.champion(),
            "@challenger": canary.challenger if canary is not None and not canary.is_over else None,
            "@previous": self.previous(),
        }
        return {name: digest for name, digest in found.items() if digest is not None}

    def served(self, at: float) -> Served:
        """Return who answered at a time."""
        row = None
        if sqlite.has_table(self._db, "canaries"):
            row = self._db.execute(
                "SELECT record FROM canaries WHERE begun_at <= ? ORDER BY id DESC LIMIT 1", (at,)
            ).fetchone()
        canary = None if row is None else msgspec.convert(json.loads(row[0]), Canary)
        if canary is None or (canary.answered_until is not None and canary.answered_until <= at):
            control = self.control_at(at)
            beside = (None, 0.0) if control is None else (control.policy, control.share)
            return Served(at, self.served_at(at), None, 0.0, *beside)
        begun = [share for since, share in canary.shares if since <= at]
        return Served(at, self.served_at(at), canary.challenger, begun[-1] if begun else 0.0)

    # What the Registry has

    def champion(self) -> str | None:
        """Return the digest in service."""
        raise NotImplementedError

    def served_at(self, t: float) -> str | None:
        """Return the digest that was in service at `t`, None if none was."""
        raise NotImplementedError

    def _present(self) -> Release | None:
        raise NotImplementedError

    def previous(self) -> str | None:
        """Return the digest that a rollback would put into service."""
        raise NotImplementedError

    def check_promotable(self, digest: str, now: float) -> None:
        """Return when a digest may be put into service at `now`; raise Refused otherwise."""
        raise NotImplementedError

    def _condemn(self, digest: str, reason: str, now: float) -> None:
        raise NotImplementedError

    def _release(self, digest: str, now: float) -> Release:
        raise NotImplementedError


def _encode(canary: Canary) -> str:
    return canonical(dataclasses.asdict(canary))
