"""Policies trained elsewhere: what fits is judged, what doesn't is refused by name before anything is played."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flywheel import foreign
from flywheel.config import GateConfig
from flywheel.draws import draws
from flywheel.errors import Refused, UsageError
from flywheel.gate import SafetyGate
from flywheel.policy import load, read_weights, to_env, write_files
from flywheel.records import Episode
from flywheel.task import Limits, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, linear_policy

SB3 = Path(__file__).parent / "data" / "sb3_cartpole.onnx"
GREEDY = {"rule": {"greedy": True}}
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))


def never(episode: Episode) -> bool:
    return False


PENDULUM = Task(name="swing", env="Pendulum-v1", failed=never, limits=Limits(max_latency_s=60.0))


def network(
    num_in: int,
    num_out: int,
    *,
    batch: str | int = "N",
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    node: str = "",
    matrix: Any = None,
) -> bytes:
    """Return an ONNX file that is one matrix, with further inputs and outputs, and one more node at its end."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = np.full((num_in, num_out), 0.01) if matrix is None else np.asarray(matrix).T
    nodes = [helper.make_node("MatMul", ["x", "w"], ["middle" if node else "y"])]
    answer = (kind, [None, None])
    if node == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["middle"], ["y"], axis=1, keepdims=0))
        answer = (TensorProto.INT64, [None])
    elif node == "Mean":  # over the rows, as batch normalisation in training does
        nodes.append(helper.make_node("ReduceMean", ["middle"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Sub", ["middle", "mean"], ["y"]))
    nodes += [helper.make_node("Identity", ["x"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, [batch, num_in])]
        + [helper.make_tensor_value_info(name, kind, [1, 8]) for name in inputs],
        [helper.make_tensor_value_info("y", *answer)]
        + [helper.make_tensor_value_info(name, kind, [None, None]) for name in outputs],
        [numpy_helper.from_array(values.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"inputs": ["hidden"]}, "reads x, hidden"),
        ({"outputs": ["value"]}, "gives y, value"),
        ({"batch": 1}, "batch is fixed at 1"),
        ({"num_in": 3}, "other observations"),
        ({"num_out": 3}, "[16, 3] for 16 observations, expected float32 [N, 2] logits"),
        ({"kind": TensorProto.DOUBLE}, "export it in float32"),
        ({"node": "ArgMax"}, "not the actions"),
        ({"node": "Mean"}, "evaluation mode"),
        ({"matrix": np.full((2, 4), np.inf)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_played(
    made: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.gate.trials.play_situations", None)
    with pytest.raises(Refused) as refused:
        SafetyGate(TASK).judge(network(**{"num_in": 4, "num_out": 2, **made}))
    assert said in str(refused.value)


def test_a_file_that_is_no_network_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the path of an ONNX file"):
        SafetyGate(TASK).judge(tmp_path / "nothing.onnx")
    with pytest.raises(Refused, match="can't be loaded"):
        SafetyGate(TASK).judge(b"not a network")


def test_a_box_policy_gives_means_with_deviations_or_greedy_means_alone() -> None:
    spec = spec_of(PENDULUM)
    assert foreign.load(network(3, 2), spec).outputs(np.zeros((5, 3))).shape == (5, 2)
    with pytest.raises(Refused, match=r"Means alone need a greedy rule.*\"greedy\": true"):
        foreign.load(network(3, 1), spec)
    means = foreign.load(network(3, 1), spec, GREEDY)
    assert means.act(np.ones((5, 3)), draws(range(5), [0] * 5, 1))[0].shape == (5, 1)
    with pytest.raises(Refused, match=r"expected float32 .N, 1. means, or .N, 2. means and log deviations"):
        foreign.load(network(3, 3), spec, GREEDY)
    with pytest.raises(Refused, match="without deviations"):
        means.act(np.ones((5, 3)), draws(range(5), [0] * 5, 1), dataclasses.replace(means.spec.rule, greedy=False))
    lenient = dataclasses.replace(PENDULUM, limits=Limits(max_failure_rate=0.9, max_latency_s=60.0))
    gate = SafetyGate(lenient, GateConfig(num_sims=4, max_sims=4, latency_calls=20))
    verdict = gate.judge(network(3, 1), spec={**GREEDY, "unsquash": False})
    assert verdict.checks[0].name == "failure_rate" and len(verdict.trials) == 4


@pytest.mark.parametrize("width", [1, 2])
def test_a_policy_in_the_environments_own_units_does_what_it_did(width: int) -> None:
    spec = spec_of(PENDULUM)  # [-2, 2]
    raw = network(3, width, matrix=np.arange(3 * width).reshape(width, 3) / 4)
    theirs = foreign.load(raw, spec, {**GREEDY, "unsquash": False})
    assert theirs.spec.unsquash, "all policies of a task have raw actions of one kind"
    onnx.checker.check_model(onnx.load_model_from_string(theirs.network))
    observations = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    acted = to_env(spec, theirs.act(observations, np.full((50, 1), 0.5))[0])
    meant = np.clip(observations @ (np.arange(3) / 4).astype(np.float32), -2, 2)[:, None]
    assert np.allclose(acted, meant, atol=1e-5)
    if width == 2:  # a deviation of exp(s) in [-2, 2] is half of it in [-1, 1]
        before = foreign.load(raw, spec).outputs(observations)[:, 1]
        assert np.allclose(theirs.outputs(observations)[:, 1], before - np.log(2.0), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rul": {}}, "Did you mean 'rule'"),
        ({"rule": {"gredy": True}}, "Did you mean 'rule.greedy'"),
        ({"rule": {"kind": "gaussian"}}, "rule.kind"),
        ({"rule": {"temperature": 0}}, "more than 0"),
        ({"rule": {"greedy": "yes"}}, "greedy"),
        ({"rule": True}, "must be an object"),
        ({"num_actions": 3}, "its task's environment decides"),
        ({"unsquash": True}, "has none"),
    ],
)
def test_a_wrong_spec_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(changes))
    with pytest.raises(UsageError, match=said):
        foreign.load(network(4, 2), spec_of(TASK), foreign.read_changes(path))


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_spec_file_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="spec file"):
        foreign.read_changes(path)
    with pytest.raises(UsageError, match="can't be read"):
        foreign.read_changes(tmp_path / "none")


def test_observations_to_try_are_inside_the_space() -> None:
    low, high = np.array([0.0, -np.inf, -3.4e38, 5.0]), np.array([1.0, np.inf, 3.4e38, 6.0])
    space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
    spec = dataclasses.replace(
        spec_of(TASK), observation_low=tuple(low.tolist()), observation_high=tuple(high.tolist())
    )
    rows = foreign.sample(spec)
    assert rows.shape == (16, 4) and rows.dtype == np.float32 and len(np.unique(rows)) == rows.size
    assert all(space.contains(row) for row in rows)
    assert np.array_equal(rows, foreign.sample(spec))


def test_an_artifact_of_it_is_proven_as_any_other_and_has_no_weights(tmp_path: Path) -> None:
    policy = foreign.load(linear_policy(spec_of(TASK), GOOD)[0], spec_of(TASK), GREEDY)
    ranges = {"length": (0.4, 0.6)}
    digest, files = foreign.files(policy, version=3, made_at=5.0, ranges=ranges)
    artifact = write_files(tmp_path, digest, files)
    assert load(artifact).spec.rule.greedy and foreign.is_of(artifact, policy)
    assert read_weights(files) == {} and artifact.version == 3
    assert artifact.trained_on["parameters"] == {"length": [0.4, 0.6]}
    assert not foreign.is_of(artifact, foreign.load(policy.network, spec_of(TASK)))


def test_a_policy_of_stable_baselines_passes_the_gate() -> None:
    verdict = SafetyGate(TASK).judge(SB3, spec=GREEDY, seed=1)
    assert verdict.outcome == "pass", verdict.checks
    assert verdict.digest == foreign.load(SB3, spec_of(TASK)).digest and verdict.judged_at > 1e9


def test_a_seed_is_fresh_unless_it_is_given() -> None:
    lenient = dataclasses.replace(TASK, edge_cases=(), limits=Limits(max_failure_rate=0.99))
    gate = SafetyGate(lenient, GateConfig(num_sims=3, max_sims=3, latency_calls=20))
    assert gate.judge(str(SB3)).seed != gate.judge(SB3.read_bytes()).seed
