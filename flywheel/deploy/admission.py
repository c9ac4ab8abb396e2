"""Who may answer clients, as the registry says it and replicas hear it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    since: float = 0.0
    """When that share came into force; 0 where there is no challenger."""
    previous: str | None = None
    """The digest that a rollback would put into service."""
    condemned: Mapping[str, str] = field(default_factory=dict)
    """Digests that may not come back, and why."""
    control: str | None = None
    """The digest that some new episodes stay on beside the champion; None where none does."""
    control_share: float = 0.0
    control_since: float = 0.0
    """When the control began; 0 where there is none."""

    @property
    def changed_at(self) -> float:
        """When the shares of new episodes came into force; 0 where the champion has all."""
        return max(self.since, self.control_since)


@dataclass(frozen=True, slots=True)
class Served:
    """Who answered at a time."""

    at: float
    champion: str | None
    """None before the first promotion."""
    challenger: str | None
    """The digest that was tried beside it; None where none was."""
    share: float
    """Share of new episodes that the challenger was given; 0 in the shadow, and where there was none."""
    control: str | None = None
    """The digest that some new episodes stayed on; None where none did."""
    control_share: float = 0.0


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


class Tally:
    """What a replica saw of challengers and has not told the registry yet."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._seen: dict[str, Tried] = {}

    def add(self, more: Tried) -> None:
        """Count what was seen of a challenger, besides what is there of it."""
        known = self._seen.get(more.digest, Tried(digest=more.digest))
        self._seen[more.digest] = Tried(
            digest=more.digest,
            num_shadowed=known.num_shadowed + more.num_shadowed,
            num_same=known.num_same + more.num_same,
            trouble=known.trouble or more.trouble,
        )

    def take(self) -> list[Tried]:
        """Return what is there, and begin with nothing again."""
        found, self._seen = list(self._seen.values()), {}
        return found
