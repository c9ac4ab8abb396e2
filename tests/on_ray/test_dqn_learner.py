"""DQN's learner takes the textbook's steps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flywheel.config import TrainConfig
from flywheel.replaying import ReplayConfig
from flywheel.tasks.cartpole import cartpole
from tests.on_ray.learners import learner_of

CONFIG = TrainConfig(algorithm="dqn", hidden=(8, 6), lr=1e-3, replay=ReplayConfig(target_every=3))
N = 40


@pytest.fixture
def learner() -> Any:
    return learner_of(cartpole, CONFIG)


def batch_of(num: int = N) -> Any:
    rng = np.random.default_rng(3)
    return SimpleNamespace(
        observations=rng.normal(size=(num, 4)).astype(np.float32),
        next_observations=rng.normal(size=(num, 4)).astype(np.float32),
        actions=rng.integers(0, 2, num),
        rewards=3.0 * rng.normal(size=num).astype(np.float32),
        discounts=np.where(np.arange(num) % 5 == 0, 0.0, 0.9).astype(np.float32),
        weights=rng.uniform(0.2, 1.0, num).astype(np.float32),
    )


def plain(weights: dict[str, torch.Tensor], encoder: str, head: str, rows: torch.Tensor) -> torch.Tensor:
    """Return the values of a network, layer by layer."""
    for name in [n for n in weights if n.startswith(f"{encoder}.") and n.endswith("weight")]:
        rows = torch.tanh(rows @ weights[name].T + weights[name.replace("weight", "bias")])
    (name,) = (n for n in weights if n.startswith(f"{head}.") and n.endswith("weight"))
    return rows @ weights[name].T + weights[name.replace("weight", "bias")]


@pytest.mark.parametrize("delta", [1.0, 3.0])
def test_a_step_is_adams_down_the_huber_loss_of_double_q_learning(delta: float) -> None:
    replayed = dataclasses.replace(CONFIG.replay, huber_delta=delta)
    learner = learner_of(cartpole, dataclasses.replace(CONFIG, replay=replayed))
    module, batch = learner.module["default_policy"], batch_of()
    learner.descend(batch)  # copies the target; from here on it is another network than the main one
    before = {name: value.clone() for name, value in module.state_dict().items()}
    main = {n: v.requires_grad_() for n, v in before.items() if n.startswith(("encoder.", "af.")) and "mlp" in n}
    target = {n: v for n, v in before.items() if n.startswith("_target_")}
    later, actions = torch.tensor(batch.next_observations), torch.tensor(batch.actions)
    best = plain(main, "encoder", "af", later).argmax(dim=1)
    ahead = plain(target, "_target_encoder", "_target_af", later)[torch.arange(N), best]
    wanted = (torch.tensor(batch.rewards) + torch.tensor(batch.discounts) * ahead).detach()
    values = plain(main, "encoder", "af", torch.tensor(batch.observations))[torch.arange(N), actions]
    errors = values - wanted
    losses = torch.where(errors.abs() <= delta, 0.5 * errors**2, delta * (errors.abs() - 0.5 * delta))
    assert 0 < (errors.abs() <= delta).sum() < N, "errors are of either kind"
    gradients = torch.autograd.grad((torch.tensor(batch.weights) * losses).mean(), [*main.values()])
    length = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]
    assert length < 10.0, "none is cut"
    found = learner.descend(batch)
    np.testing.assert_allclose(found, errors.detach().numpy(), atol=1e-5)
    held = dict(module.named_parameters())
    for name, gradient in zip(main, gradients, strict=True):
        torch.testing.assert_close(held[name].grad, gradient, rtol=1e-4, atol=1e-6)


def course(learner: Any, num_updates: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the encoder's weights before each update, and its target's after each."""
    module, batch = learner.module["default_policy"], batch_of()

    def weights(prefix: str) -> torch.Tensor:
        return torch.cat([v.flatten() for n, v in module.state_dict().items() if n.startswith(prefix)]).clone()

    copies, mains = [], []
    for _ in range(num_updates):
        mains.append(weights("encoder."))
        learner.descend(batch)
        copies.append(weights("_target_encoder."))
    return mains, copies


def test_a_target_follows_where_that_is_asked_for() -> None:
    replayed = ReplayConfig(target_every=0, target_rate=0.25)
    mains, copies = course(learner_of(cartpole, dataclasses.replace(CONFIG, replay=replayed)), 5)
    followed = mains[0]
    for main, copy in zip(mains, copies, strict=True):
        followed = 0.75 * followed + 0.25 * main
        torch.testing.assert_close(copy, followed)


def test_the_target_is_a_copy_that_stands_for_as_many_updates_as_it_says(learner: Any) -> None:
    mains, copies = course(learner, 7)
    for i, copy in enumerate(copies):
        assert torch.equal(copy, mains[i - i % 3])
    assert not torch.equal(mains[3], mains[0])
