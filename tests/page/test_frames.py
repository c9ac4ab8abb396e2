"""Pictures of episodes: by the state that an observation shows, or by the recorded actions from the seed."""

from __future__ import annotations

import dataclasses
import io
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flywheel.errors import UsageError
from flywheel.gate.trials import play_situations, suite_situations
from flywheel.page.frames import ROW, WIDTH, Camera, Frames
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import linear_policy
from flywheel.trace.fork import Fork
from flywheel.trace.snapshots import NotReproducible, Opening
from tests.rooms import room


def policy_of(task: Task) -> Policy:
    """Return a policy that always gives the same chances."""
    spec = spec_of(task)
    gains = np.zeros((spec.num_outputs, int(np.prod(spec.observation_shape))))
    return Policy(linear_policy(spec, gains)[0], spec, "c" * 64)


def episode_of(task: Task, scenario: str = "nominal") -> Episode:
    """Return a seeded episode of it."""
    return play(task, policy_of(task), seeds=[5], parameters=[{}], draw_keys=[5], scenarios=[scenario])[0]


def pictures(task: Task, episode: Episode, steps: range) -> list[NDArray[np.uint8]]:
    """Return pictures by a camera of their own."""
    camera = Camera(task, episode)
    found = camera.pictures(steps)
    camera.close()
    return found


@pytest.mark.parametrize("task", [cartpole, pendulum, lunarlander], ids=lambda task: task.name)
def test_every_built_in_task_is_drawn_and_moves(task: Task) -> None:
    episode = episode_of(task)
    first, _, third = pictures(task, episode, range(3))
    assert first.ndim == 3 and first.dtype == np.uint8 and (first != third).any()


def test_a_step_looks_the_same_however_one_gets_there() -> None:
    episode = episode_of(lunarlander)
    last = episode.num_steps
    forwards = pictures(lunarlander, episode, range(last + 1))
    camera = Camera(lunarlander, episode)
    backwards = [camera.pictures(range(t, t + 1))[0] for t in (last, 7, 3)]
    camera.close()
    for t, picture in zip((last, 7, 3), backwards, strict=True):
        assert (picture == forwards[t]).all()


def test_a_fork_is_drawn_in_the_world_that_it_was_changed_to() -> None:
    task, policy, at = lunarlander, policy_of(lunarlander), 5
    episode = episode_of(task)
    wind = {parameter.name: parameter.high for parameter in task.parameters}
    with closing(Fork(task, episode, at, {policy.digest: policy})) as stands:
        for name, value in wind.items():
            stands.edit_parameter(name, value)
        fork = stands.replay().fork
    original, changed = Camera(task, episode), Camera(task, fork, before=episode.parameters)
    assert (original.pictures(range(at, at + 1))[0] == changed.pictures(range(at, at + 1))[0]).all()
    end = min(episode.num_steps, fork.num_steps)
    assert (original.pictures(range(end, end + 1))[0] != changed.pictures(range(end, end + 1))[0]).any()
    original.close()
    changed.close()


@pytest.mark.parametrize("seed", [5, None], ids=["the gate's", "production's"])
def test_a_fork_is_drawn_in_its_world_where_states_are_set(seed: int | None) -> None:
    task, policy, at = cartpole, policy_of(cartpole), 5
    episode = play(task, policy, seeds=[5], parameters=[{"length": 2.0}], draw_keys=[5])[0]
    if seed is None:
        episode = dataclasses.replace(episode, seed=None, origin="production", parameters={})
    world = {**task.nominal, "length": 2.0}
    with closing(Fork(task, episode, at, {policy.digest: policy}, parameters=world)) as stands:
        fork = stands.edit_parameter("length", 0.5).replay().fork
    camera = Camera(task, fork, before=world)
    before, after = camera.pictures(range(at - 1, at + 1))
    camera.close()
    wide = [np.unique(np.nonzero(np.ptp(each, axis=2) > 40)[0]).size for each in (before, after)]  # rows with the pole
    assert wide[0] > 2 * wide[1]


@pytest.mark.parametrize("again", [None, 10, 50], ids=["the trial", "forked in its lead", "forked after it"])
def test_a_trial_of_a_saved_scenario_is_drawn_in_its_own_world(again: int | None) -> None:
    task, policy = lunarlander, policy_of(lunarlander)
    policies = {policy.digest: policy}
    with closing(Fork(task, episode_of(task), 40, policies)) as fork:
        scenario = dataclasses.replace(fork.edit_parameter("wind_power", 19.0).scenario(), name="gust")
    (situation,) = suite_situations([scenario], 3, "trials", 1, {})
    (trial,) = play_situations(task, policy, [situation], lockstep=1, now=0.0)
    opening = Opening(before=scenario.before, num_before=40, own=scenario.parameters)
    before, drawn = None, trial
    if again is not None:
        with closing(Fork(task, trial, again, policies, opening=opening)) as fork:
            before, drawn = trial.parameters, fork.edit_parameter("turbulence_power", 1.5).replay().fork
    camera = Camera(task, drawn, before, opening)
    assert len(camera.pictures(range(drawn.num_steps + 1))) == drawn.num_steps + 1  # each step is the record's
    camera.close()
    astray = Camera(task, drawn, before)
    for _ in range(2):
        with pytest.raises(NotReproducible, match=r"can't be drawn: .* leaves the record at step"):
            astray.pictures(range(drawn.num_steps, drawn.num_steps + 1))
    astray.close()


def test_a_sheet_holds_neighbouring_steps_and_is_kept() -> None:
    frames, episode = Frames(), episode_of(cartpole)
    body = frames.sheet(cartpole, episode, 0)
    assert frames.sheet(cartpole, episode, 0) is body
    assert Image.open(io.BytesIO(body)).size[0] == ROW * WIDTH


def test_what_cant_be_drawn_says_why() -> None:
    seeded = episode_of(room)
    with pytest.raises(UsageError, match="draws no pictures"):
        Frames().sheet(room, seeded, 0)
    unseeded = dataclasses.replace(episode_of(lunarlander), seed=None)
    with pytest.raises(UsageError, match="nobody's to know"):
        Frames().sheet(lunarlander, unseeded, 0)
