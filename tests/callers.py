"""Every kind of token that a request can show."""

from __future__ import annotations

from flywheel.deploy.registry import Registry
from flywheel.tokens import SCOPES, Scope, fresh

KINDS: dict[str, tuple[Scope, ...]] = {
    "none": (), "wrong": (), "revoked": (), **{scope: (scope,) for scope in SCOPES}, "all": SCOPES,
}  # fmt: skip
"""What each lets do, as it was asked for."""
STRANGERS = ("none", "wrong", "revoked")


def make(registry: Registry) -> dict[str, str]:
    """Return a token of each kind, "" for none."""
    made = {kind: registry.add_token(f"its-{kind}", scopes, 1.0) for kind, scopes in KINDS.items() if scopes}
    revoked = registry.add_token("its-revoked", SCOPES, 1.0)
    registry.revoke_token("its-revoked", 2.0)
    return {"none": "", "wrong": fresh(), "revoked": revoked, **made}


def lets(kind: str) -> set[Scope]:
    """Return what a kind of token lets do: whoever may operate may read."""
    return {*KINDS[kind], *(["read"] if "operate" in KINDS[kind] else [])}  # type: ignore[list-item]
