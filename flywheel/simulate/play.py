"""A policy plays in worlds: exactly one episode a world, each a function of its seeds and the policy alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import canonical
from flywheel.draws import draws
from flywheel.errors import FlywheelError
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Episode, Origin, Parameters, Rule
from flywheel.simulate.worlds import Worlds, make_worlds
from flywheel.task import Task, task_digest

MAX_STEPS = 100_000
"""Steps after which an episode that doesn't end is an error: a task without a time limit would play for ever."""
_BLOCK = 64  # steps whose draws are made in one call


def play(
    task: Task,
    policy: Policy,
    *,
    seeds: Sequence[int],
    parameters: Sequence[Parameters],
    draw_keys: Sequence[int],
    scenarios: Sequence[str] | None = None,
    states: Sequence[tuple[float, ...] | None] | None = None,
    origin: Origin = "gate",
    lockstep: int = 256,
    rule: Rule | None = None,
    now: float = 0.0,
) -> list[Episode]:
    """Return one whole Episode a world, in the order of `seeds`; short episodes weigh no more than long ones.

    World i begins by `seeds[i]`, `parameters[i]`, `states[i]` (None: as the task begins); `draw_keys[i]` draws its
    actions. `lockstep` worlds at once change nothing but the time; `rule` replaces the policy's own; all end at `now`.
    Raises Refused when the policy answers with NaN or infinity, FlywheelError when an episode doesn't end.
    """
    names = list(scenarios) if scenarios is not None else ["nominal"] * len(seeds)
    starts = list(states) if states is not None else [None] * len(seeds)
    shared: dict[str, Any] = {
        "origin": origin,
        "task": task_digest(task),
        "started_at": now,
        "ended_at": now,
        "failed": False,
    }
    episodes: list[Episode] = []
    for first in range(0, len(seeds), lockstep):
        chunk = slice(first, min(first + lockstep, len(seeds)))
        with contextlib.closing(make_worlds(task, len(seeds[chunk]))) as worlds:
            observations = worlds.reset(seeds[chunk], parameters[chunk], starts[chunk])
            tracks = _run(worlds, policy, observations, np.array(draw_keys[chunk], np.uint64), rule)
        for i, track in enumerate(tracks, start=first):
            episode = Episode(
                **shared,
                **track,
                id=_identity(
                    [origin, task.name, policy.digest, seeds[i], names[i], dict(parameters[i]), draw_keys[i]], rule
                ),
                parameters=dict(parameters[i]),
                draw_key=int(draw_keys[i]),
                digests=(policy.digest,) * len(track["rewards"]),
                scenario=names[i],
                seed=int(seeds[i]),
            )
            episodes.append(dataclasses.replace(episode, failed=bool(task.failed(episode))))
    return episodes


def _identity(parts: list[Any], rule: Rule | None) -> str:
    return hashlib.sha256(canonical([*parts, rule and dataclasses.asdict(rule)]).encode()).hexdigest()[:32]


def _run(
    worlds: Worlds, policy: Policy, observations: Array, keys: NDArray[np.uint64], rule: Rule | None
) -> list[dict[str, Any]]:
    """Return what each world's Episode holds of its course: observations, raw actions, rewards, logps and end."""
    spec, num_worlds = policy.spec, worlds.num_worlds
    columns: dict[str, list[Array]] = {"observations": [observations], "raw_actions": [], "rewards": [], "logps": []}
    lengths = np.zeros(num_worlds, dtype=np.int64)
    fell = np.zeros(num_worlds, dtype=np.bool_)
    active = np.ones(num_worlds, dtype=np.bool_)
    rows = np.arange(num_worlds)  # finished worlds cost the network nothing
    for t in range(MAX_STEPS):
        if t % _BLOCK == 0:
            steps = np.tile(np.arange(t, t + _BLOCK), num_worlds)
            block = draws(np.repeat(keys, _BLOCK), steps, spec.num_draws).reshape(num_worlds, _BLOCK, -1)
        some_raw, some_logps = policy.act(observations[rows], block[rows, t % _BLOCK], rule)
        raw = np.zeros((num_worlds, *some_raw.shape[1:]), dtype=some_raw.dtype)
        logps = np.zeros(num_worlds)
        raw[rows], logps[rows] = some_raw, some_logps
        observations, rewards, terminated, truncated = worlds.step(to_env(spec, raw), active)
        if not (np.isfinite(observations[rows]).all() and np.isfinite(rewards[rows]).all()):
            raise FlywheelError(f"The simulator gave an observation or reward that is not finite at step {t}.")
        for name, column in zip(columns, (observations, raw, rewards, logps), strict=True):
            columns[name].append(column)
        over = terminated | truncated
        if over.any():
            fell |= terminated
            lengths[over] = t + 1
            active &= ~over
            rows = np.flatnonzero(active)
            if not len(rows):
                return _cut(columns, lengths, fell)
    raise FlywheelError(
        f"{len(rows)} of {num_worlds} episodes did not end within {MAX_STEPS:,} steps: give the environment a time "
        "limit (gymnasium.wrappers.TimeLimit)."
    )


def _cut(columns: dict[str, list[Array]], lengths: NDArray[np.int64], fell: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return each world's own part of the columns, [T + 1, ...] of observations and [T, ...] of the others."""
    whole = {name: np.stack(column, axis=1) for name, column in columns.items()}
    return [
        {name: rows[i, : length + (name == "observations")].copy() for name, rows in whole.items()}
        | {"end": "terminated" if fell[i] else "truncated"}
        for i, length in enumerate(lengths)
    ]
