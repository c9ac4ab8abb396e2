"""A fork of an episode at a step: edit what you like, and run the rest again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flywheel.config import canonical
from flywheel.errors import FlywheelError, UsageError
from flywheel.policy import Policy
from flywheel.records import Array, Episode, Parameters
from flywheel.simulate.play import go_on
from flywheel.tapes import Difference
from flywheel.task import Task
from flywheel.trace.diverge import first_difference
from flywheel.trace.edits import Edits, set_edit
from flywheel.trace.effect import Effect, effect_of
from flywheel.trace.snapshots import Course, Opening, opening_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What became of a fork."""

    task: str
    """The task's name."""
    original: Episode
    """As it was recorded."""
    unedited: Episode
    """The rest run again without the edits: the original itself where its world is run again bit for bit."""
    fork: Episode
    """The rest run again with them."""
    at: int
    """The step they were forked at: the policy ran for this one and those after it."""
    edits: tuple[str, ...]
    exact: bool
    """Whether the world is run again bit for bit, from its seed; else it went on from what was observed."""
    difference: Difference | None
    """Where fork and unedited part first."""
    effect: Effect | None
    """Over many pairs of runs, where `replay` was asked for them."""


class Fork:
    """An episode that stands at a step; the steps before it are as they were recorded."""

    def __init__(
        self,
        task: Task,
        episode: Episode,
        at: int,
        policies: Mapping[str, Policy],
        *,
        parameters: Parameters | None = None,
        opening: Opening | None = None,
    ) -> None:
        """Fork an episode before its action `at`.

        `policies` holds by digest those that acted in it and those that may act instead. `parameters` are the world's
        where the episode has no seed (nominal by default), `opening` is how it began where the task doesn't know it.
        Raises UsageError for a step that the episode doesn't have, NotReproducible where nothing leads there again.
        """
        if not 0 <= at < episode.num_steps:
            raise UsageError(
                f"Episode {episode.id[:12]} has the steps 0 to {episode.num_steps - 1}, so it can't be forked at {at}."
            )
        self.task, self.episode, self.at = task, episode, at
        self._policies = policies
        self._course = Course(
            task, episode, at, opening=opening or opening_of(task, episode), parameters=parameters or {}
        )
        self._edits = Edits()

    @property
    def edits(self) -> tuple[str, ...]:
        """What is changed, in words."""
        return tuple(self._edits.told.values())

    def edit_parameter(self, name: str, value: Any) -> Self:
        """Change one thing more from this step on, and return the fork.

        Names: a parameter of the task's world; `exploration_rate`, `temperature`, `greedy`, `policy` (a digest or what
        one begins with); `reward_scale`, `reward_offset`, `reward` (a function); `action`, of this step alone.
        Raises UsageError with the nearest name, or for a value that doesn't fit.
        """
        spec = self._acting(self.at, self._edits).spec
        set_edit(self._edits, self.task, spec, self._policies, self._course.parameters, name, value)
        return self

    def replay(self, times: int = 1, seed: int = 0) -> Result:
        """Run the rest of the episode again and return both courses, and where they part.

        The draws are the original's. With `times` more than 1 the rest runs so many times without and with the edits,
        each pair under draws of its own (of `seed`), which gives the edits' effect with an interval.
        """
        if times < 1:
            raise UsageError(f"An episode's rest is run again once or more, not {times} times.")
        fresh = _keys(self.episode, self.at, seed, times) if times > 1 else []
        keys = [self.episode.draw_key, *fresh]
        if fresh or not self._course.is_seeded:
            unedited, *ones = self._run(keys, Edits())
        else:
            unedited, ones = self.episode, []
        fork, *others = self._run(keys, self._edits)
        return Result(
            task=self.task.name,
            original=self.episode,
            unedited=self.episode if self._course.is_seeded else unedited,
            fork=fork,
            at=self.at,
            edits=self.edits,
            exact=self._course.is_seeded,
            difference=first_difference(unedited, fork),
            effect=effect_of(ones, others) if fresh else None,
        )

    def close(self) -> None:
        """Release the worlds that are kept for the next replay."""
        self._course.close()

    def _acting(self, t: int, edits: Edits) -> Policy:
        """Return the policy that acts at step t."""
        digests = self.episode.digests
        return self._policies[edits.policy or digests[min(t, len(digests) - 1)]]

    def _run(self, keys: list[int], edits: Edits) -> list[Episode]:
        """Run the rest once for each draw key; return whole episodes."""

        def decide(t: int, observations: Array, drawn: NDArray[np.float64]) -> tuple[Array, NDArray[np.float64]]:
            policy = self._acting(t, edits)
            raw, logps = policy.act(observations, drawn, edits.acting(policy.spec.rule))
            if t == self.at and edits.action is not None:
                return np.broadcast_to(edits.action, raw.shape).astype(raw.dtype), np.full(len(raw), np.nan)
            return raw, logps

        worlds, observations = self._course.reach(len(keys))
        if edits.world:
            worlds.change([{**self._course.parameters, **edits.world}] * len(keys))
        spec = self._acting(self.at, edits).spec
        tracks, broken = go_on(
            worlds, decide, spec, observations, np.array(keys, np.uint64), first=self.at, horizon=self._course.horizon
        )
        for t, fault in broken.values():
            raise FlywheelError(f"The world of the fork {fault} at step {t}: it can't be run on from there.")
        return [self._episode(key, track, edits) for key, track in zip(keys, tracks, strict=True)]

    def _episode(self, key: int, track: dict[str, Any], edits: Edits) -> Episode:
        """Return the recorded steps and a course from there as one episode."""
        parent, at = self.episode, self.at
        num = len(track["rewards"])
        parts = [parent.id, at, list(edits.told.values()), key, dict(self._course.parameters)]
        whole = Episode(
            id=hashlib.sha256(canonical(parts).encode()).hexdigest()[:32],
            origin="fork",
            task=parent.task,
            parameters={**self._course.parameters, **edits.world},
            draw_key=key,
            digests=parent.digests[:at] + tuple(self._acting(t, edits).digest for t in range(at, at + num)),
            observations=np.concatenate([parent.observations[:at], track["observations"]]),
            raw_actions=np.concatenate([parent.raw_actions[:at], track["raw_actions"]]),
            rewards=np.concatenate([parent.rewards[:at], track["rewards"]]),
            logps=np.concatenate([parent.logps[:at], track["logps"]]),
            end=track["end"],
            failed=False,
            scenario=parent.scenario,
            seed=parent.seed,
            edits=tuple(edits.told.values()),
            parent=(parent.id, at),
            started_at=parent.started_at,
            ended_at=parent.ended_at,
        )
        # what failing is goes by the world's own rewards: twice the reward is no other landing
        failed = bool(self.task.failed(whole))
        return dataclasses.replace(whole, failed=failed, rewards=_rewards(whole, at, edits))


def _rewards(episode: Episode, at: int, edits: Edits) -> NDArray[np.float64]:
    """Return the rewards that count, float64[T]: the world's own before the fork, the edited ones from there on."""
    rewards = episode.rewards.copy()
    if edits.reward is not None:
        seen, acted = episode.observations, episode.raw_actions
        rewards[at:] = [edits.reward(seen[t], acted[t], seen[t + 1], rewards[t]) for t in range(at, len(rewards))]
    if edits.is_of_reward:
        rewards[at:] = edits.scale * rewards[at:] + edits.offset
    return rewards


def _keys(episode: Episode, at: int, seed: int, times: int) -> list[int]:
    """Return fresh draw keys."""
    text = [f"{episode.id}/{at}/{seed}/{i}".encode() for i in range(times)]
    return [int.from_bytes(hashlib.sha256(each).digest()[:8], "big") for each in text]
