"""One release under watch: its monitors, their budget of false alarms, and what they say."""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from flywheel.config import ObserveConfig
from flywheel.observe.monitors.inputs import InputMonitor
from flywheel.observe.monitors.outcome import HEAD_START, SHOWN_EPISODES, FailureMonitor, LossMonitor, shown
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.observe.strata import Given, Sorter, Strata
from flywheel.outcomes import Outcome
from flywheel.records import Episode, Release, Signal, SignalKind
from flywheel.task import Task

RECENT = 1000
"""Outcomes that `window` and `heard` can look back on."""
SHARES = {"failed": 15.0, "loss": 1.5, "world": 2.5, "inputs": 1.0}
"""Shares of the budget of false alarms: most of it where a delay costs failures. The others lose little by a small
share, as their evidence grows by factors: a tenth of the budget is worth two or three episodes to them."""
KINDS: dict[str, SignalKind] = {
    "failed": "degradation",
    "loss": "degradation",
    "world": "shift_detected",
    "inputs": "shift_detected",
}
"""What each monitor raises; only a degradation may lead to a rollback."""
Watcher = FailureMonitor | LossMonitor | Strata


@dataclass(slots=True)
class Arm:
    """The monitors of one release."""

    release: Release
    failure_bound: float
    """What the gate promised."""
    shown: float
    """What the policies before it have shown: an upper confidence bound of their failure rate, 1 where nothing."""
    monitors: dict[str, Watcher]
    thresholds: dict[str, float]
    """Evidence at which each monitor raises its Signal."""
    return_range: tuple[float, float] | None
    sorter: Sorter
    num_read: int = 0
    num_failed: int = 0
    heard: deque[Outcome] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def has_shown(self) -> float:
        """What the next policy is held to: this one's failure rate in service, once it is known well enough."""
        return shown(self.num_failed, self.num_read) if self.num_read >= SHOWN_EPISODES else self.shown

    @property
    def strata(self) -> list[str]:
        """The names of the strata that have a baseline, where the task tells any."""
        world = self.monitors["world"]
        assert isinstance(world, Strata)
        return [name for name in world.names if name]

    def given(self, episode: Episode) -> Given:
        """Return what the monitors of shifts will read of an episode: its scores, once their models are fitted."""
        stratum, scores = self.sorter(episode), {}
        for name, monitor in self.monitors.items():
            if isinstance(monitor, Strata):
                score = monitor.score(episode, stratum)
                if score is None:
                    return Given(stratum, None, episode)
                scores[name] = score
        return Given(stratum, scores, None)

    def read(self, outcome: Outcome, given: Given | None, silent: AbstractSet[str], now: float) -> list[Signal]:
        """Let the monitors read how an episode came out, but for those that are silent; return what they raise."""
        self.num_read += 1
        self.num_failed += outcome.failed
        self.heard.append(outcome)
        signals = []
        for name, monitor in self.monitors.items():
            if name in silent:
                continue
            if isinstance(monitor, FailureMonitor):
                monitor.update(float(outcome.failed), outcome.id)
            elif isinstance(monitor, LossMonitor):
                assert self.return_range is not None
                monitor.update(loss_of(outcome, self.return_range), outcome.id)
            elif given is not None:
                what = given.episode if given.scores is None else given.scores[name]
                assert what is not None
                monitor.update(outcome.id, what, given.stratum)
            if monitor.evidence >= self.thresholds[name]:
                signals.append(self._signal(name, outcome, now))
        return signals

    def look(self, silent: AbstractSet[str]) -> dict[str, dict[str, Any]]:
        """Return plain values of each monitor."""
        return {
            name: {
                "evidence": monitor.evidence,
                "threshold": self.thresholds[name],
                "testing": monitor.testing,
                "raised": name in silent,
            }
            for name, monitor in self.monitors.items()
        }

    def _signal(self, name: str, outcome: Outcome, now: float) -> Signal:
        monitor = self.monitors[name]
        evidence: dict[str, Any] = {
            "released_at": self.release.released_at,
            "num_read": self.num_read,
            "num_since": monitor.num_since,
        }
        if isinstance(monitor, Strata):
            evidence |= {"stratum": monitor.stratum} if monitor.stratum else {}
        else:
            evidence |= {"limit": monitor.limit, "promised": self.failure_bound}
        return Signal(
            kind=KINDS[name],
            monitor=name,
            digest=outcome.digest,
            value=monitor.evidence,
            threshold=self.thresholds[name],
            since_episode=monitor.onset,
            at_episode=outcome.id,
            evidence=evidence,
            at=now,
        )


def begin(
    task: Task, release: Release, failure_bound: float, shown_before: float, sorter: Sorter, config: ObserveConfig
) -> Arm:
    """Return new monitors for a release.

    It is held to what the gate promised, or to what the policies before it have shown where that is less.
    """
    learnt, names = config.baseline_episodes, [n for n in SHARES if n != "loss" or task.return_range is not None]
    thresholds = budgeted(config.false_alarm_episodes, names)
    limit = min(failure_bound, shown_before)
    monitors: dict[str, Watcher] = {"failed": FailureMonitor(limit, HEAD_START * thresholds["failed"])}
    if task.return_range is not None:
        monitors["loss"] = LossMonitor(failure_bound, learnt)
    monitors |= {"world": Strata(lambda: WorldMonitor(learnt)), "inputs": Strata(lambda: InputMonitor(learnt))}
    return Arm(release, failure_bound, shown_before, monitors, thresholds, task.return_range, sorter)


def budgeted(episodes: float, names: list[str]) -> dict[str, float]:
    """Return thresholds by which monitors of these names raise a false alarm once in `episodes` episodes together.

    A weighted average of e-detectors is one: with weights w that add up to 1, and a monitor's threshold A / w, the
    average is at least A when any of them alarms, and its mean at most the number of episodes and what it began with,
    which is `HEAD_START` * A. So A is `episodes` / (1 - `HEAD_START`).
    """
    total = sum(SHARES[name] for name in names)
    return {name: episodes / (1.0 - HEAD_START) * total / SHARES[name] for name in names}


def loss_of(outcome: Outcome, return_range: tuple[float, float]) -> float:
    """Return the loss as the gate counts it: 1 for a failed episode, else the shortfall of its return."""
    low, high = return_range
    shortfall = 1.0 - (outcome.total - low) / (high - low)
    return 1.0 if outcome.failed else min(max(shortfall, 0.0), 1.0)
