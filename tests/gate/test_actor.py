"""The gate's body without Ray: it forwards, and loads neither torch nor RLlib."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.on_ray import GateActor
from flywheel.policy import NETWORK, bundle
from flywheel.records import Correction
from flywheel.simulate.corrected import corrected
from flywheel.task import Limits, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, linear_policy, write_linear_artifact

TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
CONFIG = GateConfig(latency_calls=50)


def test_policies_come_with_their_files(tmp_path: Path) -> None:
    actor = GateActor(TASK, CONFIG)
    good = bundle(write_linear_artifact(tmp_path, TASK))
    bad = bundle(write_linear_artifact(tmp_path, TASK, BAD, version=2))
    shutil.rmtree(tmp_path)
    verdicts = [actor.judge(good, None, None, 1), actor.judge(bad, good, {"length": 2.0}, 2)]
    assert [verdict.outcome for verdict in verdicts] == ["pass", "fail"]
    assert verdicts[1].baseline == good.digest


def test_probe_takes_a_network_as_bytes() -> None:
    spec = spec_of(TASK)
    probe = GateActor(TASK, CONFIG).probe(linear_policy(spec, GOOD)[0], spec, 1, None, 20)
    assert probe.num_failed == 0 and probe.num_episodes == 20


def test_worlds_are_those_of_the_plans_correction(tmp_path: Path) -> None:
    actor, swapped = GateActor(TASK, CONFIG), Correction(actions=(1, 0))
    good = bundle(write_linear_artifact(tmp_path, TASK))
    network, spec = good.files[NETWORK], good.artifact.spec
    found = actor.judge(good, None, None, 1, correction=swapped)
    assert found == dataclasses.replace(
        SafetyGate(corrected(TASK, swapped), CONFIG).judge(good, seed=1, now=found.judged_at),
        cost_s=found.cost_s,
        checks=found.checks,  # one of them is a timing
    )
    assert found.outcome == "fail" and found.correction == swapped
    assert actor.probe(network, spec, 1, None, 20, correction=swapped).num_failed == 20
    assert actor.probe(network, spec, 1, None, 20).num_failed == 0
    assert actor.judge(good, None, None, 1).outcome == "pass"


def test_a_policy_whose_files_are_not_its_own_is_no_pass(tmp_path: Path) -> None:
    good = bundle(write_linear_artifact(tmp_path, TASK))
    broken = dataclasses.replace(good, files={**good.files, NETWORK: good.files[NETWORK] + b"x"})
    verdict = GateActor(TASK, CONFIG).judge(broken, None, None, 1)
    assert verdict.outcome == "inconclusive" and "damaged" in verdict.checks[0].note


def test_the_gate_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from flywheel.gate.on_ray import GateActor; from flywheel.gate import SafetyGate;"
        "from flywheel.testing import load_linear; from flywheel.tasks.cartpole import cartpole;"
        "v = SafetyGate(cartpole).judge(load_linear(cartpole), seed=1, now=0.0);"
        "print(len(v.trials) >= 100, {'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"
