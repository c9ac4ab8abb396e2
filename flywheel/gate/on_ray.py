"""The gate's body on the cluster: one actor that judges and probes. It loads no torch."""

from __future__ import annotations

import time

from flywheel.config import GateConfig
from flywheel.gate.judge import SafetyGate
from flywheel.policy import Bundle, Policy
from flywheel.records import Parameters, Probe, Spec, Verdict
from flywheel.task import Task


class GateActor:
    """Holds a SafetyGate; `ray.remote(GateActor)` makes it an actor."""

    def __init__(self, task: Task, config: GateConfig) -> None:
        """Build the gate."""
        self._gate = SafetyGate(task, config)

    def judge(self, policy: Bundle, baseline: Bundle | None, parameters: Parameters | None, seed: int) -> Verdict:
        """Return the Verdict on a policy, not signed yet."""
        return self._gate.judge(policy, baseline=baseline, parameters=parameters, seed=seed, now=time.time())

    def probe(
        self, network: bytes, spec: Spec, seed: int, parameters: Parameters | None = None, episodes: int = 200
    ) -> Probe:
        """Return a quick look at a network in training, given as ONNX."""
        return self._gate.probe(Policy(network, spec), seed=seed, parameters=parameters, episodes=episodes)
