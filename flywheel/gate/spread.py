"""One play cut into parts for several workers: what each is asked, how it answers, and when that is worth it.

A trial is a function of its situation and the policy alone, so a verdict is the same whoever plays which part.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel.config import GateConfig
from flywheel.errors import FlywheelError
from flywheel.gate.trials import Alone, Crew, Situation, Tried
from flywheel.policy import Policy
from flywheel.records import Spec
from flywheel.task import Task

_TASTE = (1, 3)
"""Worlds that tell how long one takes: after the first, which also loads what an environment needs, up to the third."""
_START_S, _ASK_S = 2.0, 0.05  # seconds that starting workers, and asking them, may cost: shorter plays aren't spread


class NoTravel(FlywheelError):
    """A task that can't be sent to another process."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What one worker is asked to play."""

    network: bytes
    spec: Spec
    digest: str
    situations: tuple[Situation, ...]
    now: float


class Player:
    """A worker's inside: it plays parts, and keeps the last one's policy for the next."""

    def __init__(self, task: Task, lockstep: int) -> None:
        """Keep the task."""
        self._alone = Alone(task, lockstep)
        self._policy: Policy | None = None

    def play(self, part: Part) -> Tried:
        """Return one Trial a situation."""
        policy = self._policy
        if policy is None or (policy.network, policy.spec, policy.digest) != (part.network, part.spec, part.digest):
            policy = self._policy = Policy(part.network, part.spec, part.digest)
        return self._alone.play(policy, part.situations, part.now)


def cut(policy: Policy, situations: Sequence[Situation], now: float, num: int) -> list[Part]:
    """Return at most `num` parts of nearly equal size that are the situations in their order, none of them empty."""
    num = min(num, len(situations))
    ends = [len(situations) * i // num for i in range(num + 1)]
    return [
        Part(
            network=policy.network,
            spec=policy.spec,
            digest=policy.digest,
            situations=tuple(situations[begin:end]),
            now=now,
        )
        for begin, end in itertools.pairwise(ends)
    ]


def joined(answers: Sequence[Tried]) -> Tried:
    """Return the answers to parts, in their order, as one; whether they are whole is seen by `trials.Whole`."""
    trials = tuple(trial for answer in answers for trial in answer.trials)
    return Tried(trials=trials, observations=answers[0].observations)


class AsNeeded:
    """Plays in this process what that does soon, and lets several play what would take it longer."""

    def __init__(self, alone: Crew, many: Callable[[], Crew], clock: Callable[[], float] = time.perf_counter) -> None:
        """Start nobody yet: `many` is asked for when there is work for them, once.

        The clock decides who plays, which changes no trial.
        """
        self._alone, self._start, self._clock = alone, many, clock
        self._many: Crew | None = None
        self._each_s: float | None = None
        """Seconds that one situation takes here, by the last play."""

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation."""
        if self._each_s is not None:
            return self._rest(policy, situations, now)
        first, second = (situations[: _TASTE[0]], situations[_TASTE[0] : _TASTE[1]])
        warm = self._alone.play(policy, first, now)
        if not second:
            return warm
        begun = self._clock()
        tried = [warm, self._alone.play(policy, second, now)]
        self._each_s = (self._clock() - begun) / len(second)
        if len(situations) > _TASTE[1]:
            tried.append(self._rest(policy, situations[_TASTE[1] :], now))
        return Tried(trials=tuple(trial for some in tried for trial in some.trials), observations=warm.observations)

    def _rest(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        assert self._each_s is not None
        if len(situations) < 2 or self._each_s * len(situations) < (_ASK_S if self._many else _START_S):
            begun = self._clock()
            found = self._alone.play(policy, situations, now)
            self._each_s = (self._clock() - begun) / len(situations)
            return found
        self._many = self._many or self._start()
        try:
            return self._many.play(policy, situations, now)
        except NoTravel:  # nobody asked for workers, and all trials are the same without them
            self._many = self._alone
            return self._alone.play(policy, situations, now)


def crew_of(task: Task, config: GateConfig, many: Callable[[int], Crew]) -> Crew:
    """Return who plays by `gate.workers`; `many` makes a crew of so many workers, or of one a CPU for 0."""
    alone = Alone(task, config.lockstep)
    if config.workers > 1:
        return many(config.workers)
    if config.workers == 1 or task.vector is not None:
        return alone
    return AsNeeded(alone, lambda: many(0))
