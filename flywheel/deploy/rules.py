"""Who may call what, and how often. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.deploy.wire import RejectedError
from flywheel.tokens import Scope, Token, bearer, find


class Rules:
    """The tokens in force, and what each has left of its quota here: a bucket that fills at a steady rate."""

    def __init__(self, quota: float, burst_s: float) -> None:
        """Let nobody in until `adopt`. `quota` is of tokens that have none of their own, in requests a second."""
        self._quota, self._burst_s = quota, burst_s
        self._tokens: Sequence[Token] = ()
        self._left: dict[str, tuple[float, float]] = {}

    def adopt(self, tokens: Sequence[Token]) -> None:
        """Let these tokens in from now on, and no others."""
        self._tokens = tokens
        hashes = {token.hash for token in tokens}
        self._left = {hash: left for hash, left in self._left.items() if hash in hashes}

    def check(self, authorization: str, scopes: Sequence[Scope], now: float) -> None:
        """Return when an Authorization header shows a token with one of the scopes, and with requests left.

        Raises RejectedError: 401 without a token in force, 429 over its quota, 403 without any of the scopes.
        """
        token = find(self._tokens, bearer(authorization))
        if token is None:
            raise RejectedError(
                401,
                "The token is missing, wrong or revoked. Send 'Authorization: Bearer <token>' with one in force.",
            )
        self._take(token, now)
        if not token.lets(scopes):
            raise RejectedError(
                403,
                f"The token {token.name!r} has the scope {' and '.join(token.scopes)}, and this takes "
                f"{' or '.join(scopes)}: `flywheel tokens add NAME --scope {scopes[0]}` makes one that has it.",
            )

    def _take(self, token: Token, now: float) -> None:
        """Take a request of a token's quota; raise RejectedError, which says when to come again, if none is left."""
        per_s = token.quota or self._quota
        most = max(1.0, per_s * self._burst_s)
        left, at = self._left.get(token.hash, (most, now))
        left = min(most, left + max(0.0, now - at) * per_s)  # a clock may be put back
        self._left[token.hash] = (left - (left >= 1.0), now)
        if left < 1.0:
            wait_s = (1.0 - left) / per_s
            raise RejectedError(
                429,
                f"The token {token.name!r} has used up its {per_s:g} requests a second: send the same request again in "
                f"{wait_s:.2g} s, or use a token with a larger quota (`flywheel tokens add NAME --quota`).",
                wait_s=wait_s,
            )
