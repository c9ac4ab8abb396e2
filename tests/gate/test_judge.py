"""SafetyGate: what passes, what doesn't, what stays open, and that a trial can be run again."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.config import GateConfig
from flywheel.errors import UsageError
from flywheel.gate import SafetyGate
from flywheel.gate.sequential import evidence
from flywheel.gate.trials import Alone, Situation, Tried, edge_situations, play_situations
from flywheel.policy import Policy
from flywheel.records import Check, Episode, Verdict
from flywheel.task import EdgeCase, Limits, Task, task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, load_linear, write_linear_artifact

LONG = {"length": 2.0}
CONFIG = GateConfig(latency_calls=50, search_sims=0, workers=1)  # what Chance.rate is set to stays in this process
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
GATE = SafetyGate(TASK, CONFIG)


def judge(gains: tuple[float, ...], **more: Any) -> Verdict:
    return GATE.judge(load_linear(TASK, gains), **{"seed": 3, "now": 100.0, **more})


def check(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def test_a_good_policy_passes_with_one_hundred_simulations() -> None:
    verdict = judge(GOOD)
    assert verdict.outcome == "pass"
    names = ["failure_rate", "regression", "safety", "stress", "edge_cases", "cost", "coverage", "search"]
    assert [c.name for c in verdict.checks] == names
    num = Counter(trial.scenario for trial in verdict.trials)
    assert num == {"nominal": 100, "cells": 31, **{case.name: 4 for case in TASK.edge_cases}}
    assert verdict.num_simulations == len(verdict.trials) and verdict.rivals == ()
    assert len({trial.seed for trial in verdict.trials}) == len(verdict.trials)
    assert (verdict.judged_at, verdict.valid_until, verdict.task) == (100.0, 86_500.0, task_digest(TASK))
    assert verdict.signature == "" and verdict.baseline is None


@pytest.mark.parametrize(("gains", "parameters"), [(BAD, {}), (SHORT_POLE, LONG)])
def test_a_bad_policy_fails(gains: tuple[float, ...], parameters: dict[str, float]) -> None:
    verdict = judge(gains, parameters=parameters)
    assert verdict.outcome == "fail"
    assert check(verdict, "failure_rate").passed is False and check(verdict, "edge_cases").passed is False


def test_the_worlds_are_those_that_were_asked_for() -> None:
    verdict = judge(GOOD, parameters=LONG)
    assert verdict.outcome == "pass" and verdict.simulator != judge(GOOD).simulator
    assert {trial.parameters["length"] for trial in verdict.trials if trial.scenario != "cells"} == {2.0}
    assert verdict.trials[0].parameters["gravity"] == 9.8


def test_a_worse_policy_than_the_one_in_service_fails_for_that() -> None:
    task = dataclasses.replace(TASK, limits=Limits(max_failure_rate=0.999, max_latency_s=60.0), edge_cases=())
    gate = SafetyGate(task, CONFIG)
    verdict = gate.judge(
        load_linear(task, SHORT_POLE),
        baseline=load_linear(task, GOOD, digest="in service"),
        parameters=LONG,
        seed=1,
        now=0.0,
    )
    assert verdict.outcome == "fail" and verdict.baseline == "in service"
    assert [c.name for c in verdict.checks if c.passed is False] == ["regression", "safety", "stress"]


def test_equal_policies_do_not_differ_at_all() -> None:
    verdict = judge(GOOD, baseline=load_linear(TASK, GOOD))
    assert verdict.outcome == "pass" and check(verdict, "regression").value == 0.0


class Chance(gymnasium.Env[Any, Any]):
    """One step, which fails at a rate that is a parameter."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    rate = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.bad = bool(self.np_random.random() < Chance.rate)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if Chance.rate > 1:
            raise RuntimeError("the simulator crashed")
        return np.zeros(1, np.float32), 1.0, self.bad, not self.bad, {}


def fell(episode: Episode) -> bool:
    return episode.end == "terminated"


CHANCE = Task(name="chance", env=Chance, failed=fell, limits=Limits(max_latency_s=60.0))


def judge_chance(rate: float, monkeypatch: pytest.MonkeyPatch, seed: int = 1, max_sims: int = 1000) -> Verdict:
    monkeypatch.setattr(Chance, "rate", rate)
    policy = load_linear(CHANCE, [1.0])
    return SafetyGate(CHANCE, dataclasses.replace(CONFIG, max_sims=max_sims)).judge(policy, seed=seed, now=0.0)


def test_an_open_question_takes_more_simulations_up_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(judge_chance(0.0, monkeypatch).trials) == 100
    fair = judge_chance(0.02, monkeypatch)
    assert fair.outcome == "pass" and 100 < len(fair.trials) < 1000 and len(fair.trials) % 50 == 0
    edge = judge_chance(0.031, monkeypatch, seed=6, max_sims=250)
    assert edge.outcome == "inconclusive" and len(edge.trials) == 250
    assert check(edge, "failure_rate").passed is None


def test_a_simulator_that_crashes_gives_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judge_chance(2.0, monkeypatch)
    assert verdict.outcome == "inconclusive" and verdict.trials == ()
    note = check(verdict, "simulation").note
    assert "(nominal, no parameters) raised RuntimeError('the simulator crashed') at step 1, and when" in note
    monkeypatch.setattr(Chance, "rate", 2.0)
    probe = SafetyGate(CHANCE, CONFIG).probe(load_linear(CHANCE, [1.0]), seed=1, episodes=30)
    assert (probe.num_failed, probe.num_episodes) == (30, 30) and "raised RuntimeError" in probe.note


def test_a_network_that_answers_nan_gives_no_pass() -> None:
    verdict = GATE.judge(load_linear(TASK, GOOD, bias=[np.nan, 0.0]), seed=1, now=0.0)
    assert verdict.outcome == "inconclusive" and "not finite" in check(verdict, "simulation").note


def test_a_damaged_artifact_gives_no_pass(tmp_path: Path) -> None:
    artifact = write_linear_artifact(tmp_path, TASK)
    assert GATE.judge(artifact, seed=1, now=0.0).outcome == "pass"
    (Path(artifact.uri) / "policy.onnx").write_bytes(b"something else")
    verdict = GATE.judge(artifact, seed=1, now=0.0)
    assert verdict.outcome == "inconclusive" and verdict.digest == artifact.digest
    assert "is damaged" in check(verdict, "simulation").note


def test_a_slow_policy_fails_and_a_slow_moment_does_not() -> None:
    tight = dataclasses.replace(cartpole, limits=Limits(max_latency_s=0.01))

    def verdict(slow_calls: int) -> Verdict:
        now, calls = 0.0, 0

        def clock() -> float:
            nonlocal now, calls
            calls += 1
            now += 0.1 if calls < slow_calls else 0.001
            return now

        return SafetyGate(tight, CONFIG, cpu_clock=clock).judge(load_linear(tight), seed=1, now=0.0)

    assert verdict(slow_calls=100).outcome == "pass"
    assert [c.name for c in verdict(slow_calls=10_000).checks if c.passed is False] == ["cost"]


def test_a_busy_machine_does_not_make_a_policy_slow() -> None:
    spin = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        found = SafetyGate(cartpole, GateConfig()).judge(load_linear(cartpole), seed=1, now=0.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found.outcome == "pass", check(found, "cost").note


def test_every_trial_can_be_run_again_alone() -> None:
    policy = load_linear(TASK, (0.1, 0.5, 10.0, 2.0))
    verdict = GATE.judge(policy, parameters=LONG, seed=3, now=100.0)
    assert len({trial.failed for trial in verdict.trials}) == 2
    for trial in [*verdict.trials[:5], *verdict.trials[-12:]]:
        assert GATE.rerun(trial, policy) == trial


def test_one_seed_gives_one_verdict() -> None:
    same = [dataclasses.replace(judge(GOOD), cost_s=0.0).trials for _ in range(2)]
    assert same[0] == same[1] and same[0] != judge(GOOD, seed=4).trials


def test_probe_plays_other_worlds_and_names_the_edge_cases_that_failed() -> None:
    good = GATE.probe(load_linear(TASK), seed=3)
    assert (good.num_failed, good.num_episodes, good.mean_return, good.edge_failed) == (0, 200, 500.0, ())
    bad = GATE.probe(load_linear(TASK, SHORT_POLE), seed=3, parameters=LONG, episodes=20)
    assert bad.num_failed == bad.num_episodes == 20
    assert bad.edge_failed == tuple(case.name for case in TASK.edge_cases)
    nan = GATE.probe(load_linear(TASK, bias=[np.nan, 0.0]), seed=3, episodes=20)
    assert nan.num_failed == 20 and nan.edge_failed == bad.edge_failed and "not finite" in nan.note


def test_a_hopeless_probe_is_broken_off_and_a_good_one_is_the_same_in_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chance, "rate", 0.2)
    gate, policy = SafetyGate(CHANCE, CONFIG), load_linear(CHANCE, [1.0])
    whole = gate.probe(policy, seed=1)
    assert whole.num_episodes == 200 and whole.num_failed > 20
    assert gate.probe(policy, seed=1, max_failed=1).num_episodes == 20
    assert gate.probe(policy, seed=1, max_failed=whole.num_failed - 1).num_episodes == 200
    assert gate.probe(policy, seed=1, max_failed=whole.num_failed) == whole
    assert gate.probe(policy, seed=1, episodes=7, max_failed=7).num_episodes == 7


def test_a_probe_in_looks_plays_every_edge_case_as_often() -> None:
    scenarios: list[str] = []

    class Counting(Alone):
        def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
            scenarios.extend(f"{situation.scenario} {situation.seed}" for situation in situations)
            return super().play(policy, situations, now)

    policy, gate = load_linear(TASK), SafetyGate(TASK, CONFIG, crew=Counting(TASK, 256))
    whole = gate.probe(policy, seed=3)
    at_once, scenarios[:] = sorted(scenarios), []
    assert len(set(at_once)) == 200 + 40 * len(TASK.edge_cases)
    assert gate.probe(policy, seed=3, max_failed=1) == whole and sorted(scenarios) == at_once
    first = gate.probe(load_linear(TASK, (0.0, 0.0, 60.0, 24.0)), seed=3, max_failed=200)
    assert first.edge_failed and first.num_episodes < 200, "an edge case that failed ends it, too"


def test_edge_cases_may_fail_as_often_as_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chance, "rate", 0.05)
    task = dataclasses.replace(CHANCE, edge_cases=(EdgeCase("chancy"),))
    policy, num = load_linear(task, [1.0]), 20

    def failed(seed: int) -> int:
        situations = edge_situations(task.edge_cases, seed, "probe", num, {})
        return sum(episode.failed for episode in play_situations(task, policy, situations, lockstep=256, now=0.0))

    num_failed = [failed(seed) for seed in range(20)]
    assert {0, 1, 2} <= set(num_failed)
    for allowed in (0, 1):
        config = dataclasses.replace(CONFIG, probe_edge_trials=num, probe_edge_max_failed=allowed)
        probes = [SafetyGate(task, config).probe(policy, seed=seed, max_failed=200) for seed in range(20)]
        assert [bool(probe.edge_failed) for probe in probes] == [some > allowed for some in num_failed]
    monkeypatch.setattr(Chance, "rate", 0.5)
    lenient = dataclasses.replace(CONFIG, edge_trials=num, edge_max_failed=num - 1)
    strict = dataclasses.replace(lenient, edge_max_failed=0)
    verdicts = [SafetyGate(task, config).judge(policy, seed=1) for config in (lenient, strict)]
    passed, refused = (check(verdict, "edge_cases") for verdict in verdicts)
    assert passed.passed and refused.passed is False


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_failure_rate=0.0), "no number of simulations can prove"),
        (Limits(max_regression=1.0), "no number of simulations can prove"),
        (Limits(max_failure_rate=0.001), r"1,000 simulations can't prove even if none fails: give more than 0\.0048"),
        (Limits(max_latency_s=0.0), "which no policy keeps: give more than 0"),
        (Limits(max_bytes=0), "which no policy keeps: give more than 0"),
    ],
)
def test_limits_that_nothing_can_prove_are_refused(limits: Limits, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SafetyGate(dataclasses.replace(cartpole, limits=limits))


@pytest.mark.parametrize("limit", [0.2, 0.05, 0.004, 0.0005])
def test_a_limit_can_be_proved_by_as_many_simulations_as_are_asked_for(limit: float) -> None:
    task = dataclasses.replace(cartpole, limits=Limits(max_failure_rate=limit))
    with pytest.raises(UsageError) as refused:
        SafetyGate(task, GateConfig(num_sims=1, max_sims=4))
    num = int(str(refused.value).removesuffix(".").rpartition(" ")[2].replace(",", ""))
    SafetyGate(task, GateConfig(max_sims=num))
    assert evidence(0, num, limit, "below") >= 1 / GateConfig().error > evidence(0, int(0.8 * num), limit, "below")
