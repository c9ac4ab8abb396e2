"""What is shown of a change: the numbers that moved, transitions that show it, and episodes to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.analyze.moved import LIMIT, Scan
from flywheel.analyze.rivals import bias_of
from flywheel.analyze.series import SHARE, STEP, series
from flywheel.analyze.summaries import Family, Summaries
from flywheel.analyze.transitions import Model, Transitions, fit
from flywheel.causes import CauseKind, Moved, Odd
from flywheel.records import Episode

SHOWN = 5
"""Most numbers that are shown."""
CLEAR = 0.05
"""A number is shown where chance does as much no more often."""
MINOR = 0.05
"""Share of the largest change of a step's error below which another one isn't shown."""
EXAMPLES = 3
"""Most episodes of either side, and transitions, that are shown."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What was decided, and from what."""

    episodes: Sequence[Episode]
    known: Summaries
    kind: CauseKind
    onset: int
    champion: str
    former: Mask
    """bool[N]: episodes of the policy before that the present one is compared with."""
    family: Family | None
    """The numbers that moved; None where a release, or nothing, did."""
    scan: Scan | None
    p_value: float

    @property
    def after(self) -> Mask:
        """bool[N]: the changed episodes."""
        ours = np.array([e.digests[0] == self.champion for e in self.episodes])
        since = np.arange(len(self.episodes)) >= self.onset
        return ours & since if self.kind == "policy" else since

    @property
    def before(self) -> Mask:
        """bool[N]: those that they are compared with."""
        if self.kind == "policy":
            return self.former
        if self.kind == "nothing":
            return np.ones(len(self.episodes), dtype=np.bool_)
        return np.arange(len(self.episodes)) < self.onset


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibits:
    """What is shown."""

    moved: tuple[Moved, ...]
    transitions: tuple[Odd, ...]
    before: tuple[str, ...]
    """Ids of ordinary episodes."""
    after: tuple[str, ...]
    """Ids of changed ones."""


def exhibits(change: Change) -> Exhibits:
    """Return what is shown of a change."""
    if change.kind == "nothing":
        return Exhibits(moved=(), transitions=(), before=(), after=())
    before, after = _examples(change)
    ids = [e.id for e in change.episodes]
    return Exhibits(
        moved=tuple(_moved(change)),
        transitions=tuple(_odd(change, after)),
        before=tuple(ids[i] for i in before),
        after=tuple(ids[i] for i in after),
    )


def _moved(change: Change) -> list[Moved]:
    if change.family is None or change.scan is None:
        asked = [("episode", "share that fails"), ("episode", "return")] if change.kind == "policy" else []
        return [_row(change, what, measure, change.p_value) for what, measure in asked]
    rows: dict[tuple[str, str], Moved] = {}
    for i in np.argsort(change.scan.by_number, kind="stable"):
        what, measure = change.family.whats[i], change.family.measures[i]
        measure = {"dynamics": STEP, "reward": SHARE}.get(change.family.name, measure)
        p_value = float(change.scan.by_number[i])
        if (what, measure) not in rows and len(rows) < SHOWN and (p_value <= CLEAR or not rows):
            rows[what, measure] = _row(change, what, measure, p_value)
    found = list(rows.values())
    if change.family.name != "dynamics":
        return found
    most = max(abs(row.after - row.before) for row in found)  # all of them are in the same unit
    return sorted((r for r in found if abs(r.after - r.before) >= MINOR * most), key=lambda r: r.before - r.after)


def _row(change: Change, what: str, measure: str, p_value: float) -> Moved:
    values = series(change.known, change.before, what, measure)
    means = [np.nan, np.nan]
    if values is not None:
        some = [values[where & np.isfinite(values)] for where in (change.before, change.after)]
        means = [float(part.mean()) if len(part) else np.nan for part in some]
    return Moved(what=what, measure=measure, before=means[0], after=means[1], p_value=p_value)


def _model(change: Change) -> Model | None:
    some = change.known.transitions
    return None if some is None else fit(some, change.before[some.episode])


def _examples(change: Change) -> tuple[list[int], list[int]]:
    """Return ordinary episodes before the change, the latest ones first, and changed ones, the clearest first."""
    before, after = np.flatnonzero(change.before), np.flatnonzero(change.after)
    if change.family is None or change.scan is None:
        odd = np.array([(1.0 if e.failed else 0.0) - 1e-6 * e.num_steps for e in change.episodes])
    else:
        moved = np.flatnonzero(change.scan.by_number <= change.scan.by_number.min() + 1e-12)
        steady = change.scan.steady[:, moved]
        way = steady[after].mean(axis=0) - (steady[before].mean(axis=0) if len(before) else 0.0)
        odd = steady @ way
    clear = after[np.argsort(-odd[after], kind="stable")[:EXAMPLES]]
    late = before[-10 * EXAMPLES :]
    usual = (
        late[np.argsort(np.abs(odd[late] - np.median(odd[before])), kind="stable")[:EXAMPLES]] if len(late) else late
    )
    return sorted(usual.tolist(), reverse=True), clear.tolist()


def _odd(change: Change, after: Sequence[int]) -> list[Odd]:
    """Return the transition of each example that shows the change best."""
    some = change.known.transitions
    if some is None or change.family is None:
        return []
    if change.family.name in ("reward", "logging"):
        return [odd for i in after if (odd := _odd_reward(change, some, i)) is not None]
    if change.family.name == "dynamics" or change.kind == "sensors":
        model = _model(change)
        assert model is not None
        left = model.weighed(some)
        shown = [change.known.names.index(row.what) for row in _moved(change)]
        if change.family.name == "dynamics" and shown:
            left = np.where(np.isin(np.arange(left.shape[1]), shown), left, 0.0)
        return [_odd_step(change, some, model, left, i) for i in after if (some.episode == i).any()]
    return []


def _odd_step(change: Change, some: Transitions, model: Model, left: Floats, i: int) -> Odd:
    rows = np.flatnonzero(some.episode == i)
    row = int(rows[np.argmax(np.square(left[rows]).sum(axis=1))])
    d, t = int(np.argmax(np.abs(left[row]))), int(some.t[row])
    episode = change.episodes[i]
    flat = np.asarray(episode.observations, dtype=np.float64).reshape(len(episode.observations), -1)
    seen = float(flat[t + 1, change.known.dims[d]])
    expected = seen - float(model.left(some)[row, d] * model.deviation[d] * some.unit[d])
    return Odd(episode=episode.id, t=t, what=change.known.names[d], expected=expected, seen=seen)


def _odd_reward(change: Change, some: Transitions, i: int) -> Odd | None:
    episode = change.episodes[i]
    if change.kind == "logging" and (missing := np.flatnonzero(np.isnan(episode.rewards))).size:
        return Odd(episode=episode.id, t=int(missing[0]), what="reward", expected=np.nan, seen=np.nan)
    apart = np.where(some.episode == i, np.abs(some.rewards - change.known.expected), np.nan)
    if not np.isfinite(apart).any() or np.nanmax(apart) == 0.0:
        return None
    row = int(np.nanargmax(apart))
    expected, seen = float(change.known.expected[row]), float(some.rewards[row])
    return Odd(episode=episode.id, t=int(some.t[row]), what="reward", expected=expected, seen=seen)


def offsets(change: Change) -> dict[str, float]:
    """Return by how much the sensors whose first value moved are off."""
    if change.family is None or change.scan is None or change.family.name != "initial_states":
        return {}
    found = bias_of(change.known, change.family, change.scan.by_number <= LIMIT, change.onset)
    return {name: float(shift) for name, shift in zip(change.known.names, found, strict=True) if shift}
