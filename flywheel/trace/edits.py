"""What a fork changes: a parameter of the world, of the policy's rule, the policy, the reward, or one action. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel.errors import UsageError, unknown
from flywheel.records import Array, Rule, Spec
from flywheel.task import Parameter, Task

Reward = Callable[[Array, Array, Array, float], float]
"""(observation, raw action, observation after it, the world's reward) -> the reward that counts instead."""

RULE = ("exploration_rate", "temperature", "greedy")
"""Names of the acting rule's parameters."""
NAMES = (*RULE, "policy", "reward_scale", "reward_offset", "reward", "action")
"""Every name that `edit_parameter` takes besides those of the task's world, which come first."""


@dataclass(slots=True)
class Edits:
    """All changes of one fork."""

    world: dict[str, float] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    policy: str | None = None
    """Digest of the policy that acts instead."""
    scale: float = 1.0
    offset: float = 0.0
    reward: Reward | None = None
    action: Array | None = None
    """Raw action of the fork's first step."""
    told: dict[str, str] = field(default_factory=dict)
    """By name, what is changed, in words."""

    @property
    def is_of_reward(self) -> bool:
        """Whether the fork's rewards are not the world's."""
        return self.reward is not None or (self.scale, self.offset) != (1.0, 0.0)

    def acting(self, rule: Rule) -> Rule:
        """Return the rule that acts: the policy's own with what is changed of it."""
        return dataclasses.replace(rule, **self.rule) if self.rule else rule


def set_edit(
    edits: Edits, task: Task, spec: Spec, policies: Iterable[str], values: Mapping[str, float], name: str, value: Any
) -> None:
    """Change one thing more; UsageError for a name or a value that isn't there, with the nearest one.

    `values` are the world's parameters as they were, `policies` the digests that there are, `spec` is the policy's.
    """
    if name in task.nominal:
        edits.world[name] = in_range(next(each for each in task.parameters if each.name == name), number(name, value))
        edits.told[name] = f"{name} {values[name]:g} → {edits.world[name]:g}"
    elif name in RULE:
        edits.rule[name] = _rule(spec.rule, name, value)
        edits.told[name] = f"{name} {_word(getattr(spec.rule, name))} → {_word(edits.rule[name])}"
    elif name == "policy":
        edits.policy = matching("policy", str(value), policies)
        edits.told[name] = f"policy → {edits.policy[:8]}"
    elif name == "reward_scale":
        edits.scale = number(name, value)
        edits.told[name] = f"reward × {edits.scale:g}"
    elif name == "reward_offset":
        edits.offset = number(name, value)
        edits.told[name] = f"reward + {edits.offset:g}"
    elif name == "reward":
        if not callable(value):
            raise UsageError(
                "reward takes a function (observation, action, next observation, reward) -> reward; a number goes to "
                "reward_scale or reward_offset."
            )
        edits.reward = value
        edits.told[name] = f"reward by {getattr(value, '__name__', 'a function')}"
    elif name == "action":
        edits.action = raw_action(spec, value)
        edits.told[name] = f"action → {', '.join(f'{v:g}' for v in np.ravel(edits.action))}"
    else:
        raise unknown("parameter to edit:", name, [*task.nominal, *NAMES])


def in_range(parameter: Parameter, value: float) -> float:
    """Return a value that the task's simulator can be set to; UsageError otherwise."""
    if not parameter.low <= value <= parameter.high:
        raise UsageError(
            f"{parameter.name} takes {parameter.low:g} to {parameter.high:g}, not {value:g}: the task gives that range "
            "for what its simulator can be set to."
        )
    return value


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def number(name: str, value: Any) -> float:
    """Return a finite number; UsageError otherwise."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{name} takes a number, not {value!r}.")
    return found


def _rule(rule: Rule, name: str, value: Any) -> Any:
    if name == "greedy":
        words = {"true": True, "false": False, "1": True, "0": False}
        if str(value).lower() not in words:
            raise UsageError(f"greedy takes true or false, not {value!r}.")
        return words[str(value).lower()]
    found = number(name, value)
    if name == "exploration_rate" and not 0.0 <= found <= 1.0:
        raise UsageError(f"exploration_rate is a share from 0 to 1, not {found:g}.")
    if name == "exploration_rate" and rule.kind == "gaussian":
        raise UsageError("A Gaussian policy has no exploration_rate: edit its temperature, which widens it.")
    if name == "temperature" and not found > 0.0:
        raise UsageError(f"temperature is more than 0, not {found:g}.")
    return found


def matching(what: str, prefix: str, names: Iterable[str]) -> str:
    """Return the one name that begins with a prefix; UsageError when there is none, or more than one."""
    known = list(names)
    if prefix in known:
        return prefix
    found = [name for name in known if prefix and name.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{prefix!r} begins {len(found)} {what} names: give more of it, as {found[0][:12]}.")
    if what == "episode":
        raise UsageError(
            f"There is no episode {prefix!r} among {len(known):,} of production and the gate: flywheel episodes lists "
            "them. A fork is kept nowhere: make all edits in one fork of the original."
        )
    raise unknown(what, prefix, [name[:12] for name in known[:20]])


def raw_action(spec: Spec, value: Any) -> Array:
    """Return a raw action [*a] of numbers, or of their text "0.5,-1"; UsageError where it isn't one of the task's."""
    text = value.strip("[] ") if isinstance(value, str) else None
    try:
        numbers = np.array([float(part) for part in text.split(",")] if text is not None else value, dtype=np.float64)
        found = numbers.reshape(spec.action_shape)
    except (TypeError, ValueError):
        raise UsageError(f"action takes {_actions(spec)}, not {value!r}.") from None
    if spec.action_kind == "box":
        if not np.isfinite(found).all():
            raise UsageError(f"action takes {_actions(spec)}, not {value!r}.")
        return found.astype(np.float32)
    most = np.array(spec.action_nvec or spec.num_actions)
    if ((found < 0) | (found >= most) | (found != np.round(found))).any():
        raise UsageError(f"action takes {_actions(spec)}, not {value!r}.")
    return found.astype(np.int64)


def _actions(spec: Spec) -> str:
    if spec.action_kind == "discrete":
        return f"a whole number from 0 to {spec.num_actions - 1}"
    if spec.action_kind == "multi_discrete":
        return f"{len(spec.action_nvec)} whole numbers below {', '.join(map(str, spec.action_nvec))}"
    unit = " (from -1 to 1: stretched to the action's bounds)" if spec.unsquash else ""
    return f"{int(np.prod(spec.action_shape))} numbers as the policy gives them{unit}"
