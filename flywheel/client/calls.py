"""The requests of the HTTP API as flows: what is sent, what is tried again, and what an answer means."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.client.flow import Ask, Flow, Pause, Reply
from flywheel.client.refusal import RejectedError, UnavailableError
from flywheel.errors import FlywheelError
from flywheel.trace import context

Row = Mapping[str, Any]
_RETRIED = frozenset({0, 408, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_PACKED = "application/msgpack"


@dataclass(slots=True)
class Counters:
    """What a client's requests came to."""

    requests: int = 0
    """Requests the program made; a request that was retried counts once."""
    errors: int = 0
    """Requests that got no 2xx answer in the end, retries included."""
    attempts: int = 0
    """HTTP requests that were sent."""
    not_2xx: int = 0
    """Attempts that were answered by anything but 2xx."""
    not_answered: int = 0
    """Attempts that failed without an answer: connection refused or lost, time over."""


class Calls:
    """Says how each request is made; safe to share between threads, each of which drives flows of its own."""

    def __init__(self, url: str, patience_s: float) -> None:
        """Speak of a server at `url`, to which a request is made again for `patience_s` seconds."""
        self.counters = Counters()
        self._url, self._patience_s = url, patience_s
        self._lock = threading.Lock()

    def act(self, rows: Sequence[Row]) -> Flow[list[dict[str, Any]]]:
        """As Client.act."""
        answer = yield from self.request("POST", "/v1/act", {"steps": rows})
        decisions: list[dict[str, Any]] = answer["decisions"]
        return decisions

    def end(self, rows: Sequence[Row], resend: Sequence[Row] = ()) -> Flow[dict[str, Any]]:
        """As Client.end."""
        return (yield from self.request("POST", "/v1/end", {"episodes": rows, "resend": resend}))

    def rewards(self, rows: Sequence[Row]) -> Flow[int]:
        """As Client.rewards."""
        answer = yield from self.request("POST", "/v1/rewards", {"rewards": rows})
        return int(answer["accepted"])

    def policy(self) -> Flow[dict[str, Any]]:
        """As Client.policy."""
        return (yield from self.request("GET", "/v1/policy"))

    def request(self, method: str, path: str, body: Row | None = None, *, packed: bool = False) -> Flow[dict[str, Any]]:
        """Return the answer to a request, which can be sent twice without harm.

        `packed` sends and asks for msgpack, which keeps bytes as they are and numbers that aren't finite; else JSON.
        Raises RejectedError, or UnavailableError when patience is over.
        """
        self._count("requests")
        try:
            reply = yield from self._until_answered(method, path, _written(body, packed), packed)
            return _read(reply, packed)
        except FlywheelError:
            self._count("errors")
            raise

    def _until_answered(self, method: str, path: str, content: bytes | None, packed: bool) -> Flow[Reply]:
        kind = {"Content-Type": _PACKED, "Accept": _PACKED} if packed else {"Content-Type": "application/json"}
        ask = Ask(method, path, content, {**kind, **context.headers()})
        deadline, pause = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            self._count("attempts")
            reply = yield ask
            assert reply is not None
            if 200 <= reply.status < 300:
                return reply
            self._count("not_2xx" if reply.status else "not_answered")
            why, field, is_ours = _reason(reply)
            # where an application is put into place anew, whatever stands before it knows no such path for a while
            if reply.status not in _RETRIED and (is_ours or reply.status != 404):
                raise RejectedError(reply.status, why, field)
            wait_s = max(pause, _asked_s(reply))
            if time.monotonic() + wait_s > deadline:
                raise UnavailableError(
                    f"{self._url}{path} gave no answer for {self._patience_s:g} s, the last time: {why} "
                    "Is the policy being served there? The same call may be made again."
                )
            yield Pause(wait_s)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self.counters, name, getattr(self.counters, name) + 1)


def _written(body: Row | None, packed: bool) -> bytes | None:
    if body is None:
        return None
    if not packed:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    import msgspec

    return msgspec.msgpack.encode(body)


def _read(reply: Reply, packed: bool) -> dict[str, Any]:
    answer: dict[str, Any]
    if packed:
        import msgspec

        try:
            answer = msgspec.msgpack.decode(reply.body)
        except msgspec.DecodeError as error:
            raise ValueError(f"The answer is not msgpack: {error}") from error
    else:
        answer = json.loads(reply.body)
    return answer


def _asked_s(reply: Reply) -> float:
    """Return the seconds after which a server asks to be called again, 0 where it doesn't say."""
    said = reply.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else 0.0


def _reason(reply: Reply) -> tuple[str, str, bool]:
    """Return what an answer says, about which field, and whether it is the API's own."""
    if not reply.status:
        return reply.why, "", False
    try:
        answer = _read(reply, packed=reply.headers.get("content-type", "") == _PACKED)
        return str(answer["error"]), str(answer["field"]), True
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status} {reply.body[:200].decode(errors='replace')}", "", False
