"""Episodes from the program's side: what to repeat, what to keep until it is durable."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel.client.observations import plain
from flywheel.client.refusal import UnavailableError
from flywheel.errors import UsageError
from flywheel.records import Array
from flywheel.trace import context

_ROWS = 512
"""Most rows of one request."""
Observations = Sequence[Any] | NDArray[Any]
_PATIENCE_S = 60.0
"""Seconds after which an end that is answered but never acknowledged raises UnavailableError."""


class Connection(Protocol):
    """What episodes need of a Client."""

    def act(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As Client.act."""

    def end(self, rows: Sequence[Mapping[str, Any]], resend: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """As Client.end."""


@dataclasses.dataclass(slots=True)
class _Open:
    """An episode that isn't durable yet: every step as it was answered, so that it can be sent again."""

    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def before(self) -> dict[str, Any]:
        """Return what the next call repeats of the answer before."""
        last = self.steps[-1]
        return {"digest": last["digest"], "action": last["action"]}


class Batch:
    """Plays many episodes with one request a step. Not for several threads at once.

    ids = batch.begin(16)
    actions = batch.act(ids, observations)                  # t = 0: there is no reward yet
    actions = batch.act(ids, observations, rewards)         # rewards of the actions before
    batch.end(ids[:1], observations[:1], rewards[:1], terminated=[True], truncated=[False])
    """

    def __init__(self, client: Connection) -> None:
        """Begin without episodes."""
        self._client = client
        self._open: dict[str, _Open] = {}

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of the episodes that began and aren't acknowledged yet."""
        return tuple(self._open)

    def digests(self, ids: Sequence[str]) -> list[str]:
        """Return which policy gave the last answer to each of these episodes."""
        return [self._open[id].before()["digest"] for id in ids]

    def last(self, id: str) -> tuple[int, str]:
        """Return the last step of an episode that was answered, and the policy that did."""
        steps = self._open[id].steps
        return len(steps) - 1, steps[-1]["digest"]

    def begin(self, num_episodes: int = 1, ids: Sequence[str] | None = None) -> list[str]:
        """Open episodes and return their ids: fresh ones, or the given ones, which have to be unique for ever."""
        names = [uuid.uuid4().hex for _ in range(num_episodes)] if ids is None else list(ids)
        for name in names:
            if name in self._open:
                raise UsageError(f"Episode {name!r} is open already: give every episode its own id.")
            self._open[name] = _Open()
        context.link(names)
        return names

    def act(self, ids: Sequence[str], observations: Observations, rewards: ArrayLike | None = None) -> Array:
        """Return the actions [N, *a] for the environments of N episodes, by one request.

        Args:
            ids: N episodes from `begin`, each at most once.
            observations: N of them as their environments gave them: an array [N, *o], or a list of arrays, numbers,
                dicts or tuples; finite.
            rewards: [N] of the actions before, NaN where not known; not looked at for an episode's first step.

        Raises UsageError before anything is sent, RejectedError, or UnavailableError; after the last one the same
        call may be made again.
        """
        rows = [self._row(*column) for column in self._columns(ids, observations, rewards)]
        decisions: list[dict[str, Any]] = []
        for start in range(0, len(rows), _ROWS):
            decisions += self._client.act(rows[start : start + _ROWS])
        for row, decision in zip(rows, decisions, strict=True):
            kept = row | {"digest": decision["digest"], "action": decision["raw_action"]}
            self._open[row["episode"]].steps.append(kept)
        return np.array([decision["action"] for decision in decisions])

    def end(
        self,
        ids: Sequence[str],
        observations: Observations,
        rewards: ArrayLike | None,
        terminated: Sequence[bool] | NDArray[np.bool_],
        truncated: Sequence[bool] | NDArray[np.bool_],
    ) -> None:
        """Return when N episodes are durable: steps that were lost on the way are sent again until they are.

        Args:
            ids: N open episodes, each with at least one step.
            observations: N of them, the last ones.
            rewards: [N] of the last actions, NaN where not known.
            terminated: [N] the world came to an end.
            truncated: [N] the episode was cut off; one of the two is true.

        Raises RejectedError or UnavailableError; after the latter the same call may be made again.
        """
        waiting = {}
        columns = self._columns(ids, observations, rewards)
        for (id, observation, reward), over, cut in zip(columns, terminated, truncated, strict=True):
            if not self._open[id].steps:
                raise UsageError(f"Episode {id!r} has no step yet, so there is nothing to end.")
            row = self._row(id, observation, reward)
            waiting[id] = row | {"terminated": bool(over), "truncated": bool(cut)}
        deadline, pause = time.monotonic() + _PATIENCE_S, 0.0
        while waiting:
            time.sleep(pause)
            before = len(waiting)
            lost = self._end_once(waiting)
            if lost:
                self._send_again(lost)
            pause = 0.0 if len(waiting) < before or (lost and pause == 0.0) else min(max(2 * pause, 0.05), 1.0)
            if waiting and time.monotonic() > deadline:
                raise UnavailableError(
                    f"{len(waiting)} episodes were not acknowledged in {_PATIENCE_S:g} s, although every request was "
                    "answered: the observer keeps losing their steps. The same call may be made again."
                )

    def _end_once(self, waiting: dict[str, dict[str, Any]]) -> dict[str, list[int]]:
        """Send the ends that wait, drop those that are durable now, and return what is missing of the others."""
        rows, lost = list(waiting.values()), dict[str, list[int]]()
        for start in range(0, len(rows), _ROWS):
            answer = self._client.end(rows[start : start + _ROWS])
            for id in answer["acknowledged"]:
                del waiting[id], self._open[id]
            lost |= answer["missing"]
        return lost

    def _send_again(self, lost: dict[str, list[int]]) -> None:
        rows = [self._open[id].steps[t] for id, missing in lost.items() for t in missing]
        for start in range(0, len(rows), _ROWS):
            self._client.end([], rows[start : start + _ROWS])

    def abandon(self, ids: Sequence[str]) -> None:
        """Forget episodes that will never be ended; the server counts them as lost after its timeout."""
        for id in ids:
            self._open.pop(id, None)

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


class Episode:
    """One episode, for a program that has one world. Use it in a `with`, and end it there.

    Its requests, and the spans that the program makes inside, belong to one trace.
    """

    def __init__(self, batch: Batch, id: str | None = None) -> None:
        """Open the episode; `id` None makes a fresh one."""
        self._batch = batch
        self.id = batch.begin(1, None if id is None else [id])[0]
        self._reward: float | None = None
        self._ended = False
        self._scope = context.EpisodeScope(self.id)

    def __enter__(self) -> Episode:
        self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._scope.__exit__()
        if not self._ended:
            self._batch.abandon([self.id])
            if error is None:
                raise UsageError(
                    f"Episode {self.id!r} was left without an end, so nothing can be learned from it: "
                    "call end(observation, terminated=… or truncated=True)."
                )

    def act(self, observation: Any) -> Any:
        """Return the action for the environment: an int, or an array in the action's shape."""
        action = self._batch.act([self.id], [observation], self._rewards())[0]
        self._reward = None
        self._scope.acted(*self._batch.last(self.id))
        return int(action) if action.ndim == 0 and np.issubdtype(action.dtype, np.integer) else action

    def reward(self, reward: float) -> None:
        """Tell the reward of the last action; leave it out where it isn't known."""
        self._reward = float(reward)

    def end(self, observation: Any, *, terminated: bool = False, truncated: bool = False) -> None:
        """Return when the episode is durable. `observation` is the last one; one of the two ways to end is true."""
        if terminated == truncated:
            raise UsageError("An episode ends either terminated=True (by its world) or truncated=True (cut off).")
        self._batch.end([self.id], [observation], self._rewards(), [terminated], [truncated])
        self._ended = True

    def _rewards(self) -> list[float]:
        return [float("nan") if self._reward is None else self._reward]
