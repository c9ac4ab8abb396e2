"""Exactly one whole episode a world, equal to the last bit however it is played."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.draws import draws
from flywheel.errors import FlywheelError, Refused
from flywheel.records import Episode, Rule
from flywheel.simulate import play
from flywheel.task import Task, task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, load_linear

MIXED = (0.1, 0.5, 10.0, 2.0)  # at length 2.0 some of its episodes fail and some don't
COLUMNS = ("observations", "raw_actions", "rewards", "logps")


def run(gains: tuple[float, ...] = MIXED, task: Task = cartpole, n: int = 12, **more: Any) -> list[Episode]:
    worlds: dict[str, Any] = {
        "seeds": range(n),
        "parameters": [{"length": 2.0 if i % 3 else 0.5} for i in range(n)],
        "draw_keys": range(n),
    }
    return play(task, load_linear(cartpole, gains), **{**worlds, **more})


def same(one: Episode, other: Episode) -> bool:
    arrays = all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in COLUMNS)
    plain = [f.name for f in dataclasses.fields(Episode) if f.name not in (*COLUMNS, "task")]
    return arrays and all(getattr(one, name) == getattr(other, name) for name in plain)


@pytest.mark.parametrize("gains", [MIXED, SHORT_POLE, GOOD])
def test_single_and_vector_form_give_equal_episodes(gains: tuple[float, ...]) -> None:
    single = run(gains, dataclasses.replace(cartpole, vector=None))
    assert all(same(one, other) for one, other in zip(run(gains), single, strict=True))


@pytest.mark.parametrize("lockstep", [1, 5, 12])
def test_lockstep_changes_nothing(lockstep: int) -> None:
    assert all(same(one, other) for one, other in zip(run(), run(lockstep=lockstep), strict=True))


def test_short_and_long_episodes_are_whole_and_in_order() -> None:
    episodes = run(SHORT_POLE)
    assert [episode.seed for episode in episodes] == list(range(12))
    assert [episode.failed for episode in episodes] == [i % 3 != 0 for i in range(12)]
    assert {episode.end for episode in episodes} == {"terminated", "truncated"}
    for episode in episodes:
        steps = episode.num_steps
        assert episode.observations.shape == (steps + 1, 4) and len(episode.digests) == steps
        assert episode.total == steps and (steps == 500) != episode.failed
        assert episode.task == task_digest(cartpole)


def test_actions_are_a_function_of_observation_and_draws() -> None:
    policy = load_linear(cartpole, MIXED)
    episode = run(n=1, draw_keys=[2**64 - 1])[0]
    steps = np.arange(episode.num_steps)
    for t in (0, 1, 63, 64, 65, len(steps) - 1):
        raw, logp = policy.act(episode.observations[t : t + 1], draws(episode.draw_key, t, 1))
        assert raw[0] == episode.raw_actions[t] and logp[0] == episode.logps[t]


def test_ids_are_the_content_s_own() -> None:
    assert [e.id for e in run()] == [e.id for e in run()]
    other = {e.id for e in run(scenarios=["gusty"] * 12)} | {e.id for e in run(rule=Rule(kind="categorical"))}
    assert len(other | {e.id for e in run()}) == 36


def test_another_rule_replaces_the_policy_s_own() -> None:
    uniform = run(GOOD, rule=Rule(kind="categorical", exploration_rate=1.0))
    assert all(episode.failed for episode in uniform)
    assert np.allclose(uniform[0].logps, np.log(0.5))


def test_a_network_that_answers_nan_is_refused() -> None:
    policy = load_linear(cartpole, GOOD, bias=[np.nan, 0.0])
    with pytest.raises(Refused, match="not finite"):
        play(cartpole, policy, seeds=[1], parameters=[{}], draw_keys=[1])


class Broken(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that breaks at the fifth step of episodes whose number (over all of them) is in `when`."""

    how, when, begun = "", range(0), 0

    def reset(self, **options: Any) -> Any:
        Broken.begun += 1
        self.t, self.bad = 0, Broken.begun - 1 in Broken.when
        if self.bad and Broken.how == "reset":
            raise OSError("no licence")
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.t += 1
        if self.bad and self.t == 5:
            if Broken.how == "raise":
                raise OSError("disk full")
            reward = float("nan") if Broken.how == "reward" else reward
            observation = observation * np.nan if Broken.how == "observation" else observation
            observation = observation[:2] if Broken.how == "shape" else observation
        return observation, reward, *rest


def broken() -> gymnasium.Env[Any, Any]:
    return Broken(gymnasium.make("CartPole-v1"))


FAULTS = {
    "raise": r"raised OSError\('disk full'\) at step 5",
    "reward": "gave the reward nan at step 5",
    "observation": "observation that is not finite.* at step 5",
    "shape": r"observation of shape \(2,\) where its space says \(4,\) at step 5",
    "reset": r"raised OSError\('no licence'\) when it began",
}
BROKEN = Task(name="broken", env=broken, failed=cartpole.failed)


def misbehave(monkeypatch: pytest.MonkeyPatch, how: str, when: Any) -> None:
    monkeypatch.setattr(Broken, "how", how)
    monkeypatch.setattr(Broken, "when", when)
    monkeypatch.setattr(Broken, "begun", 0)


@pytest.mark.parametrize("how", FAULTS)
def test_a_world_that_breaks_twice_is_named_with_its_seed_and_step(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehave(monkeypatch, how, range(3, 10**9))
    with pytest.raises(
        FlywheelError, match=rf"seed 3 \(nominal, no parameters\).*{FAULTS[how]}, and when it was tried"
    ):
        run(task=BROKEN, parameters=[{}] * 12)


@pytest.mark.parametrize("how", FAULTS)
def test_a_world_that_breaks_once_is_played_again_and_changes_nothing(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehave(monkeypatch, how, [2, 7])
    plain = dataclasses.replace(BROKEN, env="CartPole-v1")
    fine = run(task=plain, parameters=[{}] * 12)
    found = run(task=dataclasses.replace(BROKEN, name="broken"), parameters=[{}] * 12)
    assert Broken.begun == 14
    assert all(same(one, other) for one, other in zip(found, fine, strict=True))


class BrokenVector(gymnasium.vector.VectorWrapper):
    """CartPole's vector form, whose first one raises at its third step."""

    made = 0

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        BrokenVector.made += 1
        self.left = 3 if BrokenVector.made == 1 else 10**9

    def step(self, actions: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise OSError("disk full")
        return self.env.step(actions)


def test_a_vector_form_that_raises_is_played_again_world_by_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BrokenVector, "made", 0)
    task = dataclasses.replace(cartpole, vector=lambda n: BrokenVector(cartpole.vector(n)))  # type: ignore[misc]
    assert all(same(one, other) for one, other in zip(run(task=task), run(), strict=True))
    assert BrokenVector.made == 13


def endless() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", max_episode_steps=10**9)


@pytest.mark.parametrize("each", [True, False])
def test_an_episode_without_end_is_cut_off(each: bool) -> None:
    task = dataclasses.replace(cartpole, env=endless, max_steps=50, **({"vector": None} if each else {}))
    for episode in run(GOOD, task, n=3):
        assert (episode.num_steps, episode.end) == (50, "truncated")
    assert {episode.end for episode in run(BAD, task)} == {"terminated"}


def test_no_worlds_no_episodes() -> None:
    assert play(cartpole, load_linear(cartpole, BAD), seeds=[], parameters=[], draw_keys=[]) == []
