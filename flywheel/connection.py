"""A run directory, finished or alive, opened to be looked at: `tp = flywheel.connect("runs/x")`. Without Ray.

What it reads is what the owners have made durable; nothing that this does is seen by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flywheel import archive
from flywheel.deploy import registry as registries
from flywheel.errors import UsageError
from flywheel.gate.trials import play_situations, situation_of
from flywheel.policy import Policy, load
from flywheel.records import End, Episode, Origin, Parameters, Trial, Verdict
from flywheel.store import intake
from flywheel.tapes import Difference, chain
from flywheel.task import Task
from flywheel.tasks import load as load_task
from flywheel.trace.diverge import first_difference, recheck
from flywheel.trace.edits import matching
from flywheel.trace.fork import Fork
from flywheel.trace.snapshots import NotReproducible


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An episode of a list: how it came out, without its steps."""

    id: str
    origin: Origin
    """`production`, or `gate` for a trial of a verdict."""
    digest: str
    """Policy that gave its first action."""
    scenario: str
    """"" in production."""
    total: float
    num_steps: int
    failed: bool
    end: End | None
    """None for a trial, of which it isn't kept."""
    started_at: float
    """When the episode began, or the verdict was given."""


WORDS = ("failed", "fine", "lost", "production", "gate")
"""What `episodes(where=…)` understands, besides `policy=` and what a digest begins with."""


def connect(run_dir: str | Path) -> Connection:
    """Return a run directory opened for time travel; UsageError when it is none, or its task can't be loaded."""
    return Connection(Path(run_dir))


class Policies(Mapping[str, Policy]):
    """The policies of a run directory by digest, each loaded and proven once, when it is first asked for."""

    def __init__(self, registry: registries.Registry) -> None:
        """Load nothing yet."""
        self._registry = registry
        self._loaded: dict[str, Policy] = {}

    def __getitem__(self, digest: str) -> Policy:
        if digest not in self._loaded:
            self._loaded[digest] = load(self._registry.bundle(digest))
        return self._loaded[digest]

    def __contains__(self, digest: object) -> bool:
        return digest in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(artifact.digest for artifact in self._registry.artifacts())

    def __len__(self) -> int:
        return len(self._registry.artifacts())


class Connection:
    """One run directory: its episodes, and what can be done with them."""

    def __init__(self, run_dir: Path) -> None:
        """Open it; registry and store are opened when they are first asked for."""
        self.run_dir = run_dir
        self.config: Mapping[str, Any] = archive.read_config(run_dir)["config"]
        self.task: Task = load_task(self.config["task"])

    # What there is

    @cached_property
    def registry(self) -> registries.Registry:
        """The registry, for its reading methods only."""
        return registries.open_readonly(self.run_dir)

    @cached_property
    def policies(self) -> Policies:
        """The policies by digest."""
        return Policies(self.registry)

    @property
    def verdicts(self) -> list[Verdict]:
        """Every verdict, oldest first."""
        return self.registry.verdicts()

    @property
    def parameters(self) -> Parameters:
        """The simulator's parameters as production showed them last: the middle of the last plan's ranges."""
        plans = [turn.plan for turn in archive.read_turns(self.run_dir) if turn.plan.parameters]
        ranges = plans[-1].parameters if plans else {}
        return {**self.task.nominal, **{name: (low + high) / 2 for name, (low, high) in ranges.items()}}

    def episodes(self, where: str = "", *, limit: int | None = 50) -> list[Row]:
        """Return the last episodes of production and of the gate's trials, newest first.

        `where` is words that all have to be true of one: failed, fine, lost, production, gate, policy=DIGEST.
        """
        words = where.split()
        for word in words:
            if word not in WORDS and not word.startswith("policy="):
                raise UsageError(f"There is no {word!r} to ask episodes for. Known: {', '.join(WORDS)}, policy=DIGEST.")
        rows = [row for row in self._rows(words) if all(_fits(row, word) for word in words)]
        rows.sort(key=lambda row: (row.started_at, row.id), reverse=True)
        return rows[:limit]

    def _rows(self, words: list[str]) -> Iterator[Row]:
        if "gate" not in words and (self.run_dir / intake.FILE).exists():
            with intake.open_readonly(self.run_dir) as store:
                for o in store.outcomes("production"):
                    yield Row(
                        id=o.id, origin="production", digest=o.digest, scenario="", total=o.total,
                        num_steps=o.num_steps, failed=o.failed, end=o.end, started_at=o.started_at,
                    )  # fmt: skip
        if "production" not in words and "lost" not in words and (self.run_dir / registries.FILE).exists():
            for verdict, trial in self._trials():
                yield Row(
                    id=trial.episode, origin="gate", digest=verdict.digest, scenario=trial.scenario, total=trial.total,
                    num_steps=trial.length, failed=trial.failed, end=None, started_at=verdict.judged_at,
                )  # fmt: skip

    def _trials(self) -> Iterator[tuple[Verdict, Trial]]:
        for verdict in self.verdicts:
            for trial in verdict.trials:
                yield verdict, trial

    def episode(self, id_: str) -> Episode:
        """Return the episode that an id, or what it begins with, names: production's, or a trial played again.

        Raises UsageError when there is none, or more than one; NotReproducible when a trial that is played again isn't
        what its verdict says.
        """
        found = matching("episode", id_, [row.id for row in self.episodes(limit=None)])
        trials = [(verdict, trial) for verdict, trial in self._trials() if trial.episode == found]
        if not trials:
            with intake.open_readonly(self.run_dir) as store:
                return store.read([found])[0]
        return self._played(*trials[-1])

    def _played(self, verdict: Verdict, trial: Trial) -> Episode:
        policy = self.policies[verdict.digest]
        situation = situation_of(self.task, trial)
        (episode,) = play_situations(self.task, policy, [situation], lockstep=1, now=verdict.judged_at)
        same = chain(episode) == trial.chain if trial.chain else episode.total == trial.total
        if not same:
            raise NotReproducible(
                f"Trial {trial.episode[:12]} comes out otherwise now ({episode.total:g} after {episode.num_steps} "
                f"steps for {trial.total:g} after {trial.length}): the environment or a library is another one."
            )
        return episode

    # What can be done

    def fork_episode(self, id_: str, at: int) -> Fork:
        """Return an episode as a fork that stands before its action `at`; edit it, and `replay` it."""
        return Fork(self.task, self.episode(id_), at, self.policies, parameters=self.parameters)

    def diverge(self, one: str, other: str = "") -> Difference | None:
        """Return the first step where two episodes part; of one alone, the first decision that isn't made again."""
        episode = self.episode(one)
        if other:
            return first_difference(episode, self.episode(other))
        return recheck(episode, self.policies)


def _fits(row: Row, word: str) -> bool:
    if word.startswith("policy="):
        return row.digest.startswith(word.removeprefix("policy="))
    return {
        "failed": row.failed,
        "fine": not row.failed and row.end != "lost",
        "lost": row.end == "lost",
        "production": row.origin == "production",
        "gate": row.origin == "gate",
    }[word]
