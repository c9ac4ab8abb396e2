"""Actors play for the gate: the same verdict as alone, also when they die over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.on_ray import GateActor
from flywheel.policy import Bundle, bundle, load
from flywheel.priority import BEHIND
from flywheel.records import Verdict
from flywheel.task import Task
from flywheel.testing import write_linear_artifact
from tests.uneven import BACK, MORTAL, SUITE, UNEVEN

CONFIG = GateConfig(
    num_sims=30, max_sims=60, latency_calls=10, edge_max_failed=3, stress_sims=10, search_sims=20, workers=2
)


@pytest.fixture
def back(tmp_path: Path) -> Bundle:
    return bundle(write_linear_artifact(tmp_path, UNEVEN, BACK))


@pytest.fixture
def gate(ray_cluster: Any, tmp_path: Path) -> Iterator[Any]:
    """Return what starts a gate whose mortal worlds live once `file` is there."""
    started = []

    def start(task: Task, file: Path) -> Any:
        actor = ray_cluster.remote(GateActor).options(
            num_cpus=0, runtime_env={"env_vars": {"MORTAL": str(file), "SPARED": "0"}}
        )
        started.append(actor.remote(task, CONFIG))
        return started[-1]

    yield start
    for actor in started:
        ray_cluster.kill(actor)


def told(verdict: Verdict) -> Any:
    """Return what doesn't hang on a clock."""
    checks = [check for check in verdict.checks if check.name != "cost"]
    return dataclasses.replace(verdict, cost_s=0.0, judged_at=0.0, valid_until=0.0, checks=()), repr(checks)


def test_the_verdict_is_the_one_of_a_gate_alone(ray_cluster: Any, gate: Any, back: Bundle, tmp_path: Path) -> None:
    actor = gate(UNEVEN, tmp_path)
    found = ray_cluster.get(actor.judge.remote(back, back, {"wind": 0.01}, 4, SUITE), timeout=120)
    alone = SafetyGate(UNEVEN, dataclasses.replace(CONFIG, workers=1))
    expected = alone.judge(load(back), baseline=load(back), parameters={"wind": 0.01}, suite=SUITE, seed=4)
    assert told(found) == told(expected) and len(found.trials) > 60
    probe = ray_cluster.get(actor.probe.remote(back.files["policy.onnx"], back.artifact.spec, 3), timeout=60)
    assert probe == alone.probe(load(back), seed=3)
    assert {process.nice() for process in psutil.process_iter() if process.name() == "ray::GateActor"} == {BEHIND}


def test_what_a_dead_worker_had_to_play_is_played_again(
    ray_cluster: Any, gate: Any, back: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "met"
    found = ray_cluster.get(gate(MORTAL, file).judge.remote(back, None, None, 4), timeout=120)
    assert file.exists(), "a worker died"
    monkeypatch.setenv("MORTAL", str(file))  # nobody dies any more
    plain = dataclasses.replace(CONFIG, workers=1)
    expected = SafetyGate(MORTAL, plain).judge(load(back), seed=4)
    assert [trial.chain for trial in found.trials] == [trial.chain for trial in expected.trials]
    assert found.outcome == expected.outcome


def test_worlds_that_nobody_survives_are_no_verdict(ray_cluster: Any, gate: Any, back: Bundle) -> None:
    found = ray_cluster.get(gate(MORTAL, Path("/nowhere/at/all")).judge.remote(back, None, None, 4), timeout=180)
    assert found.outcome == "inconclusive" and found.trials == ()
    assert "Workers of the gate died 4 times over the same simulations" in found.checks[0].note
