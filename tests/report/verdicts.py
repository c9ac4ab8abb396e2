"""Verdicts for these tests, by the gate itself: one that passed, one that failed, one left open."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.records import Verdict
from flywheel.report.context import Context
from flywheel.task import Limits, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, SHORT_POLE, load_linear
from tests.page.run_dirs import HALF

CONFIG = GateConfig(latency_calls=50)
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))


def context(task: Task = TASK, **more: Any) -> Context:
    """Return what the page says beside a verdict."""
    made = Context(
        task=task,
        policy="good.onnx",
        standing="Neither signed nor recorded: it allows nothing, and spent nothing of the error budget.",
        command=("flywheel", "gate", "--policy", "good.onnx", "--task", "cartpole", "--seed", "3"),
        replay=("flywheel", "gate", "--policy", "good.onnx", "--task", "cartpole", "--seed", "3", "--trial"),
        config=CONFIG,
        allowance=SafetyGate(task, CONFIG).allowance,
        source="verdict.json",
    )
    return dataclasses.replace(made, **more)


@functools.cache
def verdict(kind: str) -> Verdict:
    """Return the verdict on a policy that passes, one that fails where poles are long, or one that answers NaN."""
    judge = functools.partial(SafetyGate(TASK, CONFIG).judge, seed=3, now=1_790_000_000.0, tries=2)
    if kind == "inconclusive":
        broken = load_linear(TASK, [[float("nan")] * 4] * 2, digest="ef" * 32)
        return judge(broken, baseline=load_linear(TASK, digest="cd" * 32))
    gains, rival, parameters = (GOOD, SHORT_POLE, {}) if kind == "pass" else (HALF, GOOD, {"length": 2.0})
    policy, baseline = load_linear(TASK, gains, digest="ab" * 32), load_linear(TASK, rival, digest="cd" * 32)
    return judge(policy, baseline=baseline, parameters=parameters)
