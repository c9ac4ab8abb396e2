"""What production says of a candidate before it is tried, and of the gate that is to judge it.

Whoever owns the run directory asks here: a wheel, whose registry is an actor, or a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from flywheel.analyze.diagnose import split
from flywheel.analyze.off_policy import LEAST, OffPolicy, evaluate
from flywheel.analyze.predictive import Compared, compare, doubt, judged_by
from flywheel.config import AnalyzeConfig, GateConfig
from flywheel.console import Say
from flywheel.errors import FlywheelError
from flywheel.gate.judge import terms
from flywheel.policy import load
from flywheel.records import Check, Correction, Episode, Parameters, Signal
from flywheel.simulate.corrected import corrected
from flywheel.store import intake
from flywheel.task import Task

EPISODES = 500
"""Most recent episodes of the policy in service that an off-policy estimate reads."""
OUTCOMES = 2000
"""First outcomes of a release that are compared with what the gate foretold."""


def releases(
    task: Task,
    config: AnalyzeConfig,
    run_dir: Path,
    ask: Callable[..., Any],
    registry: Any,
    settled: Callable[[], tuple[float, str]] | None = None,
) -> Generator[Compared]:
    """Yield every release of a run directory that production has tried, beside its verdict, the newest first.

    Of each no more than its first outcomes are read, and nothing of those that nobody asks for.

    `ask(method, *arguments)` calls the methods of `registry` (Registry's). It is a function of what registry and store
    hold: the same files give the same answer. While episodes are played, `settled` gives the place (start, id) before
    which all are over: short, failed ones are over first, and alone would contradict any gate.
    """
    if not (run_dir / intake.FILE).exists():
        return
    served = ask(registry.releases)
    with intake.open_readonly(run_dir) as store:
        for release, after in reversed(list(itertools.zip_longest(served, served[1:]))):
            verdict = judged_by(release, ask(registry.verdicts, release.digest))
            if verdict is None:
                continue
            until = (math.inf, "") if after is None else (after.released_at, "")
            if after is None and settled is not None:
                until = settled()
            outcomes = store.settled([release.digest], (release.released_at, ""), until, OUTCOMES)
            gap, loss = config.sim_gap, config.sim_loss
            found = compare(verdict, outcomes, gap=gap, loss=loss, span=task.return_range)
            if found is not None:
                yield found


def question(
    task: Task,
    gate: GateConfig,
    config: AnalyzeConfig,
    run_dir: Path,
    ask: Callable[..., Any],
    registry: Any,
    parameters: Parameters,
    settled: Callable[[], tuple[float, str]] | None = None,
) -> Check | None:
    """Return the check on the gate itself, of verdicts in worlds at `parameters` (missing ones nominal); None: none.

    The rest is as for `releases`.
    """
    _, simulator = terms(task, gate, parameters)
    with contextlib.closing(releases(task, config, run_dir, ask, registry, settled)) as compared:
        return doubt(compared, simulator, bool(task.parameters))


class Foresight:
    """What production says beforehand, for a wheel."""

    def __init__(
        self, task: Task, gate: GateConfig, config: AnalyzeConfig, run_dir: Path, ask: Callable[..., Any], rooms: Any,
        say: Say,
    ) -> None:  # fmt: skip
        """Ask the `registry` of rooms, once it is needed."""
        self._given, self._ask, self._rooms, self._say = (gate, config, run_dir), ask, rooms, say
        self._task, self._run_dir = task, run_dir
        self.looked: str | None = None
        """Digest of the last candidate that was looked at."""
        self.estimate: OffPolicy | None = None
        """Of that one; None where production has nothing to say of it."""

    def question(self, parameters: Parameters, correction: Correction | None = None) -> Check | None:
        """Return the check on the gate itself, and tell where production contradicts it; worlds act by `correction`."""
        found = question(
            corrected(self._task, correction), *self._given, self._ask, self._rooms.registry, parameters,
            lambda: self._ask(self._rooms.serving.observer.settled_until),
        )  # fmt: skip
        if found is not None and found.passed is None:
            self._say("gate", found.note)
        return found

    def look(self, digest: str, champion: str | None, signals: Sequence[Signal], seed: int) -> None:
        """Estimate a candidate on the episodes of the policy in service, and tell it: a screen, and no verdict.

        Where an alarm about that one is open only episodes since its evidence begins count: the world was another.
        """
        self.looked, self.estimate = digest, None
        if champion is None or champion == digest or not (self._run_dir / intake.FILE).exists():
            return
        try:
            with intake.open_readonly(self._run_dir) as store:
                episodes = store.recent(EPISODES, None, champion)
            changed = split(episodes, signals)[1] if signals else episodes
            if len(changed) < LEAST:
                return
            self.estimate = self._of(digest, changed, seed)
        except Exception as error:  # a network may do anything, a segment be damaged: no verdict hangs on an estimate
            why = error if isinstance(error, FlywheelError) else repr(error)
            self._say("gate", f"no off-policy estimate of policy {digest[:8]}: {why}")
        else:
            self._say("gate", str(self.estimate))

    def _of(self, digest: str, episodes: Sequence[Episode], seed: int) -> OffPolicy:
        policy = load(self._ask(self._rooms.registry.bundle, digest))
        return evaluate(episodes, policy, seed, self._task.return_range)

    @property
    def is_slow(self) -> bool:
        """Whether a canary of the last candidate begins at the smallest share in any case."""
        return self.estimate is not None and self.estimate.is_screened

    def evidence(self) -> dict[str, Any]:
        """Return what a turn keeps of it, and begin anew."""
        found, self.estimate = self.estimate, None
        if found is None:
            return {}
        return {"off_policy": dataclasses.asdict(found) | {"screened": found.is_screened, "said": str(found)}}
