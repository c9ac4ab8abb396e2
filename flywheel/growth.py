"""What failed in production becomes scenarios of the gate's suite: looked at before training, and before a verdict.

Whoever owns the run directory asks here: a wheel, whose registry and gate are actors, or a process of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel.config import GateConfig
from flywheel.console import Say
from flywheel.errors import Refused
from flywheel.gate.grow import Growth, obstacle
from flywheel.gate.judge import terms
from flywheel.gate.suite import WINDOW, hopeless, standings, told, unmastered
from flywheel.records import Correction, Episode, Parameters, Turn, Verdict
from flywheel.simulate.corrected import corrected
from flywheel.store import intake
from flywheel.store.query import Wanted
from flywheel.tapes import Scenario
from flywheel.task import Task

KNOWN = 1000
"""Most recent failures of production, among which are those that were not looked at yet."""
FAILURES = 50
"""Of those, how many one look is at."""
OTHERS = 20
"""First other episodes of a policy, which tell how far production's states are spread, and what is noise there."""

RIVALS = 2
"""Policies that were in service last, which may show that a failure could have been survived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look at production's failures came to."""

    made: tuple[Scenario, ...] = ()
    """New scenarios."""
    num_copies: int = 0
    """Other failures for which a scenario stands."""
    num_unexplained: int = 0
    """Failures that did not come again in the simulator."""
    given_up: tuple[Scenario, ...] = ()
    """Scenarios that nobody survived, and that are asked of nobody any more."""
    notes: tuple[str, ...] = ()
    """What broke."""
    closed: frozenset[str] = frozenset()
    """Names of the scenarios that are in the suite, but are not trained on."""

    def __str__(self) -> str:
        """Return what is new, as a sentence; "" where nothing is."""
        parts = []
        if self.made:
            names = ", ".join(map(told, self.made))
            became = ("failure", "became a scenario") if len(self.made) == 1 else ("failures", "became scenarios")
            parts.append(f"{len(self.made)} {' of production '.join(became)}: {names}")
            parts += [f"{self.num_copies} more are copies of these or earlier ones"] * bool(self.num_copies)
        if self.num_unexplained:
            parts.append(
                f"{self.num_unexplained} did not fail again in simulation: chance, or unknown to the simulator"
            )
        if self.given_up:
            names = ", ".join(map(told, self.given_up))
            parts.append(f"nobody was ever seen to survive {names}, so no candidate has to any more")
        return "; ".join([*parts, *(f"could not be tried again: {note}" for note in self.notes)])


def look(
    task: Task,
    config: GateConfig,
    run_dir: Path,
    ask: Callable[..., Any],
    registry: Any,
    grow: Any,
    parameters: Parameters,
    now: float,
    **given: Any,
) -> Look:
    """Make scenarios of what failed in production since the last look, and keep them; return what was done.

    `ask(method, *arguments)` calls the methods of `registry` (Registry's) and `grow` (SafetyGate's), in the worlds at
    `parameters` (missing ones nominal), with what else is `given`. A task that can't be put into a state makes none.
    """
    suite: tuple[Scenario, ...] = ask(registry.scenarios)
    given_up = _given_up(ask, registry, suite, verdicts := ask(registry.verdicts, None, WINDOW) if suite else [])
    suite = tuple(scenario for scenario in suite if scenario not in given_up)
    standing = standings(suite, verdicts, config.error)
    num_open = sum(each.origin == "production" and standing[each.name].is_open for each in suite)
    _, simulator = terms(task, config, parameters)
    made: list[Scenario] = []
    fates: Counter[str] = Counter()
    notes: list[str] = []
    served = list(dict.fromkeys(release.digest for release in ask(registry.releases)))
    for policy, episodes in _failures(task, config, run_dir, ask(registry.looked_at, simulator)).items():
        before = [other for other in reversed(served) if other != policy][:RIVALS]
        try:
            bundle, *rivals = (ask(registry.bundle, each) for each in (policy, *before))
        except Refused as refusal:  # a policy that isn't this run's, or is damaged: others' failures are looked at
            notes.append(str(refusal))
            continue
        room = max(0, config.suite_open - num_open - len(made))
        found: Growth = ask(
            grow, bundle, episodes, suite=(*suite, *made), dropped=ask(registry.dropped),
            rivals=rivals, parameters=parameters, most=room, now=now, **given,
        )  # fmt: skip
        ask(registry.grown, found.scenarios, found.fates, simulator, now)
        made += found.scenarios
        fates.update(found.fates.values())
        notes += found.notes
    return Look(
        made=tuple(made),
        num_copies=fates.total() - fates[""] - len(made),
        num_unexplained=fates[""],
        given_up=given_up,
        notes=tuple(notes),
        closed=frozenset(s.name for s in suite if s.origin == "production" and not standing[s.name].is_open),
    )


def _given_up(
    ask: Callable[..., Any], registry: Any, suite: Sequence[Scenario], verdicts: Sequence[Verdict]
) -> tuple[Scenario, ...]:
    """Drop what nobody survives, and return it."""
    found = hopeless(suite, verdicts)
    for scenario in found:
        ask(registry.drop_scenario, scenario.name)
    return found


def _failures(
    task: Task, config: GateConfig, run_dir: Path, looked_at: Mapping[str, str]
) -> dict[str, Sequence[Episode]]:
    """Return by policy the failures that were not looked at yet, with other episodes of it; the last policy first."""
    if obstacle(task) or not config.suite_open or not (run_dir / intake.FILE).exists():
        return {}
    with intake.open_readonly(run_dir) as store:
        known = store.page(Wanted(how="failed", limit=KNOWN, with_steps=True))
        new = [each for each in known if each.id not in looked_at][:FAILURES]
        found: dict[str, Sequence[Episode]] = {}
        for policy in dict.fromkeys(each.digest for each in new):
            fine = store.page(Wanted(how="fine", digest=policy, limit=OTHERS, descending=False, with_steps=True))
            failed = [each for each in new if each.digest == policy]
            found[policy] = store.read([each.id for each in (*failed, *fine)])
        return found


class Suite:
    """The suite of a wheel."""

    def __init__(
        self, task: Task, config: GateConfig, run_dir: Path, ask: Callable[..., Any], rooms: Any, say: Say
    ) -> None:
        """Ask the `registry` and the `gate` of rooms, once they are needed."""
        self._given, self._ask, self._rooms, self._say = (config, run_dir), ask, rooms, say
        self._task = task
        self._closed: frozenset[str] = frozenset()

    def grow(self, parameters: Parameters, correction: Correction | None = None) -> None:
        """Look at production's failures, and tell what is new; worlds act by `correction`, as the gate's do then."""
        given: dict[str, Any] = {} if correction is None else {"correction": correction}
        found = look(
            corrected(self._task, correction), *self._given, self._ask, self._rooms.registry, self._rooms.gate.grow,
            parameters, time.time(), **given,
        )  # fmt: skip
        self._closed = found.closed
        if str(found):
            self._say("gate", str(found))

    def opened(self) -> tuple[Scenario, ...]:
        """Return the scenarios that are trained on: the open ones, and those that a person saved."""
        return tuple(each for each in self._ask(self._rooms.registry.scenarios) if each.name not in self._closed)

    def hard(self, turns: Sequence[Turn]) -> tuple[str, ...]:
        """Name the edge cases and scenarios that the last candidate to be judged did not master."""
        last = next((turn.verdict for turn in reversed(turns) if turn.verdict is not None), None)
        return unmastered(last, self._task, self._given[0])
