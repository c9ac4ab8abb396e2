"""A run directory, finished or alive, as the page reads it: of all that is in it only spans are written here."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from flywheel import archive, command, sqlite
from flywheel.challenge import Word
from flywheel.config import TraceConfig
from flywheel.connection import Connection
from flywheel.deploy import registry as registries
from flywheel.deploy.shown import shown
from flywheel.errors import FlywheelError, UsageError, unknown
from flywheel.gate.suite import WINDOW, standings
from flywheel.observe.observer import SIGNALS
from flywheel.observe.outlook import EARLY, Outlook
from flywheel.page.events import WATCHED
from flywheel.page.source import About, Changes, Expected, Listed, Policies, page_of
from flywheel.records import Episode, Parameters, Signal, Told, Turn
from flywheel.report import verdict as verdicts
from flywheel.store import intake, query
from flywheel.tapes import Difference, Scenario, Standing
from flywheel.task import Task
from flywheel.tasks import load
from flywheel.tasks.traffic import read_log
from flywheel.trace import sinks, spanstore
from flywheel.trace.contract import trial_row
from flywheel.trace.result import Result
from flywheel.trace.row import Row
from flywheel.trace.shift import Shift
from flywheel.trace.snapshots import Opening
from flywheel.trace.spanstore import Stored

LOOK_S = 0.4
"""Seconds for which what was seen of the files stands, however many ask."""
T = TypeVar("T")


class Window:
    """The page's Source over a run directory. What it has read it keeps until the file has changed."""

    def __init__(self, run_dir: Path, name: str = "") -> None:
        """Look at a run directory, which may still be without store and registry; UsageError where it is none.

        `name` is how a person writes it, the path itself by default.
        """
        self._config = archive.read_config(run_dir)
        self.run_dir, self._name = run_dir, name or str(run_dir)
        self._lock = threading.RLock()
        self._store: intake.Reader | None = None
        self._registry: registries.Registry | None = None
        self._kept: dict[str, tuple[int, Any]] = {}
        self._looked, self._marks = -LOOK_S, dict.fromkeys((*WATCHED, "story"), 0)
        self._living: tuple[float, bool] = (-LOOK_S, False)
        self._story: list[tuple[int, Told]] = []
        self._forks: dict[str, Episode] = {}
        self._shift: tuple[float, Shift | None] | None = None

    def close(self) -> None:
        """Let go of the files."""
        for opened in (self._store, self._registry):
            if opened is not None:
                opened.close()

    # What has changed

    def marks(self) -> Mapping[str, int]:
        """As Source.marks."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_S:
                store, registry = self._opened_store(), self._opened_registry()
                files = archive.JOURNAL, archive.DRAFT, archive.EVENTS
                journal, draft, story = (_stamp(self.run_dir / name) for name in files)
                self._marks = {
                    "production": store.version() if store else 0,
                    "policies": registry.version() if registry else 0,
                    "turns": hash((journal, draft)),
                    "story": hash(story),
                    "living": int(self._is_living()),
                }
                self._looked = time.monotonic()
            return dict(self._marks)

    def _opened_store(self) -> intake.Reader | None:
        if self._store is None and sqlite.is_made(self.run_dir / intake.FILE):
            self._store = intake.open_readonly(self.run_dir)
        return self._store

    def _opened_registry(self) -> registries.Registry | None:
        if self._registry is None and sqlite.is_made(self.run_dir / registries.FILE):
            self._registry = registries.open_readonly(self.run_dir)
        return self._registry

    def _while(self, mark: str, name: str, read: Callable[[], T]) -> T:
        """Return what `read` gave when its file was as it is now."""
        with self._lock:
            version = self.marks()[mark]
            if name not in self._kept or self._kept[name][0] != version:
                self._kept[name] = (version, read())
            found: T = self._kept[name][1]
            return found

    # The run

    def about(self) -> About:
        """As Source.about."""
        obstacle, bounds, forks = "", None, False
        try:
            task = self.task()
            bounds, forks = task.return_range, task.set_state is not None and task.observed_state is not None
        except FlywheelError as error:
            obstacle = str(error)
        return About(
            task=self._config["task"],
            reference=self._config["config"].task,
            run=self.run_dir.name,
            run_dir=self._name,
            living=self._is_living(),
            return_range=bounds,
            forks_production=forks,
            obstacle=obstacle,
        )

    def _is_living(self) -> bool:
        with self._lock:
            looked, living = self._living
            if time.monotonic() - looked >= 5 * LOOK_S:
                living = archive.is_held(self.run_dir) or archive.read_living(self.run_dir) is not None
                self._living = (time.monotonic(), living)
            return living

    def task(self) -> Task:
        """As Source.task."""
        return self._task

    @functools.cached_property
    def _task(self) -> Task:
        return load(self._config["config"].task)

    def told(self, begin: int) -> Sequence[tuple[int, Told]]:
        """As Source.told; the story grows at its end only, so that what was read stays read."""
        with self._lock:
            self._story += archive.read_told(self.run_dir, self._story[-1][0] if self._story else 0)
            return [line for line in self._story if line[0] > begin]

    def turns(self) -> Sequence[Turn]:
        """As Source.turns."""
        return self._while("turns", "turns", lambda: archive.read_turns(self.run_dir))

    def draft(self) -> Turn | None:
        """As Source.draft; one that the journal has already is over."""
        draft = self._while("turns", "draft", lambda: archive.read_draft(self.run_dir))
        numbers = {turn.number for turn in self.turns()}
        return None if draft is None or draft.number in numbers else draft

    # The registry

    def policies(self) -> Policies:
        """As Source.policies."""
        return self._while("policies", "policies", self._read_policies)

    def _read_policies(self) -> Policies:
        registry = self._opened_registry()
        if registry is None:
            return Policies()
        artifacts = registry.artifacts()
        return Policies(
            artifacts=artifacts,
            verdicts={artifact.digest: registry.verdicts(artifact.digest) for artifact in artifacts},
            releases=registry.releases(),
            challenges=[shown(canary, self._config["config"].deploy) for canary in registry.canaries()],
            controls=registry.controls(),
            condemned=registry.reasons(),
            previous=registry.previous(),
            tries=registry.tries(),
        )

    def verdict_page(self, digest: str, number: int) -> tuple[str, str]:
        """As Source.verdict_page."""
        run = (self.task(), self._config["config"].gate, self._name)
        return verdicts.recorded_page(self.policies(), digest, number, *run), verdicts.policy()

    # Production

    def signals(self) -> Sequence[Signal]:
        """As Source.signals: the observer's own, and those that only the journal has."""
        store = self._opened_store()
        text = store.noted(SIGNALS) if store else None
        noted = msgspec.json.decode(text, type=list[Signal]) if text else []
        journal = [s for turn in self.turns() for s in turn.plan.signals]
        unique = {(s.monitor, s.digest, s.at_episode): s for s in [*journal, *noted]}
        return sorted(unique.values(), key=lambda signal: signal.at)

    def changes(self) -> Changes:
        """As Source.changes."""
        return self._while("production", "changes", self._read_changes)

    def _read_changes(self) -> Changes:
        known: Changes | None = self._kept.get("changes", (0, None))[1]
        if known is not None and known.first:
            return known  # a world changes once
        logs = [read_log(path) for path in sorted((self.run_dir / archive.TRAFFIC).glob("*.jsonl"))]
        changed = {episode["id"] for log in logs for episode in log.episodes if episode["changed"]}
        first = next((each.id for each in self._all() if each.id in changed), "") if changed else ""
        return Changes(text=next((log.change for log in logs if log.change), ""), first=first)

    def tally(self) -> Mapping[str, Mapping[str, float]]:
        """As Source.tally."""
        store = self._opened_store()
        return self._while("production", "tally", store.summary) if store else {}

    def early(self) -> str | None:
        """As Source.early."""
        store = self._opened_store()
        return Outlook.noted(store.noted(EARLY), time.time()) if store else None

    def outcomes(self, last: int) -> Sequence[Listed]:
        """As Source.outcomes."""
        return self._all()[-last:]

    def _all(self) -> Sequence[Listed]:
        store = self._opened_store()
        if store is None:
            return []
        return self._while("production", "outcomes", lambda: store.outcomes("production", MOST))

    def listed(self, **wanted: Any) -> Sequence[Listed]:
        """As Source.listed; the gate's trials are the registry's, in its verdicts."""
        if wanted.pop("origin", "production") == "gate":
            return page_of(self._while("policies", "trials", self._read_trials), **wanted)
        store = self._opened_store()
        return store.page(query.Wanted(**wanted)) if store else []

    def _read_trials(self) -> Sequence[Listed]:
        verdicts = chain.from_iterable(self.policies().verdicts.values())
        return [trial_row(verdict, trial) for verdict in verdicts for trial in verdict.trials]

    def episode(self, id_: str) -> Episode:
        """As Source.episode; the last one asked for is at hand."""
        with self._lock:
            found = self._at_hand(id_)
        if found is None:
            found = self._connection.episode(id_)  # perhaps played again, which nobody else is to wait for
        with self._lock:
            self._kept["episode"] = (0, found)
        return found

    def _at_hand(self, id_: str) -> Episode | None:
        """Return an episode that is there already, None where it has to be looked for."""
        kept: Episode | None = self._kept.get("episode", (0, None))[1]
        if kept is not None and kept.id == id_:
            return kept
        if id_ in self._forks:
            return self._forks[id_]
        store = self._opened_store()
        return store.read([id_])[0] if store is not None and store.holds(id_) else None

    # Time travel

    def opening(self, id_: str) -> Opening:
        """As Source.opening."""
        made = self._forks.get(id_)
        return self._connection._opened(id_ if made is None or made.parent is None else made.parent[0])[1]

    def world(self, id_: str, at: int) -> Parameters:
        """As Source.world."""
        with closing(self._connection.fork_episode(id_, at)) as fork:
            return fork.parameters

    def diverges(self, id_: str) -> Difference | None:
        """As Source.diverges."""
        return self._connection.diverge(id_)

    def expected(self, id_: str) -> Expected:
        """As Source.expected."""
        episode = self.episode(id_)
        rows = self._connection.residuals(episode) if episode.num_steps else None
        lengths = None if rows is None else np.sqrt((rows**2).sum(axis=1))
        return Expected(values=self._connection.values(episode), residuals=lengths)

    def shift(self) -> Shift | None:
        """As Source.shift; it is looked for once for each alarm."""
        alarms = [signal.at for signal in self.signals() if signal.kind == "shift_detected"]
        if not alarms:
            return None
        known = self._shift
        if known is None or known[0] != alarms[-1]:
            known = self._shift = (alarms[-1], self._connection.shift())
        return known[1]

    def spans_of_episode(self, id_: str) -> Sequence[Stored]:
        """As Source.spans_of_episode."""
        with spanstore.open_readonly(self.run_dir) as spans:
            return spans.of_episode(id_)

    def spans_of_turn(self, number: int) -> Sequence[Stored]:
        """As Source.spans_of_turn."""
        with spanstore.open_readonly(self.run_dir) as spans:
            return spans.of_turn(number)

    def scenarios(self) -> Sequence[Scenario]:
        """As Source.scenarios."""
        registry = self._opened_registry()
        return self._while("policies", "scenarios", registry.scenarios) if registry else []

    def standings(self) -> Mapping[str, Standing]:
        """As Source.standings."""
        verdicts = sorted(chain.from_iterable(self.policies().verdicts.values()), key=lambda each: each.judged_at)
        return standings(self.scenarios(), verdicts[-WINDOW:], self._config["config"].gate.error)

    def fork(self, id_: str, at: int, edits: Sequence[tuple[str, Any]], times: int, seed: int) -> Result:
        """As Source.fork."""
        with closing(self._connection.fork_episode(id_, at)) as fork:
            for name, value in edits:
                fork.edit_parameter(name, value)
            result = fork.replay(times, seed)
        with self._lock:
            for made in (result.unedited, result.fork):
                self._forks.pop(made.id, None)
                self._forks[made.id] = made
            while len(self._forks) > FORKS:
                del self._forks[next(iter(self._forks))]
        return result

    def travel(self) -> Connection:
        """As Source.travel."""
        return self._run

    def tell(self, rows: Sequence[Row]) -> int:
        """As Source.tell: written, or left for the process that owns the spans now."""
        return sinks.to_run_dir(self.run_dir, TraceConfig().max_spans)(rows)

    @functools.cached_property
    def _run(self) -> Connection:
        return Connection(self.run_dir)

    @property
    def _connection(self) -> Connection:
        if self._opened_registry() is None:
            raise UsageError("There is no policy in this run yet, so nothing can be run again.")
        return self._run

    # Operating

    def rollback(self) -> str:
        """As Source.rollback."""
        return self._command("rollback")

    def decide(self, word: Word, digest: str, reason: str) -> str:
        """As Source.decide."""
        return self._command("canary", word, digest, f"--reason={reason}")

    def save(self, id_: str, at: int, edits: Mapping[str, Any], name: str) -> str:
        """As Source.save."""
        if id_.startswith("-"):  # an id is whatever a client liked it to be, and here it would be an option
            raise UsageError(f"Episode {id_!r} can't be named to a command: save it in Python.")
        self.fork(id_, at, [*edits.items()], 1, 0)  # what is wrong is told at once, and by name
        words = [f"--set={key}={_word(value)}" for key, value in edits.items()]
        said = self._command("fork", id_, f"--at={at}", f"--save={name}", *words)
        return next((line.strip() for line in said.splitlines() if line.strip().startswith("saved")), said)

    def drop(self, name: str) -> str:
        """As Source.drop."""
        if name not in (names := [scenario.name for scenario in self.scenarios()]):
            raise unknown("scenario", name, names)
        return self._command("scenarios", "drop", name)

    def _command(self, *words: str) -> str:
        return command.run(self.run_dir, words)


MOST = 20_000
"""Most episodes of production that are held as outcomes."""
FORKS = 16
"""Episodes of forks that are at hand to be looked at: they are nowhere else."""


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
