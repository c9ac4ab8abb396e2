"""A search for failures: the cross-entropy method over the ranges of a task's parameters.

Rubinstein and Kroese 2004, "The Cross-Entropy Method"; here a rare event is looked for, not its probability. It goes
down the task's margin until something fails, and from there towards the worlds that were asked for: the failure that
matters is the nearest one. A share of each round is drawn anywhere, so that it can't settle on the first slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flywheel.draws import draws
from flywheel.gate.stress import free, place_of, worlds_at
from flywheel.gate.trials import Crew, Situation, world_seed
from flywheel.policy import Policy
from flywheel.records import Check, Parameters, Trial
from flywheel.tapes import SEARCH
from flywheel.task import Task

ROUND = 50
"""Simulations between two looks at the margins."""
_ANYWHERE = 0.2  # share of a round that is drawn from all of the ranges
_ELITE = 10  # best worlds so far, around which the others are drawn
_LEAST = 0.02  # deviation, as a share of a range, below which rounds don't contract
_KEPT = 10  # best worlds that a verdict keeps


def search(
    task: Task, crew: Crew, policy: Policy, parameters: Parameters, *, num: int, seed: int, now: float
) -> tuple[Check, tuple[Trial, ...]]:
    """Return what a search of `num` simulations came to, and its best worlds: the nearest failures, smallest margins.

    The check's value is how far the nearest failure is from `parameters`, as a share of the ranges (of the parameter
    that differs most), 1 where nothing failed. It refuses nobody: the ranges may hold worlds that no policy masters.
    Without a margin, or without parameters that have a range, there is nothing to follow.
    """
    if task.margin is None or not free(task) or num < 1:
        why = "gate.search_sims is 0" if num < 1 else "the task has no margin, or no parameters, to follow"
        return Check(name=SEARCH, value=1.0, interval=(1.0, 1.0), bound=0.0, passed=True, note=f"none: {why}"), ()
    origin = place_of(task, parameters)
    places: NDArray[np.float64] = np.empty((0, len(origin)))
    trials: list[Trial] = []
    order: NDArray[np.intp] = np.empty(0, dtype=np.intp)
    while len(trials) < num:
        size = min(ROUND if trials else 2 * ROUND, num - len(trials))
        seeds = [world_seed(seed, SEARCH, len(trials) + index) for index in range(size)]
        some = _places(places[order[:_ELITE]], seeds)
        worlds = worlds_at(some, task, parameters)
        situations = [Situation(seed=s, scenario=SEARCH, parameters=v) for s, v in zip(seeds, worlds, strict=True)]
        trials += crew.play(policy, situations, now).trials
        places = np.concatenate([places, some])
        far = np.abs(places - origin).max(axis=1)
        survived = np.array([not trial.failed for trial in trials])
        order = np.lexsort((np.where(survived, [trial.margin for trial in trials], far), survived))
    best, num_failed = trials[order[0]], int((~survived).sum())
    near = float(far[order[0]]) if num_failed else 1.0
    note = f"{num_failed} of {num:,} simulations failed, the nearest one {near:.0%} of the ranges away"
    note = note if num_failed else f"no failure in {num:,} simulations; the smallest margin is {best.margin:.3g}"
    check = Check(
        name=SEARCH, value=near, interval=(near, near), bound=0.0, passed=True,
        note=f"{note}: {', '.join(f'{name} {value:.3g}' for name, value in best.parameters.items())}",
    )  # fmt: skip
    return check, tuple(trials[i] for i in order[:_KEPT])


def _places(elite: NDArray[np.float64], seeds: Sequence[int]) -> NDArray[np.float64]:
    """Return where in the unit cube the next worlds are, float64[N, P]; without an elite yet, anywhere."""
    from scipy.special import ndtri  # here: a command that searches nothing need not wait for it

    size = elite.shape[1]
    drawn = draws(seeds, np.zeros(len(seeds), np.int64), 2 * size + 1)
    anywhere = drawn[:, :size]
    if not len(elite):
        return anywhere
    there = elite.mean(axis=0) + np.maximum(elite.std(axis=0), _LEAST) * ndtri(drawn[:, size : 2 * size])
    there = 1.0 - np.abs(1.0 - np.abs(there))  # reflected at both ends
    return np.where(drawn[:, -1:] < _ANYWHERE, anywhere, np.clip(there, 0.0, 1.0))
