"""Bearer tokens: what each lets do, and which one a request shows. Pure; only their hashes are kept anywhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

Scope = Literal["act", "ingest", "read", "operate"]
"""act: ask for decisions and leases, end episodes, and tell; ingest: tell spans, late rewards and whole episodes; read:
look; operate: change what is served or judged."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """All that is known of a token but the token itself."""

    name: str
    hash: str = field(repr=False)
    """sha256, hex: nobody finds 256 random bits by trying, so that no slow hash is needed."""
    scopes: tuple[Scope, ...]
    made_at: float
    revoked_at: float | None = None
    """None: it is in force."""
    quota: float | None = None
    """Requests a second that a replica takes of it; None: what the configuration says."""

    def lets(self, scopes: Collection[Scope]) -> bool:
        """Say whether it has one of these scopes."""
        return any(scope in self.scopes for scope in scopes)


def fresh() -> str:
    """Return a new token of 256 random bits."""
    return secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find(tokens: Iterable[Token], secret: str) -> Token | None:
    """Return which of these tokens this is, None where it is none; each of them is compared, in constant time."""
    hashed, found = hash_of(secret), None
    for token in tokens:
        if hmac.compare_digest(token.hash, hashed):
            found = token
    return found


def bearer(authorization: str) -> str:
    """Return the token in an Authorization header, "" where there is none."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
