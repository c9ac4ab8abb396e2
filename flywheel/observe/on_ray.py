"""The observer's body on Ray: an async actor between the replicas and the store."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray

from flywheel.config import ObserveConfig, TraceConfig
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.observe.hacks import HACKS
from flywheel.observe.observer import SIGNALS, Observer
from flywheel.observe.outlook import CLOSED, EARLY, OPEN, Foresee, Outlook
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode, Release, Reward, Signal, Steps
from flywheel.task import Task
from flywheel.trace import on_ray as trace
from flywheel.trace.tail import Tail

log = logging.getLogger(__name__)
_TICK_S = 0.25
_PAGE = 500
_RELEASE = "observer.release"
_LEASED = "observer.leased"
"""Noted once there was word of a client that acts by itself."""


class _Watched(msgspec.Struct):
    """What must outlive the actor: the release under watch, with its promise and what was shown before it."""

    release: Release
    failure_bound: float
    shown: float = 1.0


class ObserverActor:
    """Assembles what replicas send; answers an end after the store's commit.

    Every call into the plain Observer is free of awaits and so is never interleaved with another; what awaits (the
    store) may be repeated without harm.
    """

    def __init__(
        self,
        task: Task,
        config: ObserveConfig,
        store: str,
        wheel: str = WHEEL,
        namespace: str | None = None,
        tracing: TraceConfig | None = None,
        foresee: Foresee | None = None,
    ) -> None:
        """Find the store's actor by its name, in Ray's namespace of the wheel; `foresee` is as for Outlook.

        What was watched before a restart is read from it at the first call.
        """
        self._meters = Recorder(wheel)
        self._config = config
        self._store = ray.get_actor(store, namespace=namespace)
        self._observer, self._outlook = Observer(task, config), Outlook(task, foresee)
        self._lock, self._rewarding, self._adding = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._changed = asyncio.Condition()
        self._ticking: asyncio.Task[None] | None = None
        self._is_behind = False
        self._trouble = ""
        tracing = tracing or TraceConfig()
        self._tail = Tail(tracing)
        self._spans = trace.outlet(tracing, namespace)

    def __repr__(self) -> str:
        return f"observer({self._meters.wheel})"

    async def settings(self) -> ObserveConfig:
        """Return the configuration that it was started with."""
        return self._config

    @ray.method(enable_task_events=False)  # type: ignore[untyped-decorator]  # many a second, nobody looks for one
    async def append(self, steps: Steps) -> None:
        """Take in the rows a replica gathered."""
        await self._add(steps)

    async def _add(self, steps: Steps) -> None:
        """Take in rows as soon as there is room for them."""
        await self._ready()
        async with self._adding:
            while evicted := self._observer.crowded(steps, time.time()):
                await self._keep(evicted)
            self._observer.add(steps, time.time())
        await self._notify()

    async def end(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        """Return for each episode that ends in these rows: () when it is durable, else the steps to send again."""
        await self._add(steps)
        await self._wait_for(lambda: not any(self._observer.missing(steps).values()), self._config.wait_s)
        if unheard := self._observer.unheard(steps):
            self._observer.settle(await self._store.whole.remote(unheard), time.time())
        missing = self._observer.missing(steps)
        await self._keep(self._observer.whole(steps))
        self._meters.record(readings.of_ends(steps, missing, time.time()))
        return missing

    async def reward(self, rewards: Sequence[Reward]) -> list[str]:
        """Return what became of each late reward: "stored" or "same" (durable), "conflict" (aside), or "unknown".

        A step that nobody knows yet is waited for as an end waits for its steps.
        """
        await self._ready()
        answers = await self._rewarded(rewards)
        rest = [i for i, answer in enumerate(answers) if answer == "unknown"]
        if rest:
            late = [rewards[i] for i in rest]
            await self._wait_for(lambda: all(self._told(reward) is not None for reward in late), self._config.wait_s)
            for i, answer in zip(rest, await self._rewarded(late), strict=True):
                answers[i] = answer
        self._observer.counts.tell(answers)
        return answers

    def _told(self, reward: Reward) -> float | None:
        return self._observer.reward_of(reward.episode, reward.t)

    async def _rewarded(self, rewards: Sequence[Reward]) -> list[str]:
        """Make rewards durable, and count the episodes that are over as they show them."""
        async with self._rewarding:
            answers, changed = await self._store.reward.remote(rewards, [self._told(reward) for reward in rewards])
            ids = [each.episode.id for each in changed]
            await self._wait_for(lambda: not any(map(self._observer.is_open, ids)), self._config.wait_s)
            judged = await self._judged([each.episode for each in changed])
            for each, episode in zip(changed, judged, strict=True):
                before = dataclasses.replace(outcome_of(each.episode), total=each.total_before)
                self._observer.rewarded(episode, before)
        await self._notify()
        found: list[str] = list(answers)
        return found

    async def _judged(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return stored episodes as the task judges them, which the store knows then."""
        judged = self._observer.judge(episodes)
        pairs = zip(episodes, judged, strict=True)
        if failed := {after.id: after.failed for before, after in pairs if after.failed != before.failed}:
            await self._store.judge.remote(failed)
        return judged

    async def begun(self, begun: Mapping[str, float]) -> None:
        """Hold the places of episodes (id → start) that clients act in by themselves."""
        await self._ready()
        if self._observer.begun(begun, time.time()):
            await self._store.note.remote(_LEASED, "yes")

    async def upload(self, episodes: Sequence[Episode]) -> Mapping[str, str]:
        """Return what became of each whole episode: "stored" or "same" (durable), or "conflict" (aside)."""
        await self._ready()
        judged, began = self._observer.judge(self._observer.placed(episodes)), time.time()
        answers: Mapping[str, str] = await self._store.append.remote(judged)
        new = self._observer.uploaded(judged, answers, time.time())
        # nobody saw its steps: they are told as evenly spread
        spread = [(e, np.linspace(e.started_at, e.ended_at, e.num_steps + 1)) for e in new]
        self._trace(spread, (began, time.time()))
        await self._read()
        return answers

    async def release(self, release: Release, failure_bound: float) -> None:
        """Watch this release, with a baseline of its own, from now on and after any restart of this actor.

        As Observer.release, nothing changes for the release that is watched already.
        """
        await self._ready()
        async with self._lock:
            watched = _Watched(release, failure_bound, self._observer.shown_to(release))
            await self._store.note.remote(_RELEASE, msgspec.json.encode(watched).decode())
            self._observer.release(release, failure_bound, watched.shown)
            await self._note()

    async def _note(self) -> None:
        """Keep what the watch for hacked rewards must not forget."""
        if (note := self._observer.hacks.note()) is not None:
            await self._store.note.remote(HACKS, note)
            self._observer.hacks.noted(note)

    async def status(self, recent: int = 50) -> dict[str, Any]:
        """Return plain values: the release, its monitors, counts by digest, the last outcomes, rows and Signals."""
        await self._ready()
        return {**self._observer.status(recent), "store_trouble": self._trouble, "estimated": self._outlook.told}

    async def heard(self, n: int) -> tuple[int, list[Outcome]]:
        """As Observer.heard; after a restart, once the monitors have read what they had read before."""
        await self._ready()
        await self._wait_for(lambda: not self._is_behind)
        return self._observer.heard(n)

    async def outcomes(self, digests: Sequence[str], after: tuple[float, str]) -> list[Outcome]:
        """Return how these policies' episodes came out that began after one, in order of start.

        They end where the first one is open: whoever reads them reads in order of start, at the price of waiting.
        """
        await self._ready()
        until = self._observer.settled_until(time.time())
        rows = await self._store.settled.remote(digests, after, until)
        return [_outcome(row) for row in rows if not self._observer.is_unread(row.id)]

    async def settled_until(self) -> tuple[float, str]:
        """As Observer.settled_until."""
        await self._ready()
        return self._observer.settled_until(time.time())

    async def signals(self) -> tuple[Signal, ...]:
        """Return every Signal raised so far."""
        await self._ready()
        return self._observer.signals

    async def wait(
        self, *, signals: int | None = None, digest: str = "", episodes: int | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """Return the status once more than `signals` Signals were raised, once `digest` has at least `episodes`
        durable episodes, or after `timeout_s` seconds; what is None is not waited for.
        """
        await self._ready()

        def come() -> bool:
            raised = signals is not None and len(self._observer.signals) > signals
            return raised or (episodes is not None and self._observer.episodes(digest) >= episodes)

        await self._wait_for(come, timeout_s)
        return await self.status()

    async def _keep(self, episodes: Sequence[Episode]) -> None:
        """Make the episodes durable, then count them and let the monitors read what is due."""
        if episodes:
            seen_at, began = [self._observer.seen_at(episode.id) for episode in episodes], time.time()
            answers = await self._store.append.remote(episodes)
            episodes = await self._known(episodes, answers)
            over = {episode.id for episode in self._observer.close(episodes, answers, time.time())}
            pairs = zip(episodes, seen_at, strict=True)
            self._trace([(e, seen) for e, seen in pairs if seen is not None and e.id in over], (began, time.time()))
        await self._read()

    async def _known(self, episodes: Sequence[Episode], answers: Mapping[str, str]) -> Sequence[Episode]:
        """Return episodes that were stored just now with the rewards that came before their end, beside their steps."""
        lacking = [e.id for e in episodes if np.isnan(e.rewards).any() and answers[e.id] == "stored"]
        if not lacking:
            return episodes
        stored = {e.id: e for e in await self._judged(await self._store.read.remote(lacking))}
        return [stored.get(episode.id, episode) for episode in episodes]

    async def _read(self) -> None:
        """Let the monitors read what is due."""
        await self._tell(self._observer.tick(time.time()))
        await self._note()
        if assumed := self._observer.order.assumed():
            await self._store.judge.remote(assumed)
            self._observer.order.settled(assumed)

    async def _tell(self, raised: Sequence[Signal]) -> None:
        """Keep Signals that were raised just now, and tell everybody who waits that something may have changed."""
        if raised:
            self._trace_signals(raised)
            self._meters.record(readings.of_signals(raised))
            await self._store.note.remote(SIGNALS, msgspec.json.encode(self._observer.signals).decode())
        await self._notify()

    def _trace(self, over: Iterable[tuple[Episode, NDArray[np.float64]]], stored: tuple[float, float]) -> None:
        """Put the spans of episodes that are durable now on their way."""
        try:
            for episode, seen_at in over:
                release = self._observer.released(episode.digests[0]) if episode.digests else None
                self._spans.put(self._tail.closed(episode, seen_at, stored, release))
        except Exception:  # a span is never worth an acknowledgement
            log.exception("Episodes were not traced.")

    def _trace_signals(self, raised: Iterable[Signal]) -> None:
        try:
            for signal in raised:
                self._spans.put(self._tail.raised(signal))
        except Exception:
            log.exception("A signal was not traced.")

    async def flush(self, timeout_s: float) -> None:
        """Hand over the spans that wait, as far as time allows."""
        await asyncio.to_thread(self._spans.flush, timeout_s)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_for(self, come: Callable[[], bool], timeout_s: float | None = None) -> None:
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(come)
            except TimeoutError:
                return

    async def _ready(self) -> None:
        if self._ticking is not None:
            return
        async with self._lock:
            if self._ticking is None:
                await self._resume()
                self._ticking = asyncio.create_task(self._tick())

    async def _resume(self) -> None:
        """Go on from what was counted, raised and watched; monitors catch up while steps come in again."""
        raised = msgspec.json.decode(await self._store.noted.remote(SIGNALS) or "[]", type=list[Signal])
        summary, leased = await self._store.summary.remote(), await self._store.noted.remote(_LEASED)
        hacks = await self._store.noted.remote(HACKS)
        self._observer.resume(summary, raised, now=time.time(), leased=leased is not None, hacks=hacks)
        if (noted := await self._store.noted.remote(_RELEASE)) is not None:
            watched = msgspec.json.decode(noted, type=_Watched)
            self._observer.release(watched.release, watched.failure_bound, watched.shown)
        self._is_behind = True

    async def _catch_up(self) -> None:
        """Bring the monitors to where they were: by reading the release's episodes again, in order of start.

        Where clients act by themselves this waits until they told what runs, since that may have begun before.
        """
        if not self._is_behind or not self._observer.hears(time.time()):
            return
        ended = await self._store.ended.remote(time.time() - self._config.reward_window_s)
        for start in range(0, len(ended), _PAGE):
            self._observer.lacking(await self._store.read.remote(ended[start : start + _PAGE]), time.time())
        if (watched := self._observer.watched) is not None:
            page = (watched.released_at, "")
            while found := await self._store.again.remote(watched.digest, *page):
                known = [each if isinstance(each, Episode) else _outcome(each) for each in found]
                await self._tell(self._observer.replay(known, time.time()))
                page = (found[-1].started_at, found[-1].id)
        for digest, since in self._observer.hacks.tried().items():
            page = (since, "")
            while found := await self._store.again.remote(digest, *page):
                whole = [each for each in found if isinstance(each, Episode)]
                await self._tell(self._observer.replay_beside(whole, time.time()))
                page = (found[-1].started_at, found[-1].id)
        self._observer.caught_up()
        self._is_behind = False
        await self._notify()

    async def _look_ahead(self) -> None:
        """Estimate what open episodes of the release will come to, when it is time."""
        now, watched = time.time(), self._observer.watched
        if watched is None or not self._outlook.is_due(now):
            return
        try:
            recent = await self._store.recent.remote(CLOSED, None, watched.digest)
            begun = self._observer.unfinished(OPEN)
            if noted := await asyncio.to_thread(self._outlook.look, recent, begun, now):
                await self._store.note.remote(EARLY, noted)
        except Exception:  # the task's margin is anybody's code, and nothing hangs on an estimate
            log.exception("What open episodes will come to was not estimated.")

    async def _tick(self) -> None:
        while True:
            _, heard = self._observer.heard(readings.LAST)
            self._meters.record(readings.of_production(self._observer.status(1), heard))
            spans = self._spans.counts()
            self._meters.record(readings.of_spans(spans.sent, spans.lost))
            try:
                await self._catch_up()
                await self._keep(self._observer.overdue(time.time()))
                await self._look_ahead()
                self._trouble = ""
            except Exception as error:  # the store is away or full: shown in the status, tried again at the next tick
                self._trouble = f"Overdue episodes could not be stored ({error!r}); trying again."
            await asyncio.sleep(_TICK_S)


def _outcome(row: Any) -> Outcome:
    """Return how an episode came out, as the store says it."""
    return Outcome(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Outcome)})
