"""Whoever computes the parts of a heavy simulator's work, the fit is the same."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from flywheel.analyze import from_episodes, spread
from flywheel.analyze.calibrate import calibrate
from flywheel.config import AnalyzeConfig
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, load_linear

Produce = Callable[..., list[Episode]]


class Elsewhere:
    """Computes parts as another process would: from their bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        self.sizes.append(len(parts))
        return [function(pickle.loads(pickle.dumps(part))) for part in parts]


@pytest.fixture
def policy() -> Policy:
    return load_linear(cartpole, SHORT_POLE, digest="served")


def test_transitions_in_parts_give_the_same_fit(task: Task, produce: Produce, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes, elsewhere = produce(3, length=2.0), Elsewhere()
    alone = calibrate(task, episodes, AnalyzeConfig())
    assert calibrate(task, episodes, AnalyzeConfig(), map=elsewhere) == alone
    assert not elsewhere.sizes, "a light simulator is asked at home"
    monkeypatch.setattr(spread, "WORTH_S", 0.0)
    assert calibrate(task, episodes, AnalyzeConfig(), map=elsewhere) == alone
    assert set(elsewhere.sizes) == {spread.PARTS}


def test_episodes_in_parts_give_the_same_fit(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = tuple(p for p in cartpole.parameters if p.name == "length")
    task = dataclasses.replace(cartpole, observed_state=None, parameters=some, edge_cases=(), drift={})
    seeds = np.arange(10).tolist()
    episodes = play(cartpole, policy, seeds=seeds, parameters=[{"length": 1.0}] * 10, draw_keys=seeds)
    config, elsewhere = AnalyzeConfig(simulations=500), Elsewhere()
    alone = from_episodes.calibrate(task, policy, episodes, config, 1)
    monkeypatch.setattr(spread, "WORTH_S", 0.0)
    assert from_episodes.calibrate(task, policy, episodes, config, 1, elsewhere) == alone
    assert elsewhere.sizes
