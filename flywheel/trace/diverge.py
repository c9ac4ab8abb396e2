"""Where two courses of an episode part: the first step, what the one and the other had there, and that in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.policy import TOLERANCE, Policy
from flywheel.records import Array, Episode
from flywheel.tapes import Difference, DifferenceKind
from flywheel.trace.values import Values


def first_difference(one: Episode, other: Episode, *, rewards: bool = True) -> Difference | None:
    """Return the first step where two episodes differ by a bit (in more than `rewards`), None where they are equal.

    At one step the observation is looked at first, then the action, then its reward; where one goes on and the other
    is over, or they end otherwise, they part there.
    """
    num = min(one.num_steps, other.num_steps)
    found: list[tuple[int, int, DifferenceKind, Any, Any]] = []
    columns: tuple[tuple[DifferenceKind, str, int], ...] = (
        ("observation", "observations", num + 1),
        ("action", "raw_actions", num),
        ("reward", "rewards", num * rewards),
    )
    for order, (kind, name, length) in enumerate(columns):
        a, b = (_rows(getattr(e, name)[:length]) for e in (one, other))
        unlike = np.flatnonzero(((a != b) & ~((a != a) & (b != b))).any(axis=1))
        if len(unlike):
            step = int(unlike[0])
            found.append((step, order, kind, getattr(one, name)[step], getattr(other, name)[step]))
    if one.num_steps != other.num_steps or one.end != other.end:
        found.append((num, len(columns), "end", _end(one, num), _end(other, num)))
    if not found:
        return None
    step, _, kind, a, b = min(found, key=lambda each: each[:2])
    return difference(step, kind, a, b)


def _end(episode: Episode, t: int) -> str:
    return episode.end if episode.num_steps == t else "goes on"


def _rows(array: Array) -> Array:
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def difference(step: int, kind: DifferenceKind, one: Any, other: Any, note: str = "") -> Difference:
    """Return a Difference of these values, as plain ones, with a sentence."""
    one, other = plain(one), plain(other)
    return Difference(step=step, kind=kind, one=one, other=other, note=note or _note(kind, one, other))


def _note(kind: str, one: Any, other: Any) -> str:
    """Return what two plain values are; of long ones only the number that differs most."""
    a, b = np.ravel(one), np.ravel(other)
    if len(a) < 2 or a.shape != b.shape:
        return f"{kind} {told(one)} or {told(other)}"
    apart = np.abs(a - b)
    i, num = int(np.argmax(apart)), int((apart > 0).sum())
    more = f", and {num - 1} more numbers" if num > 2 else ", and another number" if num == 2 else ""
    return f"{kind}[{i}] {told(float(a[i]))} or {told(float(b[i]))}{more}"


def plain(value: Any) -> Any:
    """Return a NumPy value as numbers and lists."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def told(value: Any) -> str:
    """Return a plain value as a person reads it."""
    if isinstance(value, list):
        return "[" + ", ".join(told(each) for each in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def recheck(episode: Episode, policies: Mapping[str, Policy], *, tolerance: float = TOLERANCE) -> Difference | None:
    """Return the first decision that its policy does not make again for the same observation and draws, or None.

    A decision is made again when it is the same action with the same log probability, within what another CPU kind or
    library version may change. 0 asks for every bit, of episodes that were made on this kind of machine: it tells apart
    policies that are both sure of the same action.
    """
    for first, stop, digest in _spans(episode.digests):
        if not digest:
            continue  # given actions: nobody decided them
        found = _unlike(episode, policies[digest], first, stop, tolerance)
        if found is not None:
            return found
    return None


def against_policy(episode: Episode, policy: Policy) -> Difference | None:
    """Return the first step of an episode where another policy, with the same draws, acts otherwise, or None."""
    raw, _ = _decisions(episode, policy, 0, episode.num_steps)
    unlike = np.flatnonzero((_rows(raw) != _rows(episode.raw_actions)).any(axis=1))
    if not len(unlike):
        return None
    t = int(unlike[0])
    return difference(t, "action", episode.raw_actions[t], raw[t])


def values_part(one: Episode, other: Episode, values: Values, beyond: float) -> Difference | None:
    """Return the first step where a critic expects of one course over `beyond` more, or less, than of the other."""
    num = min(len(one.observations), len(other.observations))
    a, b = (values(e.observations[:num]) for e in (one, other))
    apart = np.flatnonzero(np.abs(a - b) > beyond)
    return difference(int(apart[0]), "value", a[apart[0]], b[apart[0]]) if len(apart) else None


def _spans(digests: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Return (first step, step after the last, digest) of each run of decisions by one policy."""
    cuts = [t for t in range(len(digests)) if t == 0 or digests[t] != digests[t - 1]]
    return [(t, stop, digests[t]) for t, stop in zip(cuts, [*cuts[1:], len(digests)], strict=True)]


def _decisions(episode: Episode, policy: Policy, first: int, stop: int) -> tuple[Array, NDArray[np.float64]]:
    keys = np.full(stop - first, episode.draw_key, dtype=np.uint64)
    drawn = draws(keys, np.arange(first, stop), policy.spec.num_draws)
    parts = [
        policy.act(episode.observations[i:j], drawn[i - first : j - first])
        for i in range(first, stop, 256)
        for j in [min(i + 256, stop)]
    ]
    return np.concatenate([raw for raw, _ in parts]), np.concatenate([logps for _, logps in parts])


def _unlike(episode: Episode, policy: Policy, first: int, stop: int, tolerance: float) -> Difference | None:
    raw, logps = _decisions(episode, policy, first, stop)
    recorded = episode.raw_actions[first:stop]
    slack = tolerance if raw.dtype.kind == "f" else 0.0
    other = (np.abs(_rows(raw) - _rows(recorded)) > slack).any(axis=1)
    likely = np.abs(logps - episode.logps[first:stop]) > tolerance * (1.0 + np.abs(logps))
    unlike = np.flatnonzero(other | likely)
    if not len(unlike):
        return None
    i = int(unlike[0])
    t = first + i
    if other[i]:
        return difference(t, "action", recorded[i], raw[i])
    one, another = float(np.exp(episode.logps[t])), float(np.exp(logps[i]))
    note = f"action {told(plain(recorded[i]))} with probability {one:.6g} or {another:.6g}"
    if f"{one:.6g}" == f"{another:.6g}":
        note = f"log probability {episode.logps[t]:.6g} or {logps[i]:.6g} of action {told(plain(recorded[i]))}"
    return difference(t, "action", recorded[i], raw[i], note)
