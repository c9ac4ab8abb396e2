"""How the world of a recorded episode gets to one of its steps again: from its seed, or from what was observed there.

A seeded world is stepped again by the recorded actions, and everything it shows on the way is compared with the record
to the last bit. A world that nobody has the seed of is put into the state that its observation shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel.errors import FlywheelError
from flywheel.policy import to_env
from flywheel.records import Array, Episode, Parameters
from flywheel.simulate import Worlds, make_worlds
from flywheel.simulate.copies import NoCopy
from flywheel.simulate.worlds import Stepped
from flywheel.tapes import Difference, short
from flywheel.task import Task, spec_of
from flywheel.trace.diverge import difference


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


class Course:
    """The world of an episode, which can be brought to one step of it any number of times."""

    def __init__(
        self, task: Task, episode: Episode, at: int, *, opening: Opening | None = None, parameters: Parameters
    ) -> None:
        """Keep what there is to run. `parameters` are those of a world that nobody knows the seed of.

        Raises NotReproducible, with the reason, when nothing brings the world there.
        """
        self._task, self._episode, self._at = task, episode, at
        self.opening = opening or Opening()
        self.is_seeded = episode.seed is not None
        self.parameters: Parameters = {**task.nominal, **(episode.parameters if self.is_seeded else parameters)}
        """Of the world from that step on."""
        self.horizon = None if self.is_seeded else _horizon(task, episode)
        """Step at which the episode is cut off, where the world's own count of steps doesn't say it."""
        self._is_proven = False
        self._held: dict[int, tuple[Worlds, Any]] = {}
        self._actions = to_env(spec_of(task), episode.raw_actions)
        self._state = None if self.is_seeded else _shown(task, episode, at)

    def parameters_at(self, t: int) -> Parameters:
        """Return the world's parameters in step t."""
        return {**self.parameters, **(self.opening.before or {})} if t < self.opening.num_before else self.parameters

    def reach(self, num_worlds: int) -> tuple[Worlds, Array]:
        """Return N equal worlds that stand at the step, and the observations [N, *o] that they show there.

        They are this course's own: the next call takes them back. The first call for a seeded world also steps it to
        the end by the recorded actions, and raises NotReproducible when it doesn't do what the record says.
        """
        worlds, snapshot = self._held.get(num_worlds) or (make_worlds(self._task, num_worlds), None)
        if snapshot is not None:
            worlds.restore(snapshot)
        elif self.is_seeded:
            snapshot = self._prove(worlds)
        else:
            self._place(worlds)
        self._held[num_worlds] = (worlds, snapshot)
        return worlds, np.repeat(self._episode.observations[self._at : self._at + 1], num_worlds, axis=0)

    def leaves(self) -> Difference | None:
        """Return where the world of a seeded episode, stepped again by the recorded actions, leaves the record."""
        with contextlib.closing(make_worlds(self._task, 1)) as worlds:
            return self._again(worlds, 0, self._episode.num_steps)

    def _prove(self, worlds: Worlds) -> Any:
        """Bring worlds from their seed to the step and return a snapshot, None where they have no faithful one."""
        end = self._episode.num_steps
        self._insist(worlds, 0, self._at)
        try:
            snapshot = worlds.snapshot()
        except NoCopy:
            snapshot = None
        if snapshot is not None:
            worlds.restore(snapshot)
            faithful = self._again(worlds, self._at, end) is None
            worlds.restore(snapshot)
            if faithful:
                self._is_proven = True
                return snapshot
            self._insist(worlds, 0, self._at)  # the copy may be what is wrong
        if not self._is_proven:
            self._insist(worlds, self._at, end)
            self._insist(worlds, 0, self._at)
            self._is_proven = True
        return None

    def close(self) -> None:
        """Release the worlds."""
        for worlds, _ in self._held.values():
            worlds.close()
        self._held.clear()

    def _place(self, worlds: Worlds) -> None:
        num = worlds.num_worlds
        worlds.reset(range(num), [self.parameters] * num, [self._state] * num)
        _raise_broken(worlds, self._at)

    def _insist(self, worlds: Worlds, first: int, stop: int) -> None:
        found = self._again(worlds, first, stop)
        if found is not None:
            raise NotReproducible(
                f"Episode {short(self._episode.id)} can't be run again: its world leaves the record at step "
                f"{found.step} ({found.note}). The environment draws from somewhere else than its seed, or it, or a "
                "library below it, is another version."
            )

    def _again(self, worlds: Worlds, first: int, stop: int) -> Difference | None:
        """Step worlds by the recorded actions, from the seed where `first` is 0; return where they leave the record."""
        num, episode, opening = worlds.num_worlds, self._episode, self.opening
        if not first:
            assert episode.seed is not None
            shown = worlds.reset([episode.seed] * num, [self.parameters_at(0)] * num, [opening.state] * num)
            _raise_broken(worlds, 0)
            if (shown != episode.observations[0]).any():
                return difference(0, "observation", episode.observations[0], shown[0])
        every = np.ones(num, dtype=np.bool_)
        rows: list[Stepped] = []
        for t in range(first, stop):
            if t and t == opening.num_before:
                worlds.change([self.parameters] * num)
            row = worlds.step(np.repeat(self._actions[t : t + 1], num, axis=0), every)
            if worlds.broken:  # perhaps because it was over before
                fault = next(iter(worlds.broken.values()))
                return self._first_unlike(first, rows) or difference(t + 1, "end", "goes on", fault)
            rows.append(row)
        return self._first_unlike(first, rows)

    def _first_unlike(self, first: int, rows: Sequence[Stepped]) -> Difference | None:
        """Return where what worlds did from step `first` on isn't what the record says."""
        if not rows:
            return None
        episode, stop = self._episode, first + len(rows)
        shown, rewards, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
        seen, gained = episode.observations[first + 1 : stop + 1], episode.rewards[first:stop]
        ended = np.array(["goes on"] * (stop - first - 1) + [episode.end if stop == episode.num_steps else "goes on"])
        ends = np.where(terminated, "terminated", np.where(truncated, "truncated", "goes on"))
        unlike = {
            "reward": rewards != gained[:, None],
            "observation": (shown != seen[:, None]).reshape(*rewards.shape, -1).any(axis=2),
            "end": ends != ended[:, None],
        }
        places = np.argwhere(np.stack(list(unlike.values()), axis=1))  # in the order of time, then of these columns
        if not len(places):
            return None
        i, column, world = places[0]
        t = first + int(i)
        if column == 0:
            return difference(t, "reward", gained[i], rewards[i, world])
        if column == 1:
            return difference(t + 1, "observation", seen[i], shown[i, world])
        return difference(t + 1, "end", str(ended[i]), str(ends[i, world]))


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
