"""Clients that go on whatever the server does, and keep who answered each step, and when.

One process, some keep-alive connections, on each of which one episode is played after another. A step that is not
answered by a decision is counted by what came instead, and sent again as it was, as a client does. Episodes of
policies whose digest is odd fail, so that some challengers are better than the champion, and some are worse.

`serve_safety` and `soak` start it: it takes Calls as JSON, writes what was answered to a file, prints Called as JSON,
and ends when it has enough answers, its time is over, or its standard input ends.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.serve_load import OBSERVATIONS

LENGTHS = 5, 60
"""Steps of an episode, at least and at most."""
TRIES = 20
"""How often the end of an episode is told, at most."""
PAUSE_S = 0.05
"""Seconds after which what wasn't answered is sent again."""
ANSWER_S = 10.0
"""Seconds after which a connection that says nothing is given up."""
_END = b"\r\n\r\n"
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[\s\S]*?content-length: *(\d+)", re.IGNORECASE)


class Calls(msgspec.Struct, kw_only=True):
    """What is to be asked."""

    port: int
    token: str
    connections: int
    most: int = 0
    """Answers after which it ends; 0 for any number."""
    seconds: float = 3600.0
    """Seconds after which it ends at the latest."""
    file: str
    """Where answers are written to, as columns."""


class Called(msgspec.Struct, kw_only=True):
    """What came of it."""

    num_answers: int
    otherwise: dict[str, int]
    """Requests that were answered by another status, or by none at all, and sent again."""
    num_ended: int
    """Episodes whose end was acknowledged."""
    num_open: int
    """Those that were told to be over, and of which it never was."""


class _Decision(msgspec.Struct):
    digest: str
    raw_action: int


class _Answer(msgspec.Struct):
    decisions: list[_Decision]


class _Acknowledged(msgspec.Struct):
    acknowledged: list[str]


class OverError(Exception):
    """No more is to be asked."""


class RejectedError(Exception):
    """The server says that this request is wrong: asked again it would be, too."""


@dataclass(slots=True)
class Answers:
    """Who answered each step, and when, one row an answer."""

    digests: list[str]
    digest: NDArray[np.int64]
    """Index into `digests`."""
    t: NDArray[np.int64]
    """Step in its episode; 0 begins one."""
    at: NDArray[np.float64]
    """When the whole answer was there, UTC epoch seconds."""

    @classmethod
    def read(cls, path: Path) -> Answers:
        """Return what a caller has written."""
        with np.load(path) as found:
            return cls(found["digests"].tolist(), found["digest"], found["t"], found["at"])


class Callers:
    """All connections of one process."""

    def __init__(self, calls: Calls) -> None:
        """Ask nothing yet."""
        self.calls, self.otherwise, self.over = calls, Counter[str](), asyncio.Event()
        self.known: dict[str, int] = {}
        self.rows: list[tuple[int, int, float]] = []
        self.num_ended = self.num_open = 0
        self._rng = random.Random(calls.port)

    async def run(self) -> Called:
        """Ask until it is over; return what came of it."""
        loop = asyncio.get_running_loop()
        loop.call_later(self.calls.seconds, self.over.set)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        told = asyncio.create_task(_then(reader.read(), self.over))
        await asyncio.gather(*(self._go_on(f"{self.calls.port}-{i}") for i in range(self.calls.connections)))
        told.cancel()
        digest, t, at = np.array(self.rows, np.float64).reshape(-1, 3).T
        np.savez(
            self.calls.file, digests=np.array(list(self.known), dtype=np.str_), digest=digest.astype(np.int64),
            t=t.astype(np.int64), at=at,
        )  # fmt: skip
        return Called(
            num_answers=len(self.rows), otherwise=dict(self.otherwise), num_ended=self.num_ended, num_open=self.num_open
        )

    async def _go_on(self, name: str) -> None:
        line, number = Line(self), 0
        with suppress(OverError):
            while True:
                number += 1
                with suppress(RejectedError):  # it is counted
                    await self._play(line, f"{name}-{number}-{time.time_ns()}")
        await line.close()

    async def _play(self, line: Line, name: str) -> None:
        """Play one episode to its end."""
        episode, repeated = name.encode(), b""
        num_steps = self._rng.randint(*LENGTHS)
        for t in range(num_steps):
            row = b'{"episode":"%b","t":%d,"observation":%b%b}' % (
                episode, t, OBSERVATIONS[t % len(OBSERVATIONS)], repeated
            )  # fmt: skip
            body = await line.ask(b"/v1/act", b'{"steps":[%b]}' % row)
            (decision,) = msgspec.json.decode(body, type=_Answer).decisions
            self._keep(decision.digest, t)
            repeated = b',"reward":1.0,"digest":"%b","action":%d' % (decision.digest.encode(), decision.raw_action)
        fails = b"true,false" if int(decision.digest[-1], 16) % 2 else b"false,true"
        end = b'{"episode":"%b","t":%d,"observation":%b%b,"terminated":%b,"truncated":%b}' % (
            episode, num_steps, OBSERVATIONS[0], repeated, *fails.split(b",")
        )  # fmt: skip
        for _ in range(TRIES):
            body = await line.ask(b"/v1/end", b'{"episodes":[%b]}' % end)
            if msgspec.json.decode(body, type=_Acknowledged).acknowledged:
                self.num_ended += 1
                return
        self.num_open += 1  # steps of it are missing, which are not told again here

    def _keep(self, digest: str, t: int) -> None:
        self.rows.append((self.known.setdefault(digest, len(self.known)), t, time.time()))
        if len(self.rows) == self.calls.most:
            self.over.set()


async def _then(first: Awaitable[Any], event: asyncio.Event) -> None:
    await first
    event.set()


class Line:
    """One connection, which is made anew where it breaks."""

    def __init__(self, callers: Callers) -> None:
        """Connect with the first request."""
        self._callers = callers
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: bytes, body: bytes) -> bytes:
        """Return the body of the answer 200, however often it has to be asked for.

        Raises RejectedError for an answer that stays the same, and OverError when all is over.
        """
        callers = self._callers
        head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (
            path, callers.calls.token.encode(), len(body),
        )  # fmt: skip
        while not callers.over.is_set():
            try:
                async with asyncio.timeout(ANSWER_S):
                    status, answer = await self._once(head + body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                status, answer = type(error).__name__, b""
            if status == "200":
                return answer
            callers.otherwise[status] += 1
            if status in ("401", "403", "404", "409", "413", "422"):
                raise RejectedError
            await self.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(callers.over.wait(), PAUSE_S)
        raise OverError

    async def _once(self, message: bytes) -> tuple[str, bytes]:
        if self._ends is None:
            self._ends = await asyncio.open_connection("127.0.0.1", self._callers.calls.port)
        reader, writer = self._ends
        writer.write(message)
        head = await reader.readuntil(_END)
        found = _HEAD.match(head)
        if found is None:  # of the ingress itself: the connection ends with it
            return head[9:12].decode(), b""
        return found[1].decode(), await reader.readexactly(int(found[2]))

    async def close(self) -> None:
        """End the connection."""
        if self._ends is not None:
            self._ends[1].close()
            with suppress(OSError):
                await self._ends[1].wait_closed()
            self._ends = None


@dataclass(slots=True)
class Calling:
    """A process of callers, from outside."""

    process: subprocess.Popen[bytes]
    file: Path

    def pause(self, seconds: float) -> bool:
        """Return False after so many seconds, or True as soon as the callers have ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def called(self) -> tuple[Called, Answers]:
        """Tell it to end, where it hasn't, and return what came of it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("The callers ended: see above.")
        return msgspec.json.decode(line, type=Called), Answers.read(self.file)


@contextmanager
def calling(directory: Path, **calls: Any) -> Iterator[Calling]:
    """Yield callers who ask already, and end with this."""
    file = directory / f"answers-{time.time_ns()}.npz"
    command = [sys.executable, "-m", "experiments.serve_callers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        try:
            process.stdin.write(msgspec.json.encode(Calls(file=str(file), **calls)) + b"\n")
            process.stdin.flush()
            yield Calling(process, file)
        finally:
            process.kill()


def main() -> None:
    """Ask, and print what came of it."""
    calls = msgspec.json.decode(sys.stdin.buffer.readline(), type=Calls)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_run(calls))) + b"\n")


async def _run(calls: Calls) -> Called:
    return await Callers(calls).run()


if __name__ == "__main__":
    main()
