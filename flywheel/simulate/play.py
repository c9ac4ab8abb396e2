"""A policy plays in worlds: exactly one episode a world, each a function of its seeds and the policy alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import canonical, digest
from flywheel.draws import draws
from flywheel.errors import FlywheelError
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Episode, Origin, Parameters, Rule, Spec
from flywheel.simulate.worlds import Worlds, make_worlds
from flywheel.task import Task, task_digest

_BLOCK = 64  # steps whose draws are made in one call

Decide = Callable[[int, NDArray[np.intp], Array, NDArray[np.float64]], tuple[Array, NDArray[np.float64]]]
"""(t, worlds int[M], observations [M, *o], draws float64[M, K]) -> raw actions [M, *a], log chances float64[M]."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lead:
    """What a world does before the policy acts in it."""

    actions: Array
    """dtype[k, *a], raw: given, whoever chose them"""
    before: Parameters
    """The world's parameters until then."""


def play(
    task: Task,
    policy: Policy,
    *,
    seeds: Sequence[int],
    parameters: Sequence[Parameters],
    draw_keys: Sequence[int],
    scenarios: Sequence[str] | None = None,
    states: Sequence[tuple[float, ...] | None] | None = None,
    lead: Lead | None = None,
    origin: Origin = "gate",
    lockstep: int = 256,
    rule: Rule | None = None,
    now: float = 0.0,
) -> list[Episode]:
    """Return one whole Episode a world, in the order of `seeds`; short episodes weigh no more than long ones.

    World i begins by `seeds[i]`, `parameters[i]`, `states[i]` (None: as the task begins); `draw_keys[i]` draws its
    actions, after those of `lead`, which all worlds share; the digest of a step that it leads is "", and its logp NaN.
    `lockstep` worlds at once change nothing but the time; `rule` replaces the policy's own; all end at `now`.
    A world that raises, or gives what isn't finite, is played once more, alone and from its seed. Raises Refused when
    the policy answers with NaN or infinity, FlywheelError when a world breaks the second time, too.
    """
    names = list(scenarios) if scenarios is not None else ["nominal"] * len(seeds)
    starts = list(states) if states is not None else [None] * len(seeds)
    shared: dict[str, Any]
    shared = {"origin": origin, "task": task_digest(task), "started_at": now, "ended_at": now, "failed": False}
    episodes: list[Episode] = []
    led = 0 if lead is None else len(lead.actions)
    form = [] if task.correction is None else [digest(dataclasses.asdict(task.correction))]  # large, and once is enough
    for first in range(0, len(seeds), lockstep):
        places = range(first, min(first + lockstep, len(seeds)))
        worlds = [(seeds[i], parameters[i], starts[i], draw_keys[i]) for i in places]
        tracks = _tracks(task, policy, worlds, [names[i] for i in places], rule, lead)
        for i, track in zip(places, tracks, strict=True):
            parts = [origin, task.name, policy.digest, seeds[i], names[i], dict(parameters[i]), draw_keys[i], *form]
            episode = Episode(
                **shared,
                **track,
                id=_identity(parts, rule),
                parameters=dict(parameters[i]),
                draw_key=int(draw_keys[i]),
                digests=("",) * led + (policy.digest,) * (len(track["rewards"]) - led),
                scenario=names[i],
                seed=int(seeds[i]),
            )
            episodes.append(dataclasses.replace(episode, failed=bool(task.failed(episode))))
    return episodes


def _identity(parts: list[Any], rule: Rule | None) -> str:
    return hashlib.sha256(canonical([*parts, rule and dataclasses.asdict(rule)]).encode()).hexdigest()[:32]


def _tracks(
    task: Task, policy: Policy, given: Sequence[Any], names: Sequence[str], rule: Rule | None, lead: Lead | None
) -> list[Any]:
    """Return the courses of worlds that are stepped together; one that breaks has a second try by itself."""
    tracks, broken = _together(task, policy, given, rule, lead)
    for i, (t, fault) in sorted(broken.items()):
        (tracks[i],), again = _together(task, policy, [given[i]], rule, lead)
        if again:
            t, fault = again[0]
            raise FlywheelError(
                f"The world of seed {given[i][0]} ({names[i]}, {dict(given[i][1]) or 'no parameters'}) {fault} "
                f"{f'at step {t}' if t else 'when it began'}, and when it was tried again: put the environment right."
            )
    return tracks


def _together(
    task: Task, policy: Policy, given: Sequence[Any], rule: Rule | None, lead: Lead | None
) -> tuple[list[dict[str, Any]], dict[int, tuple[int, str]]]:
    """Return the worlds' courses, and of those that broke (their courses are void) the step and what they did."""
    seeds, parameters, starts, keys = zip(*given, strict=True)
    with contextlib.closing(make_worlds(task, len(given))) as worlds:
        if lead is None:
            observations = worlds.reset(seeds, parameters, starts)
            return go_on(worlds, by(policy, rule), policy.spec, observations, np.array(keys, np.uint64))
        observations = worlds.reset(seeds, [lead.before] * len(given), starts)
        head = _led(worlds, lead.actions, policy.spec, observations)
        worlds.change(parameters)
        tracks, broken = go_on(
            worlds, by(policy, rule), policy.spec, head["observations"][:, -1], np.array(keys, np.uint64),
            first=len(lead.actions),
        )  # fmt: skip
        for i, track in enumerate(tracks):
            track["observations"] = track["observations"][1:]
            for name, rows in head.items():
                track[name] = np.concatenate([rows[i], track[name]])
        return tracks, broken


def _led(worlds: Worlds, actions: Array, spec: Spec, observations: Array) -> dict[str, Array]:
    """Step worlds by given raw actions [k, *a] and return columns [N, k, …] (and k + 1 observations).

    Raises FlywheelError where one is over before the last of them: it isn't what it was when they were recorded.
    """
    num, every = worlds.num_worlds, np.ones(worlds.num_worlds, dtype=np.bool_)
    seen, rewards = [observations], []
    for t, action in enumerate(to_env(spec, actions)):
        observations, reward, terminated, truncated = worlds.step(np.repeat(action[None], num, axis=0), every)
        if worlds.broken or terminated.any() or truncated.any():
            what = next(iter(worlds.broken.values()), "is over")
            raise FlywheelError(
                f"A world that {len(actions)} given actions lead into {what} after action {t}: the environment is "
                "another one than they were recorded in. Fork it again, or drop that scenario."
            )
        seen.append(observations)
        rewards.append(reward)
    return {
        "observations": np.stack(seen, axis=1),
        "raw_actions": np.repeat(actions[None], num, axis=0),
        "rewards": np.stack(rewards, axis=1) if rewards else np.zeros((num, 0)),
        "logps": np.full((num, len(actions)), np.nan),
    }


def by(policy: Policy, rule: Rule | None = None) -> Decide:
    """Return the decisions of one policy; `rule` replaces its own."""
    return lambda t, rows, observations, drawn: policy.act(observations, drawn, rule)


def go_on(
    worlds: Worlds,
    decide: Decide,
    spec: Spec,
    observations: Array,
    keys: NDArray[np.uint64],
    *,
    first: int = 0,
    horizon: int | None = None,
) -> tuple[list[dict[str, Any]], dict[int, tuple[int, str]]]:
    """Return what each world's Episode holds of its course from step `first` on (observations, raw actions, rewards,
    logps, end), and of the worlds that broke (`first`: before they did anything) the step and what they did.

    `observations` are what the worlds show now. What isn't over by itself is truncated when step `horizon` is reached.
    """
    num_worlds = worlds.num_worlds
    columns: dict[str, list[Array]] = {"observations": [observations], "raw_actions": [], "rewards": [], "logps": []}
    lengths = np.zeros(num_worlds, dtype=np.int64)
    fell = np.zeros(num_worlds, dtype=np.bool_)
    broken = {i: (first, fault) for i, fault in worlds.broken.items()}
    active = np.ones(num_worlds, dtype=np.bool_)
    active[list(broken)] = False
    rows = np.flatnonzero(active)  # finished worlds cost the network nothing
    for t in itertools.count(first):
        if not len(rows):
            break
        place = (t - first) % _BLOCK
        if not place:
            steps = np.tile(np.arange(t, t + _BLOCK), num_worlds)
            block = draws(np.repeat(keys, _BLOCK), steps, spec.num_draws).reshape(num_worlds, _BLOCK, -1)
        if len(rows) == num_worlds:  # nearly always, and nothing is copied
            raw, logps = decide(t, rows, observations, block[:, place])
        else:
            some_raw, some_logps = decide(t, rows, observations[rows], block[rows, place])
            raw, logps = np.zeros((num_worlds, *some_raw.shape[1:]), some_raw.dtype), np.zeros(num_worlds)
            raw[rows], logps[rows] = some_raw, some_logps
        observations, rewards, terminated, truncated = worlds.step(to_env(spec, raw), active)
        for name, column in zip(columns, (observations, raw, rewards, logps), strict=True):
            columns[name].append(column)
        over = terminated | truncated | (t + 1 == horizon)
        if len(worlds.broken) > len(broken):
            broken = {i: (t + 1, fault) for i, fault in worlds.broken.items()} | broken
            over[list(broken)] = True
        if np.count_nonzero(over):
            over &= active
            fell |= terminated
            lengths[over] = t + 1 - first
            active &= ~over
            rows = np.flatnonzero(active)
    return _cut(columns, lengths, fell), broken


def _cut(columns: dict[str, list[Array]], lengths: NDArray[np.int64], fell: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return each world's own part of the columns, [T + 1, ...] of observations and [T, ...] of the others."""
    whole = {name: np.stack(column, axis=1) if column else np.zeros((len(fell), 0)) for name, column in columns.items()}
    return [
        {name: rows[i, : length + (name == "observations")].copy() for name, rows in whole.items()}
        | {"end": "terminated" if fell[i] else "truncated"}
        for i, length in enumerate(lengths)
    ]
