"""PPO in NumPy: the same gradients, moments and draws as torch, the same advantages as the definition."""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from flywheel.errors import FlywheelError
from flywheel.records import Spec
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.heads import spread
from flywheel.train.nets import Adam, layers_in, run, shorten
from flywheel.train.surrogate import Surrogate, Terms, advantages, rows_of
from flywheel.train.tape import Played, joined

NUM = 96
TERMS = Terms(clip=0.2, value_weight=0.5, entropy=0.01, longest=0.5, lr=1e-3, num_epochs=3, minibatch_size=NUM)
KINDS = ("discrete", "multi_discrete", "box")


def spec_for(kind: str) -> tuple[Spec, int]:
    """Return a spec of such actions and the size of a network's answer."""
    spec = spec_of(cartpole)
    if kind == "discrete":
        return spec, 2
    if kind == "multi_discrete":
        return dataclasses.replace(spec, action_kind="multi_discrete", action_nvec=(3, 2), action_shape=(2,)), 5
    return dataclasses.replace(spec, action_kind="box", action_shape=(2,)), 4


def in_torch(kind: str, outputs: torch.Tensor, widest: float) -> torch.distributions.Distribution:
    """Return what actions are drawn from, as torch has it."""
    if kind == "discrete":
        return torch.distributions.Categorical(logits=outputs)
    if kind == "multi_discrete":
        return _Several([torch.distributions.Categorical(logits=part) for part in outputs.split((3, 2), dim=1)])
    means, logs = outputs.chunk(2, dim=1)
    normal = torch.distributions.Normal(means, logs.clamp(-widest, widest).exp())
    return torch.distributions.Independent(normal, 1)


class _Several(torch.distributions.Distribution):
    def __init__(self, parts: list[torch.distributions.Categorical]) -> None:
        super().__init__(validate_args=False)
        self.parts = parts

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.log_prob(value[:, k]) for k, part in enumerate(self.parts)]).sum(0)

    def entropy(self) -> torch.Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class Both:
    """The same rows and weights for NumPy and for torch."""

    def __init__(self, kind: str, activation: Any, seed: int = 0, widest: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        spec, size = spec_for(kind)
        self.sizes = (4, 16, 8, size), (4, 12, 1)
        num = sum(i * o + o for sizes in self.sizes for i, o in pairwise(sizes))
        self.vector = rng.normal(0.0, 0.5, num).astype(np.float32)
        self.kind, self.activation, self.widest = kind, activation, widest
        self.draw = functools.partial(spread, spec, widest=widest)
        self.ours = Surrogate(
            self.vector, *self.sizes, activation, Adam(np.zeros(num, np.float32), np.zeros(num, np.float32), 0),
            self.draw,
        )  # fmt: skip
        observations = rng.normal(size=(NUM, 4)).astype(np.float32)
        chances = self.draw(run(self.ours.policy, activation, observations)[-1])
        actions, logps = chances.draw(rng)
        self.rows = {
            "observations": observations, "actions": actions,
            "logps": logps + rng.normal(0.0, 0.3, NUM).astype(np.float32),  # some ratios are clipped, some are not
            "advantages": rng.normal(size=NUM).astype(np.float32), "targets": rng.normal(size=NUM).astype(np.float32),
        }  # fmt: skip

    def loss(self, vector: torch.Tensor, rows: dict[str, Any]) -> torch.Tensor:
        """Return the loss as it is written in the paper."""
        rows, begin, answers = {name: torch.as_tensor(row) for name, row in rows.items()}, 0, []
        act = torch.tanh if self.activation == "tanh" else torch.relu
        for sizes in self.sizes:
            hidden = rows["observations"]
            for k, (num_in, num_out) in enumerate(pairwise(sizes)):
                weights = vector[begin : begin + num_in * num_out].view(num_out, num_in)
                begin += num_in * num_out
                hidden = hidden @ weights.T + vector[begin : begin + num_out]
                begin += num_out
                hidden = act(hidden) if k < len(sizes) - 2 else hidden
            answers.append(hidden)
        chances = in_torch(self.kind, answers[0], self.widest)
        ratios = torch.exp(chances.log_prob(rows["actions"]) - rows["logps"])
        clipped = ratios.clamp(1.0 - TERMS.clip, 1.0 + TERMS.clip)
        gain = torch.minimum(ratios * rows["advantages"], clipped * rows["advantages"]).mean()
        error = torch.square(answers[1][:, 0] - rows["targets"]).mean()
        return TERMS.value_weight * error - gain - TERMS.entropy * chances.entropy().mean()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_loss_as_the_paper_writes_it(kind: str, activation: str) -> None:
    for seed in range(5):
        both = Both(kind, activation, seed)
        vector = torch.tensor(both.vector, requires_grad=True)
        both.loss(vector, both.rows).backward()
        both.ours.slope(both.rows, TERMS)
        assert vector.grad is not None
        np.testing.assert_allclose(both.ours.gradient, vector.grad.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_update_moves_the_weights_as_torch_does(kind: str) -> None:
    both = Both(kind, "tanh")
    vector = torch.tensor(both.vector, requires_grad=True)
    optimizer = torch.optim.Adam([vector], lr=TERMS.lr)
    for _ in range(TERMS.num_epochs):
        optimizer.zero_grad()
        both.loss(vector, both.rows).backward()
        torch.nn.utils.clip_grad_norm_([vector], TERMS.longest)
        optimizer.step()
    before = both.vector.copy()
    both.ours.descend(both.rows, TERMS, np.random.default_rng(0))
    moved = np.abs(both.vector - before).max()
    np.testing.assert_allclose(both.vector, vector.detach().numpy(), atol=0.01 * moved)


def test_minibatches_are_all_rows_but_a_short_last_one() -> None:
    both = Both("discrete", "tanh")
    seen: list[int] = []
    both.ours.slope = lambda rows, _: seen.append(len(rows["logps"]))  # type: ignore[method-assign]
    for size, wanted in ((40, [40, 40]), (NUM, [NUM]), (500, [NUM])):
        seen.clear()
        terms = dataclasses.replace(TERMS, minibatch_size=size, num_epochs=1)
        both.ours.descend(both.rows, terms, np.random.default_rng(0))
        assert seen == wanted


def test_what_is_measured_of_an_update_is_the_loss_of_its_rows() -> None:
    both = Both("box", "relu")
    found = both.ours.measured(both.rows, TERMS.clip)
    loss = TERMS.value_weight * found["vf_loss"] + found["policy_loss"] - TERMS.entropy * found["entropy"]
    assert loss == pytest.approx(float(both.loss(torch.tensor(both.vector), both.rows)), rel=1e-4)
    assert found["mean_kl_loss"] > 0.0


def test_a_gradient_that_is_not_finite_ends_the_training_with_a_sentence() -> None:
    with pytest.raises(FlywheelError, match=r"gradient is no longer finite.*reward_scale"):
        shorten(np.array([1.0, np.nan], np.float32), 0.5)
    gradient = np.array([3.0, 4.0], np.float32)
    shorten(gradient, None)
    assert gradient.tolist() == [3.0, 4.0]
    shorten(gradient, 0.5)
    assert np.linalg.norm(gradient) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_entropies_are_torchs(kind: str) -> None:
    rng = np.random.default_rng(3)
    spec, size = spec_for(kind)
    outputs = rng.normal(0.0, 2.0, (50, size)).astype(np.float32)
    ours, theirs = spread(spec, outputs, 0.5), in_torch(kind, torch.tensor(outputs), 0.5)
    actions, logps = ours.draw(rng)
    np.testing.assert_allclose(logps, theirs.log_prob(torch.as_tensor(actions)).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.logps(actions), logps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.entropies(), theirs.entropy().numpy(), rtol=1e-5, atol=1e-5)


def test_actions_are_drawn_as_often_as_they_should_be() -> None:
    rng, num = np.random.default_rng(7), 40_000
    logits = np.tile(np.log(np.array([0.1, 0.6, 0.3], np.float32)), (num, 1))
    spec = dataclasses.replace(spec_of(cartpole), action_kind="discrete")
    drawn = np.bincount(spread(spec, logits).draw(rng)[0], minlength=3) / num
    assert np.abs(drawn - [0.1, 0.6, 0.3]).max() < 4.0 * 0.5 / num**0.5
    box, _ = spec_for("box")
    actions, _ = spread(box, np.tile(np.array([1.0, -2.0, 0.0, np.log(3.0)], np.float32), (num, 1))).draw(rng)
    assert np.abs(actions.mean(axis=0) - [1.0, -2.0]).max() < 4.0 * 3.0 / num**0.5
    assert np.abs(actions.std(axis=0) - [1.0, 3.0]).max() < 4.0 * 3.0 / num**0.5


def test_a_choice_never_falls_outside_where_its_chances_add_up_to_less_than_one() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0.0, 30.0, (20_000, 7)).astype(np.float32)
    actions, logps = spread(spec_of(cartpole), logits).draw(rng)
    assert actions.min() >= 0 and actions.max() <= 6
    assert np.isfinite(logps).all()


def played(lengths: tuple[int, ...], terminated: tuple[bool, ...], rng: np.random.Generator) -> Played:
    """Return runs of such lengths."""
    steps, rows = sum(lengths), sum(lengths) + len(lengths)
    return Played(
        observations=rng.normal(size=(rows, 4)).astype(np.float32), actions=rng.integers(0, 2, steps),
        outputs=np.zeros((steps, 2), np.float32), logps=np.zeros(steps, np.float32), rewards=rng.normal(size=steps),
        lengths=np.array(lengths), terminated=np.array(terminated), truncated=~np.array(terminated),
    )  # fmt: skip


@pytest.mark.parametrize("is_others", [False, True], ids=["GAE", "V-trace"])
def test_advantages_are_the_definitions_sum_over_each_run_alone(is_others: bool) -> None:
    rng, gamma, lambda_ = np.random.default_rng(0), 0.9, 0.7
    some = played((3, 1, 5), (True, False, False), rng)
    values = rng.normal(size=12).astype(np.float32)
    ratios = np.exp(rng.normal(size=9)).astype(np.float32)
    found, targets = advantages(some, values, gamma, lambda_, ratios if is_others else None)
    wanted, row, step = [], 0, 0
    for run_, length in enumerate((3, 1, 5)):
        here, rewards = values[row : row + length + 1].astype(float), some.rewards[step : step + length]
        counts = np.minimum(1.0, ratios[step : step + length]) if is_others else np.ones(length)
        here[-1] = 0.0 if some.terminated[run_] else here[-1]
        errors = counts * (rewards + gamma * here[1:] - here[:-1])
        wanted += [
            sum(np.prod(gamma * lambda_ * counts[t:k]) * errors[k] for k in range(t, length)) for t in range(length)
        ]
        row, step = row + length + 1, step + length
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(targets, found + values[some.before], rtol=1e-6)


def test_rows_of_the_policy_that_acted_are_the_same_by_v_trace() -> None:
    rng = np.random.default_rng(2)
    some = played((3, 1, 5), (True, False, False), rng)
    values = rng.normal(size=12).astype(np.float32)
    own, traced = rows_of(some, values, 0.9, 0.7), rows_of(some, values, 0.9, 0.7, some.logps)
    for name, column in own.items():
        np.testing.assert_array_equal(column, traced[name])
    other = rows_of(some, values, 0.9, 0.7, some.logps + 0.5)
    np.testing.assert_array_equal(other["logps"], some.logps + np.float32(0.5))


def test_v_trace_finds_the_present_policys_values_from_anothers_steps_in_a_known_chain() -> None:
    """Of two actions one pays 1, and both end it; the steps are of a policy that takes it half as often."""
    rng, num = np.random.default_rng(5), 2000
    acted = rng.random(num) < 0.3
    ratios = np.where(acted, 0.6 / 0.3, 0.4 / 0.7).astype(np.float32)
    some = dataclasses.replace(played((1,) * num, (True,) * num, rng), rewards=acted.astype(np.float64))
    value = np.float32(0.0)
    for _ in range(50):
        value += advantages(some, np.full(2 * num, value), 1.0, 1.0, ratios)[0].mean()
    # what V-trace converges to is the policy whose chances are cut (its equation 3)
    assert value == pytest.approx((0.3 * 1.0) / (0.3 * 1.0 + 0.7 * 0.4 / 0.7), abs=0.05)


def test_runs_of_several_runners_are_joined_in_order() -> None:
    rng = np.random.default_rng(0)
    one, other = played((3, 1), (True, False), rng), played((2,), (False,), rng)
    both = joined([one, other])
    assert len(both) == 6 and both.lengths.tolist() == [3, 1, 2]
    np.testing.assert_array_equal(both.observations[both.before][-2:], other.observations[:2])
    assert joined([one]) is one


def test_layers_are_views_of_the_vector() -> None:
    vector = np.zeros(4 * 3 + 3 + 3 * 2 + 2, np.float32)
    layers, end = layers_in(vector, (4, 3, 2))
    assert end == len(vector)
    layers[1][1][:] = 7.0
    assert vector[-2:].tolist() == [7.0, 7.0]


def test_networks_of_a_task_with_a_box_act_in_its_shape() -> None:
    task = Task(name="pendulum", env="Pendulum-v1", failed=lambda _: False, version="1")
    assert isinstance(task.make_env().action_space, gymnasium.spaces.Box)
    outputs = np.zeros((3, 2), np.float32)
    actions, logps = spread(spec_of(task), outputs).draw(np.random.default_rng(0))
    assert actions.shape == (3, 1) and actions.dtype == logps.dtype == np.float32


@pytest.mark.parametrize("scale", [0.02, 50.0])
def test_what_an_entropy_bonus_is_weighed_against_is_the_same_in_whatever_unit_rewards_are(scale: float) -> None:
    rng = np.random.default_rng(5)
    some, values = played((30, 40, 50), (True, False, True), rng), rng.normal(size=123).astype(np.float32)
    scaled = dataclasses.replace(some, rewards=scale * some.rewards)
    usual, _ = advantages(some, values, 0.99, 0.95)
    other, _ = advantages(scaled, np.float32(scale) * values, 0.99, 0.95)
    standard, alike = ((each - each.mean()) / each.std() for each in (usual, other))  # as the surrogate reads them
    np.testing.assert_allclose(alike, standard, atol=1e-4)
