"""Verdicts for these tests, of trials that were really played: one that passed, one that failed, one left open."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.trials import Situation, play_situations, trial_of, world_seed
from flywheel.policy import Policy
from flywheel.records import Parameters, Trial, Verdict
from flywheel.report.cells import LEVELS, bounds
from flywheel.report.context import Context
from flywheel.task import Limits, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, SHORT_POLE, load_linear

CONFIG = GateConfig(latency_calls=50)
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
LONG = {"length": 2.0}


def context(task: Task = TASK, **more: object) -> Context:
    """Return what the page says beside a verdict."""
    gate = SafetyGate(task, CONFIG)
    made = Context(
        task=task,
        policy="good.onnx",
        standing="Neither signed nor recorded: it allows nothing, and spent nothing of the error budget.",
        command=("flywheel", "gate", "--policy", "good.onnx", "--task", "cartpole", "--seed", "3"),
        replay=("flywheel", "gate", "--policy", "good.onnx", "--task", "cartpole", "--seed", "3", "--trial"),
        config=CONFIG,
        allowance=gate.allowance,
        source="verdict.json",
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def spread(task: Task, scenario: str, num: int, seed: int = 0) -> list[Situation]:
    """Return worlds whose parameters are drawn, each in the middle of a level of its range."""
    rng = np.random.default_rng(seed)

    def drawn() -> Parameters:
        levels = rng.integers(0, LEVELS, len(task.parameters))
        return {p.name: sum(bounds(p, int(i))) / 2 for p, i in zip(task.parameters, levels, strict=True)}

    return [Situation(seed=world_seed(seed, scenario, i), scenario=scenario, parameters=drawn()) for i in range(num)]


def played(policy: Policy, worlds: Sequence[Situation]) -> tuple[Trial, ...]:
    """Return a policy's trials in worlds."""
    return tuple(trial_of(TASK, each) for each in play_situations(TASK, policy, worlds, lockstep=256, now=100.0))


@functools.cache
def verdict(kind: str) -> Verdict:
    """Return the verdict on a policy that passes, fails or can't be simulated; against one that holds short poles."""
    gate = SafetyGate(TASK, CONFIG)
    gains, rival = (GOOD, SHORT_POLE) if kind == "pass" else (SHORT_POLE, GOOD)
    policy, baseline = load_linear(TASK, gains, digest="ab" * 32), load_linear(TASK, rival, digest="cd" * 32)
    if kind == "inconclusive":
        broken = load_linear(TASK, [[float("nan")] * 4] * 2, digest="ef" * 32)
        return gate.judge(broken, baseline=baseline, parameters=LONG, seed=3, now=100.0, tries=1)
    found = gate.judge(policy, baseline=baseline, parameters=LONG, seed=3, now=100.0, tries=2)
    nominal = [Situation(seed=t.seed, scenario=t.scenario, parameters=t.parameters) for t in found.trials
               if t.scenario == "nominal"]  # fmt: skip
    worlds = [*spread(TASK, "stress", 30), *spread(TASK, "cells", 60)]
    searched = sorted(played(policy, spread(TASK, "search", 40)), key=lambda trial: trial.margin)[:6]
    return dataclasses.replace(
        found,
        trials=(*found.trials, *played(policy, worlds), *searched),
        rivals=played(baseline, [*nominal, *worlds]),
    )
