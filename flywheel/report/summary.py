"""What a run came to, in numbers, from its turns and its production episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from flywheel.records import Release, Signal, Turn

Answer = Literal["retrained", "rolled back", "unrelated"]
"""What a release after the change was: of a policy that was trained for it, of an earlier policy that was put back into
service, or of a policy whose training knew nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One whole episode of production, as far as the report needs it."""

    id: str
    started_at: float
    digest: str
    """Policy that gave its first action."""
    total: float
    changed: bool
    """True when its world was a changed one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Production's episodes by what the report compares, each in order of start."""

    before: tuple[Played, ...]
    after_shift: tuple[Played, ...]
    recovered: tuple[Played, ...]


def phases(turns: Sequence[Turn], played: Sequence[Played]) -> Phases:
    """Split production at the change of its world and at the release that answered it, or the last one after it.

    Without a change, everything on the policy in service is `before`.
    """
    ordered = in_order(played)
    changed = [e for e in ordered if e.changed]
    releases = [turn.release for turn in turns if turn.release is not None]
    if not changed:
        last = releases[-1].digest if releases else None
        return Phases(before=tuple(e for e in ordered if e.digest == last), after_shift=(), recovered=())
    change_at = changed[0].started_at
    old = next((r.digest for r in reversed(releases) if r.released_at <= change_at), changed[0].digest)
    release, _ = answer(turns, played)
    new = None if release is None else release.digest
    return Phases(
        before=tuple(e for e in ordered if not e.changed and e.digest == old and e.started_at <= change_at),
        after_shift=tuple(e for e in changed if e.digest == old),
        recovered=tuple(e for e in changed if e.digest == new and new != old),
    )


def answer(turns: Sequence[Turn], played: Sequence[Played]) -> tuple[Release | None, Answer | None]:
    """Return the last release that answered the change, else the last one after it, and what it was by the journal."""
    ordered = in_order(played)
    change_at = next((e.started_at for e in ordered if e.changed), None)
    later = [
        (turn.release, _kind(turn, ordered))
        for turn in turns
        if turn.release is not None and change_at is not None and turn.release.released_at > change_at
    ]
    answers = [each for each in later if each[1] != "unrelated"] or later
    return answers[-1] if answers else (None, None)


def _kind(turn: Turn, ordered: Sequence[Played]) -> Answer:
    """Say what a turn's release was: alarms from before the change are no reason that has to do with it."""
    assert turn.release is not None
    if turn.verdict is None or turn.release.digest != turn.verdict.digest:
        return "rolled back"
    return "retrained" if any(_num_read(signal, ordered) for signal in turn.plan.signals) else "unrelated"


def detection(turns: Sequence[Turn], played: Sequence[Played]) -> tuple[Signal | None, int | None]:
    """Return the first alarm after the change, and how many changed episodes had begun when its last one did."""
    ordered = in_order(played)
    for signal in sorted({_key(s): s for turn in turns for s in _signals(turn)}.values(), key=lambda s: s.at):
        if num_read := _num_read(signal, ordered):
            return signal, num_read
    return None, None


def _num_read(signal: Signal, ordered: Sequence[Played]) -> int:
    """Return how many changed episodes had begun when the one that raised the alarm did."""
    at = next(((e.started_at, e.id) for e in ordered if e.id == signal.at_episode), (signal.at, ""))
    return sum(e.changed and (e.started_at, e.id) <= at for e in ordered)


def in_order(played: Sequence[Played]) -> list[Played]:
    """Return the episodes by start, as the monitors read them."""
    return sorted(played, key=lambda e: (e.started_at, e.id))


def _signals(turn: Turn) -> Iterator[Signal]:
    """Yield the alarms that a turn answers and those that were raised in it, which no turn may have answered yet."""
    yield from turn.plan.signals
    for raised in turn.evidence.get("signals", ()):
        if not isinstance(raised, str):  # older journals hold their names only
            yield msgspec.convert(raised, Signal)


def _key(signal: Signal) -> tuple[str, str, str]:
    return signal.monitor, signal.digest, signal.at_episode


def summarize(
    turns: Sequence[Turn], played: Sequence[Played], *, requests: Mapping[str, int], episodes: Mapping[str, int]
) -> dict[str, Any]:
    """Return what summary.json says, of plain values; a mean over no episodes is None."""
    parts = phases(turns, played)
    seconds: dict[str, float] = {}
    for turn in turns:
        for stage, value in turn.evidence.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 3)
    production = {field.name: mean(getattr(parts, field.name)) for field in dataclasses.fields(Phases)}
    return {
        "turns": [_turn(turn) for turn in turns],
        "production": {**production, "episodes": len(played)},
        "answer": answer(turns, played)[1],
        "detected_after_episodes": detection(turns, played)[1],
        "seconds": seconds,
        "requests": {"total": requests["total"], "errors": requests["errors"]},
        "episodes": {name: episodes[name] for name in ("acknowledged", "stored", "broke_off")},
    }


def mean(played: Sequence[Played]) -> float | None:
    """Return the mean return, None over no episodes."""
    return float(np.mean([e.total for e in played])) if played else None


def _turn(turn: Turn) -> dict[str, Any]:
    verdict = turn.verdict
    judged = None if verdict is None else verdict.digest
    return {
        "number": turn.number,
        "strategy": turn.plan.strategy,
        "reasons": list(turn.plan.reasons),
        "digest": turn.artifact.digest if turn.artifact is not None else judged,
        "verdict": verdict.outcome if verdict is not None else None,
        "sims": verdict.num_simulations if verdict is not None else 0,
        "released": turn.release is not None and turn.release.digest == judged,
    }
