"""`train.warm_start`: which policy it names, what is refused of it, and what becomes of the first plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flywheel import beginning, stages
from flywheel.analyze.replay import replayed
from flywheel.config import Config, TrainConfig
from flywheel.deploy.registry import POLICIES
from flywheel.errors import Refused, UsageError
from flywheel.policy import Policy, pack, write_files
from flywheel.records import ELSEWHERE, Plan
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import GOOD, linear_policy
from tests.test_stages import opened, serving

SPEC = spec_of(cartpole)
FRESH = Plan(strategy="continue_training", reasons=("no policy is in service yet",))


def policy(run_dir: Path, version: int = 1, **trained_on: Any) -> str:
    """Write a policy into a run directory and return its digest."""
    network = linear_policy(SPEC, GOOD)[0]
    rows = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    digest, files = pack(
        network=network, weights={"w": np.zeros(2, np.float32)}, spec=SPEC,
        golden=(rows, Policy(network, SPEC).outputs(rows)), version=version, parent=None,
        trained_on={"strategy": "continue_training", "activation": "tanh", **trained_on}, made_at=1.0,
    )  # fmt: skip
    return write_files(run_dir / POLICIES, digest, files).digest


def config(start: str, **train: Any) -> Config:
    return dataclasses.replace(Config(), train=dataclasses.replace(TrainConfig(), warm_start=start, **train))


def test_a_policy_is_named_by_its_directory_or_by_how_its_digest_begins(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    mine, theirs = policy(own, algorithm="ppo"), policy(other, version=7, algorithm="ppo")
    for name, digest in ((mine[:8], mine), (mine, mine), (str(other / POLICIES / theirs), theirs)):
        found = beginning.chosen(config(name), SPEC, own)
        assert found is not None and found[0] == digest and "manifest.json" in found[1]
    assert beginning.chosen(config(""), SPEC, own) is None
    assert beginning.chosen(config(policy(own, version=2)[:12]), SPEC, own), "one that names no algorithm is tried"


def test_a_run_that_began_from_a_policy_starts_again_when_that_directory_is_gone(tmp_path: Path) -> None:
    start, own = tmp_path / "gone" / POLICIES / policy(tmp_path / "own", algorithm="ppo"), tmp_path / "own"
    found = beginning.chosen(config(str(start)), SPEC, own)
    assert found is not None and found[0] == start.name


def test_what_names_no_policy_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no policies yet: give the path"):
        beginning.chosen(config("abc"), SPEC, tmp_path)
    known = policy(tmp_path)
    with pytest.raises(UsageError, match=f"Known: {known[:12]}"):
        beginning.chosen(config("nothing"), SPEC, tmp_path)
    for version in range(2, 19):  # of 18 digests two begin with the same of 16 letters
        policy(tmp_path, version)
    letters = [path.name[0] for path in (tmp_path / POLICIES).iterdir()]
    with pytest.raises(UsageError, match=r"policies of .* begin with: say more"):
        beginning.chosen(config(max(letters, key=letters.count)), SPEC, tmp_path)


@pytest.mark.parametrize(
    ("trained_on", "train", "said"),
    [
        ({"algorithm": "ppo"}, {"algorithm": "dqn"}, "was trained by ppo, and dqn has other networks: set train.algor"),
        ({"algorithm": "dqn"}, {}, "was trained by dqn, and ppo has other networks"),
        ({"activation": "relu"}, {}, "relu between the layers, and train.activation is tanh"),
        ({"strategy": ELSEWHERE}, {}, "was trained elsewhere and came as a network alone"),
    ],
)
def test_what_training_cannot_go_on_from_is_refused(
    trained_on: dict[str, str], train: dict[str, Any], said: str, tmp_path: Path
) -> None:
    digest = policy(tmp_path, **trained_on)
    with pytest.raises(Refused, match=said):
        beginning.chosen(config(digest, **train), SPEC, tmp_path)


def test_a_policy_of_another_task_is_refused_by_what_differs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its observation shape is"):
        beginning.chosen(config(policy(tmp_path)), spec_of(pendulum), tmp_path)


def test_only_a_plan_that_would_begin_afresh_is_changed() -> None:
    written: list[Any] = []
    rooms = SimpleNamespace(registry=SimpleNamespace(write=lambda *given: written.append(given)))

    def changed(plan: Plan) -> Plan:
        return beginning.from_it(plan, ("d" * 64, {}), lambda method, *given: method(*given), rooms)

    warm = dataclasses.replace(FRESH, warm_start="champion")
    explore = dataclasses.replace(FRESH, strategy="increase_exploration")
    assert changed(warm) is warm and changed(explore) is explore and not written
    begun = changed(FRESH)
    assert (
        begun.warm_start == "d" * 64
        and begun.reasons[1] == "training goes on from policy dddddddd, as train.warm_start says"
    )
    assert written == [("d" * 64, {})]


def test_the_first_turn_of_a_run_begins_from_it_and_its_decision_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = policy(tmp_path / "other", algorithm="ppo")
    start = opened(tmp_path / "mine", config(str(tmp_path / "other" / POLICIES / digest)), monkeypatch)
    written: list[str] = []
    said = serving(start, monkeypatch)
    start._rooms.registry.champion = start._rooms.registry.previous = lambda: None
    start._rooms.registry.write = lambda digest, files: written.append(digest)
    monkeypatch.setattr(stages.predicting, "question", lambda *_: None)
    begun = start.analyze(1)
    assert begun.plan.warm_start == digest and written == [digest] and "as train.warm_start says" in said[-1]
    (again,) = replayed([begun])
    assert again.is_same


def test_a_policy_of_another_network_is_refused_though_its_weights_may_fit(tmp_path: Path) -> None:
    heads: dict[str, Any] = {"model_config": {"head_fcnet_hiddens": [8], "head_fcnet_activation": "relu"}}
    with_heads = policy(tmp_path, algorithm="ppo", network=heads)
    assert beginning.chosen(config(with_heads, rllib={**heads, "clip_param": 0.1}), SPEC, tmp_path)
    for given in ({}, {"model_config": {"head_fcnet_hiddens": [8]}}):
        with pytest.raises(
            Refused, match=r"has the network that train\.rllib gave as .*head_fcnet_activation.*here it"
        ):
            beginning.chosen(config(with_heads, rllib=given), SPEC, tmp_path)
    with pytest.raises(Refused, match="gave as nothing"):
        beginning.chosen(config(policy(tmp_path, version=2, algorithm="ppo"), rllib=heads), SPEC, tmp_path)
