"""The observer: assembles episodes, hands their outcomes to the monitors in order of start, and raises Signals."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import ObserveConfig
from flywheel.observe.assemble import Assembler, ends_of
from flywheel.observe.monitors.outcome import OutcomeMonitor
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode, Release, Signal, SignalKind, Steps
from flywheel.task import POLICY, Task, spec_of, task_digest

SIGNALS = "observer.signals"
"""Name of the store's note of every Signal raised so far, as JSON."""
RECENT = 1000
"""Outcomes that `window` and `heard` can look back on."""


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    """An outcome that waits for its turn to be read; in order of start."""

    outcome: Outcome
    given: NDArray[np.float64] | Episode = field(compare=False)
    """What the world monitor reads: its score by the model of the time, else the episode."""
    until: float = field(compare=False)
    """When it is read although a reward of it isn't known; 0 where all are."""


@dataclass(slots=True)
class _Arm:
    """The monitors of one release."""

    release: Release
    failed: OutcomeMonitor
    loss: OutcomeMonitor | None
    world: WorldMonitor
    num_read: int = 0
    heard: deque[Outcome] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def monitors(self) -> dict[str, tuple[SignalKind, OutcomeMonitor | WorldMonitor]]:
        """The monitors by name, each with the kind of Signal that it raises."""
        loss: dict[str, tuple[SignalKind, OutcomeMonitor | WorldMonitor]] = (
            {} if self.loss is None else {"loss": ("degradation", self.loss)}
        )
        return {"failed": ("degradation", self.failed), **loss, "world": ("shift_detected", self.world)}


class Observer:
    """Watches production for one task; `observe` alone is enough for somebody who has whole episodes already."""

    def __init__(self, task: Task, config: ObserveConfig | None = None) -> None:
        """Begin without a release: episodes are assembled and counted, and nothing is tested yet."""
        self._task = task
        self._config = config or ObserveConfig()
        self._assembler = Assembler(spec_of(task), task_digest(task), task.failed, self._config.episode_timeout_s)
        self._waiting: list[_Waiting] = []
        self._recent: deque[Outcome] = deque(maxlen=RECENT)
        self._tally: dict[str, dict[str, float]] = {}
        self._arm: _Arm | None = None
        self._signals: list[Signal] = []

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Every Signal raised so far: at most one a monitor and release."""
        return tuple(self._signals)

    def watch(self, policy: str = POLICY, *, failure_bound: float | None = None, since: float = 0.0) -> Observer:
        """Begin monitors for one policy's episodes, of those that began at `since` or later; return this observer.

        For somebody who has episodes and no releases. `failure_bound` is the failure rate that is expected of it, the
        task's own limit by default.
        """
        bound = self._task.limits.max_failure_rate if failure_bound is None else failure_bound
        self.release(Release(digest=policy, stage="full", share=1.0, previous=None, released_at=since), bound)
        return self

    def release(self, release: Release, failure_bound: float) -> None:
        """Begin new monitors, with a new baseline, for the episodes that this release begins from now on.

        `failure_bound` is the failure rate that the gate promised; more than it is a degradation. The release that is
        watched already goes on with its monitors as they are.
        """
        if self._arm is not None:
            watched = self._arm.release
            if watched == release or watched.released_at > release.released_at:
                return  # it is watched already, or was replaced by a later one
        learnt = self._config.baseline_episodes
        loss = OutcomeMonitor(failure_bound, baseline=learnt) if self._task.return_range else None
        self._arm = _Arm(release, OutcomeMonitor(failure_bound), loss, WorldMonitor(learnt))
        # Whoever has a score from the model before belongs to the release before.
        self._waiting = [entry for entry in self._waiting if isinstance(entry.given, Episode)]
        heapq.heapify(self._waiting)

    def add(self, steps: Steps, now: float) -> None:
        """Take in decisions and ends, in any order, as often as they come."""
        self._assembler.add(steps, now)

    def missing(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        """Return for each episode that ends in these rows the steps that are missing: () where it is whole."""
        return {id_: self._assembler.missing(id_) for id_ in ends_of(steps)}

    def unheard(self, steps: Steps) -> list[str]:
        """Return the episodes that end in these rows and of which nothing else is known: perhaps the store does."""
        return self._assembler.unheard(ends_of(steps))

    def settle(self, ids: Iterable[str], now: float) -> None:
        """Forget the repeated ends of episodes that the store holds as whole ones."""
        self._assembler.settle(ids, now)

    def whole(self, steps: Steps) -> list[Episode]:
        """Return the whole ones of the episodes that end in these rows; make them durable, then `close` them."""
        return self._assembler.whole(ends_of(steps))

    def overdue(self, now: float) -> list[Episode]:
        """Return the episodes that nothing was heard of for too long; make them durable, then `close` them."""
        return self._assembler.overdue(now)

    def seen_at(self, id_: str) -> NDArray[np.float64] | None:
        """Return when each step and the end of an open episode was seen first, float64[T + 1]; None when it is over."""
        return self._assembler.seen_at(id_)

    def released(self, digest: str) -> Release | None:
        """Return the release that is watched, if it is of this policy."""
        watched = None if self._arm is None else self._arm.release
        return watched if watched is not None and watched.digest == digest else None

    def close(self, episodes: Sequence[Episode], answers: Mapping[str, str], now: float) -> list[Episode]:
        """Count these episodes, let their outcomes wait for their turn, and return those that were not over yet.

        `answers` is what the store said when it had made them durable; a "conflict" is only counted as such.
        """
        over = []
        for episode in episodes:
            if not self._assembler.close(episode, now):
                continue
            if answers[episode.id] == "conflict":
                self._assembler.counts.quarantined += 1
                continue
            self._put(episode, now)
            over.append(episode)
        return over

    def _put(self, episode: Episode, now: float) -> None:
        """Count a durable episode, and let its outcome wait for its turn."""
        outcome = self._count(episode)
        mine = self._arm is not None and outcome.digest == self._arm.release.digest
        score = self._arm.world.score(episode) if self._arm is not None and mine else None
        until = now + self._config.reward_window_s if np.isnan(episode.rewards).any() else 0.0
        heapq.heappush(self._waiting, _Waiting(outcome, episode if score is None else score, until))

    def judge(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Return the episodes with the task's word on whether they failed."""
        return [self._assembler.judge(episode) for episode in episodes]

    def uploaded(self, episodes: Sequence[Episode], answers: Mapping[str, str], now: float) -> list[Episode]:
        """Count durable episodes that came whole, let their outcomes wait for their turn, and return the new ones.

        `answers` is as for `close`; what the store held already was counted when it came first.
        """
        new = [episode for episode in episodes if answers[episode.id] == "stored"]
        for episode in new:
            self._put(episode, now)
        self._assembler.counts.uploaded += len(new)
        self._assembler.counts.quarantined += list(answers.values()).count("conflict")
        return new

    def is_open(self, id_: str) -> bool:
        """Say whether an episode has begun and is not over."""
        return self._assembler.is_open(id_)

    def reward_of(self, id_: str, t: int) -> float | None:
        """Return the reward that came for a step of an open episode, NaN where none did; None for no such step."""
        return self._assembler.reward_of(id_, t)

    def rewarded(self, episode: Episode, before: Outcome) -> None:
        """Count a durable episode by the rewards that came late, where it counted as `before` until now.

        What the monitors have read of it already stays as they read it.
        """
        after = outcome_of(episode)
        before = next((outcome for outcome in self._recent if outcome.id == after.id), before)
        row = self._tally.get(after.digest)
        if row is not None:
            row["failed"] += after.failed - before.failed
            row["total"] += after.total - before.total
        self._recent = deque((after if o.id == after.id else o for o in self._recent), RECENT)
        is_whole = not np.isnan(episode.rewards).any()
        self._waiting = [
            _Waiting(after, entry.given, 0.0 if is_whole else entry.until) if entry.outcome.id == after.id else entry
            for entry in self._waiting
        ]

    def tick(self, now: float) -> list[Signal]:
        """Let the monitors read every outcome whose turn has come, and return the Signals that this raised.

        Its turn comes when every episode that began before it is closed, and `wait_s` after its start, since other
        replicas may know of earlier ones; where a reward isn't known, when it is, or the reward window is over.
        """
        first = self._assembler.first_open()
        raised = []
        while self._waiting:
            outcome, until = self._waiting[0].outcome, self._waiting[0].until
            begun = (outcome.started_at, outcome.id)
            if (first is not None and begun > first) or outcome.started_at + self._config.wait_s > now or until > now:
                break
            raised += self._read(outcome, heapq.heappop(self._waiting).given, now)
        return raised

    def settled_until(self, now: float) -> tuple[float, str]:
        """Return the start and id of the first episode that may not be over: what began before it is known whole."""
        unsealed = [(e.outcome.started_at, e.outcome.id) for e in self._waiting if e.until > now]
        return min(self._assembler.first_open() or (now, ""), (now - self._config.wait_s, ""), *unsealed)

    def observe(self, episode: Episode, now: float | None = None) -> list[Signal]:
        """Let the monitors read this whole episode at once, and return the Signals that this raised."""
        return self._read(self._count(episode), episode, episode.ended_at if now is None else now)

    def resume(self, summary: Mapping[str, Mapping[str, float]], signals: Iterable[Signal]) -> None:
        """Go on from the numbers of episodes by digest that the store sums up, and from the Signals raised before."""
        self._tally = {digest: dict(row) for digest, row in summary.items()}
        self._signals = list(signals)

    def replay(self, episode: Episode) -> None:
        """Let the monitors read an episode that was counted before a restart."""
        self._recent.append(outcome_of(episode))
        self._read(outcome_of(episode), episode, episode.ended_at)

    def episodes(self, digest: str) -> int:
        """Return the number of durable production episodes that a digest began."""
        return int(self._tally.get(digest, {}).get("episodes", 0))

    def window(self, n: int, digest: str | None = None) -> list[Outcome]:
        """Return the last n (of at most 1,000) outcomes in order of closing, of one digest or of all."""
        return [o for o in self._recent if digest is None or o.digest == digest][-n:]

    def heard(self, n: int) -> tuple[int, list[Outcome]]:
        """Return how many outcomes the present release's monitors have read, and the last n (of at most 1,000) of them.

        They are in the order of reading, which is that of episode start; (0, []) without a release.
        """
        if self._arm is None:
            return 0, []
        outcomes = list(self._arm.heard)
        return self._arm.num_read, outcomes[max(0, len(outcomes) - n) :]

    def status(self, recent: int = 50) -> dict[str, Any]:
        """Return plain values: the release, its monitors, counts by digest, the last outcomes, rows and Signals."""
        arm = self._arm
        return {
            "release": None if arm is None else asdict(arm.release),
            "read": 0 if arm is None else arm.num_read,
            "monitors": {} if arm is None else {name: self._look(name, m) for name, (_, m) in arm.monitors.items()},
            "digests": {
                digest: {**row, "mean_return": row["total"] / row["episodes"]} for digest, row in self._tally.items()
            },
            "recent": [asdict(outcome) for outcome in self.window(recent)],
            "signals": [asdict(signal) for signal in self._signals],
            "open": self._assembler.num_open,
            "waiting": len(self._waiting),
            "counts": {**asdict(self._assembler.counts), "open_rows": self._assembler.num_rows},
            "trouble": self._assembler.trouble,
        }

    def _look(self, name: str, monitor: OutcomeMonitor | WorldMonitor) -> dict[str, Any]:
        return {
            "evidence": monitor.evidence,
            "threshold": self._threshold(),
            "testing": monitor.testing,
            "raised": name in self._raised(),
        }

    def _raised(self) -> set[str]:
        """Return the names of the monitors that alarmed on the present release: they stay silent until the next."""
        begun = None if self._arm is None else self._arm.release.released_at
        return {signal.monitor for signal in self._signals if signal.evidence["released_at"] == begun}

    def _threshold(self) -> float:
        # The average of e-detectors is one, so that monitors share a budget by multiplying it.
        return self._config.false_alarm_episodes * (2 if self._arm is None or self._arm.loss is None else 3)

    def _count(self, episode: Episode) -> Outcome:
        outcome = outcome_of(episode)
        row = self._tally.setdefault(outcome.digest, dict.fromkeys(("episodes", "failed", "lost", "total"), 0.0))
        row["episodes"] += 1
        row["failed"] += outcome.failed
        row["lost"] += outcome.end == "lost"
        row["total"] += outcome.total
        self._recent.append(outcome)
        return outcome

    def _read(self, outcome: Outcome, given: NDArray[np.float64] | Episode, now: float) -> list[Signal]:
        arm = self._arm
        if arm is None or outcome.digest != arm.release.digest or outcome.started_at < arm.release.released_at:
            return []
        if not outcome.is_known:
            return []
        arm.num_read += 1
        arm.heard.append(outcome)
        raised = self._raised()
        signals = []
        for name, (kind, monitor) in arm.monitors.items():
            if name in raised:
                continue
            if isinstance(monitor, WorldMonitor):
                monitor.update(outcome.id, given)
            else:
                monitor.update(float(outcome.failed) if name == "failed" else self._loss(outcome), outcome.id)
            if monitor.evidence >= self._threshold():
                signals.append(self._signal(kind, name, monitor, outcome, now))
        self._signals += signals
        return signals

    def _signal(
        self, kind: SignalKind, name: str, monitor: OutcomeMonitor | WorldMonitor, outcome: Outcome, now: float
    ) -> Signal:
        assert self._arm is not None
        limit = {"limit": monitor.limit} if isinstance(monitor, OutcomeMonitor) else {}
        return Signal(
            kind=kind,
            monitor=name,
            digest=outcome.digest,
            value=monitor.evidence,
            threshold=self._threshold(),
            since_episode=monitor.onset,
            at_episode=outcome.id,
            evidence={
                "released_at": self._arm.release.released_at,
                "num_read": self._arm.num_read,
                "num_since": monitor.num_since,
                **limit,
            },
            at=now,
        )

    def _loss(self, outcome: Outcome) -> float:
        """Return the loss as the gate counts it: 1 for a failed episode, else the shortfall of its return."""
        assert self._task.return_range is not None
        low, high = self._task.return_range
        shortfall = 1.0 - (outcome.total - low) / (high - low)
        return 1.0 if outcome.failed else min(max(shortfall, 0.0), 1.0)
