"""check_task: everything the wheel will ask of a task, tried beforehand; all that is wrong is said at once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flywheel.config import Config
from flywheel.errors import FlywheelError, UsageError
from flywheel.faults import outside, said, sound
from flywheel.policy import Policy, load
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task, spec_of, task_digest
from flywheel.testing.fakes import check_worlds, load_linear, write_linear_artifact
from flywheel.testing.given import check_drift, check_edge_cases, of_two_worlds, own_config
from flywheel.testing.importing import importable
from flywheel.testing.settings import check_parameters, check_state

NUM_EPISODES = 20
"""Random episodes that are played."""
MAX_STEPS = 20_000
"""Steps that they may take together; the first one is played to its end."""
_ENDLESS = next(field.default for field in dataclasses.fields(Task) if field.name == "max_steps")
_FAR = 1e3  # stands for a bound that is infinite


def check_task(task: Task, *more: Callable[[Task, Config], object]) -> str:
    """Try all that the wheel will ask of a task, and return a short report: what was tried, and what it goes without.

    `more` are checks of rooms, which this package knows nothing of: they get the task and the configuration that its
    settings make, and raise what is wrong. Raises UsageError with everything that was found wrong, a sentence each
    that says what to do. Random policies play, so what only a good one reaches is not seen.
    """
    findings: list[str] = []
    tried: list[str] = []
    hints: list[str] = []
    with _noting(findings, f"make_env() of task {task.name}"):
        spec_of(task)
        task_digest(task)
    if findings:
        _raise(task, findings)
    with _noting(findings, f"the environment {_name(task)}"):
        tried.append(_look_at_steps(task, findings))
    with _noting(findings, "acting at the bounds of the action space"):
        tried.append(_look_at_actions(task))
    episodes: list[Episode] = []
    with _noting(findings, "playing random episodes"):
        episodes = _random_episodes(task)
        tried.append(f"{len(episodes)} whole random episodes")
    for law in (_look_at_failing, _look_at_returns):
        with _noting(findings, "judging random episodes"):
            hints += law(task, episodes, findings)
    with _noting(findings, "seeds"):
        check_worlds(task, 3)
        tried.append("the same seed twice, alone and among others")
    worlds = (check_parameters, _look_at_vector, check_state, check_drift, check_edge_cases, _look_at_edge_cases)
    for check in (*worlds, _look_at_artifact, importable):
        with _noting(findings, check.__name__.removeprefix("_look_at_").replace("check_", "")):
            tried += check(task, findings)
    hints += of_two_worlds(task)
    config = own_config(task, findings)
    for ask in more:
        with _noting(findings, "a further check"):
            ask(task, config)
    if findings:
        _raise(task, findings)
    lacks = _without(task) or "nothing"
    worth = "".join(f" Worth a look: {hint}." for hint in hints)
    return f"Task {task.name} is fine. Tried: {'; '.join(tried)}. It goes without: {lacks}.{worth}"


def _raise(task: Task, findings: list[str]) -> None:
    raise UsageError(f"Task {task.name} has to be put right:" + "".join(f"\n- {f}" for f in findings))


@contextlib.contextmanager
def _noting(findings: list[str], what: str) -> Iterator[None]:
    """Take whatever the user's code raises as a finding."""
    try:
        yield
    except FlywheelError as error:
        findings.append(str(error))
    except Exception as error:
        findings.append(f"{what[0].upper()}{what[1:]} raised {error!r}: put that right.")


def _name(task: Task) -> str:
    return repr(task.env) if isinstance(task.env, str) else getattr(task.env, "__qualname__", repr(task.env))


def _look_at_steps(task: Task, findings: list[str]) -> str:
    """Look at every observation and reward of random episodes, and at whether they end."""
    env = task.make_env()
    space, name = env.observation_space, _name(task)
    seen: set[str] = set()
    num_steps = num_episodes = 0

    def note(kind: str, sentence: str) -> None:
        if kind not in seen:
            findings.append(sentence)
        seen.add(kind)

    while num_steps < MAX_STEPS and num_episodes < NUM_EPISODES:
        env.action_space.seed(num_episodes)
        observation, _ = env.reset(seed=num_episodes)
        reward: Any = 0.0
        length, over = 0, False
        while not over and length < task.max_steps and (num_episodes == 0 or num_steps < MAX_STEPS):
            try:
                sound(space, observation, reward)
            except FlywheelError as error:
                note("sound", f"{name} {said(error)} at step {length} of seed {num_episodes}: put it right there.")
                break
            if fault := outside(space, observation):
                note("outside", f"An observation of {name} lies outside observation_space ({fault}): widen it there.")
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            length, num_steps, over = length + 1, num_steps + 1, bool(terminated or truncated)
        if length == task.max_steps == _ENDLESS and not over:
            note(
                "end",
                f"A random episode of {name} did not end in {length:,} steps: give the environment a time limit "
                "(gymnasium.wrappers.TimeLimit), or the Task a max_steps of its own.",
            )
        num_episodes += 1
    env.close()  # type: ignore[no-untyped-call]
    return f"{num_steps:,} random steps"


def _look_at_actions(task: Task) -> str:
    """Take a step by each action on the bounds of the action space."""
    env = task.make_env()
    actions = _extremes(env.action_space)
    for action in actions:
        env.reset(seed=0)
        try:
            observation, reward, *_ = env.step(action)
            sound(env.observation_space, observation, reward)
        except Exception as error:
            raise UsageError(
                f"step({action!r}) of {_name(task)}, an action on the bounds of its action_space, {said(error)}: "
                "policies do give such actions."
            ) from error
    env.close()  # type: ignore[no-untyped-call]
    return f"{len(actions)} actions on the bounds"


def _extremes(space: gymnasium.Space[Any]) -> list[Any]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return list(range(int(space.start), int(space.start) + min(int(space.n), 50)))
    if isinstance(space, gymnasium.spaces.Box):
        bounds = ((space.low, -_FAR), (space.high, _FAR))
        return [np.where(np.isfinite(bound), bound, far).astype(space.dtype) for bound, far in bounds]
    return [space.sample()]


def random_policy(task: Task) -> Policy:
    """Return a linear policy whose outputs are all 0: every action is as likely as any other."""
    spec = spec_of(task)
    num_outputs = spec.num_actions or 2 * spec.num_draws
    return load_linear(task, np.zeros((num_outputs, int(np.prod(spec.observation_shape)))))


def _random_episodes(task: Task) -> list[Episode]:
    policy, episodes, num_steps = random_policy(task), list[Episode](), 0
    while len(episodes) < NUM_EPISODES and num_steps < MAX_STEPS:
        some = range(len(episodes), len(episodes) + 2)
        episodes += play(task, policy, seeds=some, parameters=[task.nominal] * 2, draw_keys=some)
        num_steps = sum(episode.num_steps for episode in episodes)
    return episodes


def _look_at_failing(task: Task, episodes: list[Episode], findings: list[str]) -> list[str]:
    """Ask whether `failed` says yes or no, and whether `margin` says the same; return what is odd but may be right."""
    for episode in episodes:
        answer = task.failed(episode)
        if not isinstance(answer, bool | np.bool_):
            findings.append(f"failed(episode) returned {answer!r}: let it return True or False.")
            return []
        if task.strata is not None and not isinstance(name := task.strata(episode), str):
            findings.append(f"strata(episode) returned {name!r}: let it return a short string.")
            return []
        if task.margin is None:
            continue
        margin = task.margin(episode)
        if not isinstance(margin, int | float | np.number) or math.isnan(margin):
            findings.append(f"margin(episode) returned {margin!r}: let it return a number.")
            return []
        if (margin <= 0) != bool(answer):
            findings.append(
                f"margin(episode) is {margin:g} for the episode of seed {episode.seed}, where failed(episode) is "
                f"{bool(answer)}: let margin be at most 0 exactly when the episode failed."
            )
            return []
    begun = [_begun(episode) for episode in episodes if episode.num_steps > 1]
    if begun and all(task.failed(episode) for episode in begun):
        findings.append(
            "failed(episode) is True for every random episode if it was lost after its first step, so clients "
            "that break off would count as failures: let it return True only where what was seen went wrong, and look "
            "at episode.end before it judges a whole one."
        )
        return []
    answers = {bool(task.failed(episode)) for episode in episodes}
    wanted = {True: "one that goes well is not", False: "one that goes wrong is"}
    return [
        f"failed(episode) was {answer} for all {len(episodes)} random episodes, so see to it that {wanted[answer]}"
        for answer in answers
        if len(answers) == 1
    ]


def _begun(episode: Episode) -> Episode:
    """Return an episode's first step, as it would be seen if nothing had come after it."""
    return dataclasses.replace(
        episode,
        digests=episode.digests[:1],
        observations=episode.observations[:2],
        raw_actions=episode.raw_actions[:1],
        rewards=episode.rewards[:1],
        logps=episode.logps[:1],
        end="lost",
    )


def _look_at_returns(task: Task, episodes: list[Episode], findings: list[str]) -> list[str]:
    """Ask whether the returns lie in `return_range`."""
    if task.return_range is None or not episodes:
        return []
    low, high = task.return_range
    if low >= high:
        findings.append(f"return_range is {task.return_range}: let the lowest return come first, and the highest last.")
    elif beyond := [episode.total for episode in episodes if not low <= episode.total <= high]:
        findings.append(
            f"A random episode had the return {beyond[0]:g}, outside return_range {task.return_range}: give the lowest "
            "and the highest return that an episode can have, or leave return_range out."
        )
    return []


def _look_at_vector(task: Task, findings: list[str]) -> list[str]:
    """Play the ends of every parameter's range in the vector form and in single environments."""
    if task.vector is None or not task.parameters:
        return []
    values = [{**task.nominal, p.name: end} for p in task.parameters for end in (p.low, p.high)]
    seeds, policy = range(len(values)), random_policy(task)
    forms = (task, dataclasses.replace(task, vector=None))
    together, single = (play(form, policy, seeds=seeds, parameters=values, draw_keys=seeds) for form in forms)
    for one, other, number in zip(together, single, seeds, strict=True):
        if one.observations.tobytes() != other.observations.tobytes():
            findings.append(
                f"At {task.parameters[number // 2].name} = {values[number][task.parameters[number // 2].name]:g} the "
                "vector form goes another way than a single environment: let set_parameters set arrays, one value a "
                "world, with everything derived from them."
            )
            break
    return ["parameters in the vector form"]


def _look_at_edge_cases(task: Task, findings: list[str]) -> list[str]:
    """Play an episode of each edge case."""
    for number, case in enumerate(task.edge_cases):
        try:
            worlds: dict[str, Any] = {"seeds": [number], "draw_keys": [number], "states": [case.state]}
            play(task, random_policy(task), parameters=[{**task.nominal, **case.parameters}], **worlds)
        except FlywheelError as error:
            findings.append(f"Edge case {case.name} can't be played: {error}")
    return [f"{len(task.edge_cases)} edge cases"] if task.edge_cases else []


def _look_at_artifact(task: Task, findings: list[str]) -> list[str]:
    """Write a policy of this task as an artifact, load it again and let it act."""
    spec = spec_of(task)
    with tempfile.TemporaryDirectory() as directory:
        zeros = np.zeros((spec.num_actions or 2 * spec.num_draws, int(np.prod(spec.observation_shape))))
        policy = load(write_linear_artifact(Path(directory), task, zeros))
        if policy.spec != spec:
            findings.append("The Spec of this task is not the same after it was written as JSON: report this as a bug.")
        row = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
        policy.act(row, np.full((1, spec.num_draws), 0.5))
    return ["a policy written, loaded and acting"]


def _without(task: Task) -> str:
    lacks: list[tuple[str, Callable[..., Any] | tuple[Any, ...] | None, str]] = [
        ("parameters", task.parameters, "no calibration"),
        ("set_state", task.set_state, "no start states"),
        ("observed_state", task.observed_state, "no calibration from transitions"),
        ("edge_cases", task.edge_cases, "none are tried"),
        ("margin", task.margin, "no distance to failing"),
        ("return_range", task.return_range, "no monitor of the return"),
        ("vector", task.vector, "worlds are stepped one by one"),
    ]
    return ", ".join(f"{name} ({loss})" for name, given, loss in lacks if not given)
