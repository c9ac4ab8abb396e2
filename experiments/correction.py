"""Changes that no parameter explains: are they named right, and do corrected worlds foretell what policies do there?

    python -m experiments.correction             # 60 runs of each change
    python -m experiments.correction --quick     # 4 of each, nothing is written

A run is production by a linear policy, 40 episodes before the change and 40 since, and the fit to them. Named right:
the very form of acting, no other addition; nothing where nothing changed; where something is added to the state (a
wind), at least 95 % of it in episodes that it was not fitted to. Foretold: policies with random gains, of either sign,
play the same seeds in the corrected worlds and in production's, and the shares that fail are compared; the uncorrected
simulator's are beside it for information. Judged: a policy that production's world lets fail in at most 1 % passes the
gate of the corrected worlds, and one that fails in 10 % or more doesn't. Prints a table, writes
results/correction.json, and exits with 1 when a row falls short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.changed_worlds import Change, changed, episodes
from experiments.report import measured, share
from flywheel.analyze.correct import correct
from flywheel.config import AnalyzeConfig
from flywheel.correction import Correction
from flywheel.gate import SafetyGate
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.simulate.corrected import corrected
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import GOOD, SHORT_POLE, load_linear

CONFIG = AnalyzeConfig(follow_rewards=True)
NUM = 40
"""Episodes before the change, and since."""
WIND = (0.0, 0.02, 0.0, 0.0)
"""What a wind adds to the state in each step: 1 m/s² to the cart, a tenth of what its motor does."""
WORLDS = 300
"""Worlds in which a policy's failures are counted."""
NEAR = 0.05
"""Difference of two shares that counts as foretold."""
GOOD_RATE, BAD_RATE = 0.01, 0.10

POLE = load_linear(cartpole, SHORT_POLE, digest="served")
ROD = load_linear(pendulum, [[-1.0, -1.0, -0.3], [0.0, 0.0, 0.0]], digest="served")

CASES: dict[str, tuple[Task, Change, float]] = {
    "nothing changed": (cartpole, Change(), 0.0),
    "nothing changed, noisy sensors": (cartpole, Change(), 0.002),
    "actions swapped": (cartpole, Change(swapped=True), 0.0),
    "actions swapped, noisy sensors": (cartpole, Change(swapped=True), 0.002),
    "one step late": (cartpole, Change(delay=1), 0.0),
    "two steps late, noisy sensors": (cartpole, Change(delay=2, initial=0), 0.002),
    "swapped and one step late": (cartpole, Change(swapped=True, delay=1, initial=1), 0.0),
    "a motor that only pulls left": (cartpole, Change(stuck=True), 0.0),
    "a constant wind": (cartpole, Change(push=WIND), 0.0),
    "a constant wind, noisy sensors": (cartpole, Change(push=WIND), 0.002),
    "a wind and actions swapped": (cartpole, Change(swapped=True, push=WIND), 0.0),
    "a reward less what the cart is off its centre": (cartpole, Change(cost=0.3), 0.0),
    "Pendulum: nothing changed": (pendulum, Change(), 0.0),
    "Pendulum: sign flipped": (pendulum, Change(gain=-1.0), 0.0),
    "Pendulum: half the torque": (pendulum, Change(gain=0.5), 0.0),
    "Pendulum: two steps late": (pendulum, Change(delay=2, initial=0.0), 0.0),
    "Pendulum: flipped and one step late": (pendulum, Change(gain=-1.0, delay=1, initial=0.0), 0.0),
}
FORETOLD = ("actions swapped", "two steps late, noisy sensors", "swapped and one step late", "a constant wind",
            "a wind and actions swapped")  # fmt: skip


def fitted(case: tuple[Task, Change, float], rng: np.random.Generator) -> Correction | None:
    """Return what is made of fresh episodes of a case."""
    task, change, noise = case
    policy, seeds = (POLE if task is cartpole else ROD), rng.integers(2**31, size=2 * NUM).tolist()
    before = episodes(task, Change(), policy, seeds[:NUM], noise=noise)
    since = episodes(task, change, policy, seeds[NUM:], noise=noise)
    return correct(task, since, CONFIG, parameters=task.nominal, before=before).correction


def is_right(change: Change, found: Correction | None) -> bool:
    """Say whether a correction names what became of the world, and nothing else."""
    if found is None:
        return False
    actions = (1, 0) if change.swapped else (0, 0) if change.stuck else ()
    gain = float(found.gain[0][0]) if found.gain else 1.0
    acts = found.actions == actions and found.delay == change.delay and not found.offset
    adds = (found.state is not None) == bool(change.push) and (found.reward is not None) == bool(change.cost)
    is_whole = found.is_none or found.explained >= (0.9 if change.cost else 0.95)
    return acts and adds and is_whole and abs(gain - change.gain) < 0.02


def named(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each change: in how many runs it is named right."""
    runs = 4 if quick else 60
    for number, (name, case) in enumerate(CASES.items()):
        rng = np.random.default_rng((seed, number))
        hits = [is_right(case[1], fitted(case, rng)) for _ in range(runs)]
        yield share("CO1", f"named right: {name}", np.array(hits), 0.9, False, seed)


def failing(task: Task, policy: Policy, seeds: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which worlds a policy fails in."""
    played: list[Episode] = play(task, policy, seeds=seeds, parameters=[task.nominal] * len(seeds), draw_keys=seeds)
    return np.array([each.failed for each in played])


def foretold(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rows for each of some changes: how near corrected worlds come to the truth, and what the gate says."""
    runs, policies = (2, 3) if quick else (30, 6)
    for number, name in enumerate(FORETOLD):
        rng = np.random.default_rng((seed, 100 + number))
        near, blind, judged = list[bool](), list[bool](), list[bool]()
        for _ in range(runs):
            task, change, _ = case = CASES[name]
            found = fitted(case, rng)
            for index in range(policies):
                sign = -1.0 if change.swapped and index % 3 else 1.0
                gains = sign * np.array(GOOD) * rng.uniform(0.2, 1.5, size=4)
                policy = load_linear(task, gains, digest=f"try{index}")
                seeds = rng.integers(2**31, size=WORLDS).tolist()
                truth = float(failing(changed(task, change), policy, seeds).mean())
                said = float(failing(corrected(task, found), policy, seeds).mean())
                near.append(found is not None and abs(said - truth) <= NEAR)
                blind.append(abs(float(failing(task, policy, seeds).mean()) - truth) <= NEAR)
                if found is not None and (truth <= GOOD_RATE or truth >= BAD_RATE):
                    judged.append(_nominal(corrected(task, found), policy, int(seeds[0])) == (truth <= GOOD_RATE))
        yield share("CO2", f"failure rate foretold within {NEAR:.0%}: {name}", np.array(near), 0.9, False, seed)
        yield share("CO2", f"the same by the uncorrected simulator: {name}", np.array(blind), None, False, seed)
        yield share("CO3", f"the gate's check of failures is right: {name}", np.array(judged), 0.9, False, seed)


def _nominal(task: Task, policy: Policy, seed: int) -> bool:
    """Return whether the gate's check of failures passes: edge cases may be such as no policy masters there."""
    verdict = SafetyGate(task).judge(policy, seed=seed, now=0.0)
    return all(check.passed for check in verdict.checks if check.name == "failure_rate")


if __name__ == "__main__":
    measured("correction", __doc__, named, foretold)
