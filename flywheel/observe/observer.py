"""The observer: assembles episodes, hands their outcomes to the monitors in order of start, and raises Signals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import ObserveConfig
from flywheel.observe.arm import Arm, begin
from flywheel.observe.assemble import Assembler, ends_of
from flywheel.observe.counts import Counts
from flywheel.observe.hacks import HackWatch
from flywheel.observe.leased import Place
from flywheel.observe.monitors.hacking import Look
from flywheel.observe.order import END, Order
from flywheel.observe.strata import Given, Sorter
from flywheel.observe.tally import Tally
from flywheel.observe.waiting import Entry
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode, Release, Signal, Steps
from flywheel.task import POLICY, Task, spec_of, task_digest

SIGNALS = "observer.signals"
"""Name of the store's note of every Signal raised so far, as JSON."""


class Observer:
    """Watches production for one task; `observe` alone is enough for somebody who has whole episodes already."""

    def __init__(self, task: Task, config: ObserveConfig | None = None) -> None:
        """Begin without a release: episodes are assembled and counted, and nothing is tested yet."""
        self._task = task
        self._config = config or ObserveConfig()
        timeout_s, open_mib = self._config.episode_timeout_s, self._config.open_mib
        self._assembler = Assembler(spec_of(task), task_digest(task), task.failed, timeout_s, open_mib)
        self.order = Order(self._config, self._assembler)
        self._leased, self._waiting, self._hears_at = self.order.leased, self.order.waiting, 0.0
        self._tally = Tally()
        self.hacks = HackWatch(spec_of(task))
        self._arm: Arm | None = None
        self._sorter = Sorter(task.strata)
        self._signals: list[Signal] = []

    @property
    def counts(self) -> Counts:
        """Where everything went that came in."""
        return self._assembler.counts

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

    def release(self, release: Release, failure_bound: float, shown: float | None = None) -> None:
        """Begin new monitors, with a new baseline, for the episodes that this release begins from now on.

        `failure_bound` is the failure rate that the gate promised; more than it is a degradation, and so is more than
        what the policies before it have shown (`shown`, by default what `shown_to` says). The release that is watched
        already goes on with its monitors as they are.
        """
        if self._arm is not None:
            watched = self._arm.release
            if watched == release or watched.released_at > release.released_at:
                return  # it is watched already, or was replaced by a later one
        shown = self.shown_to(release) if shown is None else shown
        self._arm = begin(self._task, release, failure_bound, shown, self._sorter, self._config)
        self.hacks.release(release)
        # Whoever has a score from the model before belongs to the release before.
        self._waiting.leave_scored()

    def shown_to(self, release: Release) -> float:
        """Return the failure rate that a release is held to by what was served before it; 1 where that says nothing.

        It says nothing where a monitor alarmed: then the world has changed since, or what was served was bad itself.
        """
        if self._arm is None:
            return 1.0
        if self._arm.release == release:
            return self._arm.shown
        return 1.0 if self._raised() else self._arm.has_shown

    def add(self, steps: Steps, now: float) -> None:
        """Take in decisions and ends, in any order, as often as they come."""
        self._assembler.add(steps, now)

    def crowded(self, steps: Steps, now: float) -> list[Episode]:
        """Return the episodes to make durable and `close` so that these rows fit into memory, [] where they do."""
        return self._assembler.crowded(len(steps.episodes), now)

    def missing(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        """Return for each episode that ends in these rows the steps that are missing: () where it is whole."""
        return {id_: self._assembler.missing(id_, num_steps) for id_, num_steps in ends_of(steps).items()}

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
            is_passed = self._assembler.is_passed(episode.id)
            if not self._assembler.close(episode, now):
                continue
            if answers[episode.id] == "conflict":
                self.counts.quarantined += 1
                continue
            self._tally.count(episode)
            if is_passed:
                self.order.leave(episode.id)
            else:
                self._put(episode, now)
            over.append(episode)
        return over

    def _put(self, episode: Episode, now: float) -> None:
        """Let the outcome of an episode that was durable at `now` wait for its turn."""
        outcome, given = outcome_of(episode), None
        if self._arm is not None and outcome.digest == self._arm.release.digest:
            given = self._arm.given(episode)
        num_unknown = int(np.isnan(episode.rewards).sum())
        until = now + self._config.reward_window_s if num_unknown else 0.0
        assumed = self._assume(episode) if num_unknown else None
        look = self.hacks.look(episode)
        self._waiting.put(Entry(outcome, given, until, assumed, look, num_unknown if assumed else 0))

    def _assume(self, episode: Episode) -> Outcome | None:
        """Return how an episode came out if its unknown rewards are the default; None without one."""
        default = self._config.reward_default
        if default is None or not np.isnan(episode.rewards).any():
            return None
        rewards = np.nan_to_num(episode.rewards, nan=default, posinf=np.inf, neginf=-np.inf)
        return outcome_of(self._assembler.judge(dataclasses.replace(episode, rewards=rewards)))

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
            self._tally.count(episode)
            if self._leased.start(episode.id) is None or (episode.started_at, episode.id) < self.order.read_to:
                self.counts.late += 1
                self.order.leave(episode.id)
            else:
                self._put(episode, now)
        self._leased.close(answers, now)
        self.counts.uploaded += len(new)
        self.counts.quarantined += list(answers.values()).count("conflict")
        return new

    def is_unread(self, id_: str) -> bool:
        """Say whether nobody reads a durable episode, as it came too late."""
        return self.order.is_unread(id_)

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
        is_other = self._tally.change(after, before)
        waits = self._waiting.change(after, int(np.isnan(episode.rewards).sum()), self._assume(episode))
        self.counts.belated += is_other and not waits

    def tick(self, now: float) -> list[Signal]:
        """Let the monitors read every outcome whose turn has come, and return the Signals that this raised.

        Its turn comes when every episode that began before it is closed, and `wait_s` after its start (`lease_wait_s`
        where clients act by themselves), since others may know of earlier ones; where a reward isn't known, when it
        is, or the reward window is over.
        """
        self.counts.silent += self._leased.expire(now)
        return [] if self.order.is_behind else self._read_until(END, now)

    def _read_until(self, last: Place, now: float) -> list[Signal]:
        raised = list[Signal]()
        for outcome, entry in self.order.due(last, now):
            raised += self._read(outcome, entry.given, now) + self._suspect(outcome, entry.look, now)
        return raised

    def _suspect(self, outcome: Outcome, look: Look | None, now: float) -> list[Signal]:
        raised = self.hacks.read(outcome, look, now)
        self._signals += raised
        return raised

    def settled_until(self, now: float) -> Place:
        """Return the start and id of the first episode that may not be over: what began before it is known whole."""
        return self.order.settled_until(now)

    def observe(self, episode: Episode, now: float | None = None) -> list[Signal]:
        """Let the monitors read this whole episode at once, and return the Signals that this raised."""
        outcome = self._tally.count(episode)
        outcome, now = self._assume(episode) or outcome, episode.ended_at if now is None else now
        given = self._arm.given(episode) if self._hears(outcome) and self._arm is not None else None
        return self._read(outcome, given, now) + self._suspect(outcome, self.hacks.look(episode), now)

    def resume(
        self,
        summary: Mapping[str, Mapping[str, float]],
        signals: Iterable[Signal],
        *,
        now: float = 0.0,
        leased: bool = False,
        hacks: str | None = None,
    ) -> None:
        """Go on from the numbers of episodes by digest that the store sums up, and from the Signals raised before.

        Nothing is read until all that was counted before was given again, and `caught_up` says so. `leased` says that
        clients act by themselves: they tell what runs within `lease_wait_s`, and `hears` it then. `hacks` is what the
        watch for hacked rewards had noted.
        """
        self._tally = Tally(summary)
        self._signals = list(signals)
        self.hacks.resume(hacks, self._signals)
        self._leased.are_known, self.order.is_behind = leased, True
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

    def replay(self, episodes: Sequence[Episode | Outcome], now: float) -> list[Signal]:
        """Let the monitors read what was counted before a restart, as `tick` does: the next episodes in order of start.

        An Outcome stands for an episode whose steps aren't at hand. Those whose turn hasn't come wait for it; giving
        the same ones again changes nothing. Returns the Signals that this raised.
        """
        for each in episodes:
            self._tally.remember(each if isinstance(each, Outcome) else outcome_of(each))
            if (each.started_at, each.id) <= self.order.read_to:
                continue
            if isinstance(each, Outcome):
                self._waiting.put(Entry(each, given=None, until=0.0))
            else:
                self._put(each, each.ended_at)
        return self._read_until((episodes[-1].started_at, episodes[-1].id), now)

    def replay_beside(self, episodes: Iterable[Episode], now: float) -> list[Signal]:
        """Let the watch for hacked rewards read another policy's episodes, in order of start, as before a restart."""
        return [s for each in episodes for s in self._suspect(outcome_of(each), self.hacks.look(each), now)]

    def caught_up(self) -> None:
        """Go on reading: all that was counted before a restart was given again."""
        self.order.is_behind = False

    def episodes(self, digest: str) -> int:
        """Return the number of durable production episodes that a digest began."""
        return self._tally.episodes(digest)

    def window(self, n: int, digest: str | None = None) -> list[Outcome]:
        """Return the last n (of at most 1,000) outcomes in order of closing, of one digest or of all."""
        return self._tally.window(n, digest)

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
            "monitors": {} if arm is None else arm.look(self._raised()),
            "hacking": self.hacks.looks(),
            "digests": self._tally.rows(),
            "recent": [asdict(outcome) for outcome in self.window(recent)],
            "signals": [asdict(signal) for signal in self._signals],
            "open": self._assembler.num_open,
            "leased": len(self._leased),
            "waiting": len(self._waiting),
            "open_mib": self._assembler.num_bytes / 2**20,
            "counts": {**asdict(self.counts), "open_rows": self._assembler.num_rows},
            "strata": {"names": [] if arm is None else arm.strata, "errors": self._sorter.num_errors},
            "trouble": self._assembler.trouble or self._sorter.trouble,
        }

    def _raised(self) -> set[str]:
        """Return the names of the monitors that alarmed on the present release: they stay silent until the next."""
        begun = None if self._arm is None else self._arm.release.released_at
        return {signal.monitor for signal in self._signals if signal.evidence["released_at"] == begun}

    def _hears(self, outcome: Outcome) -> bool:
        """Say whether an outcome is for the monitors of the present release."""
        release = self.watched
        mine = release is not None and outcome.digest == release.digest and outcome.started_at >= release.released_at
        return mine and outcome.is_known

    def _read(self, outcome: Outcome, given: Given | None, now: float) -> list[Signal]:
        if self._arm is None or not self._hears(outcome):
            return []
        signals = self._arm.read(outcome, given, self._raised(), now)
        self._signals += signals
        return signals
