"""How the world of a recorded episode gets to one of its steps again: from its seed, or from what was observed there.

A seeded world is stepped again by the recorded actions, and everything it shows on the way is compared with the record
to the last bit. A world that nobody has the seed of is put into the state that its observation shows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import FlywheelError
from flywheel.policy import to_env
from flywheel.records import Array, Correction, Episode, Parameters
from flywheel.simulate import Worlds, make_worlds
from flywheel.simulate.copies import NoCopy
from flywheel.simulate.corrected import corrected
from flywheel.simulate.play import go_on
from flywheel.simulate.worlds import Stepped
from flywheel.tapes import Difference, short
from flywheel.task import Task, spec_of
from flywheel.trace.diverge import difference, first_difference

Act = Callable[[int, Array, NDArray[np.float64]], tuple[Array, NDArray[np.float64]]]
"""(t, observations [M, *o], draws float64[M, K]) -> raw actions [M, *a] and log probabilities float64[M]."""
_COLUMNS = ("observations", "raw_actions", "rewards")
_UNKNOWN = np.full(1, np.nan)  # the log probability of an action that is given


class NotReproducible(FlywheelError):
    """An episode that can't be run again, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an Episode doesn't say of how its world began."""

    state: tuple[float, ...] | None = None
    """Start state; None: the world began as its seed has it."""
    before: Parameters | None = None
    """Parameters of the first steps, where they weren't those of the episode."""
    num_before: int = 0
    """How many those were."""
    own: Parameters = field(default_factory=dict)
    """Parameters that belong to this situation (an edge case's) and not to the world at large."""
    correction: Correction | None = None
    """What the world corrects of the task's own simulator, where the episode is the gate's."""


class Course:
    """The world of an episode from one of its steps on, which can be run any number of times.

    A seeded world runs with a witness: one world more, which does what the record says that this one did. What it shows
    must be the record to the last bit, or nothing is told of the others.
    """

    def __init__(
        self, task: Task, episode: Episode, at: int, *, opening: Opening | None = None, parameters: Parameters
    ) -> None:
        """Keep what there is to run. `parameters` are those of a world that nobody knows the seed of.

        Raises NotReproducible, with the reason, when nothing brings the world there.
        """
        self._episode, self._at, self.opening = episode, at, opening or Opening()
        self._task = task if self.opening.correction is None else corrected(task, self.opening.correction)
        self.is_seeded = episode.seed is not None
        self.parameters: Parameters = {**task.nominal, **(episode.parameters if self.is_seeded else parameters)}
        """Of the world from that step on."""
        self._horizon = None if self.is_seeded else _horizon(task, episode)
        self._spec = spec_of(task)
        self._actions = to_env(self._spec, episode.raw_actions)
        self._held: dict[int, tuple[Worlds, Any]] = {}
        self._is_copied = True  # until a copy turns out to be none
        self._state = None if self.is_seeded else _shown(self._task, episode, at)

    def parameters_at(self, t: int) -> Parameters:
        """Return the world's parameters in step t."""
        return {**self.parameters, **(self.opening.before or {})} if t < self.opening.num_before else self.parameters

    def run(self, keys: Sequence[int], act: Act, changes: Parameters) -> list[dict[str, Any]]:
        """Return a course from the step on for each draw key (as `go_on` does), at parameters that `changes` replaces.

        Raises NotReproducible when a seeded world doesn't do what the record says, FlywheelError when one breaks.
        """
        num, at = len(keys), self._at
        worlds, is_copy = self._reach(num + self.is_seeded)

        def decide(
            t: int, rows: NDArray[np.intp], observations: Array, drawn: NDArray[np.float64]
        ) -> tuple[Array, NDArray[np.float64]]:
            if (t == at and changes) or (t and t == self.opening.num_before):
                own = self.parameters_at(t)
                worlds.change([{**own, **changes}] * num + [own] * self.is_seeded)
            if rows[-1] < num:
                return act(t, observations, drawn)
            given = self._episode.raw_actions[min(t, self._episode.num_steps - 1)][None]
            if len(rows) == 1:
                return given, _UNKNOWN
            raw, logps = act(t, observations[:-1], drawn[:-1])
            return np.concatenate([raw, given]), np.concatenate([logps, _UNKNOWN])

        shown = np.repeat(self._episode.observations[at : at + 1], worlds.num_worlds, axis=0)
        drawing = np.array([*keys, 0][: worlds.num_worlds], np.uint64)
        tracks, broken = go_on(worlds, decide, self._spec, shown, drawing, first=at, horizon=self._horizon)
        if self.is_seeded:
            track, fault = tracks.pop(), broken.pop(num, None)
            all_at_once = fault is not None and broken  # a vector form that raises breaks all of its worlds
            found = None if all_at_once else self._testimony(track, fault)
            if found is not None and is_copy:
                self._is_copied = False
                return self.run(keys, act, changes)
            self._insist(found)
        for t, what in broken.values():
            raise FlywheelError(f"The world of the fork {what} at step {t}: it can't be run on from there.")
        return tracks

    def leaves(self) -> Difference | None:
        """Return where the world of a seeded episode, stepped again by the recorded actions, leaves the record."""
        with contextlib.closing(make_worlds(self._task, 1)) as worlds:
            return self._again(worlds, self._episode.num_steps)

    def close(self) -> None:
        """Release the worlds that are kept for the next run."""
        for worlds, _ in self._held.values():
            worlds.close()
        self._held.clear()

    def _reach(self, num: int) -> tuple[Worlds, bool]:
        """Return N equal worlds that stand at the step, and whether a copy brought them there."""
        worlds, copied = self._held.get(num) or (make_worlds(self._task, num), None)
        if copied is not None and self._is_copied:
            worlds.restore(copied)
            return worlds, True
        if self.is_seeded:
            self._insist(self._again(worlds, self._at))
            copied = _copy(worlds) if self._is_copied else None
        else:
            worlds.reset(range(num), [self.parameters] * num, [self._state] * num)
            _raise_broken(worlds, self._at)
        self._held[num] = (worlds, copied)
        return worlds, False

    def _testimony(self, track: dict[str, Any], fault: tuple[int, str] | None) -> Difference | None:
        """Return where the witness left the record."""
        if fault is not None:
            return difference(fault[0], "end", "goes on", fault[1])
        rest: dict[str, Any]
        rest = {name: np.concatenate([getattr(self._episode, name)[: self._at], track[name]]) for name in _COLUMNS}
        return first_difference(self._episode, dataclasses.replace(self._episode, **rest, end=track["end"]))

    def _insist(self, found: Difference | None) -> None:
        if found is not None:
            raise NotReproducible(
                f"Episode {short(self._episode.id)} can't be run again: its world leaves the record at step "
                f"{found.step} ({found.note}). The environment draws from somewhere else than its seed, or it, or a "
                "library below it, is another version."
            )

    def _again(self, worlds: Worlds, stop: int) -> Difference | None:
        """Step worlds from the seed to a step by the recorded actions; return where they leave the record."""
        num, episode, opening = worlds.num_worlds, self._episode, self.opening
        assert episode.seed is not None
        shown = worlds.reset([episode.seed] * num, [self.parameters_at(0)] * num, [opening.state] * num)
        _raise_broken(worlds, 0)
        if (shown != episode.observations[0]).any():
            return difference(0, "observation", episode.observations[0], shown[0])
        every = np.ones(num, dtype=np.bool_)
        rows: list[Stepped] = []
        for t in range(stop):
            if t and t == opening.num_before:
                worlds.change([self.parameters] * num)
            row = worlds.step(np.repeat(self._actions[t : t + 1], num, axis=0), every)
            if worlds.broken:  # perhaps because it was over before
                fault = next(iter(worlds.broken.values()))
                return self._first_unlike(rows) or difference(t + 1, "end", "goes on", fault)
            rows.append(row)
        return self._first_unlike(rows)

    def _first_unlike(self, rows: Sequence[Stepped]) -> Difference | None:
        """Return where what worlds did from the seed on isn't what the record says."""
        if not rows:
            return None
        episode, num = self._episode, len(rows)
        shown, rewards, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
        ended = np.array(["goes on"] * (num - 1) + [episode.end if num == episode.num_steps else "goes on"])
        ends = np.where(terminated, "terminated", np.where(truncated, "truncated", "goes on"))
        unlike = (
            rewards != episode.rewards[:num, None],
            (shown != episode.observations[1 : num + 1, None]).reshape(*rewards.shape, -1).any(axis=2),
            ends != ended[:, None],
        )
        places = np.argwhere(np.stack(unlike, axis=1))  # in the order of time, then of these columns
        if not len(places):
            return None
        t, column, world = (int(place) for place in places[0])
        if column == 0:
            return difference(t, "reward", episode.rewards[t], rewards[t, world])
        if column == 1:
            return difference(t + 1, "observation", episode.observations[t + 1], shown[t, world])
        return difference(t + 1, "end", str(ended[t]), str(ends[t, world]))


def _copy(worlds: Worlds) -> Any:
    """Return a snapshot of worlds, None where they have no copy (Box2D's): they are stepped again instead."""
    try:
        return worlds.snapshot()
    except NoCopy:
        return None


def _raise_broken(worlds: Worlds, t: int) -> None:
    for fault in worlds.broken.values():
        raise NotReproducible(f"The world {fault} at step {t}, so the episode can't be run again from there.")


def _shown(task: Task, episode: Episode, at: int) -> tuple[float, ...]:
    """Return the state that an observation of an unseeded episode shows; raise NotReproducible where it shows none."""
    missing = [name for name in ("observed_state", "set_state") if getattr(task, name) is None]
    if missing:
        raise NotReproducible(
            f"Episode {short(episode.id)} has no seed, and task {task.name} gives no {' and no '.join(missing)}, so "
            "that nothing can bring its world back to a step: an observation is not known to be the whole state. Fork "
            "an episode of the gate instead, or give the task both."
        )
    assert task.observed_state is not None
    if task.correction is not None and task.correction.delay > task.remembered:
        raise NotReproducible(
            f"Episode {short(episode.id)} is of a world in which actions arrive late, and no state says which ones are "
            "on their way at a step: fork an episode of the gate instead, which is stepped from its seed."
        )
    state = np.asarray(task.observed_state(episode.observations[at]), dtype=np.float64)
    if not np.isfinite(state).all():
        raise NotReproducible(f"Episode {short(episode.id)} shows no finite state at step {at}.")
    return tuple(state.tolist())


def _horizon(task: Task, episode: Episode) -> int:
    """Return the step at which an episode is cut off: where it was, else what the environment and the task say."""
    if episode.end == "truncated":
        return episode.num_steps
    with contextlib.closing(task.make_env()) as env:
        limit = None if env.spec is None else env.spec.max_episode_steps
    return min(task.max_steps, limit or task.max_steps)


def opening_of(task: Task, episode: Episode) -> Opening:
    """Return how the world of an episode began, as the task's edge cases know it."""
    for case in task.edge_cases:
        if case.name == episode.scenario:
            return Opening(state=case.state, own=case.parameters)
    return Opening()
