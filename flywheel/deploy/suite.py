"""The gate's suite as the registry keeps it: scenarios, and what became of production's failures."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence

import msgspec

from flywheel import sqlite
from flywheel.config import canonical
from flywheel.errors import UsageError, unknown
from flywheel.tapes import Scenario


class Suite:
    """The part of a Registry that is about scenarios."""

    _db: sqlite3.Connection

    def save_scenario(self, scenario: Scenario) -> Scenario:
        """Keep a scenario, which every candidate from now on must master; UsageError when its name is taken."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", scenario.name):
            raise UsageError(f"A scenario's name is letters, digits and . _ - (at most 64), not {scenario.name!r}.")
        try:
            self._db.execute("INSERT INTO scenarios VALUES (?, ?, ?)", _row(scenario))
        except sqlite3.IntegrityError as error:
            raise UsageError(
                f"There is a scenario {scenario.name!r} already: give another name, or drop that one first."
            ) from error
        return scenario

    def drop_scenario(self, name: str) -> None:
        """Take a scenario out of the suite; UsageError, with the nearest name, when there is none.

        One of production's failures is remembered, so that its copies don't make it again.
        """
        with sqlite.transaction(self._db):
            found = {scenario.name: scenario for scenario in self.scenarios()}
            if name not in found:
                raise unknown("scenario", name, found)
            if found[name].origin == "production":
                self._db.execute("INSERT INTO dropped SELECT name, record FROM scenarios WHERE name = ?", (name,))
            self._db.execute("DELETE FROM scenarios WHERE name = ?", (name,))

    def scenarios(self) -> tuple[Scenario, ...]:
        """Return the suite, oldest first; () in a file from before there was one."""
        if not sqlite.has_table(self._db, "scenarios"):
            return ()
        return tuple(
            _scenario(text) for (text,) in self._db.execute("SELECT record FROM scenarios ORDER BY saved_at, name")
        )

    def dropped(self) -> tuple[Scenario, ...]:
        """Return the scenarios of production's failures that were taken out of the suite."""
        return tuple(_scenario(text) for (text,) in self._db.execute("SELECT record FROM dropped ORDER BY rowid"))

    def grown(self, scenarios: Sequence[Scenario], fates: Mapping[str, str], simulator: str, now: float) -> None:
        """Keep what became of production's failures, in one commit: new scenarios, and what `looked_at` returns.

        `fates` are the names of the scenarios that stand for episodes, by id, "" where none does in the worlds of
        `simulator` (the digest of its parameters).
        """
        with sqlite.transaction(self._db):
            for scenario in scenarios:
                self._db.execute("INSERT INTO scenarios VALUES (?, ?, ?)", _row(scenario))
            self._db.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)",
                [(episode, simulator, name, now) for episode, name in fates.items()],
            )

    def looked_at(self, simulator: str) -> dict[str, str]:
        """Return by id the scenario that stands for a failed episode, "" where none does in the simulator's worlds."""
        rows = self._db.execute(
            "SELECT episode, scenario FROM failures WHERE scenario <> '' OR simulator = ?", (simulator,)
        )
        return dict(rows)


def _row(scenario: Scenario) -> tuple[str, float, str]:
    return scenario.name, scenario.saved_at, canonical(dataclasses.asdict(scenario))


def _scenario(text: str) -> Scenario:
    return msgspec.convert(json.loads(text), Scenario)
