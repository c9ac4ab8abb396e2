"""Pictures of episodes: by the state that an observation shows, or by the recorded actions from the seed."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flywheel.errors import UsageError
from flywheel.page.frames import ROW, WIDTH, Camera, Frames
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import linear_policy
from tests.rooms import room


def episode_of(task: Task, scenario: str = "nominal") -> Episode:
    """Return a seeded episode of a policy that always gives the same chances."""
    spec = spec_of(task)
    gains = np.zeros((spec.num_outputs, int(np.prod(spec.observation_shape))))
    policy = Policy(linear_policy(spec, gains)[0], spec)
    return play(task, policy, seeds=[5], parameters=[{}], draw_keys=[5], scenarios=[scenario])[0]


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
    episode = episode_of(lunarlander)
    at = min(5, episode.num_steps - 1)
    wind = {parameter.name: parameter.high for parameter in lunarlander.parameters}
    fork = dataclasses.replace(episode, parent=(episode.id, at), parameters=wind)
    original, changed = Camera(lunarlander, episode), Camera(lunarlander, fork, before={})
    assert (original.pictures(range(at, at + 1))[0] == changed.pictures(range(at, at + 1))[0]).all()
    end = range(episode.num_steps, episode.num_steps + 1)
    assert (original.pictures(end)[0] != changed.pictures(end)[0]).any()
    original.close()
    changed.close()


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
