"""Policy: rows don't depend on the batch, log probabilities are of the rule that acted, damage is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from scipy import stats

from flywheel.draws import draws
from flywheel.errors import Refused
from flywheel.policy import (
    MANIFEST,
    NETWORK,
    WEIGHTS,
    Policy,
    _categorical,
    _gaussian,
    _multi_categorical,
    load,
    read_files,
    read_weights,
    to_env,
)
from flywheel.records import Artifact, Rule
from flywheel.task import spec_of
from flywheel.tasks import load as load_task
from flywheel.testing import GOOD, linear_policy, write_linear_artifact
from tests.rooms import room

CARTPOLE = load_task("cartpole")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A hand-tuned linear policy on the disk."""
    return write_linear_artifact(tmp_path, CARTPOLE)


def test_an_action_is_the_same_at_every_batch_size(artifact: Artifact) -> None:
    policy = load(artifact)
    observations = np.random.default_rng(3).normal(size=(256, 4)).astype(np.float32)
    uniform = draws(np.arange(256), np.arange(256), 1)
    actions, logps = policy.act(observations, uniform)
    for size in (1, 2, 7, 33, 128):
        for start in range(0, 256, size):
            rows = slice(start, min(start + size, 256))
            some, some_logps = policy.act(observations[rows], uniform[rows])
            assert np.array_equal(some, actions[rows])
            assert np.array_equal(some_logps, logps[rows])


@pytest.mark.parametrize(
    "rule",
    [
        Rule(kind="categorical"),
        Rule(kind="categorical", temperature=0.3),
        Rule(kind="categorical", exploration_rate=0.4),
        Rule(kind="categorical", greedy=True, exploration_rate=0.1),
    ],
)
def test_categorical_actions_come_as_often_as_their_log_probabilities_say(rule: Rule) -> None:
    many = 40_000
    logits = np.tile([[0.3, -1.0, 1.2]], (many, 1))
    actions, logps = _categorical(logits, draws(np.arange(many), np.zeros(many), 1), rule)
    chances = {int(a): float(np.exp(logps[actions == a][0])) for a in np.unique(actions)}
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-9)
    counts = [int((actions == a).sum()) for a in chances]
    assert stats.chisquare(counts, [many * p for p in chances.values()]).pvalue > 1e-4


@pytest.mark.parametrize("num_actions", [2, 3, 8, 19])
def test_a_row_of_many_actions_does_not_depend_on_the_others(num_actions: int) -> None:
    rng = np.random.default_rng(3)
    logits, uniform = rng.normal(0.0, 3.0, (100, num_actions)), rng.random((100, 1))
    for rule in (
        Rule(kind="categorical"),
        Rule(kind="categorical", temperature=0.7, exploration_rate=0.1),
        Rule(kind="categorical", greedy=True, exploration_rate=0.1),
    ):
        actions, logps = _categorical(logits, uniform, rule)
        for i in range(100):
            action, logp = _categorical(logits[i : i + 1], uniform[i : i + 1], rule)
            assert action[0] == actions[i] and logp[0] == logps[i]


@pytest.mark.parametrize("rule", [Rule(kind="multi_categorical"), Rule(kind="multi_categorical", exploration_rate=0.3)])
def test_each_sub_action_is_drawn_as_a_categorical_of_its_own(rule: Rule) -> None:
    outputs = np.random.default_rng(0).normal(size=(500, 5))
    uniform = draws(np.arange(500), np.zeros(500), 2)
    actions, logps = _multi_categorical(outputs, uniform, rule, (3, 2))
    first, first_logps = _categorical(outputs[:, :3], uniform[:, :1], rule)
    second, second_logps = _categorical(outputs[:, 3:], uniform[:, 1:], rule)
    assert np.array_equal(actions, np.stack([first, second], axis=1)) and actions.dtype == np.int64
    assert np.array_equal(logps, first_logps + second_logps)


def test_a_greedy_multi_discrete_policy_takes_the_likeliest_of_each(tmp_path: Path) -> None:
    task = dataclasses.replace(room, greedy=True)
    gains = np.random.default_rng(1).normal(size=(5, 5))
    policy = load(write_linear_artifact(tmp_path, task, gains))
    observations = np.random.default_rng(2).normal(size=(50, 5))
    actions, logps = policy.act(observations, draws(np.arange(50), np.zeros(50), 2))
    outputs = policy.outputs(observations)
    assert np.array_equal(actions, np.stack([outputs[:, :3].argmax(axis=1), outputs[:, 3:].argmax(axis=1)], axis=1))
    assert (logps == 0).all()
    assert np.array_equal(to_env(policy.spec, actions), actions + np.array([-1, 0]))


@pytest.mark.parametrize(
    ("reads", "gives", "words"),
    [
        (["observations", "state"], ["outputs"], "reads observations, state"),
        (["observations"], ["outputs", "next_state"], "gives outputs, next_state"),
    ],
)
def test_recurrent_policies_are_refused_by_name(reads: list[str], gives: list[str], words: str) -> None:
    nodes = [helper.make_node("Identity", [reads[min(i, len(reads) - 1)]], [name]) for i, name in enumerate(gives)]
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in [*reads, *gives]}
    graph = helper.make_graph(nodes, "memory", [infos[name] for name in reads], [infos[name] for name in gives])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(Refused, match=f"{words}.*Recurrent policies are not supported"):
        Policy(model.SerializeToString(), spec_of(CARTPOLE))


def test_gaussian_actions_are_normal_and_their_log_densities_are_scipys() -> None:
    outputs = np.tile([[0.5, -1.0, 0.2, -0.7]], (20_000, 1))
    rule = Rule(kind="gaussian", temperature=2.0)
    actions, logps = _gaussian(outputs, draws(np.arange(20_000), np.zeros(20_000), 2), rule, (2,))
    deviation = 2.0 * np.exp([0.2, -0.7])
    expected = stats.norm([0.5, -1.0], deviation).logpdf(actions).sum(axis=1)
    assert np.allclose(logps, expected, atol=1e-5)
    for column in range(2):
        assert stats.kstest((actions[:, column] - outputs[0, column]) / deviation[column], "norm").pvalue > 1e-4


def test_squashed_actions_lie_within_one_and_their_log_densities_integrate_to_one() -> None:
    outputs = np.tile([[0.5, -1.0, 0.2, -0.7]], (20_000, 1))
    rule = Rule(kind="gaussian", squashed=True)
    drawn = draws(np.arange(20_000), np.zeros(20_000), 2)
    actions, logps = _gaussian(outputs, drawn, rule, (2,))
    plain, _ = _gaussian(outputs, drawn, Rule(kind="gaussian"), (2,))
    assert np.array_equal(actions, np.tanh(plain.astype(np.float64)).astype(np.float32))
    inner = np.arctanh(np.clip(actions.astype(np.float64), -0.999999, 0.999999))
    density = stats.norm([0.5, -1.0], np.exp([0.2, -0.7])).logpdf(inner) - np.log1p(-(np.tanh(inner) ** 2))
    usual = (abs(actions) < 0.999).all(axis=1)
    assert np.allclose(logps[usual], density.sum(axis=1)[usual], atol=1e-2)
    far = np.array([[40.0, -40.0, 0.0, 0.0]])
    assert np.isfinite(_gaussian(far, np.full((1, 2), 0.5), rule, (2,))[1]).all()
    greedy = _gaussian(outputs[:1], drawn[:1], Rule(kind="gaussian", squashed=True, greedy=True), (2,))[0]
    assert np.array_equal(greedy, np.tanh(outputs[:1, :2]).astype(np.float32))


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_a_greedy_discrete_policy_has_probability_one(xs: list[float]) -> None:
    logits = np.array([[x, -x, 0.1] for x in xs])
    actions, logps = _categorical(logits, np.full((len(xs), 1), 0.999), Rule(kind="categorical", greedy=True))
    assert np.array_equal(actions, logits.argmax(axis=1))
    assert np.array_equal(logps, np.zeros(len(xs)))


def test_box_actions_are_unsquashed_and_clipped_and_discrete_ones_shifted() -> None:
    spec = spec_of(CARTPOLE)
    assert np.array_equal(to_env(dataclasses.replace(spec, action_start=1), np.array([0, 1])), [1, 2])
    box = dataclasses.replace(
        spec, action_kind="box", action_shape=(1,), action_low=(-2.0,), action_high=(4.0,), unsquash=True
    )
    raw = np.array([[-1.0], [0.0], [1.0], [3.0]], dtype=np.float32)
    assert np.array_equal(to_env(box, raw), [[-2.0], [1.0], [4.0], [4.0]])
    assert np.array_equal(to_env(dataclasses.replace(box, unsquash=False), raw * 3), [[-2.0], [0.0], [3.0], [4.0]])


def test_an_artifact_is_named_by_what_is_in_it(artifact: Artifact, tmp_path: Path) -> None:
    again = write_linear_artifact(tmp_path, CARTPOLE)
    other = write_linear_artifact(tmp_path, CARTPOLE, version=2)
    assert again == artifact
    assert other.digest != artifact.digest
    assert sorted(path.name for path in Path(artifact.uri).iterdir()) == sorted([MANIFEST, NETWORK, WEIGHTS])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert read_weights(read_files(Path(artifact.uri)))


@pytest.mark.parametrize("name", [MANIFEST, NETWORK, WEIGHTS])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_artifact_is_refused_and_the_file_named(artifact: Artifact, name: str, damage: str) -> None:
    path = Path(artifact.uri) / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-5])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(Refused, match="manifest" if name == MANIFEST else name):
        load(artifact)


def shifted(directory: Path, by: float, bias: tuple[float, float] = (0.0, 0.0)) -> Artifact:
    """An export whose golden vectors are so far from its answers."""
    from flywheel.policy import write_artifact

    network, weights, golden = linear_policy(spec_of(CARTPOLE), GOOD, bias)
    return write_artifact(
        directory,
        network=network,
        weights=weights,
        spec=spec_of(CARTPOLE),
        golden=(golden[0], golden[1] + np.float32(by)),
        version=1,
        parent=None,
        trained_on={},
        made_at=0.0,
    )


def test_an_export_that_answers_otherwise_than_its_golden_vectors_is_refused(tmp_path: Path) -> None:
    for by, bias in ((1e-3, (0.0, 0.0)), (0.2, (0.0, 9_600.0))):
        with pytest.raises(Refused, match="golden"):
            load(shifted(tmp_path / str(by), by, bias))


def test_rounding_errors_of_large_outputs_are_no_other_answers(tmp_path: Path) -> None:
    """Found in a run: of DQN's values over a small temperature one was near 0 and another one 9,628, 0.001 apart."""
    assert load(shifted(tmp_path, 1e-3, (0.0, 9_600.0)))


def test_an_answer_that_is_not_finite_is_refused(artifact: Artifact) -> None:
    with pytest.raises(Refused, match="not finite"):
        load(artifact).act(np.array([[np.nan, 0, 0, 0]], dtype=np.float32), np.array([[0.5]]))


def test_bytes_that_are_no_network_are_refused() -> None:
    with pytest.raises(Refused, match="can't be loaded"):
        Policy(b"not a network", spec_of(CARTPOLE))


def test_the_manifest_is_plain_json(artifact: Artifact) -> None:
    manifest = json.loads((Path(artifact.uri) / MANIFEST).read_text())
    assert manifest["schema_version"] == 1
    assert set(manifest["files"]) == {NETWORK, WEIGHTS}
