"""One-step transitions of episodes, and the simulator as a function of its parameters over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array, Episode
from flywheel.simulate.corrected import arriving, stepping
from flywheel.simulate.stop import go_on_or_stop
from flywheel.spaces import flatten, flatten_batch, leaves_of
from flywheel.task import Task, spec_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transitions:
    """N steps: a state, what was done there, and the state that followed."""

    states: Floats
    """float64[N, S]"""
    actions: Array
    """dtype[N, *a], as they arrived in the world"""
    successors: Floats
    """float64[N, S]"""
    episodes: NDArray[np.int64]
    """int64[N]: index of the episode, in the order given"""

    def __len__(self) -> int:
        return len(self.episodes)

    def only(self, mask: NDArray[np.bool_]) -> Transitions:
        """Return the transitions where bool[N] `mask` is true."""
        return self.at(np.flatnonzero(mask))

    def at(self, rows: NDArray[np.int64]) -> Transitions:
        """Return the transitions of these rows."""
        return Transitions(
            states=self.states[rows],
            actions=self.actions[rows],
            successors=self.successors[rows],
            episodes=self.episodes[rows],
        )


def gather(task: Task, episodes: Sequence[Episode], most: int) -> Transitions:
    """Return at most `most` transitions of each episode, evenly spread over it; ones with NaN or infinity are left out.

    The same number of each, so that one long episode never outweighs ten short ones.
    """
    assert task.observed_state is not None
    spec = spec_of(task)
    rows: list[tuple[Floats, Floats]] = []
    actions: list[Any] = []
    index: list[NDArray[np.int64]] = []
    for number, episode in enumerate(episodes):
        length = min(episode.num_steps, len(episode.observations) - 1)
        steps = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))
        both = np.concatenate([steps, steps + 1])
        states = np.array([np.ravel(task.observed_state(o)) for o in episode.observations[both]], dtype=np.float64)
        before, after = np.split(states, 2)
        finite = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
        rows.append((before[finite], after[finite]))
        actions.append(arriving(task, spec, episode)[steps][finite])
        index.append(np.full(int(finite.sum()), number))
    states = np.concatenate([before for before, _ in rows])
    return Transitions(
        states=states,
        actions=np.concatenate(actions),
        successors=going_on(task, states, np.concatenate([after for _, after in rows])),
        episodes=np.concatenate(index),
    )


def going_on(task: Task, states: Floats, successors: Floats) -> Floats:
    """Return successors [..., N, S] whose angles go on from the states' [N, S]: without a jump of a whole turn."""
    if not task.state_period:
        return successors
    period = np.array(task.state_period)
    turn = np.where(period > 0, period, np.inf)
    with np.errstate(invalid="ignore"):
        turns = np.where(period > 0, np.round((successors - states) / turn), 0.0)
    return np.asarray(successors - turns * period)


class Simulator:
    """The task's own simulator, asked for the state one step after a given one.

    Actions are those that arrive: in a corrected form of the task they aren't made into others again.
    """

    def __init__(self, task: Task) -> None:
        """Make nothing yet; worlds are made at their first use and kept."""
        self._task = stepping(task)
        self._vectors: dict[int, Any] = {}
        self._env: Any = None

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        for env in [*self._vectors.values(), *([self._env] if self._env is not None else [])]:
            env.close()

    def successors(self, data: Transitions, parameters: Sequence[Mapping[str, float]]) -> Floats:
        """Return the predicted successors float64[M, N, S] of N transitions under each of M parameter sets."""
        return self.steps(data, parameters)[0]

    def steps(self, data: Transitions, parameters: Sequence[Mapping[str, float]]) -> tuple[Floats, Floats]:
        """Return the predicted successors float64[M, N, S] and rewards float64[M, N] of N transitions."""
        go_on_or_stop()
        if self._task.vector is None:
            found = [self._one_by_one(data, values) for values in parameters]
            one_by_one, gained = (np.stack(column) for column in zip(*found, strict=True))
            return going_on(self._task, data.states, one_by_one), gained
        num = len(parameters) * len(data)
        columns = {
            name: np.repeat([values[name] for values in parameters], len(data)).astype(np.float64)
            for name in parameters[0]
        }
        env = self._vectors.get(num)
        if env is None:
            env = self._vectors[num] = self._task.vector(num)
        assert self._task.set_state is not None
        env.reset(seed=0)  # forgets which worlds ended, so that none resets itself in the step below
        if self._task.set_parameters is not None:
            self._task.set_parameters(env, columns)
        self._task.set_state(env, np.tile(data.states, (len(parameters), 1)))
        observations, rewards, *_ = env.step(np.concatenate([data.actions] * len(parameters)))
        leaves = leaves_of(env.single_observation_space)
        successors = self._after(env, flatten_batch(leaves, observations)).reshape(len(parameters), len(data), -1)
        gained = np.asarray(rewards, np.float64).reshape(len(parameters), len(data))
        return going_on(self._task, data.states, successors), gained

    def _one_by_one(self, data: Transitions, parameters: Mapping[str, float]) -> tuple[Floats, Floats]:
        if self._env is None:
            self._env = self._task.make_env()
        assert self._task.set_state is not None
        rows, gained = [], []
        for state, action in zip(data.states, data.actions, strict=True):
            go_on_or_stop()
            self._env.reset(seed=0)
            if self._task.set_parameters is not None:
                self._task.set_parameters(self._env, parameters)
            self._task.set_state(self._env, state)
            observation, reward, *_ = self._env.step(action)
            leaves = leaves_of(self._env.observation_space)
            rows.append(np.ravel(self._after(self._env, flatten(leaves, observation))))
            gained.append(float(reward))
        return np.array(rows), np.array(gained)

    def _after(self, env: Any, observations: Array) -> Floats:
        """Read the state itself where the task can: an observation in float32 would blur the derivatives."""
        if self._task.state is not None:
            return np.asarray(self._task.state(env), dtype=np.float64)
        assert self._task.observed_state is not None
        return np.asarray(self._task.observed_state(observations), dtype=np.float64)
