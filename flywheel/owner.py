"""Who may write to a run directory: the process that holds it already, or this one, which then takes its lock."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flywheel import archive, foreign
from flywheel.config import Config, GateConfig
from flywheel.deploy.registry import Registry
from flywheel.gate.history import History
from flywheel.gate.judge import SafetyGate
from flywheel.policy import Policy
from flywheel.records import Artifact, Parameters, Release, Verdict
from flywheel.task import Task, task_digest

Ranges = Mapping[str, tuple[float, float]]


class Owner(Protocol):
    """The writer of a run directory."""

    registry: Any
    """Has the methods of Registry that add, record and read."""

    def judge(self, artifact: Artifact, baseline: Artifact | None, parameters: Parameters, seed: int) -> Verdict:
        """Return the gate's Verdict, not signed yet, after it was written to the history."""

    def promote(self, digest: str) -> Release:
        """Put a judged digest into service; raises Refused, changing nothing, otherwise."""


class Here:
    """This process, which holds the run directory's lock."""

    def __init__(self, task: Task, config: GateConfig, run_dir: Path) -> None:
        """Open the registry."""
        self.registry = Registry(run_dir, task_digest(task))
        self._task, self._config, self._run_dir = task, config, run_dir

    def judge(self, artifact: Artifact, baseline: Artifact | None, parameters: Parameters, seed: int) -> Verdict:
        """As Owner.judge."""
        return judge_here(self._task, self._config, self._run_dir, artifact, baseline, parameters, seed)

    def promote(self, digest: str) -> Release:
        """As Owner.promote."""
        return self.registry.promote(digest, time.time())


class Living:
    """A wheel, or `flywheel serve`, that is up in this run directory."""

    def __init__(self, attached: Any, task: Task, config: GateConfig, run_dir: Path) -> None:
        """Talk through what `cluster.attach` gave."""
        self.registry = _Through(attached, attached.registry)
        self._attached, self._task, self._config, self._run_dir = attached, task, config, run_dir

    def judge(self, artifact: Artifact, baseline: Artifact | None, parameters: Parameters, seed: int) -> Verdict:
        """As Owner.judge: by the wheel's gate, or here where only serving is up."""
        gate = self._attached.gate
        if gate is None:
            return judge_here(self._task, self._config, self._run_dir, artifact, baseline, parameters, seed)
        verdict: Verdict = self._attached.ask(gate.judge, artifact, baseline, parameters, seed)
        return verdict

    def promote(self, digest: str) -> Release:
        """As Owner.promote; the observer watches it from now on, and replicas follow when they look next."""
        release: Release = self.registry.promote(digest)
        self._attached.ask(self._attached.observer.release, release, self._task.limits.max_failure_rate)
        return release


class _Through:
    """An actor whose methods are called as if it were here."""

    def __init__(self, attached: Any, handle: Any) -> None:
        self._attached, self._handle = attached, handle

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)
        return lambda *arguments: self._attached.ask(method, *arguments)


def judge_here(
    task: Task,
    config: GateConfig,
    run_dir: Path,
    artifact: Artifact,
    baseline: Artifact | None,
    parameters: Parameters,
    seed: int,
) -> Verdict:
    """Judge in this process, and write the verdict to the run's history."""
    verdict = SafetyGate(task, config).judge(artifact, baseline=baseline, parameters=parameters, seed=seed)
    with open(run_dir / "verdicts.lock", "w") as lock:  # two commands may judge at once beside `flywheel serve`
        fcntl.flock(lock, fcntl.LOCK_EX)
        History(run_dir / "verdicts.jsonl").append(verdict)
    return verdict


@contextmanager
def opened(task: Task, reference: str, run_dir: Path) -> Iterator[Owner]:
    """Yield the owner of a run directory: the living one, or this process; a directory that isn't there is made.

    Raises UsageError when it is another task's, or is held by a process that can't be talked to.
    """
    config = configuration(run_dir, reference)
    if archive.read_address(run_dir) is not None:
        # a local Ray asks for its token; a given address doesn't turn that on, and Ray reads this when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        from flywheel import cluster  # a slow import, for the few that need it

        attached = cluster.attach(run_dir)
        if attached is not None:
            try:
                yield Living(attached, task, config.gate, run_dir)
            finally:
                attached.close()
            return
    with archive.opened(run_dir, config, task.name, task_digest(task)):
        here = Here(task, config.gate, run_dir)
        try:
            yield here
        finally:
            here.registry.close()


def configuration(run_dir: Path, reference: str) -> Config:
    """Return the configuration of the directory's last start, so that it is judged by and isn't written over."""
    if not (run_dir / archive.CONFIG).exists():
        return Config(task=reference, run_dir=str(run_dir))
    return msgspec.convert(archive.read_config(run_dir)["config"], Config)


def submit(owner: Owner, policy: Policy, run_dir: Path, seed: int | None = None) -> tuple[Artifact, Verdict]:
    """Write a policy from `foreign.load` as an artifact, judge it against the one in service, and sign the verdict.

    It is judged in the worlds that the wheel trained for last, as a candidate of the wheel would be. The same file has
    the same artifact when it is submitted again, so that a condemned one stays condemned, and the one in service keeps
    the verdict that it has.
    """
    registry = owner.registry
    ranges = _ranges(run_dir)
    artifact = next((a for a in registry.artifacts() if foreign.is_of(a, policy)), None)
    if artifact is None:
        version = registry.next_version()
        policies = run_dir.resolve() / archive.POLICIES
        artifact = foreign.write(policies, policy, version=version, made_at=time.time(), ranges=ranges)
        registry.add(artifact)
    champion = registry.champion()
    if champion == artifact.digest:  # its newest verdict counts: a slow moment now must not bar it from a replica
        return artifact, registry.verdict(champion)
    baseline = None if champion is None else registry.artifact(champion)
    seed = secrets.randbelow(2**31) if seed is None else seed
    verdict: Verdict = registry.record(owner.judge(artifact, baseline, foreign.middle(ranges), seed))
    return artifact, verdict


def _ranges(run_dir: Path) -> Ranges:
    """Return the parameters of the journal's last plan that names some; {} means the task's nominal ones."""
    turns = archive.read_turns(run_dir)
    return next((turn.plan.parameters for turn in reversed(turns) if turn.plan.parameters), {})
