"""A load generator for the answers of `bench_serve`: one process, raw sockets, as many requests as are answered.

It plays made-up episodes over keep-alive connections, each of which sends its next request when it has the answer to
the one before. All that can be is made beforehand, and an answer is searched for the two things that the next request
repeats, not parsed: it has to be so light that the server is what is measured, and it says itself which share of a CPU
it took. It speaks JSON lines on its standard input and output: a Block there, Played back; "end" there, Ended back.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

POINTS = tuple((0.001 * i, 0.002 * i, 0.0005 * (i % 7), -0.001 * i) for i in range(-50, 50))
OBSERVATIONS = tuple(b"[%.6f,%.6f,%.6f,%.6f]" % point for point in POINTS)
_REPEATED = re.compile(rb'"digest":"([0-9a-f]{64})","action":[^}]*?"raw_action":(\d+)')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class Block(msgspec.Struct, kw_only=True):
    """What is to be played."""

    host: str
    port: int
    token: str
    name: str
    """Episodes are called after it: no other block's may be called the same."""
    connections: int
    seconds: float
    rows: int = 1
    """Decisions a request asks for, each of another episode."""
    media: str = "application/json"
    """How requests and answers are written: so, or as application/msgpack."""
    steps: int = 100
    """Length of an episode; the next one begins where it ends."""
    ends: bool = False
    """Its episodes are ended by the next "end"."""
    most: int = 0
    """Requests after which no further ones are sent, 0 for any number."""


class Played(msgspec.Struct, kw_only=True):
    """What came of it."""

    micros: list[int]
    """Of each request that was answered in time, from its first byte to the last one of its answer."""
    seconds: float
    cpu_share: float
    """Of one CPU, that the generator took in that time."""
    num_decisions: int
    """All that were answered, those after the time was over, too."""


class _Decision(msgspec.Struct):
    digest: str
    raw_action: int


class _Answer(msgspec.Struct):
    decisions: list[_Decision]


class Ended(msgspec.Struct, kw_only=True):
    """What the server said of the ends of all blocks' episodes since the last "end"."""

    num_episodes: int = 0
    num_acknowledged: int = 0
    """Those that are durable."""
    num_missing: int = 0
    """Steps of the others that it named."""


@dataclass(slots=True)
class Connection:
    """One client: its episodes are all at the same step."""

    sock: socket.socket
    names: list[str]
    t: int = 0
    repeated: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Digest and raw action of each episode's last answer."""
    sent_at: float = 0.0
    received: bytes = b""
    wanted: int = 0
    """Bytes of the answer with its head, 0 until that is known."""


class RefusedError(Exception):
    """The server answered otherwise than with decisions."""


class Player:
    """Plays one Block."""

    def __init__(self, block: Block) -> None:
        """Connect."""
        self._block, self._count = block, 0
        self._head = (
            f" HTTP/1.1\r\nHost: {block.host}\r\nAuthorization: Bearer {block.token}\r\n"
            f"Content-Type: {block.media}\r\nAccept: {block.media}\r\nContent-Length: "
        ).encode()
        self._over: list[bytes] = []
        self._connections = [Connection(self._connect(), self._names()) for _ in range(block.connections)]

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self._block.host, self._block.port), timeout=30.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _names(self) -> list[str]:
        self._count += 1
        return [f"{self._block.name}-{self._count}-{i}" for i in range(self._block.rows)]

    def play(self) -> Played:
        """Return what came of the block; raises RefusedError with the answer where one is not of decisions."""
        micros, wait = list[int](), select.epoll()
        by_fd = {connection.sock.fileno(): connection for connection in self._connections}
        for fd in by_fd:
            wait.register(fd, select.EPOLLIN)
        num_sent = num_decisions = 0
        began, cpu = time.perf_counter(), time.process_time()
        until = began + self._block.seconds
        for connection in self._connections:
            self._send(connection)
            num_sent += 1
        ended_at, cpu_share, waiting = 0.0, 0.0, len(by_fd)
        while waiting:
            for fd, _ in wait.poll():
                connection = by_fd[fd]
                if not self._receive(connection):
                    continue
                now = time.perf_counter()
                num_decisions += self._block.rows
                if now < until:
                    micros.append(round(1e6 * (now - connection.sent_at)))
                elif not ended_at:
                    ended_at, cpu_share = until, (time.process_time() - cpu) / (now - began)
                self._take(connection)
                if now < until and num_sent != self._block.most:
                    self._send(connection)
                    num_sent += 1
                else:
                    waiting -= 1
        wait.close()
        now = time.perf_counter()
        return Played(
            micros=micros,
            seconds=(ended_at or now) - began,
            cpu_share=cpu_share or (time.process_time() - cpu) / (now - began),
            num_decisions=num_decisions,
        )

    def _send(self, connection: Connection) -> None:
        """Send the next step of its episodes."""
        body = self._binary(connection) if self._block.media.endswith("msgpack") else self._text(connection)
        message = b"POST /v1/act" + self._head + b"%d" % len(body) + _END + body
        connection.sent_at = time.perf_counter()
        connection.sock.sendall(message)

    def _text(self, connection: Connection) -> bytes:
        t, names = connection.t, [name.encode() for name in connection.names]
        observation = OBSERVATIONS[t % len(OBSERVATIONS)]
        if t == 0:
            rows = [b'{"episode":"%b","t":0,"observation":%b}' % (name, observation) for name in names]
        else:
            rows = [
                b'{"episode":"%b","t":%d,"observation":%b,"reward":1.0,"digest":"%b","action":%b}'
                % (name, t, observation, *repeated)
                for name, repeated in zip(names, connection.repeated, strict=True)
            ]
        return b'{"steps":[' + b",".join(rows) + b"]}"

    def _binary(self, connection: Connection) -> bytes:
        t, point = connection.t, POINTS[connection.t % len(POINTS)]
        rows: list[dict[str, Any]] = [{"episode": name, "t": t, "observation": point} for name in connection.names]
        for row, (digest, action) in zip(rows, connection.repeated if t else (), strict=False):
            row |= {"reward": 1.0, "digest": digest.decode(), "action": int(action)}
        return msgspec.msgpack.encode({"steps": rows})

    def _receive(self, connection: Connection) -> bool:
        """Read what is there; return True once the whole answer is."""
        more = connection.sock.recv(1 << 18)
        if not more:
            raise RefusedError(f"The server closed a connection after {connection.received!r}.")
        connection.received += more
        if not connection.wanted:
            at = connection.received.find(_END)
            if at < 0:
                return False
            length = _LENGTH.search(connection.received, 0, at)
            if not connection.received.startswith(b"HTTP/1.1 200") or length is None:
                raise RefusedError(f"The server answered {connection.received.decode()}.")
            connection.wanted = at + len(_END) + int(length[1])
        return len(connection.received) == connection.wanted

    def _take(self, connection: Connection) -> None:
        """Take in a whole answer."""
        found = self._repeated(connection.received)
        if len(found) != self._block.rows:
            raise RefusedError(f"Expected {self._block.rows} decisions, got {connection.received.decode()}.")
        connection.received, connection.wanted, connection.repeated = b"", 0, found
        connection.t += 1
        if connection.t == self._block.steps:
            self._finish(connection)
            connection.t, connection.names = 0, self._names()

    def _repeated(self, received: bytes) -> list[tuple[bytes, bytes]]:
        if not self._block.media.endswith("msgpack"):
            return _REPEATED.findall(received)
        decisions = msgspec.msgpack.decode(received.partition(_END)[2], type=_Answer).decisions
        return [(decision.digest.encode(), b"%d" % decision.raw_action) for decision in decisions]

    def _finish(self, connection: Connection) -> None:
        """Note the end of its episodes, which is told later."""
        self._over += [
            b'{"episode":"%b","t":%d,"observation":%b,"reward":1.0,"digest":"%b","action":%b,"terminated":false,'
            b'"truncated":true}' % (name.encode(), connection.t, OBSERVATIONS[0], *repeated)
            for name, repeated in zip(connection.names, connection.repeated, strict=True)
        ]

    def close(self) -> None:
        """Close the connections; what is under way is over now."""
        for connection in self._connections:
            connection.sock.close()
            if connection.t:
                self._finish(connection)

    def end(self, ended: Ended) -> None:
        """Tell the server that all episodes are over, and note what it says."""
        teller = Connection(self._connect(), [])
        for start in range(0, len(self._over), 512):
            body = b'{"episodes":[' + b",".join(self._over[start : start + 512]) + b"]}"
            head = self._head.replace(b"application/msgpack", b"application/json")
            teller.sock.sendall(b"POST /v1/end" + head + b"%d" % len(body) + _END + body)
            while not self._receive(teller):
                pass
            answer = msgspec.json.decode(teller.received.partition(_END)[2])
            teller.received, teller.wanted = b"", 0
            ended.num_acknowledged += len(answer["acknowledged"])
            ended.num_missing += sum(map(len, answer["missing"].values()))
        teller.sock.close()
        ended.num_episodes += len(self._over)


def answers(lines: Iterable[bytes]) -> Iterator[Played | Ended]:
    """Yield what came of each line."""
    players: list[Player] = []
    for line in lines:
        if line.strip() == b'"end"':
            ended = Ended()
            for player in players:
                player.end(ended)
            players.clear()
            yield ended
        else:
            block = msgspec.json.decode(line, type=Block)
            player = Player(block)
            played = player.play()
            player.close()
            players += [player] if block.ends else []
            yield played


if __name__ == "__main__":
    for answer in answers(sys.stdin.buffer):
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
