"""The gate's body without Ray: it forwards, keeps its history, and loads neither torch nor RLlib."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from flywheel.config import GateConfig
from flywheel.gate.history import History
from flywheel.gate.on_ray import GateActor
from flywheel.task import Limits, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, linear_policy, write_linear_artifact

TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
CONFIG = GateConfig(latency_calls=50)


def test_verdicts_are_told_after_they_were_written_and_outlive_the_actor(tmp_path: Path) -> None:
    actor = GateActor(TASK, CONFIG, str(tmp_path))
    good = write_linear_artifact(tmp_path / "policies", TASK)
    bad = write_linear_artifact(tmp_path / "policies", TASK, BAD, version=2)
    verdicts = [actor.judge(good, None, None, 1), actor.judge(bad, good, {"length": 2.0}, 2)]
    assert [verdict.outcome for verdict in verdicts] == ["pass", "fail"]
    assert verdicts[1].baseline == good.digest
    assert GateActor(TASK, CONFIG, str(tmp_path)).history() == verdicts == actor.history()


def test_probe_takes_a_network_as_bytes(tmp_path: Path) -> None:
    spec = spec_of(TASK)
    probe = GateActor(TASK, CONFIG, str(tmp_path)).probe(linear_policy(spec, GOOD)[0], spec, 1, None, 20)
    assert probe.num_failed == 0 and probe.num_episodes == 20


def test_a_line_that_a_crash_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    actor = GateActor(TASK, CONFIG, str(tmp_path))
    verdict = actor.judge(write_linear_artifact(tmp_path / "policies", TASK), None, None, 1)
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(path.read_bytes() + b'{"digest": "half a l')
    history = History(path)
    history.append(verdict)
    assert history.read() == [verdict, verdict]


def test_a_verdict_of_a_broken_policy_is_kept_too(tmp_path: Path) -> None:
    artifact = write_linear_artifact(tmp_path / "policies", TASK)
    (Path(artifact.uri) / "policy.onnx").unlink()
    actor = GateActor(TASK, CONFIG, str(tmp_path))
    actor.judge(artifact, None, None, 1)
    assert [verdict.outcome for verdict in actor.history()] == ["inconclusive"]


def test_the_gate_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from flywheel.gate.on_ray import GateActor; from flywheel.gate import SafetyGate;"
        "from flywheel.testing import load_linear; from flywheel.tasks.cartpole import cartpole;"
        "v = SafetyGate(cartpole).judge(load_linear(cartpole), seed=1, now=0.0);"
        "print(len(v.trials) >= 100, {'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"
