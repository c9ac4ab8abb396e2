"""Who may write to a run directory: the process that holds it already, or this one, which then takes its lock."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from flywheel import archive, foreign, growth, predicting
from flywheel.challenge import Word
from flywheel.config import Config
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.registry import Registry
from flywheel.errors import UsageError
from flywheel.gate.judge import SafetyGate, terms
from flywheel.known import last_ranges, last_worlds
from flywheel.policy import Policy
from flywheel.records import Artifact, Release, Turn, Verdict
from flywheel.store.excluded import Exclusion
from flywheel.store.intake import Intake
from flywheel.task import Task, task_digest
from flywheel.tasks import load
from flywheel.tokens import Scope

Ranges = Mapping[str, tuple[float, float]]


class Owner(Protocol):
    """The writer of a run directory: what is asked of its registry."""

    registry: Any
    """Has the methods of Registry that write, record and read."""
    config: Config
    """The configuration of the directory's last start."""

    def promote(self, digest: str) -> Release:
        """Put a judged digest into service; raises Refused, changing nothing, otherwise."""

    def challenge(self, digest: str) -> Canary:
        """Begin to try a judged digest beside the policy in service; raises Refused as Challenges.challenge."""

    def rollback(self) -> Release:
        """Condemn the digest in service and put the one before it back; raises Refused where there is none."""

    def decide(self, word: Word, reason: str, digest: str) -> Canary:
        """Do what a person says to the challenger on its way, as Challenges.decide; return its canary as it is then."""

    def spend(self, digest: str) -> int:
        """Note that a candidate is about to be judged; return how many were since the gate's budget was filled."""

    def refill(self, reason: str) -> None:
        """Fill the gate's error budget, for a reason that is kept."""

    def set_terms(self, config: str, simulator: str) -> None:
        """Let only verdicts by these terms allow a promotion from now on."""

    def add_token(self, name: str, scopes: Sequence[Scope], quota: float | None) -> str:
        """Return a new token, which nobody can be told again."""

    def revoke_token(self, name: str) -> None:
        """Let a token open nothing any more, for good."""

    def exclude(self, what: str, why: str) -> Exclusion:
        """Exclude what the store holds from training, as Intake.exclude."""

    def readmit(self, what: str) -> Exclusion:
        """Let it be learnt from again, as Intake.readmit."""


class Here:
    """This process, which holds the run directory's lock."""

    def __init__(self, task: Task, config: Config, run_dir: Path) -> None:
        """Open the registry."""
        self.registry, self.config, self._run_dir = Registry(run_dir, task_digest(task)), config, run_dir

    def promote(self, digest: str) -> Release:
        """As Owner.promote."""
        return self.registry.promote(digest, time.time())

    def challenge(self, digest: str) -> Canary:
        """As Owner.challenge; it is given decisions and episodes as soon as somebody serves here."""
        return self.registry.challenge(digest, Ramp(self.config.deploy), time.time())

    def rollback(self) -> Release:
        """As Owner.rollback."""
        return self.registry.rollback(time.time())

    def decide(self, word: Word, reason: str, digest: str) -> Canary:
        """As Owner.decide."""
        return self.registry.decide(word, reason, time.time(), digest)[0]

    def spend(self, digest: str) -> int:
        """As Owner.spend."""
        return self.registry.spend(digest, time.time())

    def refill(self, reason: str) -> None:
        """As Owner.refill."""
        self.registry.refill(reason, time.time())

    def set_terms(self, config: str, simulator: str) -> None:
        """As Owner.set_terms."""
        self.registry.set_terms(config, simulator, time.time())

    def add_token(self, name: str, scopes: Sequence[Scope], quota: float | None) -> str:
        """As Owner.add_token."""
        return self.registry.add_token(name, scopes, time.time(), quota)

    def revoke_token(self, name: str) -> None:
        """As Owner.revoke_token."""
        self.registry.revoke_token(name, time.time())

    def exclude(self, what: str, why: str) -> Exclusion:
        """As Owner.exclude."""
        with Intake(self._run_dir) as store:
            return store.exclude(what, why, time.time())

    def readmit(self, what: str) -> Exclusion:
        """As Owner.readmit."""
        with Intake(self._run_dir) as store:
            return store.readmit(what, time.time())


class Living:
    """A wheel, or `flywheel serve`, that is up in this run directory."""

    def __init__(self, attached: Any, ask: Callable[..., Any], task: Task, config: Config) -> None:
        """Talk through what `attach.attach` gave."""
        self.registry, self.config = _Through(attached.registry, ask), config
        self._observer, self._ask, self._bound = attached.observer, ask, task.limits.max_failure_rate
        self._store = attached.store

    def promote(self, digest: str) -> Release:
        """As Owner.promote; the observer watches it from now on, and replicas follow when they look next."""
        return self._watched(self.registry.promote(digest))

    def challenge(self, digest: str) -> Canary:
        """As Owner.challenge; the registry's owner drives it from now on, and replicas follow when they look next."""
        canary: Canary = self.registry.challenge(digest)
        return canary

    def rollback(self) -> Release:
        """As Owner.rollback; watched and followed as a promotion is."""
        return self._watched(self.registry.rollback())

    def decide(self, word: Word, reason: str, digest: str) -> Canary:
        """As Owner.decide; the registry's owner lets the observer watch one that is approved, as any it promotes."""
        canary: Canary = self.registry.decide(word, reason, digest)
        return canary

    def spend(self, digest: str) -> int:
        """As Owner.spend."""
        return int(self.registry.spend(digest))

    def refill(self, reason: str) -> None:
        """As Owner.refill."""
        self.registry.refill(reason)

    def set_terms(self, config: str, simulator: str) -> None:
        """As Owner.set_terms."""
        self.registry.set_terms(config, simulator)

    def add_token(self, name: str, scopes: Sequence[Scope], quota: float | None) -> str:
        """As Owner.add_token; replicas take it when they look next."""
        return str(self.registry.add_token(name, scopes, quota))

    def revoke_token(self, name: str) -> None:
        """As Owner.revoke_token; replicas refuse it when they look next."""
        self.registry.revoke_token(name)

    def exclude(self, what: str, why: str) -> Exclusion:
        """As Owner.exclude; the trainer obeys from its next helping of production on."""
        found: Exclusion = self._ask(self._stored().exclude, what, why)
        return found

    def readmit(self, what: str) -> Exclusion:
        """As Owner.readmit; the trainer obeys from its next helping of production on."""
        found: Exclusion = self._ask(self._stored().readmit, what)
        return found

    def _stored(self) -> Any:
        if self._store is None:
            raise UsageError("The store's process is starting or ending: try again in some seconds.")
        return self._store

    def _watched(self, release: Release) -> Release:
        if self._observer is not None:
            self._ask(self._observer.release, release, self._bound)
        return release


class _Through:
    """An actor whose methods are called as if it were here."""

    def __init__(self, handle: Any, ask: Callable[..., Any]) -> None:
        self._handle, self._ask = handle, ask

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)
        return lambda *arguments: self._ask(method, *arguments)


@contextmanager
def opened(task: Task, reference: str, run_dir: Path, fresh: Config | None = None) -> Iterator[Owner]:
    """Yield the owner of a run directory: the living one, or this process; a directory that isn't there is made.

    Raises UsageError when it is another task's, or is held by a process that can't be talked to.
    """
    config = configuration(run_dir, reference, fresh)
    if archive.read_living(run_dir) is not None:
        # a local Ray asks for its token; a given address doesn't turn that on, and Ray reads this when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        from flywheel import attach, cluster  # a slow import, for the few that need it

        attached = attach.attach(run_dir)
        if attached is not None:
            try:
                yield Living(attached, cluster.ask, task, config)
            finally:
                attached.close()
            return
    with archive.opened(run_dir, config, task.name, task_digest(task)):
        here = Here(task, config, run_dir)
        try:
            yield here
        finally:
            here.registry.close()


@contextmanager
def writing(run_dir: Path, reference: str = "") -> Iterator[Owner]:
    """Yield the owner of a run directory that is there, of its own task where `reference` is empty; as `opened`."""
    reference = reference or archive.read_config(run_dir)["config"].task
    with opened(load(reference), reference, run_dir) as owner:
        yield owner


def configuration(run_dir: Path, reference: str, fresh: Config | None = None) -> Config:
    """Return the configuration of the directory's last start, so that it is judged by and isn't written over.

    Of a directory that isn't there yet it is `fresh`.
    """
    if not (run_dir / archive.CONFIG).exists():
        return dataclasses.replace(fresh or Config(), task=reference, run_dir=str(run_dir))
    return archive.read_config(run_dir)["config"]


def submit(
    owner: Owner, task: Task, policy: Policy, run_dir: Path, seed: int | None = None
) -> tuple[Artifact, Verdict]:
    """Write a policy from `foreign.load` as an artifact, judge it against the one in service, and sign the verdict.

    It is judged in the worlds that the wheel trained for last, as a candidate of the wheel would be. The same file has
    the same artifact when it is submitted again, so that a condemned one stays condemned, and the one in service keeps
    the verdict that it has.
    """
    registry = owner.registry
    turns = _turns(run_dir)
    ranges, form = last_ranges(turns), last_worlds(task, turns)[0]
    artifact = next((a for a in registry.artifacts() if foreign.is_of(a, policy)), None)
    if artifact is None:
        version = registry.next_version()
        made = {"version": version, "made_at": time.time(), "ranges": ranges, "correction": form.correction}
        artifact = registry.write(*foreign.files(policy, **made))
    champion = registry.champion()
    if champion == artifact.digest:  # its newest verdict counts: a slow moment now must not bar it from a replica
        return artifact, registry.verdict(champion)
    known = registry.verdict(artifact.digest)
    is_plain = not ranges and form.correction is None
    if known is not None and known.outcome == "fail" and known.baseline == champion and is_plain:
        return artifact, known  # asked again and again, any policy would pass at last
    baseline = None if champion is None else registry.bundle(champion)
    gate, worlds = SafetyGate(form, owner.config.gate), foreign.middle(ranges)
    growth.look(form, owner.config.gate, run_dir, _call, registry, gate.grow, worlds, time.time())
    candidate = registry.bundle(artifact.digest)
    suite = registry.scenarios()
    owner.set_terms(*terms(form, owner.config.gate, worlds))
    doubt = predicting.question(form, owner.config.gate, owner.config.analyze, run_dir, _call, registry, worlds)
    verdict = gate.judge(
        candidate, baseline=baseline, parameters=worlds, suite=suite, seed=seed, tries=owner.spend(artifact.digest),
        doubt=doubt, ranges=ranges,
    )  # fmt: skip
    return artifact, registry.record(verdict)


def _call(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return method(*arguments, **named)


def _turns(run_dir: Path) -> list[Turn]:
    """Return the turns so far, and the one that is under way."""
    turns, draft = archive.read_turns(run_dir), archive.read_draft(run_dir)
    return turns if draft is None else [*turns, draft]
