"""Episodes from the program's side: many with one request a step, or one; with calls that block, or with awaits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel.client.book import Book, Observations
from flywheel.errors import UsageError
from flywheel.records import Array
from flywheel.trace import context

if TYPE_CHECKING:
    from flywheel.client.http import AsyncClient, Client

Flags = Sequence[bool] | NDArray[np.bool_]


class _Rows:
    """What both batches have: whatever needs no request."""

    def __init__(self, book: Book) -> None:
        self._book = book

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of the episodes that began and aren't acknowledged yet."""
        return self._book.open

    def digests(self, ids: Sequence[str]) -> list[str]:
        """Return which policy gave the last answer to each of these episodes."""
        return [self.last(id)[1] for id in ids]

    def last(self, id: str) -> tuple[int, str]:
        """Return the last step of an episode that was answered, and the policy that did."""
        return self._book.last(id)

    def begin(self, num_episodes: int = 1, ids: Sequence[str] | None = None) -> list[str]:
        """Open episodes and return their ids: fresh ones, or the given ones, which have to be unique for ever.

        Raises UsageError for an id that is open or waits in the spool, FullError when the spool has no room.
        """
        return self._book.begin(num_episodes, ids)

    def abandon(self, ids: Sequence[str]) -> None:
        """Give up episodes: those that were not ended are forgotten, and lost to the server after its timeout.

        One that was ended and is not acknowledged yet goes on being sent from the spool, where there is one.
        """
        self._book.abandon(ids)


class Batch(_Rows):
    """Plays many episodes with one request a step. Not for several threads at once.

    ids = batch.begin(16)
    actions = batch.act(ids, observations)                  # t = 0: there is no reward yet
    actions = batch.act(ids, observations, rewards)         # rewards of the actions before
    batch.end(ids[:1], observations[:1], rewards[:1], terminated=[True], truncated=[False])
    """

    def __init__(self, client: Client) -> None:
        """Begin without episodes."""
        super().__init__(Book(client.calls, client.spool))
        self._client = client

    def act(self, ids: Sequence[str], observations: Observations, rewards: ArrayLike | None = None) -> Array:
        """Return the actions [N, *a] for the environments of N episodes, by one request.

        Args:
            ids: N episodes from `begin`, each at most once.
            observations: N of them as their environments gave them: an array [N, *o], or a list of arrays, numbers,
                dicts or tuples; finite.
            rewards: [N] of the actions before, NaN where not known; not looked at for an episode's first step.

        Raises UsageError before anything is sent, RejectedError, or UnavailableError or FullError; after the last two
        the same call may be made again.
        """
        return self._client.run(self._book.act(ids, observations, rewards))

    def end(
        self,
        ids: Sequence[str],
        observations: Observations,
        rewards: ArrayLike | None,
        terminated: Flags,
        truncated: Flags,
    ) -> None:
        """Return when N episodes are durable: steps that were lost on the way are sent again until they are.

        Args:
            ids: N open episodes, each with at least one step.
            observations: N of them, the last ones.
            rewards: [N] of the last actions, NaN where not known.
            terminated: [N] the world came to an end.
            truncated: [N] the episode was cut off; one of the two is true.

        Raises as `act`.
        """
        self._client.run(self._book.end(ids, observations, rewards, terminated, truncated))


class AsyncBatch(_Rows):
    """A Batch whose `act` and `end` are awaited. Not for several tasks at once."""

    def __init__(self, client: AsyncClient) -> None:
        """Begin without episodes."""
        super().__init__(Book(client.calls, client.spool))
        self._client = client

    async def act(self, ids: Sequence[str], observations: Observations, rewards: ArrayLike | None = None) -> Array:
        """As Batch.act."""
        return await self._client.run(self._book.act(ids, observations, rewards))

    async def end(
        self,
        ids: Sequence[str],
        observations: Observations,
        rewards: ArrayLike | None,
        terminated: Flags,
        truncated: Flags,
    ) -> None:
        """As Batch.end."""
        await self._client.run(self._book.end(ids, observations, rewards, terminated, truncated))


class OneEpisode:
    """What every episode of a program that has one world has: its id, its reward, its trace, and that it is ended.

    Its requests, and the spans that the program makes inside, belong to one trace.
    """

    def __init__(self, id: str) -> None:
        """Begin the episode of this id."""
        self.id = id
        self._reward = math.nan
        self._ended = False
        self._scope = context.EpisodeScope(id)

    def reward(self, reward: float) -> None:
        """Tell the reward of the last action; leave it out where it isn't known."""
        self._check_open()
        self._reward = float(reward)

    def _enter(self) -> None:
        self._scope.__enter__()

    def _leave(self, error: BaseException | None) -> None:
        self._scope.__exit__()
        if not self._ended:
            self._ended = True
            self._abandon()
            if error is None:
                raise UsageError(
                    f"Episode {self.id!r} was left without an end, so nothing can be learned from it: "
                    "call end(observation, terminated=… or truncated=True)."
                )

    def _abandon(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._ended:
            raise UsageError(f"Episode {self.id!r} is over: begin another one.")

    @staticmethod
    def _check_end(terminated: bool, truncated: bool) -> None:
        if terminated == truncated:
            raise UsageError("An episode ends either terminated=True (by its world) or truncated=True (cut off).")


class Episode(OneEpisode):
    """One episode, for a program that has one world. Use it in a `with`, and end it there."""

    def __init__(self, batch: Batch, id: str | None = None) -> None:
        """Open the episode; `id` None makes a fresh one."""
        super().__init__(batch.begin(1, None if id is None else [id])[0])
        self._batch = batch

    def __enter__(self) -> Episode:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leave(error)

    def act(self, observation: Any) -> Any:
        """Return the action for the environment: an int, or an array in the action's shape."""
        action = self._batch.act([self.id], [observation], [self._reward])[0]
        self._reward = math.nan
        self._scope.acted(*self._batch.last(self.id))
        return _one(action)

    def end(self, observation: Any, *, terminated: bool = False, truncated: bool = False) -> None:
        """Return when the episode is durable. `observation` is the last one; one of the two ways to end is true."""
        self._check_end(terminated, truncated)
        self._batch.end([self.id], [observation], [self._reward], [terminated], [truncated])
        self._ended = True

    def _abandon(self) -> None:
        self._batch.abandon([self.id])


class AsyncEpisode(OneEpisode):
    """An Episode whose `act` and `end` are awaited. Use it in an `async with`, and end it there."""

    def __init__(self, batch: AsyncBatch, id: str | None = None) -> None:
        """Open the episode; `id` None makes a fresh one."""
        super().__init__(batch.begin(1, None if id is None else [id])[0])
        self._batch = batch

    async def __aenter__(self) -> AsyncEpisode:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._leave(error)

    async def act(self, observation: Any) -> Any:
        """As Episode.act."""
        action = (await self._batch.act([self.id], [observation], [self._reward]))[0]
        self._reward = math.nan
        self._scope.acted(*self._batch.last(self.id))
        return _one(action)

    async def end(self, observation: Any, *, terminated: bool = False, truncated: bool = False) -> None:
        """As Episode.end."""
        self._check_end(terminated, truncated)
        await self._batch.end([self.id], [observation], [self._reward], [terminated], [truncated])
        self._ended = True

    def _abandon(self) -> None:
        self._batch.abandon([self.id])


def _one(action: Any) -> Any:
    return int(action) if action.ndim == 0 and np.issubdtype(action.dtype, np.integer) else action
