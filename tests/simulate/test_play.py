"""Exactly one whole episode a world, equal to the last bit however it is played."""

from __future__ import annotations

import dataclasses
import sys
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
    """CartPole whose rewards become NaN."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = self.env.step(action)
        return observation, float("nan"), *rest


def broken() -> gymnasium.Env[Any, Any]:
    return Broken(gymnasium.make("CartPole-v1"))


def endless() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", max_episode_steps=10**9)


def test_a_simulator_that_breaks_is_an_error() -> None:
    with pytest.raises(FlywheelError, match=r"simulator gave .* not finite at step 0"):
        run(task=Task(name="broken", env=broken, failed=cartpole.failed), parameters=[{}] * 12)


def test_an_episode_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["flywheel.simulate.play"], "MAX_STEPS", 50)
    with pytest.raises(FlywheelError, match="time limit"):
        run(GOOD, Task(name="endless", env=endless, failed=cartpole.failed), n=1, parameters=[{}])


def test_no_worlds_no_episodes() -> None:
    assert play(cartpole, load_linear(cartpole, BAD), seeds=[], parameters=[], draw_keys=[]) == []
