"""Each episode as a few numbers by family: how it was logged, rewarded, begun, moved, and how it came out.

Every model here is fitted to all episodes at once, whatever their order: while nothing changes, the numbers of one
policy's episodes are exchangeable, and a test that shuffles them is exact, however badly a model fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.analyze.expected import expected_rewards
from flywheel.analyze.transitions import Transitions, fit, read
from flywheel.records import Episode, Spec

MOST_SLOPES = 160
"""Most numbers on how each observation's change goes along with state and action; beyond it, one an observation."""
SENSED = 32
"""Most numbers of an observation that are looked at: those that vary most."""

STRIDE = 8
"""Steps that the second, coarser look at transitions takes at once: sensor noise is the same over them, what the world
does is more."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """Numbers that answer one question."""

    name: str
    numbers: Floats
    """float64[N, F]"""
    whats: tuple[str, ...]
    """What each number is of."""
    measures: tuple[str, ...]
    """Which number of that, in words; several numbers may have the same one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summaries:
    """All that is known of N episodes in order of start."""

    families: tuple[Family, ...]
    transitions: Transitions | None
    """None where no episode has a whole transition."""
    expected: Floats
    """float64[M]: the reward that transitions like it have elsewhere; NaN where that wasn't asked or isn't known."""
    dims: NDArray[np.intp]
    """Numbers of the observation that were looked at."""
    names: tuple[str, ...]
    """What those are called."""


def summarize(episodes: Sequence[Episode], spec: Spec) -> Summaries:
    """Return the families of numbers of these episodes, in the order in which they explain."""
    dims = _dims(episodes)
    names = tuple(name for i, name in enumerate(names_of(spec)) if i in set(dims.tolist()))
    transitions = read(episodes, spec, dims)
    expected = np.full(0 if transitions is None else len(transitions.rewards), np.nan)
    families = [_logging(episodes)]
    if transitions is not None:
        expected = expected_rewards(transitions)
        families += [_rewarded(transitions, expected), *_rewards(transitions, expected)]
        families += [_sensors(transitions, names)]
    families.append(_first(episodes, dims, names))
    if transitions is not None:
        coarse = read(episodes, spec, dims, STRIDE)
        families += [_along(transitions, names), _left(transitions, names)]
        families += [] if coarse is None else [_left(coarse, names)]
    families.append(_outcome(episodes))
    return Summaries(
        families=tuple(_joined(families)), transitions=transitions, expected=expected, dims=dims, names=names
    )


def names_of(spec: Spec) -> list[str]:
    """Return what each number of a flattened observation is called: by the space's own keys, where it has some."""
    num = int(np.prod(spec.observation_shape))
    found: list[str] = []
    for leaf in spec.observation_leaves:
        width = int(sum(leaf.nvec) or np.prod(leaf.shape, dtype=int))
        path = "/".join(map(str, leaf.path))
        found += [path if width == 1 else f"{path}[{i}]" for i in range(width)]
    return found if len(found) == num else [f"observation {i}" for i in range(num)]


def _joined(families: Sequence[Family]) -> list[Family]:
    """Return families with the numbers of those that answer the same question together."""
    names = list(dict.fromkeys(f.name for f in families))
    groups = [[f for f in families if f.name == name] for name in names]
    return [
        Family(
            name=name,
            numbers=np.concatenate([f.numbers for f in group], axis=1),
            whats=tuple(what for f in group for what in f.whats),
            measures=tuple(measure for f in group for measure in f.measures),
        )
        for name, group in zip(names, groups, strict=True)
    ]


def _flat(episode: Episode) -> Floats:
    return np.asarray(episode.observations, dtype=np.float64).reshape(len(episode.observations), -1)


def _dims(episodes: Sequence[Episode]) -> NDArray[np.intp]:
    """Return the numbers of the observation that are looked at, in their own order."""
    rows = np.concatenate([_flat(e)[:: max(1, len(e.observations) // 16)] for e in episodes])
    spread = np.nan_to_num(np.nanstd(np.where(np.isfinite(rows), rows, np.nan), axis=0))
    return np.asarray(np.sort(np.argsort(-spread, kind="stable")[:SENSED]))


def _logging(episodes: Sequence[Episode]) -> Family:
    numbers = [
        (
            float(np.isnan(e.rewards).mean()) if e.num_steps else 0.0,
            float(e.end == "lost"),
            float(np.mean(~np.isfinite(_flat(e)))),
        )
        for e in episodes
    ]
    return Family(
        name="logging",
        numbers=np.array(numbers).reshape(-1, 3),
        whats=("reward", "episode", "observation"),
        measures=("share of rewards that are missing", "share lost on the way", "share that is no finite number"),
    )


def _rewarded(known: Transitions, expected: Floats) -> Family:
    """Return how often a reward is nothing where transitions like it have some."""
    asked = np.isfinite(expected)
    gone = (known.rewards == 0.0) & (np.abs(expected) > 1e-9)
    return Family(
        name="logging",
        numbers=known.mean_by_episode(gone.astype(np.float64), asked)[:, None],
        whats=("reward",),
        measures=("share of rewards that are 0 where there was something",),
    )


def _rewards(known: Transitions, expected: Floats) -> list[Family]:
    asked = np.isfinite(expected) & np.isfinite(known.rewards)
    beside = np.where(asked, known.rewards - np.nan_to_num(expected), 0.0)
    level = float(np.abs(known.rewards[asked]).mean()) if asked.any() else 0.0
    beside = np.where(np.abs(beside) < 1e-3 * level, 0.0, beside)  # rounding is no change
    root = np.sqrt(known.count_by_episode(asked))
    numbers = [root * known.mean_by_episode(some, asked) for some in (beside, np.abs(beside))]
    return [
        Family(
            name="reward",
            numbers=np.stack(numbers, axis=1),
            whats=("reward", "reward"),
            measures=("beside what like transitions have",) * 2,
        )
    ]


def _sensors(known: Transitions, names: Sequence[str]) -> Family:
    stuck = known.changes == 0.0
    numbers = np.stack([known.mean_by_episode(column.astype(np.float64)) for column in stuck.T], axis=1)
    return Family(
        name="sensors",
        numbers=numbers,
        whats=tuple(names),
        measures=("share of steps in which it stands still",) * len(names),
    )


def _first(episodes: Sequence[Episode], dims: NDArray[np.intp], names: Sequence[str]) -> Family:
    first = np.array([np.nan_to_num(_flat(e)[0][dims]) for e in episodes])
    away = np.abs(first - np.median(first, axis=0))
    return Family(
        name="initial_states",
        numbers=np.concatenate([first, away], axis=1),
        whats=(*names, *names),
        measures=("first value",) * len(names) + ("first value's distance from the middle",) * len(names),
    )


def _along(known: Transitions, names: Sequence[str]) -> Family:
    """Return how what the model leaves of one-step changes goes along with state and action."""
    model = fit(known)
    along = known.scores(model.left(known), model.weights(known))
    if along.shape[1] * along.shape[2] > MOST_SLOPES:
        along = np.log(np.square(along).mean(axis=2) + 1e-9)[:, :, None]
    count = along.shape[2]
    return Family(
        name="dynamics",
        numbers=along.reshape(len(along), -1),
        whats=tuple(name for name in names for _ in range(count)),
        measures=("change of a step, given state and action",) * (len(names) * count),
    )


def _left(known: Transitions, names: Sequence[str]) -> Family:
    """Return how large what the model leaves of changes is, and whether it swings."""
    left = fit(known).weighed(known)
    size = known.mean_by_episode_of(np.square(left))
    return Family(
        name="dynamics",
        numbers=np.concatenate([np.log(size + 1e-9), known.swing(left) / (size + 1e-12)], axis=1),
        whats=(*names, *names),
        measures=("size of what is left of a step's change",) * (2 * len(names)),
    )


def _outcome(episodes: Sequence[Episode]) -> Family:
    numbers = [(float(e.failed), np.log1p(e.num_steps), e.total) for e in episodes]
    return Family(
        name="outcome",
        numbers=np.array(numbers).reshape(-1, 3),
        whats=("episode",) * 3,
        measures=("share that fails", "length", "return"),
    )
