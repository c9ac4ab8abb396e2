"""Who may see and who may operate: tokens, compared in constant time; a cookie never holds the token itself."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import SplitResult, urlsplit

Role = Literal["", "read", "operate"]
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what is bound to a host."""
    return host in _LOOPBACK


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one page: reading is free on loopback, operating never is."""

    read: str
    """Token that lets read; "" where everybody who reaches the page may."""
    operate: str
    """Token that lets operate, and read; "" where nobody may."""
    name: str = "flywheel"
    """Name of the cookie: pages of several runs on one machine share its host, whatever their ports."""
    local: bool = True
    """True: only requests that name this machine as their host are answered (no other name is rebound to it)."""

    def __repr__(self) -> str:
        return f"Access(free={not self.read}, local={self.local})"

    def role_of(self, token: str) -> Role:
        """Return what a token lets do."""
        if self.operate and hmac.compare_digest(token.encode(), self.operate.encode()):
            return "operate"
        return "read" if self.read and hmac.compare_digest(token.encode(), self.read.encode()) else ""

    def cookie(self, role: Role) -> str:
        """Return the cookie's value for a role: proof of its token, which it doesn't tell."""
        token = self.operate if role == "operate" else self.read
        return f"{role}.{hmac.digest(token.encode(), f'flywheel page {role}'.encode(), hashlib.sha256).hex()}"

    def role(self, headers: Mapping[str, str]) -> Role:
        """Return what the sender of a request may do, by its Authorization header or its cookie."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.role_of(token.strip()) or self._anybody
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.name)
        except CookieError:
            found = None
        for role in ("operate", "read"):
            token = self.operate if role == "operate" else self.read
            if found is not None and token and hmac.compare_digest(found.value.encode(), self.cookie(role).encode()):
                return role
        return self._anybody

    @property
    def _anybody(self) -> Role:
        return "" if self.read else "read"

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
