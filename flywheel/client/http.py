"""The connections: HTTP that blocks, or that is awaited, and performs what the flows ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from flywheel.client.batch import AsyncBatch, AsyncEpisode, Batch, Episode
from flywheel.client.book import Book
from flywheel.client.calls import Calls, Counters, Row
from flywheel.client.flow import Flow, Pause, Reply, Step, T, drive, drive_async
from flywheel.client.worker import Worker, flush
from flywheel.net import is_loopback

if TYPE_CHECKING:
    from flywheel.client.spool import Spool

SPOOL_BYTES = 256 * 2**20
"""Bytes that a spool holds at most: some 5,000 episodes of 500 small steps."""
_LOOK_S = 30.0
"""Seconds between a courier's looks at a spool in which nothing waits; it is woken when something does."""
_SENDER_PATIENCE_S = 1.0
"""A courier's patience with one request: it comes again by itself."""


class _Shared:
    """What both clients have: the calls, and a spool with a courier for what nobody waits for."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 15.0,
        patience_s: float = 60.0,
        spool: str | Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        """Connect lazily to `url` with a token.

        Args:
            url: where the policy is served, e.g. http://127.0.0.1:8000.
            token: one with the scope act, as in run_dir/keys/client.token.
            timeout_s: seconds one attempt may take.
            patience_s: seconds after which a request that keeps failing raises UnavailableError.
            spool: directory in which each episode is kept from its first step until it is acknowledged, for this
                program alone (UsageError when another one has it open); what an earlier program left there is sent
                in the background. None keeps episodes in memory only: the server has their steps already, and what a
                program observes goes to a disk only where somebody said which.
            spool_bytes: bytes that it holds at most; an episode that would need more raises FullError.
        """
        self.url = url.rstrip("/")
        self.calls = Calls(self.url, patience_s)
        """Flows of single requests, for `run`."""
        self._connect(
            base_url=self.url,
            timeout=timeout_s,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )
        self.spool: Spool | None = None
        """Where episodes are kept, if anywhere."""
        if spool is not None:
            from flywheel.client.spool import Spool

            self.spool = Spool(Path(spool), spool_bytes)
            self._sender = Client(url, token, timeout_s=timeout_s, patience_s=_SENDER_PATIENCE_S)
            book = Book(self._sender.calls, self.spool)
            self._courier = Worker(lambda: self._sender.run(book.send_left()), _LOOK_S, "flywheel-courier")
            self.spool.wake = self._courier.wake

    def _connect(self, **options: Any) -> None:
        raise NotImplementedError

    @property
    def counters(self) -> Counters:
        """What the program's requests came to."""
        return self.calls.counters

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the episodes in the spool that nobody plays any more and that aren't acknowledged yet."""
        return () if self.spool is None else self.spool.waiting

    def _flush(self, timeout_s: float) -> None:
        if self.spool is not None:
            flush(self.spool, self._courier, timeout_s)

    def _close(self) -> None:
        if self.spool is not None:
            self._courier.close()
            self._sender.close()
            self.spool.close()


class Client(_Shared):
    """Speaks to a policy over HTTP. Safe to share between threads; close it, or use it in a `with`.

    Every request can be sent twice without harm, so connection errors and 5xx answers are retried with growing
    pauses until `patience_s` is over; one over the token's quota (429) when the server says that it may come again.
    """

    _http: httpx.Client

    def _connect(self, **options: Any) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; what is in the spool stays there for the next program."""
        self._close()
        self._http.close()

    def episode(self, id: str | None = None) -> Episode:
        """Return a new episode to be used in a `with`; `id` has to be unique, None makes one."""
        return Episode(Batch(self), id)

    def batch(self) -> Batch:
        """Return a Batch, which plays many episodes with one request a step."""
        return Batch(self)

    def act(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Send rows to /v1/act as they are and return the decisions, one a row, in order.

        Raises RejectedError, or UnavailableError when patience is over.
        """
        return self.run(self.calls.act(rows))

    def end(self, rows: Sequence[Row], resend: Sequence[Row] = ()) -> dict[str, Any]:
        """Send ends and steps that were lost to /v1/end; return {"acknowledged": [ids], "missing": {id: [t, …]}}.

        Raises RejectedError, or UnavailableError when patience is over.
        """
        return self.run(self.calls.end(rows, resend))

    def rewards(self, rows: Sequence[Row]) -> int:
        """Tell rewards that were not known when their episodes ended; return how many were taken, durably.

        Each row is {"episode": id, "t": step whose action earned it, "reward": number}; the same again is fine.
        Raises RejectedError (404 for an episode that nobody knows, 409 for another number than before), or
        UnavailableError when patience is over.
        """
        return self.run(self.calls.rewards(rows))

    def policy(self) -> dict[str, Any]:
        """Return which policy answers: digest, version, and the digests that may still answer."""
        return self.run(self.calls.policy())

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return when nothing waits in the spool; raise UnavailableError when time is over before."""
        self._flush(timeout_s)

    def run(self, flow: Flow[T]) -> T:
        """Return what a flow comes to, with this client's connections."""
        return drive(flow, self._perform)

    def _perform(self, step: Step) -> Reply | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return _reply(self._http.request(step.method, step.path, content=step.content, headers=step.headers))
        except httpx.TransportError as error:
            return Reply(0, why=f"{type(error).__name__}: {error}")


class AsyncClient(_Shared):
    """A Client whose calls are awaited: the same episodes, batches and retries. Use it in an `async with`."""

    _http: httpx.AsyncClient

    def _connect(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As Client.close."""
        await asyncio.to_thread(self._close)
        await self._http.aclose()

    def episode(self, id: str | None = None) -> AsyncEpisode:
        """Return a new episode to be used in an `async with`; `id` has to be unique, None makes one."""
        return AsyncEpisode(AsyncBatch(self), id)

    def batch(self) -> AsyncBatch:
        """Return an AsyncBatch, which plays many episodes with one request a step."""
        return AsyncBatch(self)

    async def act(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """As Client.act."""
        return await self.run(self.calls.act(rows))

    async def end(self, rows: Sequence[Row], resend: Sequence[Row] = ()) -> dict[str, Any]:
        """As Client.end."""
        return await self.run(self.calls.end(rows, resend))

    async def rewards(self, rows: Sequence[Row]) -> int:
        """As Client.rewards."""
        return await self.run(self.calls.rewards(rows))

    async def policy(self) -> dict[str, Any]:
        """As Client.policy."""
        return await self.run(self.calls.policy())

    async def flush(self, timeout_s: float = 60.0) -> None:
        """As Client.flush."""
        await asyncio.to_thread(self._flush, timeout_s)

    async def run(self, flow: Flow[T]) -> T:
        """As Client.run."""
        return await drive_async(flow, self._perform)

    async def _perform(self, step: Step) -> Reply | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return _reply(await self._http.request(step.method, step.path, content=step.content, headers=step.headers))
        except httpx.TransportError as error:
            return Reply(0, why=f"{type(error).__name__}: {error}")


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.content, response.headers)
