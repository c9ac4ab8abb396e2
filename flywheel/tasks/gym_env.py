"""A Task from a Gymnasium id and nothing else: what failing means is measured on a random policy.

In: `env:ID`, or `env:ID?failed_below=NUMBER&…` (the `reference` of a task, which other processes load without
measuring again). Out: a Task without parameters, start states and edge cases.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flywheel.config import Config
from flywheel.errors import UsageError, unknown
from flywheel.faults import said, sound
from flywheel.records import Episode
from flywheel.task import Limits, Task

PREFIX = "env:"
MAX_EPISODES = 100
"""Episodes of the random policy that are measured at most."""
MAX_STEPS = 20_000
"""Steps that they may take in all; the first episode may take longer."""
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
    """What a Gymnasium id says of itself, and what a random policy's returns are."""

    returns: tuple[float, ...]
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

    An episode fails when its return is below `failed_below`; None takes the middle between the mean return of a
    random policy and the id's reward threshold, or, where it has none, what 95 % of random episodes don't exceed.
    """
    found = measure(id_)
    mean, low = float(np.mean(found.returns)), min(found.returns)
    values: dict[str, float] = {}
    if found.threshold is not None and found.threshold > low:
        values |= {"low": _short(low), "high": _short(found.threshold)}
    if failed_below is not None:
        values["failed_below"], why = failed_below, "as asked for"
    elif found.threshold is not None and found.threshold > mean:
        values["failed_below"] = _short((mean + found.threshold) / 2)
        why = (
            f"half way between {mean:.4g}, the mean of {len(found.returns)} random episodes, and Gymnasium's own "
            f"threshold {found.threshold:g}"
        )
    else:
        values["failed_to"] = _short(float(np.quantile(found.returns, 0.95)))
        why = f"which 95 % of {len(found.returns)} random episodes don't exceed; this id has no reward threshold"
    if max_failure_rate is not None:
        values["max_failure_rate"] = max_failure_rate
    task = _task(id_, values)
    return task, (
        f"an episode of {id_} counts as failed when its return is {task.version} ({why}), and "
        f"{100 * task.limits.max_failure_rate:.3g} % of them may fail; --env-failed-below and --env-max-failure-rate "
        "say otherwise"
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
    """Return the returns of a random policy in at most MAX_EPISODES episodes: the same in every process."""
    task = Task(name=id_, env=id_, failed=Below(0.0))
    env = _made(id_)
    returns: list[float] = []
    num_steps = 0
    try:
        while len(returns) < MAX_EPISODES and (num_steps < MAX_STEPS or not returns):
            env.action_space.seed(len(returns))
            env.reset(seed=len(returns))
            total, over, length = 0.0, False, 0
            while not over:
                observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                sound(env.observation_space, observation, reward)
                total, length = total + float(reward), length + 1
                over = terminated or truncated or length >= task.max_steps
            returns.append(total)
            num_steps += length
    except Exception as error:  # an environment is anybody's code
        raise UsageError(
            f"The environment {id_} {said(error)} under a random policy, in episode {len(returns)}: it can't be used "
            "as it is."
        ) from error
    finally:
        env.close()  # type: ignore[no-untyped-call]
    threshold = None if env.spec is None else env.spec.reward_threshold
    return Found(returns=tuple(returns), threshold=None if threshold is None else float(threshold))


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


def _short(value: float) -> float:
    """Return a number rounded to three significant digits, so that a last bit of difference is none."""
    return float(f"{value:.3g}") if math.isfinite(value) else value
