"""What the simulator misses of production's steps, and how much of it a correction removes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.correction import Correction
from flywheel.policy import to_env
from flywheel.records import Array, Episode, Parameters, Spec
from flywheel.simulate.arriving import added, box_of, groups_of, made, places, waiting
from flywheel.simulate.corrected import plain, space_of
from flywheel.simulate.transitions import Simulator, Transitions, going_on
from flywheel.task import Task, spec_of

MOST_DELAY = 5
"""Steps by which actions may be late."""
MOST_STEPS = 60
"""Steps read of one episode, beside its first MOST_DELAY."""
FEWER_STEPS = 15
"""The same where worlds are stepped one by one."""
SMALL = 0.05
"""Share of the deviation of a number's changes that a miss is counted in, beside what is noise in it."""
FAR = 10.0
"""Deviations of the change beyond which a miss says nothing more, as of a reset inside an episode."""
UNITS = 4.0
"""Units in the last place of float32 states that are rounding, not a miss."""

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """M steps of production, in order."""

    states: Floats
    """float64[M, S]"""
    successors: Floats
    """float64[M, S]; angles go on from the states'"""
    rewards: Floats
    """float64[M]; NaN where not known"""
    given: Array
    """dtype[M, 1 + MOST_DELAY, *a]: the actions that were given so many steps before, as the environment takes them;
    before an episode's first one that"""
    t: Ints
    """int[M]: step in its episode"""
    episodes: Ints
    """int[M]: place of its episode"""
    num_episodes: int

    def __len__(self) -> int:
        return len(self.t)

    def only(self, mask: Mask) -> Shown:
        """Return the steps where bool[M] `mask` is true."""
        return Shown(
            states=self.states[mask],
            successors=self.successors[mask],
            rewards=self.rewards[mask],
            given=self.given[mask],
            t=self.t[mask],
            episodes=self.episodes[mask],
            num_episodes=self.num_episodes,
        )

    def halves(self) -> tuple[Mask, Mask]:
        """Return bool[M] twice: the steps of every other episode, and the rest."""
        even = np.asarray(np.unique(self.episodes, return_inverse=True)[1] % 2 == 0)
        return even, ~even

    def by_episode(self, values: Floats) -> Floats:
        """Return float64[N]: the mean of values[M] over each episode's steps, NaN where it has none."""
        num = np.bincount(self.episodes, minlength=self.num_episodes)
        total = np.bincount(self.episodes, values, self.num_episodes)
        return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def shown(task: Task, spec: Spec, episodes: Sequence[Episode]) -> Shown | None:
    """Return steps spread over each episode, and its first ones; ones with a state that isn't finite are left out.

    None where there is no other step.
    """
    assert task.observed_state is not None
    most = FEWER_STEPS if task.vector is None else MOST_STEPS
    columns: list[tuple[Array, ...]] = []
    for number, episode in enumerate(episodes):
        length = min(episode.num_steps, len(episode.observations) - 1)
        if length < 1:
            continue
        spread = np.linspace(0, length - 1, min(most, length)).round().astype(np.intp)
        steps = np.union1d(spread, np.arange(min(MOST_DELAY, length)))
        rows = [np.ravel(task.observed_state(o)) for o in episode.observations[np.concatenate([steps, steps + 1])]]
        before, after = np.split(np.array(rows, dtype=np.float64), 2)
        fine = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
        before, after, steps = before[fine], after[fine], steps[fine]
        when = np.maximum(steps[:, None] - np.arange(1 + MOST_DELAY), 0)
        given = to_env(spec, episode.raw_actions)[when]
        if len(steps):
            columns.append((before, after, episode.rewards[steps], given, steps, np.full(len(steps), number)))
    if not columns:
        return None
    states, successors, rewards, given, t, place = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Shown(
        states=states,
        successors=going_on(task, states, successors),
        rewards=np.asarray(rewards, np.float64),
        given=given,
        t=t.astype(np.intp),
        episodes=place.astype(np.intp),
        num_episodes=len(episodes),
    )


class Missing:
    """The task's own simulator at given parameters, beside steps of production."""

    def __init__(self, task: Task, parameters: Parameters, simulator: Simulator, data: Shown) -> None:
        """Keep the steps."""
        self.task, self.space, self.data = plain(task), space_of(spec_of(task)), data
        self._values, self._simulator = {**task.nominal, **parameters}, simulator
        moved = (self.data.successors - self.data.states).std(axis=0)
        self.span: Floats = np.where(moved > 0, moved, 1.0)
        """float64[S]: deviation of the states' changes"""
        self.unit: Floats = SMALL * self.span
        """float64[S]: what misses are counted in"""
        rewards = np.abs(self.data.rewards[np.isfinite(self.data.rewards)])
        self.reward_unit = float(rewards.max(initial=0.0)) or 1.0

    @property
    def rounding(self) -> float:
        """Mean square of misses that rounding alone may make."""
        most = np.abs(self.data.states).max(axis=0)
        return float(((UNITS * np.finfo(np.float32).eps * most / self.unit) ** 2).mean())

    def stepped(self, data: Shown, actions: Array) -> tuple[Floats, Floats]:
        """Return the simulator's successors float64[M, S] and rewards float64[M] when the actions [M, *a] arrive."""
        asked = Transitions(states=data.states, actions=actions, successors=data.states, episodes=data.episodes)
        with np.errstate(over="ignore", invalid="ignore"):
            successors, rewards = self._simulator.steps(asked, [self._values])
        return successors[0], rewards[0]

    def arriving(self, data: Shown, correction: Correction) -> Array:
        """Return what arrives by a correction in each step, [M, *a]."""
        now = made(correction, self.space, data.given[:, correction.delay])
        if correction.waiting and correction.delay:
            now = now.copy()
            now[data.t < correction.delay] = waiting(correction, now)
        return now

    def predicted(self, data: Shown, correction: Correction) -> tuple[Floats, Floats]:
        """Return the successors and rewards that the simulator gives, corrected."""
        now = self.arriving(data, correction)
        successors, rewards = self.stepped(data, now)
        z = places(data.states, box_of(self.space, now), self.task.state_period)
        which = groups_of(self.space, now)
        if correction.state is not None:
            successors = successors + added(correction.state, z, which)
        if correction.reward is not None:
            rewards = rewards + added(correction.reward, z, which)[:, 0]
        return successors, rewards

    def set_noise(self, noise: Floats) -> None:
        """Count misses in what is noise, float64[S] by its mean square in deviations of the change, and SMALL ones."""
        self.unit = self.span * np.sqrt(noise + SMALL**2)

    def spans(self, data: Shown, successors: Floats) -> Floats:
        """Return float64[M, S]: misses in deviations of the change, FAR where they are beyond it, or no number."""
        missed = (successors - data.successors) / self.span
        return np.clip(np.nan_to_num(missed, nan=FAR), -FAR, FAR)

    def squares(self, data: Shown, successors: Floats) -> Floats:
        """Return float64[M]: the mean square of misses in their unit."""
        return np.asarray(((self.spans(data, successors) * self.span / self.unit) ** 2).mean(axis=1))

    def reward_squares(self, data: Shown, rewards: Floats) -> Floats:
        """Return float64[M]: the square of each reward's miss, in its unit; NaN where it isn't known."""
        return np.asarray(((rewards - data.rewards) / self.reward_unit) ** 2)
