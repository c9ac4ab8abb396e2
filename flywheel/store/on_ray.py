"""The store's bodies on Ray: its owner, an async actor that shares one durable commit among the calls of a few
milliseconds; and shards of what is learnt from, where one process is not to hold all of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from flywheel.config import StoreConfig, TrainConfig
from flywheel.errors import FlywheelError
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.priority import let_others_first
from flywheel.records import Episode, Origin, Reward, Spec
from flywheel.replaying import OFF_POLICY
from flywheel.store import sealing
from flywheel.store.excluded import Exclusion
from flywheel.store.intake import Answer, Intake, Outcome
from flywheel.store.late import Changed, RewardAnswer
from flywheel.store.shard import Shard
from flywheel.store.shards import Shards
from flywheel.store.table import Table

log = logging.getLogger(__name__)
GROUP = 16
"""Episodes that are committed at once, without waiting for more."""
SEGMENTS = 20
"""Segments that are written at once, of 100 episodes each: a thousand episodes a second, and then a breath."""
WAIT_S = 300.0
"""Seconds for which a shard may not answer: it does in milliseconds, or some tens of seconds after its node was lost,
when it has come up on another one."""
_ATTEMPTS = 5
"""Times that shards are asked the same, because an answer was lost with its node."""
REPORT_S = 2.0
"""Seconds from a commit to the size that the metrics show: counting a million episodes takes some milliseconds."""


class StoreActor:
    """Owner of the run directory's store; after a restart it goes on from the disk."""

    def __init__(self, run_dir: str, config: StoreConfig, wheel: str = WHEEL) -> None:
        self._meters = Recorder(wheel)
        self._intake = Intake(run_dir)
        self._config = config
        self._waiting: list[tuple[Sequence[Episode], asyncio.Future[dict[str, Answer]]]] = []
        self._reporting = False
        self._tidying: asyncio.Task[None] | None = None
        self._report()

    def __repr__(self) -> str:
        return f"store({self._meters.wheel})"

    async def settings(self) -> StoreConfig:
        """Return the configuration that it was started with."""
        return self._config

    async def append(self, episodes: Sequence[Episode]) -> dict[str, Answer]:
        """Return what became of each id, after the commit that holds them; safe to call again."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Answer]] = loop.create_future()
        self._waiting.append((episodes, future))
        if sum(len(group) for group, _ in self._waiting) >= GROUP:
            self._commit()
        elif len(self._waiting) == 1:
            loop.call_later(self._config.group_s, self._commit)
        return await future

    async def reward(
        self, rewards: Sequence[Reward], told: Sequence[float | None]
    ) -> tuple[list[RewardAnswer], list[Changed]]:
        """As Intake.reward."""
        return self._intake.reward(rewards, told)

    async def judge(self, failed: Mapping[str, bool]) -> None:
        """As Intake.judge."""
        self._intake.judge(failed)

    async def recent(
        self,
        n: int,
        since: str | None = None,
        digest: str | None = None,
        origin: Origin | None = "production",
        learnable: bool = False,
        readable: bool = False,
    ) -> list[Episode]:
        """As Reader.recent."""
        return self._intake.recent(n, since, digest, origin, learnable, readable)

    async def again(self, digest: str, started_at: float, id_: str = "", n: int = 500) -> list[Episode | Outcome]:
        """As Reader.again."""
        return self._intake.again(digest, started_at, id_, n)

    async def settled(
        self, digests: Sequence[str], after: tuple[float, str], until: tuple[float, str]
    ) -> list[Outcome]:
        """As Reader.settled."""
        return self._intake.settled(digests, after, until)

    async def read(self, ids: Sequence[str]) -> list[Episode]:
        """As Reader.read."""
        return self._intake.read(ids)

    async def whole(self, ids: Sequence[str]) -> list[str]:
        """As Reader.whole."""
        return self._intake.whole(ids)

    async def ended(self, since: float) -> list[str]:
        """As Reader.ended."""
        return self._intake.ended(since)

    async def ids(self, digest: str | None = None, origin: Origin | None = None) -> list[str]:
        """As Reader.ids."""
        return self._intake.ids(digest, origin)

    async def count(self, digest: str | None = None, origin: Origin | None = None) -> int:
        """As Reader.count."""
        return self._intake.count(digest, origin)

    async def summary(self) -> dict[str, dict[str, float]]:
        """As Reader.summary."""
        return self._intake.summary()

    async def conflicts(self) -> list[str]:
        """As Reader.conflicts."""
        return self._intake.conflicts()

    async def excluded(self) -> dict[tuple[str, str], str]:
        """As Reader.excluded."""
        return self._intake.excluded()

    async def exclude(self, what: str, why: str) -> Exclusion:
        """As Intake.exclude."""
        found = self._intake.exclude(what, why, time.time())
        log.info("Nothing is learnt from %s=%s any more: %s", found.kind, found.name, found.why)
        return found

    async def readmit(self, what: str) -> Exclusion:
        """As Intake.readmit."""
        found = self._intake.readmit(what, time.time())
        log.info("%s=%s is learnt from again", found.kind, found.name)
        return found

    async def note(self, name: str, value: str) -> None:
        """As Intake.note."""
        self._intake.note(name, value)

    async def noted(self, name: str) -> str | None:
        """As Reader.noted."""
        return self._intake.noted(name)

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        episodes, began = [episode for group, _ in waiting for episode in group], time.perf_counter()
        try:
            answers = self._intake.append(episodes)
        except Exception as error:  # every caller learns of it; none was acknowledged
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for group, future in waiting:
            if not future.done():
                future.set_result({episode.id: answers[episode.id] for episode in group})
        self._meters.record(readings.of_commit(episodes, answers, time.perf_counter() - began))
        if not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().call_later(REPORT_S, self._later)

    def _later(self) -> None:
        self._report()
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.ensure_future(self._tidy())

    async def _tidy(self) -> None:
        """Seal what is past its window and thin what is past the bound; answers wait for no file that is written."""
        for _ in range(SEGMENTS):
            work = self._intake.sealer.due(self._config, time.time())
            if work is None:
                return
            try:
                written = await asyncio.to_thread(sealing.write, work)
            except Exception as error:  # a full disk, a damaged segment: its episodes stay where they are
                self._intake.sealer.finish(work, None)
                log.warning("Segment %s was not written: %s", work.name, error)
                return
            self._intake.sealer.finish(work, written)

    def _report(self) -> None:
        self._reporting = False
        self._meters.record(readings.of_store(self._intake.count(), self._intake.num_bytes))


class ShardActor(Shard):
    """One of several tables, in a process of its own; after a restart it is empty, and another one."""

    def __init__(self, make: Callable[[], Table]) -> None:
        let_others_first()
        super().__init__(make, secrets.randbits(62))


class Over:
    """Shards that are asked over Ray."""

    def __init__(self, handles: Sequence[Any]) -> None:
        """Ask these actors."""
        self._handles = handles

    def __len__(self) -> int:
        return len(self._handles)

    def ask(self, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """As Ports.ask. A call whose answer was lost with its node is made again: all of them may be repeated.

        FlywheelError where a shard's process died as often as a call was repeated, or no node is left for it.
        """
        for _ in range(_ATTEMPTS):
            waiting = {k: getattr(self._handles[k], name).remote(*arguments) for k, (name, *arguments) in calls.items()}
            try:
                return dict(zip(calls, ray.get([*waiting.values()], timeout=WAIT_S), strict=True))
            except ray.exceptions.ObjectLostError as error:
                log.warning("A shard's answer was lost with its node, and is asked for again: %s", _told(error))
            except ray.exceptions.GetTimeoutError as error:
                done, _ = ray.wait([*waiting.values()], num_returns=len(waiting), timeout=0.0)
                silent = ", ".join(f"shard-{k}" for k, ref in waiting.items() if ref not in done)
                raise FlywheelError(
                    f"No answer came from {silent} for {WAIT_S:.0f} s: no node that trains is left for what is learnt "
                    "from, or none has room for its process (`ray status` says so). Add one; the same --run-dir goes "
                    "on."
                ) from error
            except ray.exceptions.RayActorError as error:
                raise FlywheelError(
                    f"A shard of what is learnt from died again and again: {_told(error)}. Ray's log says of what (of "
                    "too little memory, mostly: lower train.replay.most_mib); the same --run-dir goes on."
                ) from error
        raise FlywheelError(
            f"A shard's answer was lost {_ATTEMPTS} times in a row, each time with its node: `ray status` says which "
            "nodes are left. The same --run-dir goes on."
        )


def _told(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].rstrip(".")


def table_of(spec: Spec, train: TrainConfig) -> Table:
    """Return an empty table for what an off-policy algorithm learns from, or for a shard's part of it."""
    given, parts = train.replay, max(1, train.replay.shards)
    return Table(
        spec, capacity=-(-given.capacity // parts), most_mib=given.most_mib / parts, num_steps=given.num_steps,
        gamma=train.gamma, directory=Path(given.directory) if given.directory else None,
    )  # fmt: skip


def shards_of(handles: Sequence[Any], train: TrainConfig, *, is_new: bool = True) -> Shards:
    """Return what draws from shards on Ray as from one table; unless it is new, it goes on with what they hold."""
    return Shards(Over(handles), -(-train.replay.capacity // len(handles)), is_new=is_new)


def make_table(spec: Spec, train: TrainConfig, worker: Callable[..., Any]) -> Callable[[], Table | Shards]:
    """Return what makes a trainer's table; of `replay.shards` actors shard-0, shard-1, …, which are started here.

    `worker` returns the class of an actor that ends with this process (body, name, CPUs, further options).
    """
    make = partial(table_of, spec, train)
    if train.algorithm not in OFF_POLICY or train.replay.shards < 2:
        return make
    names = [f"shard-{k}" for k in range(train.replay.shards)]
    return partial(
        shards_of, [worker(ShardActor, name, 0.0, scheduling_strategy="SPREAD").remote(make) for name in names], train
    )
