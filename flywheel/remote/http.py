"""A page's API as a program asks it: each answer is a record, each failure one sentence."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import httpx
import msgspec

from flywheel.errors import FlywheelError, LostError, Refused, UsageError
from flywheel.net import is_loopback
from flywheel.trace.carry import FORM, unpacked
from flywheel.trace.snapshots import NotReproducible

API = "/api/v1"
TRAVEL = f"{API}/travel"
CONNECT_S = 10.0
"""Seconds after which a host that doesn't answer at all is given up on."""
IDLE_S = 2.0
"""Seconds for which an idle connection is kept: fewer than the 5 after which the page closes it."""
_KINDS = {kind.__name__: kind for kind in (FlywheelError, LostError, NotReproducible, Refused, UsageError)}


class Greeting(msgspec.Struct, frozen=True):
    """What a page says of itself first; of other versions this much can be read."""

    form: int
    version: str
    run: str
    """Name of the run directory."""
    role: str
    """`read` or `operate`: what the token lets do."""


class _Wrong(msgspec.Struct, frozen=True):
    error: str
    kind: str = ""


class Page:
    """The page at an address, spoken to with a token."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        """Send nothing yet; UsageError for what is no address, or no token."""
        self.url = address_of(url)
        if not all("!" <= character <= "~" for character in token):
            raise UsageError("This is no token: one is a single word of letters, digits, - and _.")
        if not timeout_s > 0:
            raise UsageError(f"timeout_s is a number of seconds above 0, not {timeout_s!r}.")
        self.token, self._timeout_s = token, timeout_s

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
            timeout=httpx.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s)),
            limits=httpx.Limits(keepalive_expiry=IDLE_S),
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )

    def close(self) -> None:
        """Close the connections; they are opened again when they are needed."""
        http: httpx.Client | None = self.__dict__.pop("_http", None)
        if http is not None:
            http.close()

    def greeting(self) -> Greeting:
        """Return what the page says of itself; raises FlywheelError unless it offers what this version asks for."""
        response = self._answered("GET", TRAVEL)
        wrong = _told(response)
        if response.status_code == 404 and not (wrong and wrong.kind):
            raise UsageError(
                f"{self.url} answers, but not as a page that offers time travel: it is a page of an earlier version "
                "of flywheel, or something else. `flywheel page` prints the address of its page."
            )
        try:
            found = msgspec.json.decode(self._fine(response).content, type=Greeting)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{self.url} is no page of flywheel: `flywheel page` prints the address of one."
            ) from error
        if found.form != FORM:
            raise UsageError(
                f"The page at {self.url} is of flywheel {found.version}, whose time travel has form {found.form}, and "
                f"this program speaks form {FORM}: install the same version in both places."
            )
        return found

    def get(self, path: str, kind: Any, **asked: Any) -> Any:
        """Return the record at a path; arguments that are None are not sent. Raises FlywheelError."""
        given = {name: value for name, value in asked.items() if value is not None}
        return self._record(self._answered("GET", path, params=given), kind)

    def post(self, path: str, kind: Any, body: Any) -> Any:
        """Return the record that a body is answered with. Raises FlywheelError."""
        return self._record(self._sent("POST", path, body), kind)

    def do(self, method: str, path: str, body: Any) -> None:
        """Have something changed. Raises FlywheelError."""
        self._fine(self._sent(method, path, body))

    def _sent(self, method: str, path: str, body: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return self._answered(method, path, content=msgspec.json.encode(body), headers=headers)

    def _answered(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **what)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise FlywheelError(
                f"No page answers at {self.url} ({_why(error)}): is `flywheel page` running there, and can this "
                "machine reach it?"
            ) from error
        except httpx.TimeoutException as error:
            raise FlywheelError(
                f"The page at {self.url} has not answered for {self._timeout_s:g} s: ask for less at once, or give "
                "connect a larger timeout_s."
            ) from error
        except httpx.RequestError as error:
            raise FlywheelError(
                f"The connection to the page at {self.url} broke ({_why(error)}): ask again, and look whether the page "
                "is still up."
            ) from error

    def _record(self, response: httpx.Response, kind: Any) -> Any:
        try:
            return unpacked(self._fine(response).content, kind)
        except msgspec.MsgspecError as error:
            raise FlywheelError(
                f"The page at {self.url} answered what this version can't read ({error}): is the same version of "
                "flywheel installed in both places?"
            ) from error

    def _fine(self, response: httpx.Response) -> httpx.Response:
        """Return an answer that is one; raise what it says otherwise, as the run directory itself would have."""
        if response.is_success:
            return response
        if response.status_code == 401:
            said = "refused this token" if self.token else "asks for a token"
            raise Refused(
                f"The page at {self.url} {said}: give connect(url, token=…) what is in keys/page.token of its run "
                "directory, or in keys/operate.token to save scenarios and keep spans, too."
            )
        wrong = _told(response)
        if wrong is None:
            raise FlywheelError(
                f"What answers at {self.url} is no page of flywheel, or not itself now: HTTP {response.status_code}."
            )
        usual = Refused if response.status_code == 403 else UsageError if response.status_code < 500 else FlywheelError
        raise _KINDS.get(wrong.kind, usual)(wrong.error)


def _told(response: httpx.Response) -> _Wrong | None:
    """Return what a page says is wrong, None where no page says anything."""
    try:
        return msgspec.json.decode(response.content, type=_Wrong)
    except msgspec.MsgspecError:
        return None


def address_of(url: str) -> str:
    """Return a page's address without the slash at its end; UsageError where it is none, or says more than that."""
    no_address = "This is no address of a page: one is like http://127.0.0.1:8700, or https://example.com/page."
    try:
        found = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UsageError(no_address) from error
    if found.scheme not in ("http", "https") or not found.host:
        raise UsageError(no_address)
    if found.userinfo or found.query or found.fragment:
        raise UsageError(
            f"Give the page's address alone, as {found.scheme}://{found.netloc.decode()}, and the token as token=…: "
            "what is in an address is written down on the way."
        )
    return str(found).rstrip("/")


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
