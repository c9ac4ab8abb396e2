"""Why production changed: the record that a diagnosis leaves behind, and its JSON.

It crosses rooms as the records of `records` do, and is frozen and plain as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from flywheel.config import canonical
from flywheel.errors import FlywheelError
from flywheel.records import Turn

SCHEMA_VERSION = 1
"""Version of a Cause's JSON; readers keep reading older ones."""
CAUSE = "cause"
"""What a turn's evidence calls it."""

CauseKind = Literal["policy", "dynamics", "initial_states", "sensors", "reward", "logging", "nothing", "unknown"]

NAMES: Mapping[CauseKind, str] = {
    "policy": "the policy",
    "dynamics": "the world's dynamics",
    "initial_states": "where episodes begin",
    "sensors": "a sensor",
    "reward": "the reward",
    "logging": "the logging",
    "nothing": "nothing",
    "unknown": "not known",
}
"""The kinds as people are told them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A number of episodes that is another one since the change."""

    what: str
    """What it is of: `observation 2`, `reward`, `failed`."""
    measure: str
    """Which number of that, in words, with its unit."""
    before: float
    """Its mean over the episodes before the change; NaN where there is none."""
    after: float
    """Its mean over those since then."""
    p_value: float
    """Chance of a difference this large if nothing had changed, for the many numbers that were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """A transition that shows the change well."""

    episode: str
    t: int
    """The action that it follows."""
    what: str
    expected: float
    """What the episodes before the change would have had there; NaN where nothing was to be expected."""
    seen: float
    """What was there instead; NaN where it is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What changed in production, since when, and what shows it."""

    kind: CauseKind
    sentences: tuple[str, ...]
    """The same in words, the shortest telling first."""
    digest: str = ""
    """The policy in service."""
    since_episode: str = ""
    """The first changed episode (an estimate); "" where nothing changed."""
    since_at: float = 0.0
    """When it began; 0 where nothing changed."""
    num_before: int = 0
    """Episodes before the change that it is compared with."""
    num_after: int = 0
    """Changed episodes that were read."""
    p_value: float = 1.0
    """Chance of evidence this strong if nothing had changed, for all that was tested."""
    moved: tuple[Moved, ...] = ()
    transitions: tuple[Odd, ...] = ()
    examples_before: tuple[str, ...] = ()
    """Ids of ordinary episodes before the change."""
    examples_after: tuple[str, ...] = ()
    """Ids of changed episodes that show it most."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The p-value of each family of numbers, before it is corrected for their number."""


def to_plain(cause: Cause) -> dict[str, Any]:
    """Return a cause as plain values, as the journal keeps it."""
    plain: dict[str, Any] = json.loads(canonical({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(cause)}))
    return plain


def from_plain(plain: Mapping[str, Any]) -> Cause:
    """Return the cause that plain values hold; FlywheelError where they hold none."""
    try:
        return msgspec.convert(dict(plain), Cause)
    except msgspec.ValidationError as error:
        raise FlywheelError(
            f"The diagnosis that the journal holds is damaged ({error}): `flywheel why --now` makes it again."
        ) from error


def answered(turns: Sequence[Turn]) -> float:
    """Return when the last change began that a release answered; 0 where none did: what was before it is history.

    A diagnosis that found no beginning leaves that of an earlier one.
    """
    for turn in reversed(turns):
        if turn.release is not None and (found := of(turn)) is not None and found.since_at:
            return found.since_at
    return 0.0


def kept(turn: Turn) -> dict[str, Any]:
    """Return the part of a turn's evidence that says why production changed; empty where it doesn't."""
    return {CAUSE: turn.evidence[CAUSE]} if CAUSE in turn.evidence else {}


def of(turn: Turn) -> Cause | None:
    """Return the diagnosis that a turn made, None where it made none."""
    plain = turn.evidence.get(CAUSE)
    return None if plain is None else from_plain(plain)


def told(cause: Cause) -> str:
    """Return a diagnosis in one line."""
    return f"{NAMES[cause.kind]} changed: {cause.sentences[0]}" if cause.kind != "unknown" else cause.sentences[0]
