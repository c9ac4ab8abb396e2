"""What a verdict's page says beside the verdict: whose it is, by which commands it is made again, and its budget."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.records import Parameters, Verdict
from flywheel.task import Task

SHORT = 12
"""Letters of a digest, or of an episode's id, by which a command finds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything is told as a person writes it; the page escapes it."""

    task: Task
    policy: str
    """What the policy is called."""
    standing: str
    """What the verdict allows."""
    command: tuple[str, ...]
    """Words that make the verdict again."""
    replay: tuple[str, ...]
    """Words that play one of its trials again, when the trial's id follows them."""
    config: GateConfig
    allowance: Callable[[int], float]
    """As SafetyGate.allowance."""
    source: str = ""
    """Where the whole verdict is as JSON."""

    def replayed(self, episode: str) -> tuple[str, ...]:
        """Return the words that play a trial again."""
        return (*self.replay, episode[:SHORT])


def parameters_of(verdict: Verdict, task: Task) -> Parameters:
    """Return the simulator's parameters at which a verdict's nominal worlds were."""
    return next((trial.parameters for trial in verdict.trials if trial.scenario == "nominal"), task.nominal)


def asked(parameters: Parameters, *usual: Parameters) -> list[str]:
    """Return the options that ask for these parameters, but for those that all of the `usual` ones have, too."""
    given = [f"{name}={v!r}" for name, v in parameters.items() if any(v != each.get(name) for each in usual)]
    return [word for each in given for word in ("--parameter", each)]


def recorded(verdict: Verdict, version: int, task: Task, config: GateConfig, run_dir: str) -> Context:
    """Return the context of a verdict that the registry of a run directory holds on a policy of this version."""
    policy = ["flywheel", "gate", "--policy", verdict.digest[:SHORT], "--run-dir", run_dir]
    seed = ["--seed", str(verdict.seed)]
    baseline = ["--baseline", verdict.baseline[:SHORT] if verdict.baseline else "none"]
    return Context(
        task=task,
        policy=f"policy {verdict.digest[:8]} (version {version})",
        standing=(
            "Signed and recorded. It allows a promotion until it is no longer valid."
            if verdict.outcome == "pass"
            else "Signed and recorded. It allows nothing."
        ),
        command=(*policy, *seed, *baseline, *asked(parameters_of(verdict, task), {})),
        replay=(*policy, *seed, "--trial"),
        config=config,
        allowance=SafetyGate(task, config).allowance,
        source=f"{shlex.join([*policy, *seed])} --recorded writes it",
    )
