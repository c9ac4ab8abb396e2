"""A fork of an episode at a step: edit what you like, and run the rest again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flywheel.config import canonical
from flywheel.errors import UsageError
from flywheel.policy import Policy
from flywheel.records import Array, Episode, Parameters
from flywheel.tapes import Difference, Scenario, chain, short
from flywheel.task import Task, span_of
from flywheel.trace.contract import Forked, whole
from flywheel.trace.diverge import first_difference
from flywheel.trace.edits import Edits, set_edit
from flywheel.trace.effect import Effect, effect_of, effect_of_one
from flywheel.trace.result import Result
from flywheel.trace.snapshots import Course, NotReproducible, Opening, opening_of

LOCKSTEP = 255
"""Most worlds stepped at once, with their witness 256: up to there ONNX Runtime's rows were bit-equal in any batch."""


class Fork(Forked):
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
        at = whole("at", at)
        if not 0 <= at < episode.num_steps:
            last = episode.num_steps - 1
            raise UsageError(f"Episode {short(episode.id)} has the steps 0 to {last}, so it can't be forked at {at}.")
        self.task, self.episode, self.at = task, episode, at
        self._policies = policies
        self._course = Course(
            task, episode, at, opening=opening or opening_of(task, episode), parameters=parameters or {}
        )
        self._edits = Edits()
        self._digests = _deciding(episode.digests)

    def __repr__(self) -> str:
        return f"<fork of episode {short(self.episode.id)} at step {self.at}: {'; '.join(self.edits) or 'no edits'}>"

    @property
    def parameters(self) -> Parameters:
        """The world's parameters from this step on, as they are without edits."""
        return self._course.parameters

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
        each pair under draws of its own (of `seed`), which gives the edits' effect with an interval. What a seeded
        world draws by itself is the same in all of them. Where nothing is drawn, one pair is all of them.
        """
        times, seed = whole("times", times), whole("seed", seed)
        if times < 1:
            raise UsageError(f"An episode's rest is run again once or more, not {times} times.")
        is_many = times > 1 and (self._acts_by_chance() or not self._course.is_seeded)
        fresh = _keys(self.episode, self.at, seed, times) if is_many else []
        keys = [self.episode.draw_key, *fresh]
        unedited, ones = self.episode, list[Episode]()
        if fresh or not self._course.is_seeded:
            unedited, *ones = self._run(keys, Edits())
        fork, *others = self._run(keys, self._edits)
        return Result(
            task=self.task.name,
            original=self.episode,
            unedited=unedited,
            fork=fork,
            at=self.at,
            edits=self.edits,
            world={} if self._course.is_seeded else self._course.parameters,
            rewarded=self._edits.is_of_reward,
            difference=self._parted(unedited, fork),
            effect=self._effect([unedited, *ones], [fork, *others]) if times > 1 else None,
            scenario=lambda: self._scenario(fork),
        )

    def scenario(self) -> Scenario:
        """Return what the gate can try every candidate in: the world as it stands at this step, with the edits of it.

        Edits of policy and reward are not part of it. Raises UsageError where the episode is over by then.
        """
        return self._scenario(
            None if self._edits.action is None else self._run([self.episode.draw_key], self._edits)[0]
        )

    def close(self) -> None:
        """Release the worlds that are kept for the next replay."""
        self._course.close()

    def _scenario(self, fork: Episode | None) -> Scenario:
        """Return the scenario; `fork` is needed where the action at this step is edited, for what comes after it."""
        task, course, edits, at = self.task, self._course, self._edits, self.at
        actions, shown = self.episode.raw_actions[:at], self.episode.observations[at]
        if edits.action is not None:
            assert fork is not None
            if fork.num_steps == at + 1:
                raise UsageError("The episode is over after that action, so no candidate could act in it.")
            actions, shown = fork.raw_actions[: at + 1], fork.observations[at + 1]
        words = tuple(text for name, text in edits.told.items() if name in edits.world or name == "action")
        told: dict[str, Any] = {"fork": (self.episode.id, at), "edits": words, "name": "", "saved_at": 0.0}
        own = {**course.opening.own, **edits.world}
        shows = task.set_state is not None and task.observed_state is not None
        if self.episode.seed is None or (len(actions) and shows):
            assert task.observed_state is not None
            state = np.ravel(np.asarray(task.observed_state(shown), dtype=np.float64))
            return Scenario(**told, parameters=own, state=tuple(state.tolist()))
        before = course.parameters_at(0)
        if len(actions) > course.opening.num_before and before != course.parameters:
            raise UsageError(
                "This episode's world changed before the fork, and a scenario can't say that twice: fork the episode "
                "that its scenario was saved from."
            )
        led: dict[str, Any] = {"seed": self.episode.seed, "actions": tuple(actions.tolist()), "before": before}
        return Scenario(**told, **led, parameters=own, state=course.opening.state)

    def _acting(self, t: int, edits: Edits) -> Policy:
        """Return the policy that acts at step t."""
        return self._policies[edits.policy or self._digests[min(t, len(self._digests) - 1)]]

    def _parted(self, unedited: Episode, fork: Episode) -> Difference | None:
        """Return where they part; edited rewards part at once, which says nothing of what was done."""
        found = first_difference(unedited, fork, rewards=False) if self._edits.is_of_reward else None
        return found or first_difference(unedited, fork)

    def _acts_by_chance(self) -> bool:
        """Say whether a policy draws its actions from this step on, without the edits or with them."""
        digests = set(self._digests[self.at :])
        rules = [self._policies[digest].spec.rule for digest in digests]
        rules += [self._edits.acting(self._policies[self._edits.policy or digest].spec.rule) for digest in digests]
        return any(not rule.greedy or rule.exploration_rate > 0 for rule in rules)

    def _effect(self, ones: Sequence[Episode], others: Sequence[Episode]) -> Effect:
        """Return the effect over pairs, the first of which runs under the original's draws and is none of the many.

        A world without a seed may draw by itself (each pair another seed): it doesn't where all are alike to the bit.
        """
        if not self._acts_by_chance() and all(len({chain(each) for each in some}) == 1 for some in (ones, others)):
            return effect_of_one(ones[0], others[0])
        span = None if self._edits.is_of_reward else span_of(self.task)
        return effect_of(ones[1:], others[1:], span, by_chance=bool(self.edits))

    def _given(self, t: int, edits: Edits) -> Array | None:
        """Return the raw action of step t where no policy decides it: an edited one, or one that led there."""
        if t == self.at and edits.action is not None:
            return edits.action
        digests = self.episode.digests
        return np.asarray(self.episode.raw_actions[t]) if t < len(digests) and not digests[t] else None

    def _run(self, keys: list[int], edits: Edits) -> list[Episode]:
        """Run the rest once for each draw key; return whole episodes."""
        blocks = [keys[first : first + LOCKSTEP] for first in range(0, len(keys), LOCKSTEP)]
        return [episode for block in blocks for episode in self._run_together(block, edits)]

    def _run_together(self, keys: list[int], edits: Edits) -> list[Episode]:
        def act(t: int, observations: Array, drawn: NDArray[np.float64]) -> tuple[Array, NDArray[np.float64]]:
            given = self._given(t, edits)
            if given is not None:
                return np.repeat(given[None], len(observations), axis=0), np.full(len(observations), np.nan)
            policy = self._acting(t, edits)
            return policy.act(observations, drawn, edits.acting(policy.spec.rule))

        tracks = self._course.run(keys, act, edits.world)
        return [self._episode(key, track, edits) for key, track in zip(keys, tracks, strict=True)]

    def _episode(self, key: int, track: dict[str, Any], edits: Edits) -> Episode:
        """Return the recorded steps and a course from there as one episode."""
        parent, at, course = self.episode, self.at, self._course
        steps = range(at, at + len(track["rewards"]))
        parts = [parent.id, at, list(edits.told.values()), key, dict(course.parameters)]
        acted = ("" if self._given(t, edits) is not None else self._acting(t, edits).digest for t in steps)
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(parent, name)[:at], track[name]])
            for name in ("observations", "raw_actions", "rewards", "logps")
        }
        whole = dataclasses.replace(
            parent,
            **columns,
            id=hashlib.sha256(canonical(parts).encode()).hexdigest()[:32],
            origin="fork",
            parameters={**course.parameters, **edits.world},
            draw_key=key,
            digests=parent.digests[:at] + tuple(acted),
            end=track["end"],
            edits=tuple(edits.told.values()),
            parent=(parent.id, at),
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


def _deciding(digests: Sequence[str]) -> list[str]:
    """Return who decides at each step; at one whose action was given, whoever decides next (or decided last)."""
    known = [digest for digest in digests if digest]
    if not known:
        raise NotReproducible("No policy decided anything in this episode, so none can go on with it.")
    found, after = list(digests), known[-1]
    for t in reversed(range(len(found))):
        after = found[t] = found[t] or after
    return found


def _keys(episode: Episode, at: int, seed: int, times: int) -> list[int]:
    """Return fresh draw keys."""
    text = [f"{episode.id}/{at}/{seed}/{i}".encode() for i in range(times)]
    return [int.from_bytes(hashlib.sha256(each).digest()[:8], "big") for each in text]
