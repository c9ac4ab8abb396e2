"""Challengers as the registry keeps them: which is on its way, and what became of the others."""

from __future__ import annotations

import dataclasses
import json

import msgspec

from flywheel import sqlite
from flywheel.config import canonical
from flywheel.deploy.admission import Served
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.suite import Suite
from flywheel.errors import Refused
from flywheel.records import Release


class Challenges(Suite):
    """The part of a Registry that is about challengers; the Registry says what may serve, and puts it into service."""

    def challenge(self, digest: str, ramp: Ramp, now: float, *, urgent: bool = False) -> Canary:
        """Begin to try a digest beside the champion and return its canary; the one on its way already keeps its own.

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
            canary = ramp.begin(digest, champion, now, urgent=urgent)
            self._db.execute(
                "INSERT INTO canaries (challenger, champion, state, begun_at, record) VALUES (?, ?, ?, ?, ?)",
                (canary.challenger, canary.champion, canary.state, canary.begun_at, _encode(canary)),
            )
            return canary

    def keep_canary(self, canary: Canary) -> Release | None:
        """Keep how far a canary is; its end, what follows from it, and the alias change in one commit.

        A promoted challenger is in service then, by the Release that is returned; one that is rolled back is condemned.
        Raises Refused, changing nothing, when another policy came into service meanwhile, or it is over already.
        """
        with sqlite.transaction(self._db):
            present = self.canary()
            if (
                present is None
                or present.is_over
                or (present.challenger, present.begun_at)
                != (
                    canary.challenger,
                    canary.begun_at,
                )
            ):
                raise Refused(f"The canary of policy {canary.challenger[:12]} is over: nothing becomes of it any more.")
            self._keep(canary)
            if canary.state == "rolled_back":
                self._condemn(canary.challenger, canary.reason, canary.changed_at)
            if canary.state != "promoted":
                return None
            if self.champion() != canary.champion:
                raise Refused(f"Policy {canary.challenger[:12]} was tried beside another policy than serves now.")
            return self._release(canary.challenger, canary.changed_at)

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

    def present(self) -> Release | None:
        """Return the release that says who answers now: the challenger's on its way, else the champion's."""
        canary = self.canary()
        tried = None if canary is None or canary.is_over else canary.release
        return tried or self._present()

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
        if canary is None or (canary.state not in ("shadow", "canary") and canary.changed_at <= at):
            return Served(at, self.served_at(at), None, 0.0)
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
