"""Where courses part: the first step, whatever the fault, and nothing where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.records import Array, Episode
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.trace import against_policy, first_difference, recheck
from flywheel.trace.diverge import values_part
from flywheel.trace.values import critic
from tests.trace.test_fork import GOOD, SHORT, fork, played, policies


@settings(max_examples=40)
@given(st.data())
def test_the_first_difference_is_the_first_one(data: st.DataObject) -> None:
    one = played(cartpole, 3, SHORT, length=2.0)
    columns = {name: getattr(one, name).copy() for name in ("observations", "raw_actions", "rewards")}
    places = data.draw(st.lists(st.tuples(st.sampled_from(sorted(columns)), st.integers(0, one.num_steps - 1))))
    for name, t in places:
        columns[name][t] = columns[name][t] + 1
    other = dataclasses.replace(one, **columns)
    order = {"observations": 0, "raw_actions": 1, "rewards": 2}
    kinds = {"observations": "observation", "raw_actions": "action", "rewards": "reward"}
    found = first_difference(one, other)
    if not places:
        assert found is None
        return
    step, name = min(((t, name) for name, t in places), key=lambda place: (place[0], order[place[1]]))
    assert found is not None and (found.step, found.kind) == (step, kinds[name])
    assert np.ravel(found.one).tolist() == np.ravel(getattr(one, name)[step]).tolist() and found.note


def cut(episode: Episode, num_steps: int) -> Episode:
    """Return the first steps of an episode."""
    columns = {name: getattr(episode, name)[:num_steps] for name in ("raw_actions", "rewards", "logps", "digests")}
    return dataclasses.replace(episode, **columns, observations=episode.observations[: num_steps + 1])


def test_ends_part_where_one_goes_on() -> None:
    one = played(cartpole, 3)
    found = first_difference(one, dataclasses.replace(cut(one, 40), end="terminated"))
    assert found is not None and (found.step, found.kind, found.one, found.other) == (
        40,
        "end",
        "goes on",
        "terminated",
    )
    found = first_difference(one, dataclasses.replace(one, end="lost"))
    assert found is not None and (found.step, found.note) == (500, "end truncated or lost")


def test_unknown_rewards_are_alike() -> None:
    one = played(cartpole, 3)
    unknown = dataclasses.replace(one, rewards=np.full(500, np.nan))
    assert first_difference(unknown, unknown) is None
    found = first_difference(one, unknown)
    assert found is not None and (found.step, found.kind) == (0, "reward")
    assert first_difference(one, unknown, rewards=False) is None


@pytest.mark.parametrize("task", [cartpole, pendulum], ids=lambda task: task.name)
def test_every_decision_is_made_again(task: object) -> None:
    assert recheck(played(task, 3), policies(task.name)) is None  # type: ignore[arg-type,attr-defined]


def test_a_policy_that_was_swapped_is_found_at_its_first_decision() -> None:
    for at in (0, 60, 300, 499):
        swapped = fork(played(cartpole, 5), at).edit_parameter("policy", SHORT).replay().fork
        named = dataclasses.replace(swapped, digests=(GOOD,) * swapped.num_steps)
        assert recheck(swapped, policies()) is None
        found = recheck(named, policies())
        assert found is not None and (found.step, found.kind) == (at, "action")


def test_the_same_action_with_another_probability_is_another_decision() -> None:
    episode = played(cartpole, 5)
    logps = episode.logps.copy()
    logps[70] -= 0.1
    found = recheck(dataclasses.replace(episode, logps=logps), policies())
    assert found is not None and found.step == 70 and "with probability" in found.note


def test_to_the_last_bit_two_policies_that_are_sure_of_the_same_are_told_apart() -> None:
    episode = played(cartpole, 5)
    logps = episode.logps.copy()
    logps[70:] *= 1 + 1e-9
    other = dataclasses.replace(episode, logps=logps)
    assert recheck(other, policies()) is None and recheck(episode, policies(), tolerance=0.0) is None
    found = recheck(other, policies(), tolerance=0.0)
    assert found is not None and found.step == 70 and found.note.startswith("log probability")


def test_given_actions_are_nobodys_decisions() -> None:
    episode = played(cartpole, 5)
    other = 1 - int(episode.raw_actions[40])
    acted = fork(episode, 40).edit_parameter("action", other).replay().fork
    assert recheck(acted, policies()) is None
    named = dataclasses.replace(acted, digests=(GOOD,) * acted.num_steps)
    found = recheck(named, policies())
    assert found is not None and found.step == 40


def test_another_policy_parts_where_it_acts_otherwise() -> None:
    episode = played(cartpole, 5)
    assert against_policy(episode, policies()[GOOD]) is None
    found = against_policy(episode, policies()[SHORT])
    assert found is not None and found.kind == "action" and found.one != found.other
    before = fork(episode, 0).edit_parameter("policy", SHORT).replay().fork
    assert (before.raw_actions[: found.step] == episode.raw_actions[: found.step]).all()
    assert before.raw_actions[found.step] == found.other


def test_expectations_part() -> None:
    one = played(cartpole, 5)
    other = fork(one, 100).edit_parameter("length", 3.0).replay().fork

    def values(observations: Array) -> Array:
        return 100.0 - 50.0 * np.abs(observations[:, 3])

    found = values_part(one, other, values, 20.0)
    assert found is not None and found.kind == "value" and found.step > 100
    assert abs(found.one - found.other) > 20.0 and values_part(one, one, values, 0.0) is None


def test_a_critic_is_read_from_the_weights() -> None:
    rng = np.random.default_rng(1)
    first, second, head = rng.normal(size=(8, 4)), rng.normal(size=(8, 8)), rng.normal(size=(1, 8))
    prefix = "encoder.critic_encoder.net.mlp"
    weights = {
        f"{prefix}.0.weight": first, f"{prefix}.0.bias": np.ones(8), f"{prefix}.2.weight": second,
        f"{prefix}.2.bias": np.zeros(8), "vf.net.mlp.0.weight": head, "vf.net.mlp.0.bias": np.array([3.0]),
        "pi.net.mlp.0.weight": np.zeros((2, 8)),
    }  # fmt: skip
    values = critic(weights)
    rows = rng.normal(size=(5, 4))
    assert values is not None
    assert np.allclose(values(rows), np.tanh(np.tanh(rows @ first.T + 1) @ second.T) @ head[0] + 3.0)
    rectified = critic(weights, "relu")
    assert rectified is not None
    hidden = np.maximum(np.maximum(rows @ first.T + 1, 0.0) @ second.T, 0.0)
    assert np.allclose(rectified(rows), hidden @ head[0] + 3.0)
    assert critic({name: value for name, value in weights.items() if not name.startswith("vf")}) is None
    assert critic({}) is None and critic({**weights, f"{prefix}.1.scale": np.ones(8)}) is None
