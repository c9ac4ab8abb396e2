"""Forks: without an edit the rest is the original to the last bit, with one it is what would have been."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import FlywheelError, UsageError
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.tapes import chain
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import SHORT_POLE, linear_policy, load_linear
from flywheel.trace import Fork, NotReproducible
from tests.rooms import room

GOOD, SHORT = "a" * 64, "b" * 64
LANDING = 20.0 * np.array(
    [[0, 0, 0, 0, 0, 0, 0, 0], [0.25, 0, 0.5, 0, -0.5, -1, 0, 0], [0, -0.5, 0, -0.5, 0, 0, -1, -1],
     [-0.25, 0, -0.5, 0, 0.5, 1, 0, 0]]
)  # fmt: skip


@cache
def policies(task_name: str = "cartpole") -> Mapping[str, Policy]:
    if task_name == "pendulum":
        return {GOOD: load_linear(pendulum, [[0.0, -6.0, -1.2], [0.0, 0.0, 0.0]], [0.0, -1.0], digest=GOOD)}
    if task_name == "lunarlander":
        return {GOOD: load_linear(lunarlander, LANDING, 20.0 * np.array([0.05, 0, 0, 0]), digest=GOOD)}
    if task_name == "room":
        return {GOOD: load_linear(room, np.zeros((5, 5)), digest=GOOD)}
    return {GOOD: load_linear(cartpole, digest=GOOD), SHORT: load_linear(cartpole, SHORT_POLE, digest=SHORT)}


def played(task: Task, seed: int, digest: str = GOOD, **parameters: float) -> Episode:
    policy = policies(task.name)[digest]
    return play(task, policy, seeds=[seed], parameters=[{**task.nominal, **parameters}], draw_keys=[seed])[0]


def produced(task: Task, seed: int, digest: str = GOOD, **parameters: float) -> Episode:
    """Return an episode whose seed and parameters nobody knows."""
    episode = played(task, seed, digest, **parameters)
    return dataclasses.replace(episode, id=f"episode_{seed}", origin="production", seed=None, parameters={})


def fork(episode: Episode, at: int, task: Task = cartpole, **more: Any) -> Fork:
    return Fork(task, episode, at, policies(task.name), **more)


# Exactness


@settings(max_examples=15)
@given(st.integers(0, 2**53), st.floats(0.0, 0.999), st.booleans())
def test_a_fork_without_an_edit_is_the_original_to_the_last_bit(seed: int, where: float, short: bool) -> None:
    episode = played(cartpole, seed, SHORT if short else GOOD, length=2.0)
    forked = fork(episode, int(where * episode.num_steps))
    for _ in range(2):  # the second time from the snapshot
        result = forked.replay()
        assert result.exact and result.difference is None and result.fork.failed == episode.failed
        assert chain(result.fork) == chain(episode)
        assert result.fork.logps.tobytes() == episode.logps.tobytes()


@pytest.mark.parametrize("task", [pendulum, lunarlander, room], ids=lambda task: task.name)
@pytest.mark.parametrize("times", [1, 3])
def test_so_it_is_in_other_worlds(task: Task, times: int) -> None:
    """Pendulum's vector form, Box2D's world, which has no copy, and a world that draws modes by itself."""
    for seed in (3, 4):
        episode = played(task, seed)
        for at in (0, episode.num_steps // 2, episode.num_steps - 1):
            with_parent_draws = fork(episode, at, task).replay(times=times)
            assert chain(with_parent_draws.fork) == chain(episode)
            assert with_parent_draws.effect is None or with_parent_draws.effect.interval == (0.0, 0.0)


def test_an_edge_case_is_forked_from_its_start_state() -> None:
    case = cartpole.edge_cases[0]
    (episode,) = play(
        cartpole, policies()[GOOD], seeds=[1], parameters=[{}], draw_keys=[1], scenarios=[case.name],
        states=[case.state],
    )  # fmt: skip
    assert fork(episode, 7).replay().difference is None


def test_a_world_that_draws_from_elsewhere_is_not_reproducible() -> None:
    episode = played(cartpole, 1)
    moved = dataclasses.replace(episode, observations=episode.observations + np.float32(1e-6))
    with pytest.raises(NotReproducible, match="leaves the record at step 0"):
        fork(moved, 3).replay()
    late = episode.observations.copy()
    late[-1] += np.float32(1e-6)
    with pytest.raises(NotReproducible, match="leaves the record at step 500"):
        fork(dataclasses.replace(episode, observations=late), 3).replay()
    with pytest.raises(NotReproducible, match="end terminated or truncated"):
        fork(dataclasses.replace(episode, end="terminated"), 3).replay()


class Recopied(CartPoleEnv):
    """A world whose copies begin anew, as those of C libraries do, and don't say so."""

    def __deepcopy__(self, memo: Any) -> CartPoleEnv:
        fresh = Recopied()
        fresh.reset(seed=0)
        return fresh


def test_a_copy_that_is_none_is_not_believed() -> None:
    task = dataclasses.replace(cartpole, vector=None, env=Recopied, max_steps=50)
    episode = played(task, 5)
    forked = fork(episode, 30, task)
    for times in (1, 1, 2):
        assert chain(forked.replay(times).fork) == chain(episode)


def test_the_policy_runs_only_from_the_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    act = Policy.act

    def counted(self: Policy, observations: Any, draws: Any, rule: Any = None) -> Any:
        rows.append(len(observations))
        return act(self, observations, draws, rule)

    episode = played(cartpole, 5)
    monkeypatch.setattr(Policy, "act", counted)
    fork(episode, 480).edit_parameter("length", 0.6).replay()
    assert rows == [1] * 20


# Edits


def test_every_edit_changes_what_it_says_from_the_step_on() -> None:
    episode = played(cartpole, 7)
    for name, value, kind in (
        ("length", 2.0, "observation"),
        ("exploration_rate", 1.0, "action"),
        ("temperature", 100.0, "action"),
        ("policy", "b", "action"),
        ("reward_scale", 3.0, "reward"),
        ("reward_offset", -1.0, "reward"),
        ("reward", lambda seen, acted, after, reward: float(after[0]), "reward"),
    ):
        result = fork(episode, 100).edit_parameter(name, value).replay()
        assert result.difference is not None and result.difference.kind == kind and result.difference.step >= 100
        assert result.fork.parent == (episode.id, 100) and len(result.fork.edits) == 1
        assert chain_until(result.fork, 100) == chain_until(episode, 100)
    greedy = fork(episode, 100).edit_parameter("greedy", "true").replay().fork
    assert (greedy.logps[100:] == 0).all() and (greedy.logps[:100] == episode.logps[:100]).all()


def chain_until(episode: Episode, step: int) -> bytes:
    return b"".join(getattr(episode, name)[:step].tobytes() for name in ("observations", "raw_actions", "rewards"))


def test_an_action_is_changed_at_its_step_alone() -> None:
    episode = played(cartpole, 7)
    other = 1 - int(episode.raw_actions[100])
    result = fork(episode, 100).edit_parameter("action", str(other)).replay()
    assert result.difference is not None
    assert (result.difference.step, result.difference.kind, result.difference.other) == (100, "action", other)
    assert np.isnan(result.fork.logps[100]) and np.isfinite(result.fork.logps[101:]).all()
    assert result.fork.digests[100] == "" and set(result.fork.digests[101:]) == {GOOD}
    same = fork(episode, 100).edit_parameter("action", int(episode.raw_actions[100])).replay()
    assert same.difference is None


def test_several_edits_work_together() -> None:
    episode = played(cartpole, 7, SHORT, length=2.0)
    assert episode.failed
    result = fork(episode, 5).edit_parameter("policy", GOOD[:6]).edit_parameter("gravity", 12.0).replay()
    assert not result.fork.failed and result.fork.num_steps == 500
    assert result.edits == ("policy → aaaaaaaa", "gravity 9.8 → 12")
    assert result.fork.parameters["gravity"] == 12.0 and result.fork.parameters["length"] == 2.0


def test_edited_rewards_count_from_the_step_on_and_say_nothing_of_failing() -> None:
    episode = played(lunarlander, 3)
    result = fork(episode, 10, lunarlander).edit_parameter("reward_scale", 2).replay()
    assert np.allclose(result.fork.rewards[10:], 2 * episode.rewards[10:])
    assert (result.fork.rewards[:10] == episode.rewards[:10]).all() and result.fork.failed == episode.failed
    assert "not retrained" in str(result)


def test_the_wind_gets_up_in_the_middle_of_a_landing() -> None:
    episode = played(lunarlander, 3)
    windy = fork(episode, 30, lunarlander).edit_parameter("wind_power", 20.0)
    courses = {chain(windy.replay().fork) for _ in range(3)}
    assert len(courses) == 1 and courses != {chain(episode)}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lenth", 1.0, "Did you mean 'length'"),
        ("exploration", 1.0, "Did you mean 'exploration_rate'"),
        ("length", "long", "takes a number"),
        ("length", -1.0, "length takes 0.1 to 4, not -1"),
        ("exploration_rate", 1.5, "from 0 to 1"),
        ("temperature", 0, "more than 0"),
        ("greedy", "maybe", "true or false"),
        ("policy", "c", "There is no policy 'c'"),
        ("action", 2, "whole number from 0 to 1"),
        ("action", "left", "whole number from 0 to 1"),
        ("reward", 2, "takes a function"),
    ],
)
def test_an_edit_that_cannot_be_made_is_one_sentence(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fork(played(cartpole, 7), 3).edit_parameter(name, value)


def test_actions_and_rules_of_a_box() -> None:
    episode = played(pendulum, 3)
    with pytest.raises(UsageError, match="no exploration_rate: edit its temperature"):
        fork(episode, 3, pendulum).edit_parameter("exploration_rate", 0.1)
    with pytest.raises(UsageError, match="takes 1 numbers"):
        fork(episode, 3, pendulum).edit_parameter("action", "0.5,0.5")
    result = fork(episode, 3, pendulum).edit_parameter("action", "0.5").replay()
    assert result.fork.raw_actions[3].tolist() == [0.5] and result.fork.raw_actions.dtype == np.float32


def test_a_step_that_is_not_there_and_no_runs_at_all() -> None:
    episode = played(cartpole, 7)
    for at in (-1, 500):
        with pytest.raises(UsageError, match="the steps 0 to 499"):
            fork(episode, at)
    with pytest.raises(UsageError, match="once or more"):
        fork(episode, 0).replay(times=0)


def test_a_world_that_breaks_in_the_fork_is_told() -> None:
    anything = tuple(dataclasses.replace(parameter, low=0.0) for parameter in cartpole.parameters)
    task = dataclasses.replace(cartpole, parameters=anything)
    with pytest.raises(FlywheelError, match=r"world of the fork .* at step"):
        fork(played(task, 7), 3, task).edit_parameter("length", 1e-300).replay()


# Production


@pytest.mark.parametrize("at", [0, 30, 60])
def test_a_production_episode_goes_on_in_the_calibrated_simulator(at: int) -> None:
    episode = produced(cartpole, 2, SHORT, length=2.0)
    result = fork(episode, at, parameters={"length": 2.0}).replay()
    assert not result.exact and result.original is episode
    assert result.unedited.num_steps == episode.num_steps and result.unedited.failed
    assert np.allclose(result.unedited.observations, episode.observations, atol=1e-4)
    assert (result.unedited.raw_actions == episode.raw_actions).all(), "the parent's draws go on"
    nominal = fork(episode, at).replay()
    assert not nominal.unedited.failed and "length 0.5" in str(nominal)


@pytest.mark.parametrize("task", [cartpole, dataclasses.replace(cartpole, vector=None)], ids=["lockstep", "each"])
def test_its_horizon_goes_on(task: Task) -> None:
    failed = produced(task, 2, SHORT, length=2.0)
    rescued = fork(failed, 40, task, parameters={"length": 2.0}).edit_parameter("policy", GOOD).replay().fork
    assert (rescued.num_steps, rescued.end, rescued.failed) == (500, "truncated", False)
    short = dataclasses.replace(task, max_steps=60)
    cut = fork(failed, 40, short, parameters={"length": 2.0}).edit_parameter("policy", GOOD).replay().fork
    assert (cut.num_steps, cut.end) == (60, "truncated")
    whole = produced(task, 2)
    early = dataclasses.replace(
        whole, observations=whole.observations[:81], raw_actions=whole.raw_actions[:80], rewards=whole.rewards[:80],
        logps=whole.logps[:80], digests=whole.digests[:80],
    )  # fmt: skip
    assert fork(early, 40, task).replay().fork.num_steps == 80, "what was truncated at 80 is"


def test_angles_come_back_as_they_were() -> None:
    episode = produced(pendulum, 4)
    result = fork(episode, 50, pendulum).replay()
    assert result.unedited.num_steps == 200
    assert np.allclose(result.unedited.observations[:80], episode.observations[:80], atol=1e-4)


def test_a_hidden_state_is_not_guessed() -> None:
    with pytest.raises(NotReproducible, match="gives no observed_state and no set_state"):
        fork(produced(lunarlander, 3), 10, lunarlander)
    broken = produced(cartpole, 2)
    broken.observations[10] = np.nan
    with pytest.raises(NotReproducible, match="no finite state at step 10"):
        fork(broken, 10)


def test_decisions_of_several_policies_stay_theirs() -> None:
    episode = produced(cartpole, 2, SHORT)
    mixed = dataclasses.replace(episode, digests=(SHORT,) * 50 + (GOOD,) * (episode.num_steps - 50))
    result = fork(mixed, 40).replay()
    assert result.fork.digests[:50] == (SHORT,) * 50 and set(result.fork.digests[50:]) == {GOOD}


# Many runs


def test_many_runs_share_their_draws_and_the_first_one_is_the_parents() -> None:
    episode = played(cartpole, 7)
    forked = fork(episode, 20).edit_parameter("exploration_rate", 0.3)
    result = forked.replay(times=300, seed=5)  # more than go in one batch
    assert chain(result.unedited) == chain(episode)
    assert chain(result.fork) == chain(forked.replay().fork)
    effect = result.effect
    assert effect is not None and effect.num_pairs == 300
    assert effect.unedited.num_failed == 0 and 10 < effect.edited.num_failed < 150
    assert effect.interval[0] < effect.mean < 0
    assert effect.mean == pytest.approx(effect.means[1] - effect.means[0])
    assert forked.replay(times=300, seed=5).effect == effect != forked.replay(times=300, seed=6).effect


@pytest.mark.parametrize("is_seeded", [True, False])
def test_where_nothing_is_drawn_one_pair_is_all_of_them(is_seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(cartpole)
    greedy = dataclasses.replace(spec, rule=dataclasses.replace(spec.rule, greedy=True))
    policy = Policy(linear_policy(spec, SHORT_POLE)[0], greedy, GOOD)
    episode = play(cartpole, policy, seeds=[3], parameters=[{**cartpole.nominal, "length": 2.0}], draw_keys=[3])[0]
    episode = episode if is_seeded else dataclasses.replace(episode, seed=None, parameters={})
    ran: list[int] = []
    run = Fork._run
    monkeypatch.setattr(Fork, "_run", lambda self, keys, edits: ran.append(len(keys)) or run(self, keys, edits))
    forked = Fork(cartpole, episode, 5, {GOOD: policy}, parameters={"length": 2.0}).edit_parameter("length", 0.5)
    result = forked.replay(times=30)
    effect = result.effect
    assert ran == ([1] if is_seeded else [31, 31]), "only a seed says so before"
    assert effect is not None and effect.num_pairs == 1 and not effect.is_drawn
    assert effect.interval == (effect.mean,) * 2 and effect.mean == result.fork.total - result.unedited.total > 0
    assert (effect.unedited.interval, effect.edited.interval) == ((1.0, 1.0), (0.0, 0.0))
    told = str(result).splitlines()
    assert "nothing is drawn, so every run is this one" in told[-2] and "95 %" not in "".join(told[-2:])
    assert told[-1].endswith("it failed without the edits, and did not fail with them")
    drawn = forked.edit_parameter("exploration_rate", 0.1).replay(times=30).effect
    assert drawn is not None and drawn.is_drawn and drawn.num_pairs == 30 and drawn.interval[0] < drawn.interval[1]


def test_a_result_is_worth_reading_and_looking_at(tmp_path: Any) -> None:
    episode = played(cartpole, 7, SHORT, length=2.0)
    result = fork(episode, 5).edit_parameter("length", 0.5).replay(times=10)
    told = str(result).splitlines()
    assert told[0] == f"fork of episode {episode.id[:12]} (cartpole, gate nominal) at step 5"
    assert "length 2 → 0.5" in told[1] and "equal to the last bit" in told[2] and "failed" in told[3]
    assert "under the same draws" in told[-2] and "0 of 10 (95 %: 0 % to 31 %) with them" in told[-1]
    picture = result.compare(tmp_path / "fork.png")
    assert (tmp_path / "fork.png").read_bytes().startswith(b"\x89PNG")
    labels = [axes.get_ylabel() for axes in picture.axes]
    assert labels[-2:] == ["action", "return so far"] and len(labels) == 5
    difference = result.difference
    assert difference is not None and difference.kind == "observation"
    step = abs(result.unedited.observations[difference.step] - result.fork.observations[difference.step])
    spread = np.concatenate([result.unedited.observations, result.fork.observations]).std(axis=0)
    assert f"observation[{int((step / spread).argmax())}]" in labels


def test_a_fork_says_what_it_is() -> None:
    forked = fork(played(cartpole, 7), 3)
    assert repr(forked).endswith("at step 3: no edits>")
    assert repr(forked.edit_parameter("length", 2.0)).endswith("at step 3: length 0.5 → 2>")
