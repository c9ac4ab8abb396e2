"""The gate's body on the cluster: one actor that judges, probes and keeps its history. It loads no torch."""

from __future__ import annotations

import time
from pathlib import Path

from flywheel.config import GateConfig
from flywheel.gate.history import History
from flywheel.gate.judge import SafetyGate
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import Policy
from flywheel.records import Artifact, Parameters, Probe, Spec, Verdict
from flywheel.task import Task


class GateActor:
    """Holds a SafetyGate and its History; `ray.remote(GateActor)` makes it an actor."""

    def __init__(self, task: Task, config: GateConfig, run_dir: str, wheel: str = WHEEL) -> None:
        """Build the gate and open `run_dir/verdicts.jsonl`. `wheel` is the name that its metrics carry."""
        self._meters = Recorder(wheel)
        self._gate = SafetyGate(task, config)
        self._history = History(Path(run_dir) / "verdicts.jsonl")

    def __repr__(self) -> str:
        return f"gate({self._meters.wheel})"

    def judge(self, artifact: Artifact, baseline: Artifact | None, parameters: Parameters | None, seed: int) -> Verdict:
        """Return the Verdict on an artifact, not signed yet, after it was written to the history."""
        verdict = self._gate.judge(artifact, baseline=baseline, parameters=parameters, seed=seed, now=time.time())
        self._history.append(verdict)
        self._meters.record(readings.of_verdict(verdict))
        return verdict

    def probe(
        self, network: bytes, spec: Spec, seed: int, parameters: Parameters | None = None, episodes: int = 200
    ) -> Probe:
        """Return a quick look at a network in training, given as ONNX."""
        began = time.perf_counter()
        probe = self._gate.probe(Policy(network, spec), seed=seed, parameters=parameters, episodes=episodes)
        self._meters.record(readings.of_probe(probe, time.perf_counter() - began))
        return probe

    def history(self) -> list[Verdict]:
        """Return all verdicts of this run, oldest first."""
        return self._history.read()
