"""SAC's learner takes the textbook's steps, and its actor draws from the distribution that it says it does."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.distributions import Normal

from flywheel.config import TrainConfig
from flywheel.policy import Policy
from flywheel.records import Plan
from flywheel.replaying import ReplayConfig
from flywheel.task import spec_of
from flywheel.tasks.pendulum import pendulum
from flywheel.train.recipe import make_recipe, spec_for
from flywheel.train.rllib.exploring import begin_afresh, explore
from flywheel.train.rllib.export import Exporter
from flywheel.train.rllib.learn import _fresh, check_weights
from tests.on_ray.learners import learner_of

CONFIG = TrainConfig(algorithm="sac", hidden=(8, 6), activation="relu", lr=1e-3, replay=ReplayConfig(target_rate=0.1))
PLAN = Plan(strategy="continue_training", reasons=())
N = 32


def exploring(config: TrainConfig) -> Any:
    """Return a learner in a round that explores as much as any."""
    made = learner_of(pendulum, config)
    explore(made, None, make_recipe(pendulum, PLAN, config), 0)
    return made


@pytest.fixture
def learner() -> Any:
    return exploring(CONFIG)


def batch_of(num: int = N) -> Any:
    rng = np.random.default_rng(3)
    return SimpleNamespace(
        observations=rng.normal(size=(num, 3)).astype(np.float32),
        next_observations=rng.normal(size=(num, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (num, 1)).astype(np.float32),
        rewards=rng.normal(size=num).astype(np.float32),
        discounts=np.where(np.arange(num) % 5 == 0, 0.0, 0.9).astype(np.float32),
        weights=rng.uniform(0.2, 1.0, num).astype(np.float32),
    )


def one(critics: Any, which: int, rows: torch.Tensor) -> torch.Tensor:
    """Return the values of one critic by itself, computed as plain layers."""
    for i, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
        rows = rows @ weight[which] + bias[which]
        rows = torch.relu(rows) if i < len(critics.weights) - 1 else rows
    return rows.squeeze(-1)


def textbook(module: Any, log_alpha: torch.Tensor, batch: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the three losses of Haarnoja et al. 2018 (equations 5, 7 and 18), each critic and density by itself."""
    torch.manual_seed(seed)
    seen, later = torch.tensor(batch.observations), torch.tensor(batch.next_observations)
    alpha = log_alpha.detach().exp()

    def drawn(observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_deviation = module.pi(observations).chunk(2, dim=-1)
        chances = Normal(mean, log_deviation.clamp(-5, 2).exp())
        raw = chances.mean + chances.stddev * torch.randn(len(mean), 1)
        return torch.tanh(raw), (chances.log_prob(raw) - torch.log(1 - torch.tanh(raw) ** 2)).sum(-1)

    with torch.no_grad():
        actions, logps = drawn(later)
        rows = torch.cat([later, actions], 1)
        value = torch.min(one(module.target_qf, 0, rows), one(module.target_qf, 1, rows)) - alpha * logps
        wanted = torch.tensor(batch.rewards) + torch.tensor(batch.discounts) * value
    acted = torch.cat([seen, torch.tensor(batch.actions)], 1)
    weights = torch.tensor(batch.weights)
    critics = sum((weights * (one(module.qf, i, acted) - wanted) ** 2).mean() for i in range(2))
    actions, logps = drawn(seen)
    rows = torch.cat([seen, actions], 1)
    actor = (alpha * logps - torch.min(one(module.qf, 0, rows), one(module.qf, 1, rows))).mean()
    return {"qf": critics, "policy": actor, "alpha": -(log_alpha * (logps.detach() - 1.0)).mean()}  # type: ignore[dict-item]


def test_losses_and_their_gradients_are_the_textbooks(learner: Any) -> None:
    module, log_alpha, batch = learner.module["default_policy"], learner.curr_log_alpha["default_policy"], batch_of()
    with torch.no_grad():
        log_alpha.fill_(math.log(0.3))
        for parameter in module.target_qf.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    groups = {
        name: learner.get_optimizer("default_policy", name).param_groups[0]["params"]
        for name in ("qf", "policy", "alpha")
    }
    losses: dict[str, float] = {}
    found: dict[str, list[torch.Tensor]] = {}

    def noted(name: str, loss: torch.Tensor) -> None:  # no step is taken, so that all three are of the same weights
        losses[name] = loss.item()
        found[name] = list(torch.autograd.grad(loss, groups[name]))

    learner._step = noted
    wanted = textbook(module, log_alpha, batch, seed=5)  # before the targets follow
    torch.manual_seed(5)
    errors = learner.descend(batch)
    for name, loss in wanted.items():
        assert losses[name] == pytest.approx(loss.item(), rel=1e-4), name
        for ours, theirs in zip(found[name], torch.autograd.grad(loss, groups[name]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert errors.shape == (N,) and errors.dtype == np.float32


def test_targets_follow_by_their_rate_and_critics_are_learnt_from_alone_by_their_own_loss(learner: Any) -> None:
    module = learner.module["default_policy"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    learner.descend(batch_of())
    after = module.state_dict()
    for name, value in after.items():
        if name.startswith("target_qf."):
            main = after[name.removeprefix("target_")]
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * main)
        else:
            # Adam's first step is lr long at most, the actor's loss has left nothing in the critics
            assert 0 < (value - before[name]).abs().max() <= 1.01e-3, name
    assert all(parameter.requires_grad for parameter in module.qf.parameters())


def test_both_critics_are_different_networks(learner: Any) -> None:
    module, rows = learner.module["default_policy"], torch.randn(50, 4)
    values = module.qf(rows)
    assert values.shape == (2, 50) and (values[0] - values[1]).abs().min() > 0
    for which in range(2):
        torch.testing.assert_close(values[which], one(module.qf, which, rows))
    acted = {"obs": rows[:, :3], "actions": rows[:, 3:]}
    torch.testing.assert_close(module.compute_q_values(acted), values.min(dim=0).values)


def test_log_probabilities_are_those_of_squashed_actions(learner: Any) -> None:
    module = learner.module["default_policy"]
    observation = torch.tensor([[0.3, -0.2, 0.5]])
    mean, log_deviation = (value.item() for value in module.outputs(observation))
    torch.manual_seed(0)
    actions, logps = module.drawn(observation.expand(4000, -1))
    a = actions.detach().numpy()[:, 0].astype(np.float64)

    def density(x: float) -> float:
        raw = math.atanh(x)
        exponent = -0.5 * ((raw - mean) / math.exp(log_deviation)) ** 2 - log_deviation
        return math.exp(exponent) / math.sqrt(2 * math.pi) / (1 - x * x)

    assert np.allclose(logps.detach().numpy(), [math.log(density(x)) for x in a], atol=2e-3)
    assert integrate.quad(density, -1 + 1e-9, 1 - 1e-9)[0] == pytest.approx(1.0, abs=1e-4)
    entropy = -integrate.quad(lambda x: density(x) * math.log(density(x)), -1 + 1e-9, 1 - 1e-9)[0]
    assert -logps.mean().item() == pytest.approx(entropy, abs=4 * logps.std().item() / math.sqrt(4000))


def test_more_exploration_aims_higher_and_a_fresh_start_forgets_the_temperature(learner: Any) -> None:
    log_alpha = learner.curr_log_alpha["default_policy"]
    with torch.no_grad():
        log_alpha.fill_(-4.0)
    warm = dataclasses.replace(PLAN, exploration=3.0, warm_start="a digest")
    explore(learner, None, make_recipe(pendulum, warm, CONFIG), 0)
    assert learner.entropy == pytest.approx(-1.0 + 0.5 * math.log(3.0)) and log_alpha.item() == -4.0
    explore(learner, None, make_recipe(pendulum, PLAN, CONFIG), 0)
    begin_afresh(learner)
    assert learner.entropy == -1.0 and log_alpha.item() == 0.0


def test_it_learns_the_value_of_what_it_is_shown() -> None:
    learner = exploring(dataclasses.replace(CONFIG, hidden=(32, 32), lr=3e-3))
    batch = batch_of(64)
    batch.discounts = np.zeros(64, np.float32)  # each step is the last: its value is its reward
    batch.rewards = (batch.observations[:, 0] - batch.actions[:, 0] ** 2).astype(np.float32)
    first = np.abs(learner.descend(batch)).mean()
    for _ in range(600):
        last = np.abs(learner.descend(batch)).mean()
    assert last < 0.1 * first
    actions = learner.module["default_policy"].outputs(torch.tensor(batch.observations))[0].tanh()
    assert actions.abs().mean() < 0.25, "the best action is 0 everywhere"


def test_what_is_exported_answers_as_the_actor_and_a_fresh_start_has_the_same_architecture(learner: Any) -> None:
    module, spec = learner.module["default_policy"], spec_for(pendulum, spec_of(pendulum), CONFIG)
    held = {name: np.array(value) for name, value in module.get_state(inference_only=False).items()}
    policy = Policy(Exporter(module, spec).network(held), spec)
    rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = torch.cat(module.outputs(torch.tensor(rows)), dim=-1).numpy()
    np.testing.assert_allclose(policy.outputs(rows), wanted, atol=1e-5)
    fresh = _fresh(module)
    check_weights(held, fresh)
    assert all((fresh[name] != held[name]).any() for name in held)
    assert all((fresh[name] == fresh[f"target_{name}"]).all() for name in fresh if name.startswith("qf."))
    runners = module.get_state(inference_only=True)
    assert runners and all(name.startswith("pi.") for name in runners)
