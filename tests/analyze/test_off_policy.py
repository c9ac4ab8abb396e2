"""Off-policy estimates: exact where they must be, right on average where truth is known, silent where they know little.

Truth is a chain that can be summed by hand: each step, action 1 pays 1 with a chance that the observation says.
"""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from flywheel.analyze.likelihood import logps
from flywheel.analyze.off_policy import LEAST, METHODS, OffPolicy, Worth, evaluate
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Episode, Rule
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import linear_policy

STEPS = 6


def policy(slope: float, digest: str, **rule: object) -> Policy:
    """Return a policy of CartPole whose log odds of action 1 are `slope` times the first number that it sees."""
    spec = dataclasses.replace(spec_of(cartpole), rule=Rule(kind="categorical", **rule))  # type: ignore[arg-type]
    return Policy(linear_policy(spec, [slope, 0.0, 0.0, 0.0])[0], spec, digest)


def worth_of(slope: float) -> float:
    """Return the exact mean return of such a policy in the chain, whose observations are -1 or 1."""
    return STEPS * 0.5 * float(1 / (1 + np.exp(-slope)) - 1 / (1 + np.exp(slope)))


def chain(num: int, acts: Policy, seed: int) -> list[Episode]:
    """Return episodes in which an action's reward is the observation where the action is 1, else nothing."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(num):
        seen = np.zeros((STEPS + 1, 4), np.float32)
        seen[:, 0] = rng.choice([-1.0, 1.0], STEPS + 1)
        actions, taken = acts.act(seen[:-1], rng.random((STEPS, 1)))
        rewards = np.where(actions == 1, seen[:-1, 0], 0.0).astype(np.float64)
        episodes.append(
            Episode(
                id=f"e{number}",
                origin="production",
                task="",
                parameters={},
                draw_key=0,
                digests=(acts.digest,) * STEPS,
                observations=seen,
                raw_actions=actions,
                rewards=rewards,
                logps=taken,
                end="truncated",
                failed=bool(rewards.sum() < -1),
            )
        )
    return episodes


def by_method(found: OffPolicy) -> dict[str, Worth]:
    assert not found.refusal
    return {worth.method: worth for worth in found.returns}


@pytest.mark.parametrize("digest", ["the same", "a copy"])
def test_the_same_policy_has_the_logged_mean_exactly(digest: str) -> None:
    episodes = chain(80, policy(1.0, "the same"), 0)
    found = evaluate(episodes, policy(1.0, digest), 1)
    mean = float(np.mean([episode.total for episode in episodes]))
    assert [worth.value for worth in found.returns] == [mean] * len(METHODS)
    assert found.logged is not None and found.logged.value == mean
    assert found.effective == 80 and not found.is_screened
    assert found.failed is not None and found.failed.value == np.mean([episode.failed for episode in episodes])


def test_of_a_policy_that_always_has_one_return_no_estimate_is_certain() -> None:
    acts = policy(1.0, "p")
    alike = [dataclasses.replace(e, rewards=np.ones(e.num_steps) / e.num_steps) for e in chain(100, acts, 3)]
    found = evaluate(alike, acts, 0, (0.0, 1.0))
    assert found.logged is not None and found.logged.interval[0] < 0.99
    assert {worth.interval for worth in found.returns} == {found.logged.interval}


def test_estimates_and_their_intervals_hold_the_exact_value() -> None:
    held, values = {method: 0 for method in METHODS}, {method: [0.0] for method in METHODS}
    for seed in range(60):
        found = by_method(evaluate(chain(150, policy(0.5, "acts"), seed), policy(1.0, "new"), seed))
        for method, worth in found.items():
            held[method] += worth.interval[0] <= worth_of(1.0) <= worth.interval[1]
            values[method] = [*values[method], worth.value]
    assert all(num >= 52 for num in held.values()), held
    spread = {method: float(np.std(some[1:])) for method, some in values.items()}
    assert spread["DR"] < spread["PDIS"] < spread["IS"]
    for method, some in values.items():
        assert abs(np.mean(some[1:]) - worth_of(1.0)) < 4 * spread[method] / 60**0.5 + 0.02


def test_too_few_effective_episodes_are_refused_in_a_sentence() -> None:
    acts = policy(0.5, "acts")
    far = evaluate(chain(300, acts, 0), policy(-6.0, "far"), 0)
    assert far.effective < LEAST and not far.returns and far.best is None and not far.is_screened
    assert "300 episodes of production count as" in far.refusal and "acts too differently" in far.refusal
    assert str(far).startswith("no off-policy estimate of policy far: ")
    few = evaluate(chain(49, acts, 0), acts, 0)
    assert "49 episodes of production count as 49, and 50 are needed: there are too few of them" in few.refusal
    assert evaluate([], acts, 0).refusal


def test_episodes_that_say_nothing_are_left_out_and_counted() -> None:
    acts = policy(0.5, "acts")
    episodes = chain(63, acts, 0)
    episodes[0] = dataclasses.replace(episodes[0], end="lost")
    episodes[1] = dataclasses.replace(episodes[1], rewards=np.full(STEPS, np.nan))
    episodes[2] = dataclasses.replace(episodes[2], logps=np.full(STEPS, np.nan))
    found = evaluate(episodes, policy(0.6, "new"), 0)
    assert (found.num, found.num_left_out) == (60, 3) and found.returns


def test_a_greedy_log_says_nothing_of_another_policy_and_a_greedy_target_may_be_asked_about() -> None:
    greedy = policy(0.5, "greedy", greedy=True)
    refusal = evaluate(chain(80, greedy, 0), policy(-0.5, "new"), 0).refusal
    assert "the policy in service was greedy" in refusal
    assert evaluate(chain(80, greedy, 0), greedy, 0).returns
    eager = policy(3.0, "acts")
    found = by_method(evaluate(chain(400, eager, 0), policy(3.0, "new", greedy=True), 0))
    assert found["DR"].interval[0] <= STEPS * 0.5 <= found["DR"].interval[1]


def test_a_candidate_that_is_surely_worse_is_screened() -> None:
    found = evaluate(chain(2000, policy(1.0, "acts"), 0), policy(0.2, "worse"), 0)
    assert found.is_screened and str(found).startswith("screened: off-policy estimate of policy worse from 2,000")
    assert not evaluate(chain(2000, policy(1.0, "acts"), 0), policy(1.3, "better"), 0).is_screened


def test_where_nearly_all_returns_are_one_the_interval_is_that_of_how_many_are_not() -> None:
    acts = policy(0.5, "acts")
    same = [dataclasses.replace(each, rewards=np.ones(STEPS), failed=False) for each in chain(100, acts, 0)]
    found = evaluate(same, policy(0.6, "new"), 0, (0.0, float(STEPS)))
    assert found.best is not None and found.best.value == pytest.approx(STEPS, abs=0.01)
    assert 0.9 * STEPS < found.best.interval[0] < 0.99 * STEPS and found.best.interval[1] == pytest.approx(
        STEPS, abs=0.01
    )
    assert found.failed is not None and found.failed.interval[1] > 0.02


def act_and_ask(acts: Policy, observations: NDArray[np.float32], seed: int) -> None:
    actions, taken = acts.act(
        observations, np.random.default_rng(seed).random((len(observations), acts.spec.num_draws))
    )
    assert np.array_equal(logps(acts, observations, actions), taken)


def test_likelihoods_are_those_of_acting_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    for kind in ({}, {"exploration_rate": 0.1}, {"temperature": 0.5}, {"greedy": True, "exploration_rate": 0.2}):
        act_and_ask(policy(1.7, "p", **kind), rng.normal(size=(600, 4)).astype(np.float32), 1)
    seen = gymnasium.spaces.Box(-1.0, 1.0, (3,))

    class Env(gymnasium.Env):  # type: ignore[type-arg]
        observation_space = seen

        def __init__(self, action_space: gymnasium.Space) -> None:  # type: ignore[type-arg]
            self.action_space = action_space

    for space in (gymnasium.spaces.MultiDiscrete([3, 2]), gymnasium.spaces.Box(-2.0, 2.0, (2,))):
        task = Task(name="t", env=lambda space=space: Env(space), failed=lambda episode: False)
        spec = spec_of(task)
        gains = rng.normal(size=(spec.num_outputs, 3)) * 0.3
        acts = Policy(linear_policy(spec, gains)[0], spec, "p")
        act_and_ask(acts, rng.uniform(-1, 1, (600, 3)).astype(np.float32), 2)


def test_an_action_never_taken_weighs_nothing_and_a_greedy_gaussian_is_refused() -> None:
    greedy = policy(1.0, "p", greedy=True)
    seen = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]], np.float32)
    assert logps(greedy, seen, np.array([1, 0])).tolist() == [0.0, -np.inf]
    spec = dataclasses.replace(greedy.spec, rule=Rule(kind="gaussian", greedy=True))
    with pytest.raises(Refused, match="none has a density"):
        logps(Policy(greedy.network, spec), seen, np.zeros((2, 1), np.float32))


def test_a_squashed_gaussian_is_refused_not_weighed_as_a_plain_one() -> None:
    acts = policy(1.0, "p")
    spec = dataclasses.replace(acts.spec, rule=Rule(kind="gaussian", squashed=True))
    with pytest.raises(Refused, match="squashes its actions"):
        logps(Policy(acts.network, spec), np.zeros((2, 4), np.float32), np.zeros((2, 1), np.float32))
