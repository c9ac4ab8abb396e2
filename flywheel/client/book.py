"""The episodes of a program, as flows: what each call repeats, and what is kept until it is durable."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel.client.calls import Calls, Row
from flywheel.client.flow import Flow, Pause
from flywheel.client.observations import plain
from flywheel.client.refusal import DamagedError, FullError, RejectedError, UnavailableError
from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Array
from flywheel.trace import context

if TYPE_CHECKING:
    from flywheel.client.spool import Spool

ROWS = 512
"""Most rows of one request."""
_BODY = 4 * 2**20
"""Bytes of one request at most, where one row alone isn't more: half of what a server takes."""
_NUMBER, _ROW = 26, 2048
"""Bytes that a number takes in JSON at most, and a row beside its numbers."""
Observations = Sequence[Any] | NDArray[Any]
_PATIENCE_S = 60.0
"""Seconds after which an end that is answered but never acknowledged raises UnavailableError."""
_WRONG = frozenset({400, 409, 413, 422})
"""Answers that say that the content itself will never be taken."""


@dataclass(slots=True)
class _Open:
    """An episode that isn't durable yet: every step as it was answered, so that it can be sent again."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    is_kept: bool = False
    """Its end is in the spool, so that it can be sent without the program."""

    def before(self) -> dict[str, Any]:
        """Return what the next call repeats of the answer before."""
        last = self.steps[-1]
        return {"digest": last["digest"], "action": last["action"]}


class Book:
    """The open episodes of one Batch, and the flows that move them on. With a spool each step is on the disk, too."""

    def __init__(self, calls: Calls, spool: Spool | None = None) -> None:
        """Begin without episodes."""
        self._calls, self._spool = calls, spool
        self._open: dict[str, _Open] = {}

    @property
    def open(self) -> tuple[str, ...]:
        """As Batch.open."""
        return tuple(self._open)

    def last(self, id: str) -> tuple[int, str]:
        """As Batch.last."""
        steps = self._open[id].steps
        return len(steps) - 1, steps[-1]["digest"]

    def begin(self, num_episodes: int, ids: Sequence[str] | None) -> list[str]:
        """As Batch.begin."""
        names = [uuid.uuid4().hex for _ in range(num_episodes)] if ids is None else list(ids)
        begun = list[str]()
        try:
            for name in names:
                if name in self._open:
                    raise UsageError(f"Episode {name!r} is open already: give every episode its own id.")
                if self._spool is not None:
                    self._spool.begin(name)
                self._open[name] = _Open()
                begun.append(name)
        except FlywheelError:
            self.abandon(begun)
            raise
        context.link(names)
        return names

    def abandon(self, ids: Sequence[str]) -> None:
        """As Batch.abandon."""
        for id in ids:
            episode = self._open.pop(id, None)
            if self._spool is not None and episode is not None:
                (self._spool.leave if episode.is_kept else self._spool.drop)(id)

    def act(self, ids: Sequence[str], observations: Observations, rewards: ArrayLike | None) -> Flow[Array]:
        """As Batch.act."""
        rows = [self._row(*column) for column in self._columns(ids, observations, rewards)]
        decisions: list[dict[str, Any]] = []
        for some in requests(rows):
            decisions += yield from self._calls.act(some)
        kept = [
            row | {"digest": decision["digest"], "action": decision["raw_action"]}
            for row, decision in zip(rows, decisions, strict=True)
        ]
        self._keep(kept)  # first: where it fails nothing is remembered either, so that the call can be made again
        for row in kept:
            self._open[row["episode"]].steps.append(row)
        return np.array([decision["action"] for decision in decisions])

    def end(
        self,
        ids: Sequence[str],
        observations: Observations,
        rewards: ArrayLike | None,
        terminated: Sequence[bool] | NDArray[np.bool_],
        truncated: Sequence[bool] | NDArray[np.bool_],
    ) -> Flow[None]:
        """As Batch.end."""
        waiting = {}
        columns = self._columns(ids, observations, rewards)
        for (id, observation, reward), over, cut in zip(columns, terminated, truncated, strict=True):
            if not self._open[id].steps:
                raise UsageError(f"Episode {id!r} has no step yet, so there is nothing to end.")
            row = self._row(id, observation, reward)
            waiting[id] = row | {"terminated": bool(over), "truncated": bool(cut)}
        with contextlib.suppress(FullError):  # to be acknowledged is what makes room
            for id, row in waiting.items():
                self._keep([row])
                self._open[id].is_kept = self._spool is not None
        yield from self._until_durable(waiting)

    def send_left(self) -> Flow[None]:
        """Send what waits in the spool: what an earlier program left there, or this one gave up.

        An episode that was ended is sent until it is durable. One that a program was torn out of has no end that
        anybody knows: its steps are sent, so that the server has all of them when it counts the episode as lost.

        Raises RejectedError where nothing is taken now, UnavailableError when all were tried and some weren't taken;
        what will never be taken is kept aside, as is what can't be read.
        """
        assert self._spool is not None
        trouble: UnavailableError | None = None
        for id in self._spool.waiting:
            try:
                found = self._spool.read(id)
                if found.end is None:
                    yield from self._resend(found.steps)
                    self._spool.drop(id)
                else:
                    self._open[id] = _Open(found.steps)
                    yield from self._until_durable({id: dict(found.end)})
            except DamagedError as error:
                self._spool.refuse(id, str(error))
            except RejectedError as error:
                if error.status not in _WRONG:
                    raise
                self._spool.refuse(id, str(error))
            except UnavailableError as error:  # it may be this one that can't be taken, and no other
                trouble = trouble or error
            finally:
                self._open.pop(id, None)
        if trouble is not None:
            raise trouble

    def _until_durable(self, waiting: dict[str, dict[str, Any]]) -> Flow[None]:
        """Send ends, and steps that were lost on the way, until all of them are acknowledged."""
        deadline, pause = time.monotonic() + _PATIENCE_S, 0.0
        while waiting:
            if pause:
                yield Pause(pause)
            before = len(waiting)
            lost = yield from self._end_once(waiting)
            yield from self._resend([self._open[id].steps[t] for id, missing in lost.items() for t in missing])
            pause = 0.0 if len(waiting) < before or (lost and pause == 0.0) else min(max(2 * pause, 0.05), 1.0)
            if waiting and time.monotonic() > deadline:
                raise UnavailableError(
                    f"{len(waiting)} episodes were not acknowledged in {_PATIENCE_S:g} s, although every request was "
                    "answered: the observer keeps losing their steps. The same call may be made again."
                )

    def _end_once(self, waiting: dict[str, dict[str, Any]]) -> Flow[dict[str, list[int]]]:
        """Send the ends that wait, drop those that are durable now, and return what is missing of the others."""
        rows, lost = list(waiting.values()), dict[str, list[int]]()
        for some in requests(rows):
            answer = yield from self._calls.end(some)
            for id in answer["acknowledged"]:
                del waiting[id], self._open[id]
                self._drop(id)
            lost |= answer["missing"]
        return lost

    def _resend(self, rows: Sequence[Mapping[str, Any]]) -> Flow[None]:
        for some in requests(rows):
            yield from self._calls.end([], some)

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        if self._spool is not None:
            for row in rows:
                self._spool.add(row["episode"], row)

    def _drop(self, id: str) -> None:
        if self._spool is not None:
            self._spool.drop(id)

    def _columns(
        self, ids: Sequence[str], observations: Observations, rewards: ArrayLike | None
    ) -> list[tuple[str, Any, float | None]]:
        given = np.full(len(ids), np.nan) if rewards is None else np.asarray(rewards, dtype=np.float64)
        if given.shape != (len(ids),):
            raise UsageError(f"{len(ids)} episodes need as many rewards, not {given.shape}: nothing was sent.")
        if np.isinf(given).any():
            raise UsageError("A reward is infinite: nothing was sent. Leave out (NaN) what isn't known.")
        for id in ids:
            if id not in self._open:
                raise UsageError(f"There is no open episode {id!r}: open it with begin(); an ended one can't go on.")
        known = [None if np.isnan(reward) else float(reward) for reward in given]
        return list(zip(ids, plain(observations, ids), known, strict=True))

    def _row(self, id: str, observation: Any, reward: float | None) -> dict[str, Any]:
        episode = self._open[id]
        row = {"episode": id, "t": len(episode.steps), "observation": observation}
        return row if not episode.steps else row | {"reward": reward} | episode.before()


def requests(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield rows in groups of one request each: at most ROWS, and no more bytes than one takes."""
    start = size = 0
    for at, row in enumerate(rows):
        row_size = _ROW + _NUMBER * (_numbers(row["observation"]) + _numbers(row.get("action")))
        if at > start and (at - start == ROWS or size + row_size > _BODY):
            yield rows[start:at]
            start, size = at, 0
        size += row_size
    if rows:
        yield rows[start:]


def _numbers(value: Any) -> int:
    """Return how many numbers a plain value holds at most, names counted as numbers."""
    if isinstance(value, dict):
        return sum(1 + len(name) // 4 + _numbers(part) for name, part in value.items())
    if isinstance(value, list):
        is_row = len(value) > 64 and not isinstance(value[0], list | dict)
        return len(value) if is_row else sum(map(_numbers, value))
    return 1
