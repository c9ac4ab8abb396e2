"""The gate's body on the cluster: one actor that judges, probes and keeps its history. It loads no torch."""

from __future__ import annotations

import time
from pathlib import Path

from flywheel.config import GateConfig
from flywheel.gate.history import History
from flywheel.gate.judge import SafetyGate
from flywheel.policy import Policy
from flywheel.records import Artifact, Parameters, Probe, Spec, Verdict
from flywheel.task import Task


class GateActor:
    """Holds a SafetyGate and its History; `ray.remote(GateActor)` makes it an actor."""

    def __init__(self, task: Task, config: GateConfig, run_dir: str) -> None:
        """Build the gate and open `run_dir/verdicts.jsonl`."""
        self._gate = SafetyGate(task, config)
        self._history = History(Path(run_dir) / "verdicts.jsonl")

    def judge(self, artifact: Artifact, baseline: Artifact | None, parameters: Parameters | None, seed: int) -> Verdict:
        """Return the Verdict on an artifact, not signed yet, after it was written to the history."""
        verdict = self._gate.judge(artifact, baseline=baseline, parameters=parameters, seed=seed, now=time.time())
        self._history.append(verdict)
        return verdict

    def probe(
        self,
        network: bytes,
        spec: Spec,
        seed: int,
        parameters: Parameters | None = None,
        episodes: int = 200,
        max_failed: int | None = None,
    ) -> Probe:
        """Return a quick look at a network in training, given as ONNX."""
        policy = Policy(network, spec)
        return self._gate.probe(policy, seed=seed, parameters=parameters, episodes=episodes, max_failed=max_failed)

    def history(self) -> list[Verdict]:
        """Return all verdicts of this run, oldest first."""
        return self._history.read()
