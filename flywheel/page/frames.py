"""Pictures of an episode by rgb_array: sheets of neighbouring steps, so that a scrubber has what it needs."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import threading
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flywheel.errors import UsageError
from flywheel.policy import to_env
from flywheel.records import Episode, Parameters
from flywheel.simulate.stop import go_on_or_stop
from flywheel.spaces import flatten, leaves_of
from flywheel.tapes import short
from flywheel.task import Task, spec_of
from flywheel.trace.snapshots import NotReproducible, Opening, opening_of

ROW = 5
"""Pictures side by side in a sheet, and rows of them."""
SHEET = ROW * ROW
WIDTH = 360
"""Most pixels a picture is wide."""
KEPT = 48
"""Sheets that are kept: two episodes of 500 steps and some."""

NEAR = 1e-4
"""What a world may show otherwise than its record, of 1 and of a number itself: nobody sees that in a picture."""

Picture = NDArray[np.uint8]


class Frames:
    """Draws steps of episodes, a sheet at a time; safe to share between threads, which wait for each other."""

    def __init__(self) -> None:
        """Begin with nothing drawn."""
        self._lock = threading.Lock()
        self._sheets: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._camera: Camera | None = None

    def sheet(
        self,
        task: Task,
        episode: Episode,
        number: int,
        before: Parameters | None = None,
        opening: Opening | None = None,
    ) -> bytes:
        """Return PNG of the steps from `number` · SHEET on, in rows of ROW; raises as Camera does.

        `before` and `opening` are what Camera takes.
        """
        first = number * SHEET
        if not 0 <= first <= episode.num_steps:
            raise UsageError(f"Episode {episode.id} has {episode.num_steps} steps: there is no sheet {number} of it.")
        with self._lock:
            key = (episode.id, number)
            if key not in self._sheets:
                steps = range(first, min(first + SHEET, episode.num_steps + 1))
                self._sheets[key] = _png(self._at(task, episode, before, opening).pictures(steps))
                while len(self._sheets) > KEPT:
                    self._sheets.popitem(last=False)
            self._sheets.move_to_end(key)
            return self._sheets[key]

    def _at(self, task: Task, episode: Episode, before: Parameters | None, opening: Opening | None) -> Camera:
        if self._camera is None or self._camera.episode.id != episode.id:
            if self._camera is not None:
                self._camera.close()
            self._camera = Camera(task, episode, before, opening)
        return self._camera


class Camera:
    """One environment that is put to an episode's steps and looked at."""

    def __init__(
        self,
        task: Task,
        episode: Episode,
        before: Parameters | None = None,
        opening: Opening | None = None,
    ) -> None:
        """Make the environment; raises UsageError where it draws no pictures, or can't be put to a step.

        `before` are the world's parameters up to the step that a fork was made at, `opening` is how the world began
        where the task doesn't know it. A picture raises NotReproducible where the world doesn't do what was recorded.
        """
        self.episode = episode
        self._task = task
        self._opening = opening or opening_of(task, episode)
        self._first, self._changes = _worlds(task, episode, before, self._opening)
        self._by_state = task.set_state is not None and task.observed_state is not None
        if not self._by_state and episode.seed is None:
            raise UsageError(
                f"Episode {episode.id} can't be drawn: production's seed is nobody's to know, and task {task.name} has "
                "no observed_state and set_state, by which a world is put to what an observation shows."
            )
        self._spec = spec_of(task)
        self._env = _drawing(task)
        self._leaves = leaves_of(self._env.observation_space)
        self._t = -1

    def close(self) -> None:
        """Let the environment go."""
        self._env.close()  # type: ignore[no-untyped-call]

    def pictures(self, steps: range) -> list[Picture]:
        """Return a picture a step."""
        return [self._picture(t) for t in steps]

    def _picture(self, t: int) -> Picture:
        go_on_or_stop()
        if self._by_state:
            self._begin_once()
            begun = [step for step in self._changes if step <= t]
            self._set(self._changes[max(begun)] if begun else self._first)
            assert self._task.set_state is not None and self._task.observed_state is not None
            self._task.set_state(self._env, self._task.observed_state(self.episode.observations[t]))
        else:
            self._go_to(t)
        return np.asarray(self._env.render(), dtype=np.uint8)

    def _begin_once(self) -> None:
        if self._t < 0:
            self._begin()

    def _begin(self) -> None:
        self._set(self._first)
        shown = self._env.reset(seed=self.episode.seed)[0]
        if self._opening.state is not None and self._task.set_state is not None:
            shown = self._task.set_state(self._env, self._opening.state)
        if not self._by_state:
            self._insist(0, shown)
        self._t = 0

    def _go_to(self, t: int) -> None:
        """Step the recorded actions again, from the beginning where `t` lies behind."""
        if self._t < 0 or t < self._t:
            self._begin()
        for action in to_env(self._spec, self.episode.raw_actions[self._t : t]):
            go_on_or_stop()
            if self._t in self._changes:
                self._set(self._changes[self._t])
            self._insist(self._t + 1, self._env.step(action)[0])
            self._t += 1

    def _insist(self, t: int, shown: Any) -> None:
        """Raise unless the world shows what was observed at step t; it is begun anew after that."""
        if np.allclose(flatten(self._leaves, shown), self.episode.observations[t], rtol=NEAR, atol=NEAR):
            return
        self._t = -1
        raise NotReproducible(
            f"Episode {short(self.episode.id)} can't be drawn: stepped again by its actions, its world leaves the "
            f"record at step {t}, so that these would be pictures of another one. The environment draws from "
            "somewhere else than its seed, or it, or a library below it, is another version."
        )

    def _set(self, parameters: Parameters) -> None:
        if self._task.set_parameters is not None:
            self._task.set_parameters(self._env, parameters)


def _worlds(
    task: Task, episode: Episode, before: Parameters | None, opening: Opening
) -> tuple[Parameters, dict[int, Parameters]]:
    """Return the parameters that an episode's world began with, and the later ones by the step that they begin with."""
    last = {**task.nominal, **episode.parameters}
    own = last if before is None else {**task.nominal, **before}
    first, changes = own, dict[int, Parameters]()
    if opening.num_before:
        first, changes = {**task.nominal, **(opening.before or own)}, {opening.num_before: own}
    if episode.parent is not None:
        at = episode.parent[1]
        edited = {name: value for name, value in last.items() if value != own[name]}
        held = own if opening.num_before <= at else first
        changes = {step: {**each, **edited} if step > at else each for step, each in changes.items()}
        changes[at] = {**held, **edited}
    return first, changes


def _drawing(task: Task) -> gymnasium.Env[Any, Any]:
    """Return an environment of the task that draws RGB arrays."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory: there may be no screen
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    no = UsageError(f"Task {task.name} draws no pictures: its environment has no render_mode rgb_array.")
    if isinstance(task.env, str):
        modes = gymnasium.spec(task.env)
        env = None
        with contextlib.suppress(TypeError, ValueError, gymnasium.error.Error):
            env = gymnasium.make(modes, render_mode="rgb_array", disable_env_checker=True)
    elif "render_mode" in inspect.signature(task.env).parameters:
        env = task.env(render_mode="rgb_array")  # type: ignore[call-arg]
    else:
        env = task.env()
    if env is None or env.render_mode != "rgb_array":
        raise no
    return env


def _png(pictures: list[Picture]) -> bytes:
    """Return one PNG with all pictures in rows of ROW, each at most WIDTH wide."""
    height, width = pictures[0].shape[:2]
    small = (min(width, WIDTH), round(height * min(width, WIDTH) / width))
    rows = -(-len(pictures) // ROW)
    sheet = Image.new("RGB", (small[0] * ROW, small[1] * rows), "white")
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture).convert("RGB").resize(small, Image.Resampling.BILINEAR)
        sheet.paste(image, (i % ROW * small[0], i // ROW * small[1]))
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=1)
    return out.getvalue()
