"""From a Plan to what is trained: which worlds, from which weights, with how much exploration, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flywheel.config import TrainConfig
from flywheel.errors import UsageError, unknown
from flywheel.records import Correction, Parameters, Plan, Probe, Spec
from flywheel.simulate.corrected import corrected
from flywheel.tapes import Scenario
from flywheel.task import EdgeCase, Task
from flywheel.train.ending import is_whole
from flywheel.train.leading import Led, cases_of

_HARD_SHARE = 0.5  # of edge cases' worlds, where some of them are hard: the others must not be forgotten
_CUT_SHARE = 0.5  # of them, those whose episodes are cut: in the others it shows what comes later


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One round of training. Small and plain, so that it can be sent to every env runner, and again after a restart."""

    ranges: tuple[tuple[str, float, float], ...]
    """(name, low, high) of every parameter of the task; low = high where it is fixed."""
    edge_cases: tuple[EdgeCase, ...]
    edge_case_share: float
    """Share of worlds whose episodes begin in an edge case, each equally often."""
    entropy: float
    """Coefficient of the entropy bonus where the round begins."""
    warm_start: str | None
    """Digest to start from; None starts from fresh weights."""
    max_steps: int
    """Environment steps after which the round gives up."""
    exploration: float = 1.0
    """The plan's factor, for algorithms that have no entropy bonus, where the round begins."""
    entropy_end: float = 0.0
    """Coefficient of the entropy bonus once the factor has come down to 1."""
    exploration_steps: int = 1
    """Environment steps in which it does, in a straight line."""
    epsilon: float = 0.0
    """Share of random actions, where an algorithm explores by them."""
    noise: float = 0.0
    """What is added to the logarithm of each deviation, where an algorithm explores by those of its own policy."""
    hard: tuple[str, ...] = ()
    """Names of the edge cases that are not mastered yet: half of the edge cases' worlds are theirs."""
    correction: Correction | None = None
    """What the worlds correct of the task's own simulator."""
    horizon: int | None = None
    """Steps that training looks ahead; None: as long as an episode."""


@dataclass(frozen=True, slots=True)
class World:
    """Where one training episode begins, and how long it may be."""

    parameters: Parameters
    state: tuple[float, ...] | None
    """Start state, or None to start as the environment does."""
    led: Led | None = None
    """The edge case that given actions lead to, if it is one."""
    is_edge_case: bool = False
    num_steps: int | None = None
    """Steps after which it is cut, None: where the task cuts all of them."""


def make_recipe(task: Task, plan: Plan, config: TrainConfig, suite: Sequence[Scenario] = ()) -> Recipe:
    """Return what the plan asks the trainer to do; parameters that it doesn't name keep their nominal values.

    Scenarios of the gate's suite are trained in as edge cases, where training can begin there, in the worlds that the
    plan corrects.
    Raises UsageError, with the nearest name, for a parameter that the task doesn't have.
    """
    for name in plan.parameters:
        if name not in task.nominal:
            raise unknown(f"parameter of task {task.name}:", name, task.nominal)
    cases = (*task.edge_cases, *cases_of(corrected(task, plan.correction), suite))
    most_steps = plan.max_steps or config.max_steps
    nominal = {name: (value, value) for name, value in task.nominal.items()}
    base = max(config.entropy, config.exploration_entropy) if plan.exploration > 1.0 else config.entropy
    return Recipe(
        ranges=tuple((name, float(low), float(high)) for name, (low, high) in {**nominal, **plan.parameters}.items()),
        edge_cases=cases,
        edge_case_share=config.edge_case_share if cases else 0.0,
        entropy=base * plan.exploration,
        entropy_end=config.entropy,
        exploration=plan.exploration,
        exploration_steps=max(1, round(config.exploration_share * most_steps)),
        warm_start=plan.warm_start,
        max_steps=most_steps,
        correction=plan.correction,
        horizon=round(1.0 / (1.0 - config.gamma)) if config.gamma < 1.0 else None,
    )


def exploration_at(recipe: Recipe, num_steps: int) -> float:
    """Return the factor on exploration after so many steps of a round."""
    return 1.0 + (recipe.exploration - 1.0) * _left(recipe, num_steps)


def entropy_at(recipe: Recipe, num_steps: int) -> float:
    """Return the coefficient of the entropy bonus after so many steps of a round."""
    return recipe.entropy_end + (recipe.entropy - recipe.entropy_end) * _left(recipe, num_steps)


def _left(recipe: Recipe, num_steps: int) -> float:
    return max(0.0, 1.0 - num_steps / recipe.exploration_steps)


def spec_for(task: Task, spec: Spec, config: TrainConfig) -> Spec:
    """Return what the algorithm's policies of a task read and give, from the task's own spec.

    Raises UsageError for an algorithm that is not for such actions.
    """
    if config.algorithm == "dqn" and spec.action_kind != "discrete":
        raise UsageError(
            f"DQN learns a value for each of a few actions, and those of task {task.name} are {spec.action_kind}: "
            f"{'give train.algorithm=sac, or ' if spec.action_kind == 'box' and spec.unsquash else ''}leave "
            "train.algorithm at ppo."
        )
    if config.algorithm != "sac":
        return spec
    if spec.action_kind != "box" or not spec.unsquash:
        what = "have no bounds" if spec.action_kind == "box" else f"are {spec.action_kind}"
        raise UsageError(
            f"SAC squashes its actions into their bounds, and those of task {task.name} {what}: "
            f"{'give train.algorithm=dqn, or ' if spec.action_kind == 'discrete' else ''}leave train.algorithm at ppo."
        )
    return replace(spec, rule=replace(spec.rule, squashed=True))


def still_hard(hard: tuple[str, ...], probe: Probe, config: TrainConfig) -> tuple[str, ...]:
    """Return which edge cases come more often after a probe: those that failed in it.

    One that was broken off saw a part of them only: there, what was hard before stays so.
    """
    if is_whole(probe, config):
        return probe.edge_failed
    return tuple(dict.fromkeys((*probe.edge_failed, *hard)))


def sample_worlds(
    recipe: Recipe, rng: np.random.Generator, places: NDArray[np.intp], num_worlds: int
) -> Sequence[World]:
    """Return where an episode begins in each of `places`, int[K], of a vector of `num_worlds` worlds.

    Parameters are uniform in their ranges. The first places are for edge cases, and of those the first ones for the
    hard ones that the recipe names, so that each has its share of the steps: a share of the episodes would be hardly
    any step where most of them fail early. A place that is only a part of the share has it by chance.
    """
    low = np.array([low for _, low, _ in recipe.ranges])
    high = np.array([high for _, _, high in recipe.ranges])
    values = rng.uniform(low, high, size=(len(places), len(recipe.ranges)))
    which = rng.integers(max(len(recipe.edge_cases), 1), size=len(places))
    rank = places + rng.random(len(places))
    num_edge = recipe.edge_case_share * num_worlds
    hard = [index for index, case in enumerate(recipe.edge_cases) if case.name in recipe.hard]
    if hard:
        which = np.where(rank < _HARD_SHARE * num_edge, rng.choice(hard, len(places)), which)
    worlds = []
    may_cut = places + 1 <= _CUT_SHARE * num_edge
    for row, on_edge, index, short in zip(values, rank < num_edge, which, may_cut, strict=True):
        parameters = {name: float(value) for (name, _, _), value in zip(recipe.ranges, row, strict=True)}
        case = recipe.edge_cases[index] if on_edge else None
        worlds.append(World(parameters, None) if case is None else _on_edge(recipe, parameters, case, short))
    return worlds


def _on_edge(recipe: Recipe, parameters: Parameters, case: EdgeCase, may_cut: bool) -> World:
    """Return where an episode begins in an edge case.

    One whose state is all that is special about it is cut, in the first places, once it went as far as training looks
    ahead: of whole ones, the few steps that tell how to leave that state are lost in those that follow.
    """
    led = case if isinstance(case, Led) else None
    is_usual = all(low <= case.parameters.get(name, low) <= high for name, low, high in recipe.ranges)
    is_short = may_cut and is_usual and case.state is not None and led is None
    return World(
        parameters={**parameters, **case.parameters},
        state=None if led else case.state,
        led=led,
        is_edge_case=True,
        num_steps=recipe.horizon if is_short else None,
    )
