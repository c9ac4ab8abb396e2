"""A Task from a Gymnasium id and nothing else: what failing means is measured on policies that look at nothing.

In: `env:ID`, or `env:ID?failed_below=NUMBER&…` (the `reference` of a task, which other processes load without
measuring again). Out: a Task without parameters, start states and edge cases.
"""

from __future__ import annotations

import itertools
import math
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flywheel.config import Config
from flywheel.errors import UsageError, unknown
from flywheel.faults import said, sound
from flywheel.records import Episode
from flywheel.task import Limits, Task, spec_of

PREFIX = "env:"
MAX_EPISODES = 100
"""Episodes of the random policy that are measured at most."""
MAX_STEPS = 20_000
"""Steps that they may take in all; the first episode may take longer."""
MAX_ACTIONS = 20
"""Actions that are tried one by one, as a policy that always takes this one."""
ACTION_EPISODES = 10
"""Episodes of each of them at most."""
ACTION_STEPS = 2_000
"""Steps that those may take in all; the first episode may take longer."""
_OPTIONS = ("failed_below", "failed_to", "low", "high", "max_failure_rate")


@dataclass(frozen=True, slots=True)
class Below:
    """A rule of failing: the return is below a limit, or doesn't exceed it."""

    limit: float
    or_equal: bool = False

    def __call__(self, episode: Episode) -> bool:
        """Return True when the episode failed; of one that was lost, or whose rewards aren't known, nobody knows."""
        if episode.end == "lost" or np.isnan(episode.rewards).any():
            return False
        return episode.total <= self.limit if self.or_equal else episode.total < self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a Gymnasium id says of itself, and what policies get in it that look at nothing."""

    returns: tuple[float, ...]
    """Of a random policy."""
    lowest: float
    """Lowest reward of any step."""
    constant: tuple[str, float]
    """The best policy that always takes the same action: the action in words, and the mean of its returns."""
    threshold: float | None
    """The return at which Gymnasium's authors call it solved."""


def reference(task: Task) -> str:
    """Return the string that `load` makes this very task of, in any process, without measuring."""
    assert isinstance(task.env, str) and isinstance(task.failed, Below)
    values = {"failed_to" if task.failed.or_equal else "failed_below": task.failed.limit}
    if task.return_range is not None:
        values |= {"low": task.return_range[0], "high": task.return_range[1]}
    values["max_failure_rate"] = task.limits.max_failure_rate
    return f"{PREFIX}{task.env}?{urllib.parse.urlencode({name: f'{value:.12g}' for name, value in values.items()})}"


def load(text: str) -> Task:
    """Return the Task of `env:ID` (what it doesn't say is measured). Raises UsageError for what isn't known."""
    id_, _, options = text.removeprefix(PREFIX).partition("?")
    values: dict[str, float] = {}
    for name, value in urllib.parse.parse_qsl(options, keep_blank_values=True):
        if name not in _OPTIONS:
            raise unknown(f"option of the task {text!r}:", name, _OPTIONS)
        try:
            values[name] = float(value)
        except ValueError:
            raise UsageError(f"The option {name} of the task {text!r} is {value!r}, which is no number.") from None
    return _task(id_, values) if _limit(values) else from_id(id_, max_failure_rate=values.get("max_failure_rate"))[0]


def chosen(config: Config) -> tuple[str, str]:
    """Return the reference of the task that `--env` and its options ask for, and what there is to say of it."""
    if config.task != Config().task and not config.task.startswith(PREFIX):
        raise UsageError(
            f"Both --task {config.task} and --env {config.env} are given: a run has one task. Leave one of them out."
        )
    task, told = from_id(config.env, failed_below=config.env_failed_below, max_failure_rate=config.env_max_failure_rate)
    return reference(task), told


def from_id(id_: str, *, failed_below: float | None = None, max_failure_rate: float | None = None) -> tuple[Task, str]:
    """Return a Task from a Gymnasium id, and a sentence that says what failing is and where that comes from.

    An episode fails when its return is below `failed_below`; None takes what `measured` says.
    Raises UsageError when there is no such id, its spaces aren't supported, or failing can't be measured.
    """
    found = measure(id_)
    low = min(found.returns)
    values: dict[str, float] = {}
    if found.threshold is not None and found.threshold > low:
        values |= {"low": _short(low), "high": _short(found.threshold)}
    if failed_below is not None:
        values["failed_below"], why = failed_below, "as asked for"
    else:
        name, limit, why = measured(id_, found)
        values[name] = limit
    if max_failure_rate is not None:
        values["max_failure_rate"] = max_failure_rate
    task = _task(id_, values)
    return task, (
        f"an episode of {id_} counts as failed when its return is {task.version} ({why}), and "
        f"{100 * task.limits.max_failure_rate:.3g} % of them may fail; --env-failed-below and --env-max-failure-rate "
        "say otherwise"
    )


def measured(id_: str, found: Found) -> tuple[str, float, str]:
    """Return the option that says what failing is, its value, and where that comes from.

    With a reward threshold: below the middle between it and the best mean of policies that look at nothing, so that
    none of those passes. Without one nothing says what a good return is: only where no reward is negative, and so
    a lower return can't come of lasting longer, failing is what 95 % of random episodes don't exceed.
    Raises UsageError where neither tells a good episode from a bad one.
    """
    num, mean = len(found.returns), float(np.mean(found.returns))
    name, best = max(("random", mean), found.constant, key=lambda each: each[1])
    common = float(np.quantile(found.returns, 0.95))
    if found.threshold is not None and found.threshold > best:
        whose = f"{num} random episodes" if name == "random" else f"episodes that always take action {name}"
        why = f"half way between {_number(best)}, the mean of {whose}, and Gymnasium's threshold {found.threshold:g}"
        middle = (best + found.threshold) / 2
        return "failed_below", _short(middle) if best < _short(middle) <= found.threshold else middle, why
    if found.threshold is not None:
        obstacle = f"a policy that looks at nothing gets {_number(best)}, and its threshold is {found.threshold:g}"
    elif found.lowest < 0:
        obstacle = (
            "it has no reward threshold, and some of its rewards are negative, so that a low return may come of "
            "failing at once or of lasting long"
        )
    elif common < max(found.returns) or common == 0.0:
        why = f"which 95 % of {num} random episodes don't exceed; this id has no reward threshold"
        return "failed_to", _short(common) if _short(common) < max(found.returns) else common, why
    else:
        obstacle = "it has no reward threshold, and too many random episodes reach the best return of all"
    raise UsageError(
        f"What failing means in {id_} can't be measured, because {obstacle} ({num} random episodes returned "
        f"{_number(min(found.returns))} to {_number(max(found.returns))}, {_number(mean)} on average): give "
        "--env-failed-below NUMBER, the return below which an episode failed, and --env-max-failure-rate where good "
        f"policies do so often (where a task is named, {PREFIX}{id_}?failed_below=NUMBER)."
    )


def _limit(values: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(values[name] for name in ("failed_below", "failed_to") if name in values)


def _task(id_: str, values: Mapping[str, float]) -> Task:
    _made(id_).close()  # type: ignore[no-untyped-call]
    return Task(
        name=id_.rpartition(":")[2].replace("/", "-"),
        env=id_,
        failed=Below(_limit(values)[0], or_equal="failed_to" in values),
        return_range=(values["low"], values["high"]) if "low" in values and "high" in values else None,
        limits=Limits(max_failure_rate=values.get("max_failure_rate", Limits().max_failure_rate)),
        version=f"{'at most' if 'failed_to' in values else 'below'} {_limit(values)[0]:.12g}",  # the digest reads it
    )


def measure(id_: str) -> Found:
    """Return what policies get that look at nothing, in a few episodes each: the same in every process.

    Raises UsageError when there is no such id, its spaces aren't supported, or the environment misbehaves.
    """
    _made(id_).close()  # type: ignore[no-untyped-call]
    spec_of(Task(name=id_, env=id_, failed=Below(0.0)))  # images, say, are refused before they are played for minutes
    env = _made(id_)
    space = env.action_space
    try:
        returns, lowest = _played(id_, env, space.sample, "a random policy", MAX_EPISODES, MAX_STEPS)
        means: list[tuple[str, float]] = []
        for action in _constants(space):
            name, act = f"always action {_told(action)}", itertools.repeat(action).__next__
            same, least = _played(id_, env, act, name, ACTION_EPISODES, ACTION_STEPS)
            lowest = min(lowest, least)
            means.append((_told(action), float(np.mean(same))))
    finally:
        env.close()  # type: ignore[no-untyped-call]
    threshold = None if env.spec is None else env.spec.reward_threshold
    return Found(
        returns=tuple(returns),
        lowest=lowest,
        constant=max(means, key=lambda each: each[1]),
        threshold=None if threshold is None else float(threshold),
    )


def _played(
    id_: str, env: gymnasium.Env[Any, Any], act: Callable[[], Any], name: str, max_episodes: int, max_steps: int
) -> tuple[list[float], float]:
    """Return the returns of a policy that looks at nothing, and its lowest reward."""
    longest = Task(name=id_, env=id_, failed=Below(0.0)).max_steps
    returns: list[float] = []
    num_steps, lowest = 0, math.inf
    try:
        while len(returns) < max_episodes and (num_steps < max_steps or not returns):
            env.action_space.seed(len(returns))
            env.reset(seed=len(returns))
            total, over, length = 0.0, False, 0
            while not over:
                observation, reward, terminated, truncated, _ = env.step(act())
                sound(env.observation_space, observation, reward)
                total, length, lowest = total + float(reward), length + 1, min(lowest, float(reward))
                over = terminated or truncated or length >= longest
            returns.append(total)
            num_steps += length
    except Exception as error:  # an environment is anybody's code
        raise UsageError(
            f"The environment {id_} {said(error)} under {name}, in episode {len(returns)}: it can't be used as it is."
        ) from error
    return returns, lowest


def _constants(space: gymnasium.Space[Any]) -> list[Any]:
    """Return actions each of which a policy may always take: every one, or nothing, the lowest and the highest."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return list(range(int(space.start), int(space.start) + min(int(space.n), MAX_ACTIONS)))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return [space.start, space.start + space.nvec - 1]
    assert isinstance(space, gymnasium.spaces.Box)
    nothing = np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
    return [nothing, *(bound for bound in (space.low, space.high) if np.isfinite(bound).all())]


def _told(action: Any) -> str:
    return np.array2string(np.asarray(action), precision=3, separator=", ", threshold=8)


def _made(id_: str) -> gymnasium.Env[Any, Any]:
    """Return the environment, or raise UsageError with Gymnasium's own sentence."""
    try:
        return gymnasium.make(id_)
    except gymnasium.error.Error as error:
        raise UsageError(f"There is no environment to make for --env {id_}: {error}") from error
    except ImportError as error:
        raise UsageError(
            f"There is no environment to make for --env {id_}: {str(error).rstrip('.')}; run from the directory that "
            "holds the module, or install it."
        ) from error


def _number(value: float) -> str:
    return f"{float(f'{value:.4g}'):,g}"


def _short(value: float) -> float:
    """Return a number rounded to three significant digits, so that a last bit of difference is none."""
    return float(f"{value:.3g}") if math.isfinite(value) else value
