"""Who may answer clients, as the registry says it and replicas hear it."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.tokens import Token


@dataclass(frozen=True, slots=True)
class Admission:
    """The registry's word on who answers clients, and which clients."""

    champion: str | None
    """The digest in service; None before the first promotion."""
    admissible: tuple[str, ...]
    """Digests that may answer: the champion, the challenger, and former ones that were not rolled back or condemned."""
    known: frozenset[str]
    """Every digest that was ever released or tried: only these can be repeated by a client."""
    tokens: tuple[Token, ...] = ()
    """Those in force."""
    challenger: str | None = None
    """The digest that is being tried beside the champion; None where none is."""
    share: float = 0.0
    """Share of new episodes that the challenger is given; at 0 it is in the shadow: it acts, and is not heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a replica saw of a challenger since it last said so."""

    digest: str
    num_shadowed: int = 0
    """Decisions that it made well in the shadow."""
    num_same: int = 0
    """Those of them that were the champion's."""
    trouble: str = ""
    """How it broke, as a clause: then this replica lets the champion answer for it; "" where it did not."""
