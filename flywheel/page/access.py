"""Who may see and who may operate: by the run's tokens; a cookie never holds the token itself."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from flywheel.tokens import Scope, Token, bearer, find

Role = Literal["", "read", "operate"]
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what is bound to a host."""
    return host in _LOOPBACK


def role_of(scopes: Sequence[Scope]) -> Role:
    """Return what scopes come to on a page."""
    return "operate" if "operate" in scopes else "read" if "read" in scopes else ""


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one page: reading is free on loopback, operating never is."""

    tokens: Callable[[], Sequence[Token]]
    """Those in force now."""
    key: bytes = field(repr=False)
    """What cookies are made with."""
    name: str = "flywheel"
    """Name of the cookie: pages of several runs on one machine share its host, whatever their ports."""
    local: bool = True
    """True: only requests that name this machine as their host are answered (no other name is rebound to it)."""

    def token(self, secret: str) -> Token | None:
        """Return the token in force that this is."""
        return find(self.tokens(), secret)

    def cookie(self, token: Token) -> str:
        """Return the cookie's value for a token: proof of it, which it doesn't tell."""
        return hmac.digest(self.key, token.hash.encode(), "sha256").hex()

    def scopes(self, headers: Mapping[str, str]) -> tuple[Scope, ...]:
        """Return what the sender of a request may do, by its Authorization header or its cookie."""
        secret = bearer(headers.get("authorization", ""))
        token = self.token(secret) if secret else self._of_cookie(headers.get("cookie", ""))
        free: tuple[Scope, ...] = ("read",) if self.local else ()
        return free if token is None else (*token.scopes, *free)

    def _of_cookie(self, header: str) -> Token | None:
        try:
            given = SimpleCookie(header).get(self.name)
        except CookieError:
            given = None
        if given is None:
            return None
        found = None
        for token in self.tokens():
            if hmac.compare_digest(given.value.encode(), self.cookie(token).encode()):
                found = token
        return found

    def is_named(self, host: str) -> bool:
        """Say whether a Host header names this machine, where only it may be named."""
        found = _split(f"//{host}")
        return not self.local or (found is not None and is_loopback(found.hostname or ""))


def same_origin(headers: Mapping[str, str]) -> bool:
    """Say whether a request comes from this page itself, or from no page at all."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    if "origin" not in headers:
        return True
    found = _split(headers["origin"])
    return found is not None and found.netloc == headers.get("host", "")


def _split(address: str) -> SplitResult | None:
    """Return an address's parts, None where it is no address, as "http://["."""
    try:
        return urlsplit(address)
    except ValueError:
        return None
