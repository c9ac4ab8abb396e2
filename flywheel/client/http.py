"""The connection: one keep-alive HTTP client that retries what can be retried and counts what went wrong."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from flywheel.client.batch import Batch, Episode
from flywheel.client.refusal import RejectedError, UnavailableError
from flywheel.errors import FlywheelError
from flywheel.net import is_loopback
from flywheel.trace import context

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


@dataclasses.dataclass(slots=True)
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


class Client:
    """Speaks to a policy over HTTP. Safe to share between threads; close it, or use it in a `with`.

    Every request can be sent twice without harm, so connection errors and 5xx answers are retried with growing
    pauses until `patience_s` is over; one over the token's quota (429) when the server says that it may come again.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 15.0, patience_s: float = 60.0) -> None:
        """Connect lazily to `url` with a token.

        Args:
            url: where the policy is served, e.g. http://127.0.0.1:8000.
            token: one with the scope act, as in run_dir/keys/client.token.
            timeout_s: seconds one attempt may take.
            patience_s: seconds after which a request that keeps failing raises UnavailableError.
        """
        self.url = url.rstrip("/")
        self.counters = Counters()
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def episode(self, id: str | None = None) -> Episode:
        """Return a new episode to be used in a `with`; `id` has to be unique, None makes one."""
        return Episode(Batch(self), id)

    def batch(self) -> Batch:
        """Return a Batch, which plays many episodes with one request a step."""
        return Batch(self)

    def act(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Send rows to /v1/act as they are and return the decisions, one a row, in order.

        Raises RejectedError, or UnavailableError when patience is over.
        """
        decisions: list[dict[str, Any]] = self._request("POST", "/v1/act", {"steps": rows})["decisions"]
        return decisions

    def end(self, rows: Sequence[Mapping[str, Any]], resend: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Send ends and steps that were lost to /v1/end; return {"acknowledged": [ids], "missing": {id: [t, …]}}.

        Raises RejectedError, or UnavailableError when patience is over.
        """
        return self._request("POST", "/v1/end", {"episodes": rows, "resend": resend})

    def policy(self) -> dict[str, Any]:
        """Return which policy answers: digest, version, and the digests that may still answer."""
        return self._request("GET", "/v1/policy", None)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        self._count("requests")
        try:
            answer: dict[str, Any] = self._until_answered(method, path, content).json()
        except FlywheelError:
            self._count("errors")
            raise
        return answer

    def _until_answered(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        deadline, pause, traced = time.monotonic() + self._patience_s, _FIRST_PAUSE_S, context.headers()
        while True:
            self._count("attempts")
            asked_s = 0.0
            try:
                response = self._http.request(method, path, content=content, headers=traced)
            except httpx.TransportError as error:
                self._count("not_answered")
                why = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response
                self._count("not_2xx")
                why, field = _reason(response)
                if response.status_code not in _RETRIED:
                    raise RejectedError(response.status_code, why, field)
                asked_s = _asked_s(response)
            if time.monotonic() + max(pause, asked_s) > deadline:
                raise UnavailableError(
                    f"{self.url}{path} gave no answer for {self._patience_s:g} s, the last time: {why} "
                    "Is the policy being served there? The same call may be made again."
                )
            time.sleep(max(pause, asked_s))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self.counters, name, getattr(self.counters, name) + 1)


def _asked_s(response: httpx.Response) -> float:
    """Return the seconds after which a server asks to be called again, 0 where it doesn't say."""
    said = response.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else 0.0


def _reason(response: httpx.Response) -> tuple[str, str]:
    try:
        answer = response.json()
        return str(answer["error"]), str(answer["field"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.text[:200]}", ""
