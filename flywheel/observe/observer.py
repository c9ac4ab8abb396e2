"""The observer: assembles episodes, hands their outcomes to the monitors in order of start, and raises Signals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import ObserveConfig
from flywheel.observe.arm import RECENT, Arm, loss_of
from flywheel.observe.assemble import Assembler, ends_of
from flywheel.observe.leased import Leased, Place
from flywheel.observe.monitors.outcome import OutcomeMonitor
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.observe.waiting import Entry, Waiting
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode, Release, Signal, Steps
from flywheel.task import POLICY, Task, spec_of, task_digest

SIGNALS = "observer.signals"
"""Name of the store's note of every Signal raised so far, as JSON."""
_UNREAD = 10_000
"""Ids kept of episodes that nobody reads: a canary that asks for what began long ago must not find them."""
_BEGINNING: Place = (0.0, "")
_END: Place = (float("inf"), "")


class Observer:
    """Watches production for one task; `observe` alone is enough for somebody who has whole episodes already."""

    def __init__(self, task: Task, config: ObserveConfig | None = None) -> None:
        """Begin without a release: episodes are assembled and counted, and nothing is tested yet."""
        self._task = task
        self._config = config or ObserveConfig()
        self._assembler = Assembler(spec_of(task), task_digest(task), task.failed, self._config.episode_timeout_s)
        self._leased = Leased(self._config.episode_timeout_s)
        self._waiting = Waiting()
        self._read_to = _BEGINNING
        self._unread: dict[str, None] = {}
        self._hears_at, self._is_behind = 0.0, False
        self._recent: dict[str, Outcome] = {}
        self._tally: dict[str, dict[str, float]] = {}
        self._arm: Arm | None = None
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
        self._arm = Arm(release, OutcomeMonitor(failure_bound), loss, WorldMonitor(learnt))
        # Whoever has a score from the model before belongs to the release before.
        self._waiting.leave_scored()

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

    @property
    def watched(self) -> Release | None:
        """The release that is watched, if any is."""
        return None if self._arm is None else self._arm.release

    def released(self, digest: str) -> Release | None:
        """Return the release that is watched, if it is of this policy."""
        return self.watched if self.watched is not None and self.watched.digest == digest else None

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
            self._count(episode)
            self._put(episode, now)
            over.append(episode)
        return over

    def _put(self, episode: Episode, now: float) -> None:
        """Let the outcome of an episode that was durable at `now` wait for its turn."""
        outcome, given = outcome_of(episode), None
        if self._arm is not None and outcome.digest == self._arm.release.digest:
            score = self._arm.world.score(episode)
            given = episode if score is None else score
        until = now + self._config.reward_window_s if np.isnan(episode.rewards).any() else 0.0
        self._waiting.put(Entry(outcome, given, until))

    def judge(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Return the episodes with the task's word on whether they failed."""
        return [self._assembler.judge(episode) for episode in episodes]

    def begun(self, begun: Mapping[str, float], now: float) -> bool:
        """Hold the places of episodes (id → start) that clients act in; return True for the first word of any."""
        was_known = self._leased.are_known
        self._leased.hear(begun, now)
        return self._leased.are_known and not was_known

    def placed(self, episodes: Iterable[Episode]) -> list[Episode]:
        """Return whole episodes as beginning where there was first word of them."""
        found = []
        for episode in episodes:
            start = self._leased.start(episode.id)
            if start is not None:
                episode = dataclasses.replace(episode, started_at=start, ended_at=max(episode.ended_at, start))
            found.append(episode)
        return found

    def uploaded(self, episodes: Sequence[Episode], answers: Mapping[str, str], now: float) -> list[Episode]:
        """Count durable episodes that came whole, let their outcomes wait for their turn, and return the new ones.

        `answers` is as for `close`; what the store held already was counted when it came first. One that holds no
        place, or one before another that was read already, is read by nobody.
        """
        new = [episode for episode in episodes if answers[episode.id] == "stored"]
        for episode in new:
            self._count(episode)
            if self._leased.start(episode.id) is None or (episode.started_at, episode.id) < self._read_to:
                self._assembler.counts.late += 1
                self._unread[episode.id] = None
                if len(self._unread) > _UNREAD:
                    del self._unread[next(iter(self._unread))]
            else:
                self._put(episode, now)
        self._leased.close(answers, now)
        self._assembler.counts.uploaded += len(new)
        self._assembler.counts.quarantined += list(answers.values()).count("conflict")
        return new

    def is_unread(self, id_: str) -> bool:
        """Say whether nobody reads a durable episode, as it came too late."""
        return id_ in self._unread

    def is_open(self, id_: str) -> bool:
        """Say whether an episode has begun and is not over."""
        return self._assembler.is_open(id_)

    def unfinished(self, most: int) -> list[Episode]:
        """Return open episodes of the release that is watched, as Assembler.unfinished."""
        return [] if self.watched is None else self._assembler.unfinished(self.watched.digest, most)

    def reward_of(self, id_: str, t: int) -> float | None:
        """Return the reward that came for a step of an open episode, NaN where none did; None for no such step."""
        return self._assembler.reward_of(id_, t)

    def rewarded(self, episode: Episode, before: Outcome) -> None:
        """Count a durable episode by the rewards that came late, where it counted as `before` until now.

        What the monitors have read of it already stays as they read it.
        """
        after = outcome_of(episode)
        before = self._recent.get(after.id, before)
        row = self._tally.get(after.digest)
        if row is not None:
            row["failed"] += after.failed - before.failed
            row["total"] += after.total - before.total
        if after.id in self._recent:
            self._recent[after.id] = after
        self._waiting.change(after, is_whole=not np.isnan(episode.rewards).any())

    def tick(self, now: float) -> list[Signal]:
        """Let the monitors read every outcome whose turn has come, and return the Signals that this raised.

        Its turn comes when every episode that began before it is closed, and `wait_s` after its start (`lease_wait_s`
        where clients act by themselves), since others may know of earlier ones; where a reward isn't known, when it
        is, or the reward window is over.
        """
        self._assembler.counts.silent += self._leased.expire(now)
        return [] if self._is_behind else self._read_until(_END, now)

    def _read_until(self, last: Place, now: float) -> list[Signal]:
        limit, raised = min(last, self._first_open()), list[Signal]()
        while (entry := self._waiting.first()) is not None:
            if entry.place > limit or entry.outcome.started_at + self._wait_s > now or entry.until > now:
                break
            self._waiting.pop()
            self._read_to = max(self._read_to, entry.place)
            raised += self._read(entry.outcome, entry.given, now)
        return raised

    def _first_open(self) -> Place:
        """Return the place of the first episode that isn't over and may still be read."""
        return min(self._assembler.first_open() or _END, self._leased.first(self._read_to) or _END)

    @property
    def _wait_s(self) -> float:
        return self._config.lease_wait_s if self._leased.are_known else self._config.wait_s

    def settled_until(self, now: float) -> Place:
        """Return the start and id of the first episode that may not be over: what began before it is known whole."""
        if self._is_behind:
            return _BEGINNING
        return min(self._first_open(), (now - self._wait_s, ""), self._waiting.unsealed(now) or _END)

    def observe(self, episode: Episode, now: float | None = None) -> list[Signal]:
        """Let the monitors read this whole episode at once, and return the Signals that this raised."""
        return self._read(self._count(episode), episode, episode.ended_at if now is None else now)

    def resume(
        self,
        summary: Mapping[str, Mapping[str, float]],
        signals: Iterable[Signal],
        *,
        now: float = 0.0,
        leased: bool = False,
    ) -> None:
        """Go on from the numbers of episodes by digest that the store sums up, and from the Signals raised before.

        Nothing is read until all that was counted before was given again, and `caught_up` says so. `leased` says that
        clients act by themselves: they tell what runs within `lease_wait_s`, and `hears` it then.
        """
        self._tally = {digest: dict(row) for digest, row in summary.items()}
        self._signals = list(signals)
        self._leased.are_known, self._is_behind = leased, True
        self._hears_at = now + self._config.lease_wait_s if leased else now

    def hears(self, now: float) -> bool:
        """Say whether there was time for word of what runs since a restart."""
        return now >= self._hears_at

    def lacking(self, episodes: Iterable[Episode], now: float) -> None:
        """Let episodes that were counted before a restart wait for their rewards as long as the window still is."""
        for episode in episodes:
            is_waited_for = episode.ended_at + self._config.reward_window_s > now
            if is_waited_for and np.isnan(episode.rewards).any():
                self._put(episode, episode.ended_at)

    def replay(self, episodes: Sequence[Episode], now: float) -> list[Signal]:
        """Let the monitors read what was counted before a restart, as `tick` does: the next episodes in order of start.

        Those whose turn hasn't come wait for it; giving the same ones again changes nothing. Returns the Signals that
        this raised.
        """
        for episode in episodes:
            self._remember(outcome_of(episode))
            if (episode.started_at, episode.id) > self._read_to:
                self._put(episode, episode.ended_at)
        return self._read_until((episodes[-1].started_at, episodes[-1].id), now)

    def caught_up(self) -> None:
        """Go on reading: all that was counted before a restart was given again."""
        self._is_behind = False

    def episodes(self, digest: str) -> int:
        """Return the number of durable production episodes that a digest began."""
        return int(self._tally.get(digest, {}).get("episodes", 0))

    def window(self, n: int, digest: str | None = None) -> list[Outcome]:
        """Return the last n (of at most 1,000) outcomes in order of closing, of one digest or of all."""
        return [o for o in self._recent.values() if digest is None or o.digest == digest][-n:]

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
            "leased": len(self._leased),
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
        self._remember(outcome)
        return outcome

    def _remember(self, outcome: Outcome) -> None:
        self._recent[outcome.id] = outcome
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def _read(self, outcome: Outcome, given: NDArray[np.float64] | Episode | None, now: float) -> list[Signal]:
        arm = self._arm
        if arm is None or outcome.digest != arm.release.digest or outcome.started_at < arm.release.released_at:
            return []
        if not outcome.is_known:
            return []
        arm.num_read += 1
        arm.heard.append(outcome)
        raised = self._raised()
        signals = []
        for name, (_, monitor) in arm.monitors.items():
            if name in raised:
                continue
            if isinstance(monitor, WorldMonitor):
                if given is not None:
                    monitor.update(outcome.id, given)
            elif name == "failed":
                monitor.update(float(outcome.failed), outcome.id)
            else:
                assert self._task.return_range is not None
                monitor.update(loss_of(outcome, self._task.return_range), outcome.id)
            if monitor.evidence >= self._threshold():
                signals.append(arm.signal(name, outcome, self._threshold(), now))
        self._signals += signals
        return signals
