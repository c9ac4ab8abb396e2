"""check_task says all that is wrong with a task at once; try_task refuses what can't be started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.errors import UsageError
from flywheel.gate import SafetyGate
from flywheel.records import Array, Episode
from flywheel.task import EdgeCase, Limits, Parameter, Task
from flywheel.tasks import load
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import check_task, try_task


class Point(gymnasium.Env[Any, Any]):
    """A point that is pushed by its action times a gain and by noise; falls beyond 3. `flaw` names what is wrong."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, flaw: str = "") -> None:
        self.flaw, self.gain, self.at, self.t = flaw, 1.0, 0.0, 0
        self.observation_space = gymnasium.spaces.Box(-9.0, 0.1 if flaw == "space" else 9.0, (1,), np.float32)

    def seen(self) -> Array:
        return np.array([self.at, 0.0] if self.flaw == "shape" else [self.at], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.flaw == "reset":
            raise OSError("no licence")
        self.at, self.t = float(self.np_random.normal()) / 10, 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.flaw == "bounds" and abs(float(action[0])) == 1.0:
            raise ValueError("torque too high")
        noise = float((np.random.default_rng() if self.flaw == "seed" else self.np_random).normal())
        self.at, self.t = self.at + self.gain * float(action[0]) / 2 + noise / 10, self.t + 1
        reward = float("nan") if self.flaw == "reward" else 1.0
        return self.seen(), reward, abs(self.at) > 3, self.flaw != "end" and self.t >= 60, {}


def made(flaw: str) -> Any:
    def make() -> gymnasium.Env[Any, Any]:
        return Point(flaw)

    return make


def fell(episode: Episode) -> bool:
    return episode.end == "terminated"


def left(episode: Episode) -> float:
    return 3.0 - float(np.abs(episode.observations).max())


def set_gain(env: Any, values: Mapping[str, Any]) -> None:
    env.unwrapped.gain = values["gain"]


def set_state(env: Any, state: Any) -> Array:
    env.unwrapped.at = float(state[0])
    seen: Array = env.unwrapped.seen()
    return seen


def state(env: Any) -> Array:
    return np.array([env.unwrapped.at])


def observed(observation: Array) -> Array:
    return np.asarray(observation, np.float64)


def make_point() -> gymnasium.Env[Any, Any]:
    return Point()


POINT = Task(
    name="point",
    env=make_point,
    failed=fell,
    margin=left,
    parameters=(Parameter("gain", 1.0, 0.2, 2.0),),
    set_parameters=set_gain,
    set_state=set_state,
    state=state,
    observed_state=observed,
    edge_cases=(EdgeCase("right", state=(2.0,)), EdgeCase("strong", parameters={"gain": 2.0})),
    return_range=(0.0, 60.0),
)


def replaced(**traits: Any) -> Task:
    return dataclasses.replace(POINT, **traits)


def test_tasks_that_are_fine_get_a_report() -> None:
    report = check_task(cartpole)
    assert "5 parameters set and set back; parameters in the vector form; a state read, set" in report
    assert "import of flywheel.tasks.cartpole:cartpole" in report and "goes without: nothing" in report
    assert "goes without: vector (worlds are stepped one by one)." in check_task(POINT)
    bare = check_task(load("env:CartPole-v1?failed_below=100"))
    assert "goes without: parameters (no calibration), set_state" in bare


def test_rooms_have_their_say_with_the_tasks_own_settings() -> None:
    task = replaced(limits=Limits(max_failure_rate=0.01), settings={"gate": {"max_sims": 150}})
    with pytest.raises(UsageError) as caught:
        check_task(task, lambda found, config: SafetyGate(found, config.gate))
    told = str(caught.value).splitlines()
    assert any("max_failure_rate 0.01, which gate.max_sims = 150 simulations can't prove" in line for line in told)
    assert any("No imported module" in line for line in told), "and everything else"


def forgetful(env: Any, values: Mapping[str, Any]) -> None:
    env.unwrapped.gain *= values["gain"]


def idle(env: Any, values: Mapping[str, Any]) -> None:
    pass


def deaf_state(env: Any, state: Any) -> Array:
    seen: Array = env.unwrapped.seen()
    return seen


def half_state(env: Any, state: Any) -> Array:
    return np.asarray(state, np.float32)


def sometimes(episode: Episode) -> Any:
    return None


def other_margin(episode: Episode) -> float:
    return 1.0


def always(episode: Episode) -> Any:
    return True


def hasty(episode: Episode) -> Any:
    return episode.num_steps < 30


def careful(episode: Episode) -> Any:
    return episode.end != "lost" and episode.num_steps < 1000


def never(episode: Episode) -> Any:
    return False


ALWAYS = replaced(failed=careful, margin=None)
NEVER = replaced(failed=never, margin=None)
DRIFTING = replaced(drift={"gain": 0.5})


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ALWAYS, "failed(episode) was True for all 20 random episodes, so see to it that one that goes well is not."),
        (NEVER, "failed(episode) was False for all 20 random episodes, so see to it that one that goes wrong is."),
        (
            DRIFTING,
            "edge case strong keeps gain at 2 and the drift sets it to 0.5: from then on a policy has to master both.",
        ),
    ],
)
def test_what_may_well_be_so_is_a_hint(task: Task, said: str) -> None:
    assert check_task(task).endswith(f" Worth a look: {said}")
    assert "Worth a look" not in check_task(POINT)


def raising(episode: Episode) -> Any:
    raise KeyError("position")


def halved(observation: Array) -> Array:
    return np.asarray(observation, np.float64) / 2


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"env": made("space")}, r"lies outside observation_space \(entry 0 is .*, declared are -9 to 0.1\): widen it"),
        (
            {"env": made("shape")},
            r"gave an observation of shape \(2,\) where its space says \(1,\) at step 0 of seed 0",
        ),
        ({"env": made("reset")}, r"raised OSError\('no licence'\)"),
        ({"env": made("reward")}, "gave the reward nan at step 1 of seed 0"),
        ({"env": made("seed")}, "draw everything random in it from the environment's own np_random"),
        (
            {"env": made("bounds")},
            r"an action on the bounds of its action_space, raised ValueError\('torque too high'\)",
        ),
        ({"env": "CartPol-v1"}, "Did you mean: `CartPole`"),
        ({"failed": sometimes}, "failed\\(episode\\) returned None: let it return True or False"),
        ({"failed": raising}, "raised KeyError\\('position'\\)"),
        ({"strata": sometimes}, "strata\\(episode\\) returned None: let it return a short string"),
        ({"margin": other_margin}, "let margin be at most 0 exactly when the episode failed"),
        ({"return_range": (0.0, 1.5)}, "outside return_range \\(0.0, 1.5\\)"),
        ({"return_range": (1.5, 0.0)}, "let the lowest return come first"),
        ({"set_parameters": idle}, "gain = 0.2 or 2 changes nothing in 30 steps"),
        ({"set_parameters": forgetful}, "After set_parameters with another gain and back to nominal"),
        ({"parameters": (Parameter("gain", 1.5, 0.2, 2.0),)}, "nominal value that the environment has when it is made"),
        ({"parameters": (Parameter("gain", 1.0, 1.2, 2.0),)}, "outside 1.2 to 2: widen its range"),
        ({"set_state": deaf_state}, "let both speak of the same state"),
        ({"set_state": half_state}, "takes another next step"),
        ({"observed_state": halved}, "leave observed_state out unless an observation is the whole state"),
        ({"edge_cases": (EdgeCase("odd", state=()),)}, "Edge case odd can't be played"),
        ({"edge_cases": (EdgeCase("gale", parameters={"gain": 2.5}),)}, "edge case gale sets gain to 2.5, outside its"),
        ({"edge_cases": (EdgeCase("bare"),)}, "edge case bare has neither parameters nor a state: say what is special"),
        ({"drift": {"gain": 2.5}}, r"drift sets gain to 2.5, outside its range 0.2 to 2 .*: widen the Parameter's"),
        ({"drift": {"gain": float("nan")}}, "drift sets gain to nan, outside its range"),
        ({"drift": {"gain": 1.0}}, "drift sets gain to 1, its nominal value, which changes nothing: give another"),
        ({"settings": {"trian": {}}}, r"settings=...\) is wrong. .*'trian'. Did you mean 'train'"),
        ({"settings": {"train": {"gama": 0.9}}}, r"Did you mean 'train\.gamma'"),
        ({"settings": {"train": {"gamma": "much"}}}, "the settings of task point: Expected `float`"),
        ({"settings": {"gate": {"error": 1.5}}}, "gate.error and gate.budget are probabilities, less than 1"),
        ({"failed": always, "margin": None}, "True for every random episode if it was lost after its first step"),
        (
            {"failed": hasty, "margin": None},
            "let it return True only where what was seen went wrong",
        ),
        ({}, "No imported module holds this task"),
    ],
)
def test_what_is_wrong_is_a_sentence(traits: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_task(replaced(**traits))


def test_an_episode_without_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.testing.check._ENDLESS", 40)
    with pytest.raises(UsageError, match="did not end in 40 steps: give the environment a time limit"):
        check_task(replaced(env=made("end"), max_steps=40))


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        check_task(replaced(env=made("space"), failed=sometimes, set_parameters=idle))
    found = str(caught.value).splitlines()
    assert found[0] == "Task point has to be put right:"
    for said in ("widen it", "return True or False", "changes nothing", "No imported module"):
        assert sum(said in line for line in found) == 1


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ("shape", r"can't be used: reset\(seed=0\) gave an observation of shape \(2,\)"),
        ("reset", r"can't be used: reset\(seed=0\) raised OSError\('no licence'\)"),
        ("reward", r"can't be used: step\(array.* gave the reward nan"),
    ],
)
def test_a_task_that_breaks_at_once_is_refused(flaw: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        try_task(replaced(env=made(flaw)))


def test_what_can_be_lived_with_is_a_warning() -> None:
    assert try_task(cartpole) == try_task(POINT) == []
    (warning,) = try_task(replaced(env=made("space")))
    assert "outside their declared space (entry 0 is" in warning


def test_an_environment_that_can_not_be_made_is_refused() -> None:
    with pytest.raises(UsageError, match=r"can't be made: it raised NameNotFound"):
        try_task(replaced(env="CartPol-v1"))
