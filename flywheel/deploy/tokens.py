"""The tokens of a run as the registry keeps them: their names, hashes, scopes and quotas, never they themselves."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection
from pathlib import Path

from flywheel import sqlite
from flywheel.deploy.keys import EVERYDAY, keep_token, kept_tokens, token_file
from flywheel.errors import UsageError, unknown
from flywheel.tokens import SCOPES, Scope, Token, fresh, hash_of


class Tokens:
    """The part of a Registry that is about who may call."""

    run_dir: Path
    _db: sqlite3.Connection

    def add_token(self, name: str, scopes: Collection[Scope], now: float, quota: float | None = None) -> str:
        """Return a new token, which nobody can be told again; one that may operate may read, too.

        An everyday token is written to its file as well. Raises UsageError for a name that is taken or is none, without
        a scope, and for a quota of nothing.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise UsageError(f"A token's name is letters, digits and . _ - (at most 64), not {name!r}.")
        if wrong := set(scopes) - set(SCOPES):
            raise unknown("scope", min(wrong), SCOPES)
        given = {*scopes, *(["read"] if "operate" in scopes else [])}
        if not given:
            raise UsageError(f"A token without a scope opens nothing: give it some of {', '.join(SCOPES)}.")
        if quota is not None and not quota > 0:
            raise UsageError(f"A token's quota is a number of requests a second above 0, not {quota:g}.")
        if any(token.name == name for token in self.in_force()):
            raise UsageError(f"There is a token {name!r} already: give another name, or revoke that one first.")
        secret, ordered = fresh(), tuple(scope for scope in SCOPES if scope in given)
        if name in EVERYDAY:
            token_file(self.run_dir, name).unlink(missing_ok=True)  # what stands in it is not in force
            keep_token(self.run_dir, name, secret)
        _insert(self._db, Token(name=name, hash=hash_of(secret), scopes=ordered, made_at=now, quota=quota))
        return secret

    def revoke_token(self, name: str, now: float) -> None:
        """Let a token open nothing any more, for good; an everyday one's file goes. UsageError when there is none."""
        names = [token.name for token in self.in_force()]
        if name not in names:
            raise unknown("token in force", name, names)
        if name in EVERYDAY:
            token_file(self.run_dir, name).unlink(missing_ok=True)
        self._db.execute("UPDATE tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL", (now, name))

    def tokens(self) -> tuple[Token, ...]:
        """Return every token, revoked ones too, oldest first; in a file from before them those that have a file."""
        if not sqlite.has_table(self._db, "tokens"):
            return kept_tokens(self.run_dir)
        rows = self._db.execute("SELECT name, hash, scopes, made_at, revoked_at, quota FROM tokens ORDER BY id")
        return tuple(
            Token(
                name=name,
                hash=hash,
                scopes=tuple(scope for scope in SCOPES if scope in scopes.split()),
                made_at=made_at,
                revoked_at=revoked_at,
                quota=quota,
            )
            for name, hash, scopes, made_at, revoked_at, quota in rows
        )

    def in_force(self) -> tuple[Token, ...]:
        """Return the tokens that open something."""
        return tuple(token for token in self.tokens() if token.revoked_at is None)

    def _enroll(self, db: sqlite3.Connection) -> None:
        """Take in the everyday tokens that never were here: those of an earlier version's files, else fresh ones."""
        known = {name for (name,) in db.execute("SELECT name FROM tokens")}
        for name in EVERYDAY.keys() - known:
            keep_token(self.run_dir, name, fresh())
        for token in kept_tokens(self.run_dir):
            if token.name not in known:
                _insert(db, token)


def _insert(db: sqlite3.Connection, token: Token) -> None:
    db.execute(
        "INSERT INTO tokens (name, hash, scopes, made_at, quota) VALUES (?, ?, ?, ?, ?)",
        (token.name, token.hash, " ".join(token.scopes), token.made_at, token.quota),
    )
