"""The gate's body on the cluster: one actor that judges and probes. It loads no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flywheel.config import GateConfig
from flywheel.gate.grow import Growth
from flywheel.gate.judge import SafetyGate
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import Bundle, Policy
from flywheel.records import Episode, Parameters, Probe, Spec, Verdict
from flywheel.tapes import Scenario
from flywheel.task import Task


class GateActor:
    """Holds a SafetyGate; `ray.remote(GateActor)` makes it an actor."""

    def __init__(self, task: Task, config: GateConfig, wheel: str = WHEEL) -> None:
        """Build the gate. `wheel` is the name that its metrics carry."""
        self._meters = Recorder(wheel)
        self._gate = SafetyGate(task, config)

    def __repr__(self) -> str:
        return f"gate({self._meters.wheel})"

    def judge(
        self,
        policy: Bundle,
        baseline: Bundle | None,
        parameters: Parameters | None,
        seed: int,
        suite: Sequence[Scenario] = (),
        tries: int = 0,
    ) -> Verdict:
        """Return the Verdict on a policy, not signed yet; `tries` others were judged since a release was confirmed."""
        verdict = self._gate.judge(
            policy, baseline=baseline, parameters=parameters, suite=suite, seed=seed, now=time.time(), tries=tries
        )
        self._meters.record(readings.of_verdict(verdict))
        return verdict

    def grow(self, policy: Bundle, episodes: Sequence[Episode], **given: Any) -> Growth:
        """As SafetyGate.grow."""
        return self._gate.grow(policy, episodes, **given)

    def is_spent(self, tries: int) -> bool:
        """As SafetyGate.is_spent."""
        return self._gate.is_spent(tries)

    def probe(
        self,
        network: bytes,
        spec: Spec,
        seed: int,
        parameters: Parameters | None = None,
        episodes: int = 200,
        max_failed: int | None = None,
        suite: Sequence[Scenario] = (),
    ) -> Probe:
        """Return a quick look at a network in training, given as ONNX."""
        began, policy = time.perf_counter(), Policy(network, spec)
        probe = self._gate.probe(
            policy, seed=seed, parameters=parameters, suite=suite, episodes=episodes, max_failed=max_failed
        )
        self._meters.record(readings.of_probe(probe, time.perf_counter() - began))
        return probe
