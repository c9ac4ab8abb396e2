"""What calibration leaves open is asked about: a policy that fails at an edge of it is noticed, a good one is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from flywheel.config import GateConfig, TrainConfig
from flywheel.gate.interval import situations, try_interval
from flywheel.gate.judge import SafetyGate
from flywheel.gate.trials import Alone, Situation, Tried
from flywheel.policy import Policy
from flywheel.records import Trial
from flywheel.tapes import INTERVAL
from flywheel.task import Limits
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, load_linear
from flywheel.train.ending import is_good

TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0), edge_cases=())
CONFIG = GateConfig(latency_calls=50, search_sims=0, compare_sims=50, stress_sims=20)
WORLDS = {"length": (0.4, 0.6), "gravity": (9.8, 9.8)}


class Chances:
    """Worlds whose episodes fail with the chance that their parameter `risk` says."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def play(self, policy: object, some: list[Situation], now: float) -> Tried:
        """Return a trial each."""
        trials = tuple(
            Trial(
                seed=each.seed, parameters=each.parameters, scenario=each.scenario, total=0.0, length=1, margin=0.0,
                failed=bool(self._rng.random() < each.parameters["risk"]), episode="",
            )
            for each in some
        )  # fmt: skip
        return Tried(trials=trials, observations=np.zeros((1, 1)))


def refusals(low: float, high: float, num: int) -> int:
    """Return how often of `num` times a policy is refused whose failure rate is uniform between two rates."""
    found, ranges = 0, {"risk": (low, high)} if high > low else {"other": (0.0, 1.0)}
    for seed in range(num):
        check, trials = try_interval(
            Chances(seed), load_linear(TASK), ranges, {"risk": low}, TASK.limits, num=100, error=0.05, seed=seed,
            now=0.0,
        )  # type: ignore[arg-type]  # fmt: skip
        found += check.passed is False
        assert {trial.scenario for trial in trials} == {INTERVAL}
        assert all(low <= trial.parameters["risk"] <= high for trial in trials)
    return found


def test_a_policy_at_the_limit_is_refused_no_oftener_than_the_error_says() -> None:
    assert refusals(0.05, 0.05, 400) <= 30, "5 % of 400, and what chance adds to it in one of a hundred"
    assert refusals(0.0, 0.1, 400) <= 30, "the limit is on all of the worlds together"


def test_one_that_fails_at_an_edge_of_the_interval_is_refused() -> None:
    assert refusals(0.0, 0.4, 40) >= 39


def test_worlds_are_the_same_however_many_are_asked_for_and_others_keep_their_parameters() -> None:
    every = situations(WORLDS, {**TASK.nominal, "masscart": 2.0}, 3, 0, 20)
    assert every[10:] == situations(WORLDS, {**TASK.nominal, "masscart": 2.0}, 3, 10, 20)
    lengths = [each.parameters["length"] for each in every]
    assert all(0.4 <= length <= 0.6 for length in lengths) and len(set(lengths)) == 20
    assert {(each.parameters["masscart"], each.parameters["gravity"]) for each in every} == {(2.0, 9.8)}


@pytest.mark.parametrize(("ranges", "outcome"), [({}, True), (WORLDS, True), ({"length": (0.4, 2.4)}, False)])
def test_a_gate_that_is_told_the_ranges_notices_what_the_middle_hides(
    ranges: dict[str, tuple[float, float]], outcome: bool
) -> None:
    policy: Policy = load_linear(TASK, SHORT_POLE)
    verdict = SafetyGate(TASK, CONFIG).judge(policy, seed=3, now=0.0, ranges=ranges)
    (asked,) = [check for check in verdict.checks if check.name == INTERVAL] or [None]
    assert (asked is None) == (not ranges)
    assert (verdict.outcome != "fail") == outcome, [check for check in verdict.checks if not check.passed]
    if asked is not None:
        assert asked.passed is outcome
        trials = [trial for trial in verdict.trials if trial.scenario == INTERVAL]
        assert asked.value == np.mean([trial.failed for trial in trials])
        assert SafetyGate(TASK, CONFIG).rerun(trials[0], policy) == trials[0]


def test_a_probe_holds_a_candidate_to_the_open_worlds_once_it_is_good_in_the_middle() -> None:
    played: list[str] = []

    class Counting(Alone):
        def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
            played.extend(each.scenario for each in situations)
            return super().play(policy, situations, now)

    gate, short = SafetyGate(TASK, CONFIG, crew=Counting(TASK, 256)), load_linear(TASK, SHORT_POLE)
    narrow = gate.probe(short, seed=1, ranges={"length": (0.45, 0.55)}, max_failed=1)
    assert narrow == gate.probe(short, seed=1, max_failed=1) and narrow.edge_failed == ()
    assert played.count(INTERVAL) == 100
    wide = {"length": (0.45, 3.0), "gravity": (9.8, 9.8)}
    found = gate.probe(short, seed=1, ranges=wide, max_failed=1)
    assert found.edge_failed == (INTERVAL,) and "worlds failed that are drawn from length 0.45 to 3" in found.note
    assert (found.num_failed, found.num_episodes) == (narrow.num_failed, narrow.num_episodes)
    assert not is_good(found, TrainConfig()) and is_good(narrow, TrainConfig())
    verdict = gate.judge(short, seed=2, ranges=wide)
    assert [each.passed for each in verdict.checks if each.name == INTERVAL] == [False]  # as the verdict would say
    played.clear()
    assert gate.probe(short, seed=1, parameters={"length": 3.0}, ranges=wide, max_failed=1).num_failed > 1
    assert gate.probe(short, seed=1, ranges={"length": (0.5, 0.5)}).edge_failed == ()
    assert INTERVAL not in played, (
        "one that fails in the middle is asked nothing more, nor is any where nothing is open"
    )
