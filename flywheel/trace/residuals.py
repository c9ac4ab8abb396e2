"""Where a world leaves the simulator: transitions that it doesn't make, beyond what is noise. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Episode, Parameters
from flywheel.remembering import forgotten
from flywheel.simulate.corrected import arriving
from flywheel.simulate.transitions import Simulator, Transitions, going_on
from flywheel.tapes import Difference
from flywheel.task import Task, spec_of
from flywheel.trace.diverge import difference, told
from flywheel.trace.snapshots import Course, NotReproducible, Opening, opening_of

ROUNDING = 32.0
"""Units in the last place of an observation that a residual may have by rounding alone: half of one before the step,
half of one after it, and what the step makes of the first."""
ABOVE_NOISE = 2.0
"""A residual counts when it is so many times what the median reference episode's largest one is."""


def residuals(task: Task, episodes: Sequence[Episode], parameters: Parameters) -> list[NDArray[np.float64]]:
    """Return of each episode what it did minus what the simulator at `parameters` does from the same states.

    float64[T, S], a row for each transition, a column for each number of the state; angles without a whole turn.
    Raises NotReproducible where the task gives no set_state and observed_state.
    """
    task, episodes = forgotten(task, episodes)
    data = _transitions(task, episodes)
    with Simulator(task) as simulator, np.errstate(over="ignore", invalid="ignore"):
        (predicted,) = simulator.successors(data, [{**task.nominal, **parameters}])
        rows = data.successors - predicted
    return [rows[data.episodes == i] for i in range(len(episodes))]


def _transitions(task: Task, episodes: Sequence[Episode]) -> Transitions:
    missing = [name for name in ("observed_state", "set_state") if getattr(task, name) is None]
    if missing:
        raise NotReproducible(
            f"Task {task.name} gives no {' and no '.join(missing)}, so that no single transition of an episode can be "
            "made again: only an episode with a seed can be compared with the simulator."
        )
    assert task.observed_state is not None
    spec = spec_of(task)
    shown = [np.array([np.ravel(task.observed_state(o)) for o in e.observations], dtype=np.float64) for e in episodes]
    states = np.concatenate([rows[:-1] for rows in shown])
    return Transitions(
        states=states,
        actions=np.concatenate([arriving(task, spec, e) for e in episodes]),
        successors=going_on(task, states, np.concatenate([rows[1:] for rows in shown])),
        episodes=np.repeat(np.arange(len(episodes)), [e.num_steps for e in episodes]),
    )


def noise_of(task: Task, episodes: Sequence[Episode], parameters: Parameters) -> NDArray[np.float64]:
    """Return float64[S]: residuals up to here are noise, by episodes of a world that is the simulator's.

    Twice what the largest residual of an episode is in the median: fewer than half of the episodes may be of another
    world without it being taken for noise, and a long episode of a noisy world doesn't exceed it by chance. Zeros
    without episodes.
    """
    some = [e for e in episodes if e.num_steps]
    if not some:
        return np.zeros(1)
    largest = [np.abs(rows).max(axis=0) for rows in residuals(task, some, parameters)]
    return np.asarray(ABOVE_NOISE * np.median(largest, axis=0))


def nearest(episode: Episode, worlds: Sequence[tuple[Task, Parameters]]) -> tuple[Task, Parameters]:
    """Return the (form of the task, parameters) whose simulator makes an episode's transitions best; the first wins.

    Raises as `residuals`.
    """
    misfits = []
    for task, parameters in worlds:
        (rows,) = residuals(task, [episode], parameters)
        misfits.append(np.abs(np.nan_to_num(rows, nan=np.inf)).mean(axis=0))
    least = np.maximum(np.min(misfits, axis=0), _rounding(worlds[0][0], episode))  # so that each number counts alike
    return worlds[int(np.argmin([(misfit / least).sum() for misfit in misfits]))]


def explained_from(
    task: Task, episodes: Sequence[Episode], parameters: Parameters, noise: NDArray[np.float64]
) -> list[int]:
    """Return of each episode the first step from which on the simulator makes all of its transitions, within `noise`.

    T where not even the last one is. Raises as `residuals`.
    """
    first = []
    for episode, rows in zip(episodes, residuals(task, episodes, parameters), strict=True):
        beyond = ~(np.abs(rows) <= np.maximum(noise, _rounding(task, episode))).all(axis=1)
        first.append(int(np.flatnonzero(beyond)[-1]) + 1 if beyond.any() else 0)
    return first


def against_simulator(
    task: Task,
    episode: Episode,
    parameters: Parameters,
    *,
    noise: NDArray[np.float64] | None = None,
    opening: Opening | None = None,
) -> Difference | None:
    """Return the first observation that the simulator does not lead to, from the one before it and the action there.

    An episode with a seed is stepped again from it by its actions, in the world that the record says it had, and
    compared to the last bit. Of one without a seed each transition is made again at `parameters`, and compared within
    `noise` (of `noise_of`; without it within rounding). Raises NotReproducible where neither can be done.
    """
    if episode.seed is not None:
        return Course(task, episode, 0, opening=opening or opening_of(task, episode), parameters={}).leaves()
    (rows,) = residuals(task, [episode], parameters)
    limits = np.maximum(0.0 if noise is None else noise, _rounding(task, episode))
    beyond = ~(np.abs(rows) <= limits)  # a state that is not finite is beyond, too
    if not beyond.any():
        return None
    t = int(np.flatnonzero(beyond.any(axis=1))[0])
    i = int(np.argmax(np.nan_to_num(np.abs(rows[t]) / limits, nan=np.inf)))
    made, stays = told(float(rows[t, i])), told(float(limits[i]))
    task, (episode,) = forgotten(task, [episode])
    assert task.observed_state is not None
    shown = np.ravel(task.observed_state(episode.observations[t + 1]))
    note = (
        f"number {i} of the state is {told(float(shown[i]))} after action {t}, {made} from what the simulator does "
        f"there; noise is up to {stays}"
    )
    return difference(t + 1, "observation", shown, shown - rows[t], note)


def _rounding(task: Task, episode: Episode) -> NDArray[np.float64]:
    """Return float64[S]: what rounding alone can make of a residual, by the size of the states."""
    task, (episode,) = forgotten(task, [episode])
    assert task.observed_state is not None
    kind = episode.observations.dtype
    unit = float(np.finfo(kind).eps) if kind.kind == "f" else float(np.finfo(np.float32).eps)
    states = np.abs([np.ravel(task.observed_state(o)) for o in episode.observations]).max(axis=0)
    return np.asarray(ROUNDING * unit * np.maximum(states, 1e-3))
