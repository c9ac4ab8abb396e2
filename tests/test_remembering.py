"""A task that remembers its last actions is the same task, and its state says what is on its way."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from types import SimpleNamespace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from flywheel.analyze.calibrate import calibrate
from flywheel.analyze.correct import correct
from flywheel.config import AnalyzeConfig
from flywheel.correction import Correction
from flywheel.errors import UsageError
from flywheel.records import Episode
from flywheel.remembering import Memory, Remembering, forgotten, remembering
from flywheel.simulate import make_worlds, play
from flywheel.simulate.corrected import corrected, plain
from flywheel.task import EdgeCase, Task, spec_of, task_digest
from flywheel.tasks import load, reference
from flywheel.tasks.cartpole import cartpole, cartpole_remembering
from flywheel.tasks.pendulum import pendulum
from flywheel.tasks.rewired import FAULTS, turn, with_fault
from flywheel.tasks.traffic import Habits, Traffic
from flywheel.testing import check_task, check_worlds, load_linear
from flywheel.trace.fork import Fork
from flywheel.trace.residuals import residuals
from flywheel.trace.snapshots import NotReproducible

SWINGING = remembering(pendulum, 3)
TASKS = pytest.mark.parametrize("task", [cartpole_remembering, SWINGING], ids=["discrete", "box"])
RNG = np.random.default_rng(5)
LATE = Correction(delay=3)
HOLDING = [0.81, 1.14, 10.37, 2.71, -0.38, -0.42, -0.47, -0.52]
"""Gains that hold a pole whose actions are four steps late: linear-quadratic ones of the eight numbers."""


def drawn(task: Task, num_steps: int, num_worlds: int) -> np.ndarray[Any, Any]:
    space = task.make_env().action_space
    space.seed(int(RNG.integers(1000)))
    return np.array([[space.sample() for _ in range(num_worlds)] for _ in range(num_steps)])


def production(task: Task, delay: int, num: int = 30, sharp: float = 0.5) -> list[Episode]:
    """Return episodes of a world whose actions are late, as production gives them."""
    policy = load_linear(task, np.outer([-sharp, sharp], HOLDING))
    keys = range(7, 7 + num)
    shown = play(corrected(task, Correction(delay=delay)), policy, seeds=keys, parameters=[{}] * num, draw_keys=keys)
    return [dataclasses.replace(e, id=str(e.seed), seed=None, origin="production") for e in shown]


# What is shown


@TASKS
def test_the_task_is_fine_and_its_vector_form_is_its_environment(task: Task) -> None:
    assert "is fine" in check_task(task)
    each = dataclasses.replace(task, vector=None)
    found = []
    given = drawn(task, 12, 3)
    for form in (task, each):
        worlds = make_worlds(form, 3)
        begun = [worlds.reset([1, 2, 3], [{}] * 3) for _ in range(2)][1]
        every = np.ones(3, np.bool_)
        found.append([begun.tobytes(), *(part.tobytes() for a in given for part in worlds.step(a, every))])
    assert found[0] == found[1]


def test_the_last_actions_are_shown_the_last_one_first() -> None:
    env = cartpole_remembering.make_env()
    assert env.reset(seed=1)[0][4:].tolist() == [0, 0, 0, 0]
    for action in (1, 0, 0, 1, 0):
        observation, *_ = env.step(action)
    assert observation[4:].tolist() == [-1, 1, -1, -1] and env.observation_space.contains(observation)
    assert env.reset()[0][4:].tolist() == [0, 0, 0, 0]


def test_a_world_of_a_vector_form_that_begins_anew_remembers_nothing() -> None:
    assert cartpole_remembering.vector is not None
    worlds: Any = cartpole_remembering.vector(2)
    worlds.reset(seed=3)
    over = np.zeros(2, np.bool_)
    while not over.any():
        shown, _, over, *_ = worlds.step(np.array([1, int(RNG.integers(2))]))
    assert shown[0, 4:].tolist() == [1, 1, 1, 1], "the last step of an episode is remembered in what it shows"
    shown, *_ = worlds.step(np.array([0, 0]))
    assert shown[0, 4:].tolist() == [0, 0, 0, 0] and shown[1, 4] == -1
    assert shown in worlds.observation_space


def test_observations_of_any_space_become_one_row() -> None:
    class Parts(gymnasium.Env[Any, Any]):
        observation_space = Dict({"place": Box(-2.0, 2.0, (2, 2), np.float64), "gear": Discrete(3)})
        action_space = MultiDiscrete([2, 3], start=[0, 5])

        def reset(self, **_: Any) -> Any:
            return {"place": np.ones((2, 2)), "gear": 2}, {}

        def step(self, action: Any) -> Any:
            return {"place": -np.ones((2, 2)), "gear": 0}, 1.0, False, False, {}

    task = remembering(Task(name="parts", env=Parts, failed=lambda _: False), 2)
    spec = spec_of(task)
    assert spec.observation_shape == (4 + 3 + 2 * 4,) and spec.observation_dtype == "float64"
    env = task.make_env()
    gears_first = env.reset(seed=0)[0][:7].tolist()
    assert sorted(gears_first) == [0, 0, 1, 1, 1, 1, 1] and env.step(np.array([1, 7]))[0][7:].tolist() == [
        1, 0, 0, 1, 0, 0, 0, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "space",
    [
        Discrete(2, start=3),
        Discrete(4, start=-1),
        MultiDiscrete([2, 5, 2], start=[1, 0, 4]),
        Box(-2.0, 6.0, (3,), np.float32),
        Box(-np.inf, np.inf, (2, 2), np.float32),
    ],
    ids=str,
)
def test_what_is_remembered_says_which_actions_it_was(space: gymnasium.Space[Any]) -> None:
    memory = Memory(space, 3)
    held = np.zeros((1, memory.size), np.float32)
    space.seed(1)
    past: list[Any] = []
    for num in range(5):
        actions, known = memory.actions(held)
        assert actions.shape == (1, 3, *(space.shape or ())) and known.tolist() == [min(num, 3)]
        for given, back in zip(past[::-1], actions[0], strict=False):
            np.testing.assert_allclose(back, given, rtol=1e-5, atol=1e-5)
        action = space.sample()
        past.append(action)
        held = memory.after(held, np.asarray(action)[None])
        assert (np.abs(held) <= memory.high).all()


def test_what_cant_be_remembered_is_said() -> None:
    with pytest.raises(UsageError, match="MultiBinary"):
        Memory(MultiBinary(3), 2)
    with pytest.raises(UsageError, match="at least 1"):
        remembering(cartpole, 0)
    with pytest.raises(UsageError, match="already"):
        remembering(cartpole_remembering, 2)


# The same task


def test_all_else_is_the_tasks_own() -> None:
    task = remembering(dataclasses.replace(pendulum, edge_cases=(EdgeCase("down", state=(3.0, 0.0)),)), 2, "rod")
    assert task.name == "rod" and task.edge_cases[0].state == (3.0, 0.0, 0.0, 0.0)
    assert (task.limits, task.parameters, task.state_period[2:]) == (pendulum.limits, pendulum.parameters, (0.0, 0.0))
    (long,), (short,) = (
        play(each, load_linear(each, np.zeros((2, size))), seeds=[3], parameters=[{}], draw_keys=[3])
        for each, size in ((SWINGING, 6), (pendulum, 3))
    )
    assert SWINGING.margin is not None and pendulum.margin is not None
    assert (long.failed, SWINGING.margin(long)) == (short.failed, pendulum.margin(short))
    inner, (seen,) = forgotten(SWINGING, [long])
    assert inner is pendulum and seen.observations.tobytes() == short.observations.tobytes()
    assert forgotten(pendulum, [short]) == (pendulum, [short])


def test_it_has_a_name_and_a_digest_of_its_own() -> None:
    assert load("cartpole_remembering") is cartpole_remembering
    assert reference(cartpole_remembering) == "cartpole_remembering"
    digests = {task_digest(each) for each in (cartpole, cartpole_remembering, remembering(cartpole, 5))}
    assert len(digests) == 3 and remembering(cartpole, 4) == cartpole_remembering
    assert cloudpickle.loads(cloudpickle.dumps(SWINGING)).make_env().reset(seed=0)[0].shape == (6,)


# Late actions


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_comes_after_what_is_remembered(fault: str) -> None:
    task = SWINGING if fault == "reversed" else cartpole_remembering
    env, usual = with_fault(task.make_env(), fault, 2), task.make_env()
    assert turn(env, True) is env and isinstance(env, Remembering)
    assert task.set_parameters is not None
    task.set_parameters(env, task.nominal)
    shown = [each.reset(seed=2)[0] for each in (env, usual)]
    memory = usual.memory.size  # type: ignore[attr-defined]
    parted = False
    for action in drawn(task, 8, 1)[:, 0]:
        (one, gained, *_), (other, paid, *_) = (each.step(action) for each in (env, usual))
        assert one[-memory:].tolist() == other[-memory:].tolist() and one[-memory:].any()
        parted |= one.tolist() != other.tolist() or gained != paid
    assert parted and shown[0].tolist() == shown[1].tolist()
    turn(env, False)
    assert env.reset(seed=2)[0].tolist() == shown[0].tolist()
    assert env.step(drawn(task, 1, 1)[0, 0])[1:] is not None


def test_simulated_production_plays_it_with_a_fault() -> None:
    batch = SimpleNamespace(begin=lambda: ["e"], open=())
    client: Any = SimpleNamespace(batch=lambda: batch, counters=SimpleNamespace(requests=0, errors=0))
    habits = Habits(change_after=1, fault="delayed", fault_steps=4)
    traffic = Traffic(cartpole_remembering, client, habits, io.StringIO(), threading.Event())
    begun = [traffic._begin()[0].env for _ in range(2)]
    walks = [[env.step(action)[0] for action in (1, 0, 0, 0, 1, 0)] for env in begun]
    for env, walk, is_late in zip(begun, walks, (False, True), strict=True):
        assert isinstance(env, Remembering)
        pushed = [bool(walk[t + 1][1] > walk[t][1]) for t in range(5)]
        assert pushed == ([True, True, True, True, False] if is_late else [False, False, False, True, False])
        assert walk[-1][4:].tolist() == [-1, 1, -1, -1]


@TASKS
def test_a_correction_comes_after_what_is_remembered(task: Task) -> None:
    late = corrected(task, LATE)
    assert task_digest(late) == task_digest(task) and plain(late) == task and late.correction == LATE
    assert corrected(task, LATE) == late != task and corrected(late, None) == task
    check_worlds(late)
    assert task.inner is not None
    given = drawn(task, 9, 2)
    worlds, inner = make_worlds(late, 2), make_worlds(corrected(task.inner, LATE), 2)
    memory, every = Memory(task.make_env().action_space, task.remembered), np.ones(2, np.bool_)
    held = np.zeros((2, memory.size), np.float32)
    for each in (worlds, inner):
        each.reset([4, 5], [{}] * 2)
    for actions in given:
        held = memory.after(held, actions)
        shown, seen = worlds.step(actions, every)[0], inner.step(actions, every)[0]
        np.testing.assert_array_equal(shown, np.concatenate([seen, held], axis=1))


@TASKS
@pytest.mark.parametrize("num", [1, 6])
def test_a_state_says_what_is_on_its_way(task: Task, num: int) -> None:
    """From a state in the middle of an episode a late world goes on as it did: alone, and in the vector form."""
    late = corrected(task, LATE)
    assert late.state is not None and late.set_state is not None and late.vector is not None
    given = drawn(task, num + 5, 1)
    one, other, many = late.make_env(), late.make_env(), late.vector(3)
    one.reset(seed=6), other.reset(seed=7), many.reset(seed=8)
    for action in given[:num, 0]:
        one.step(action)
    state = np.asarray(late.state(one))
    late.set_state(other, state)
    late.set_state(many, np.stack([state] * 3))
    np.testing.assert_allclose(np.asarray(late.state(many))[1], state)
    for action in given[num:, 0]:
        seen = one.step(action)[0]
        np.testing.assert_allclose(other.step(action)[0], seen, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(many.step(np.stack([action] * 3))[0][2], seen, rtol=1e-5, atol=1e-5)


def test_an_episode_of_a_late_world_is_forked_where_all_that_is_on_its_way_is_remembered() -> None:
    policy = load_linear(cartpole_remembering, np.outer([-0.5, 0.5], HOLDING), digest="served")
    episode = max(production(cartpole_remembering, 3), key=lambda e: e.num_steps)
    episode = dataclasses.replace(episode, digests=("served",) * episode.num_steps)
    late, later = (corrected(cartpole_remembering, Correction(delay=delay)) for delay in (3, 5))
    with contextlib.closing(Fork(late, episode, 6, {"served": policy}, parameters={})) as fork:
        again = fork.replay().unedited
    assert again.raw_actions[:60].tolist() == episode.raw_actions[:60].tolist()
    np.testing.assert_allclose(again.observations[:60], episode.observations[:60], rtol=1e-3, atol=1e-3)
    with pytest.raises(NotReproducible, match="late"):
        Fork(later, episode, 6, {"served": policy}, parameters={}).replay()


@pytest.mark.parametrize("delay", [1, 4])
def test_what_is_late_is_named_from_productions_steps(delay: int) -> None:
    task = cartpole_remembering
    shown, before = production(task, delay), production(task, 0)
    found = correct(task, shown, AnalyzeConfig(), parameters=task.nominal, before=before)
    assert found.correction is not None, found.why
    assert dataclasses.replace(found.correction, explained=0.0, num_transitions=0) == Correction(delay=delay)
    assert found.correction.explained > 0.99
    assert correct(task, before, AnalyzeConfig(), parameters=task.nominal, before=before).correction == Correction()
    ((misses, *_), (as_is, *_)) = (
        residuals(corrected(task, form), shown, task.nominal) for form in (found.correction, None)
    )
    assert misses.shape[1] == 4 and np.abs(misses).max() < 1e-5 < np.abs(as_is).max()


def test_parameters_are_fitted_in_late_worlds() -> None:
    late = corrected(cartpole_remembering, Correction(delay=4))
    found = calibrate(*forgotten(late, production(cartpole_remembering, 4)), AnalyzeConfig())
    assert found is not None
    np.testing.assert_allclose(found.values["length"], 0.5, rtol=0.02)


def test_a_pole_whose_actions_are_late_is_held_by_what_is_remembered() -> None:
    episodes = production(cartpole_remembering, 4, 20, sharp=50.0)
    assert np.mean([e.num_steps for e in episodes]) > 400
