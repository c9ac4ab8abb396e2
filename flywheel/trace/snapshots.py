"""How the world of a recorded episode gets to one of its steps again: from its seed, or from what was observed there.

A seeded world is stepped again by the recorded actions, and everything it shows on the way is compared with the record
to the last bit. A world that nobody has the seed of is put into the state that its observation shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.errors import FlywheelError
from flywheel.policy import to_env
from flywheel.records import Array, Episode, Parameters
from flywheel.simulate import Worlds, make_worlds
from flywheel.task import Task, spec_of


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


class Course:
    """The world of an episode, which can be brought to one step of it any number of times."""

    def __init__(
        self, task: Task, episode: Episode, at: int, *, opening: Opening | None = None, parameters: Parameters
    ) -> None:
        """Keep what there is to run. `parameters` are those of a world that nobody knows the seed of.

        Raises NotReproducible, with the reason, when nothing brings the world there.
        """
        self._task, self._episode, self._at = task, episode, at
        self._opening = opening or Opening()
        self.is_seeded = episode.seed is not None
        self.parameters: Parameters = {**task.nominal, **(episode.parameters if self.is_seeded else parameters)}
        """Of the world from that step on."""
        self.horizon = None if self.is_seeded else _horizon(task, episode)
        """Step at which the episode is cut off, where the world's own count of steps doesn't say it."""
        self._is_proven = False
        self._held: dict[int, tuple[Worlds, Array, Any]] = {}
        self._state = None if self.is_seeded else _shown(task, episode, at)

    def reach(self, num_worlds: int) -> tuple[Worlds, Array]:
        """Return N equal worlds that stand at the step, and the observations [N, *o] that they show there.

        They are this course's own: the next call takes them back. Raises NotReproducible when a seeded world doesn't
        do what the record says it did.
        """
        if self.is_seeded and not self._is_proven:
            with contextlib.closing(make_worlds(self._task, 1)) as worlds:
                self._again(worlds, self._episode.num_steps)
            self._is_proven = True
        if num_worlds in self._held:
            worlds, observations, snapshot = self._held[num_worlds]
            if snapshot is None:
                return worlds, self._go_there(worlds)
            worlds.restore(snapshot)
            return worlds, observations
        worlds = make_worlds(self._task, num_worlds)
        observations = self._go_there(worlds)
        self._held[num_worlds] = (worlds, observations, _snapshot(worlds))
        return worlds, observations

    def close(self) -> None:
        """Release the worlds."""
        for worlds, _, _ in self._held.values():
            worlds.close()
        self._held.clear()

    def _go_there(self, worlds: Worlds) -> Array:
        if self.is_seeded:
            return self._again(worlds, self._at)
        num = worlds.num_worlds
        observations = worlds.reset(range(num), [self.parameters] * num, [self._state] * num)
        _raise_broken(worlds, self._at)
        return observations

    def _again(self, worlds: Worlds, until: int) -> Array:
        """Step worlds from the seed by the recorded actions and return what they show at step `until`."""
        num, episode, opening = worlds.num_worlds, self._episode, self._opening
        assert episode.seed is not None
        begun = {**self.parameters, **(opening.before or {})} if opening.num_before else self.parameters
        observations = worlds.reset([episode.seed] * num, [begun] * num, [opening.state] * num)
        _raise_broken(worlds, 0)
        self._compare(0, "observation", observations, episode.observations[0])
        actions = to_env(spec_of(self._task), episode.raw_actions)
        every = np.ones(num, dtype=np.bool_)
        for t in range(until):
            if opening.num_before and t == opening.num_before:
                worlds.change([self.parameters] * num)
            observations, rewards, terminated, truncated = worlds.step(np.repeat(actions[t : t + 1], num, 0), every)
            _raise_broken(worlds, t)
            self._compare(t + 1, "observation", observations, episode.observations[t + 1])
            self._compare(t, "reward", rewards, episode.rewards[t])
            over = "terminated" if terminated.any() else "truncated" if truncated.any() else "goes on"
            recorded = "goes on" if t + 1 < episode.num_steps else episode.end
            if over != recorded:
                raise NotReproducible(
                    f"Episode {episode.id[:12]} can't be run again: after step {t} its world is {over}, and the "
                    f"record says {recorded}."
                )
        return observations

    def _compare(self, t: int, what: str, found: Array, recorded: Array) -> None:
        if (found != recorded).any():
            raise NotReproducible(
                f"Episode {self._episode.id[:12]} can't be run again: its world's {what} {t} is "
                f"{np.ravel(found[0]).tolist()}, and the record says {np.ravel(recorded).tolist()}. The environment "
                "draws from somewhere else than its seed, or it, or a library below it, is another version."
            )


def _snapshot(worlds: Worlds) -> Any:
    """Return a snapshot of worlds, None where they have no copy (Box2D's): they are stepped again instead."""
    try:
        return worlds.snapshot()
    except (TypeError, ValueError, NotImplementedError):  # what Python raises for an object of a C library
        return None


def _raise_broken(worlds: Worlds, t: int) -> None:
    for fault in worlds.broken.values():
        raise NotReproducible(f"The world {fault} at step {t}, so the episode can't be run again from there.")


def _shown(task: Task, episode: Episode, at: int) -> tuple[float, ...]:
    """Return the state that an observation of an unseeded episode shows; raise NotReproducible where it shows none."""
    missing = [name for name in ("observed_state", "set_state") if getattr(task, name) is None]
    if missing:
        raise NotReproducible(
            f"Episode {episode.id[:12]} has no seed, and task {task.name} gives no {' and no '.join(missing)}, so that "
            "nothing can bring its world back to a step: an observation is not known to be the whole state. Fork an "
            "episode of the gate instead, or give the task both."
        )
    assert task.observed_state is not None
    state = np.asarray(task.observed_state(episode.observations[at]), dtype=np.float64)
    if not np.isfinite(state).all():
        raise NotReproducible(f"Episode {episode.id[:12]} shows no finite state at step {at}.")
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
    states: Mapping[str, Any] = {case.name: case.state for case in task.edge_cases}
    return Opening(state=states.get(episode.scenario))
