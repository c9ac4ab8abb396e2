"""What each room's records say in numbers. Pure: records and plain status values in, Readings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flywheel import meters
from flywheel.meters import Reading
from flywheel.records import Episode, Probe, Progress, Release, Signal, Stage, Steps, Turn, Verdict

LAST = 50
"""Outcomes that production's return and failure rate are taken over."""
_NAMES = (
    "act", "end", "rewards", "leases", "episodes", "spans", "policy", "key", "served", "rollback", "health",
    "openapi.json",
)  # fmt: skip
POLICIES = "/v1/policies/"
"""What the path of any policy begins with; all of them share a series."""
ROUTES = frozenset({f"{POLICIES}{{digest}}", *(f"/v1/{name}" for name in _NAMES)})
"""Paths that get a series of their own; a stranger's inventions share one."""
_ROWS = ("received", "kept", "duplicates")
_LOSSES = (
    "lost", "void", "evicted", "quarantined", "unjudged", "late", "passed", "silent", "conflicts", "stray", "truncated",
    "unmatched", "belated", "defaulted",
)  # fmt: skip
_STAGES: tuple[Stage, ...] = ("shadow", "canary", "full")


class Outcome(Protocol):
    """What is read of an episode's outcome."""

    @property
    def failed(self) -> bool:
        """Whether the task counts it as failed."""

    @property
    def total(self) -> float:
        """Its return."""


def of_production(status: Mapping[str, Any], heard: Sequence[Outcome]) -> Iterator[Reading]:
    """Read the observer's status and the outcomes that it last heard of the release in service."""
    if heard:
        yield Reading(meters.RETURN, sum(outcome.total for outcome in heard) / len(heard))
        yield Reading(meters.FAILURE_RATE, sum(outcome.failed for outcome in heard) / len(heard))
    yield Reading(meters.OPEN, status["open"])
    yield Reading(meters.WAITING, status["waiting"])
    for name, monitor in status["monitors"].items():
        yield Reading(meters.EVIDENCE, monitor["evidence"], (name,))
        yield Reading(meters.THRESHOLD, monitor["threshold"], (name,))
    for kind in _ROWS:
        yield Reading(meters.ROWS, status["counts"][kind], (kind,))
    for kind in _LOSSES:
        yield Reading(meters.LOSSES, status["counts"][kind], (kind,))


def of_signals(signals: Iterable[Signal]) -> Iterator[Reading]:
    """Read alarms that were raised just now."""
    for signal in signals:
        yield Reading(meters.SIGNALS, 1, (signal.monitor, signal.kind))


def of_ends(steps: Steps, missing: Mapping[str, Sequence[int]], now: float) -> Iterator[Reading]:
    """Read how long the ends took that are durable now."""
    for id_, end, seen_at in zip(steps.episodes, steps.ends, steps.seen_at.tolist(), strict=True):
        if end != "no" and not missing.get(id_):
            yield Reading(meters.INGEST, max(0.0, now - seen_at))


def of_commit(episodes: Iterable[Episode], answers: Mapping[str, str], seconds: float) -> Iterator[Reading]:
    """Read one commit of the store: its episodes by kind, and how long it took."""
    yield from of_work("commit", seconds)
    for episode in {episode.id: episode for episode in episodes}.values():
        if answers[episode.id] == "stored":
            yield Reading(meters.EPISODES, 1, (episode.origin, episode.end, "yes" if episode.failed else "no"))


def of_store(num_episodes: int, num_bytes: int) -> Iterator[Reading]:
    """Read how much the store holds."""
    yield Reading(meters.STORED, num_episodes)
    yield Reading(meters.STORE_BYTES, num_bytes)


def of_verdict(verdict: Verdict) -> Iterator[Reading]:
    """Read a verdict: its outcome, its checks, and what it cost."""
    yield Reading(meters.VERDICTS, 1, (verdict.outcome,))
    yield from of_work("judge", verdict.cost_s)
    yield Reading(meters.SIMULATIONS, verdict.num_simulations, ("judge",))
    for check in verdict.checks:
        low, high = check.interval
        for side, value in (("low", low), ("value", check.value), ("high", high), ("bound", check.bound)):
            yield Reading(meters.CHECK, value, (check.name, side))


def of_probe(probe: Probe, seconds: float) -> Iterator[Reading]:
    """Read a probe of the gate."""
    yield Reading(meters.PROBE_RETURN, probe.mean_return)
    yield Reading(meters.PROBE_FAILURE_RATE, probe.num_failed / probe.num_episodes)
    yield Reading(meters.SIMULATIONS, probe.num_episodes, ("probe",))
    yield from of_work("probe", seconds)


def of_release(release: Release, version: int) -> Iterator[Reading]:
    """Read who answers from now on: what a canary doesn't take is left to the policy in full service."""
    for stage in _STAGES:
        others = 1.0 - release.share if stage == "full" and release.stage == "canary" else 0.0
        if stage == "full" and release.stage == "shadow":
            others = 1.0
        yield Reading(meters.SHARE, release.share if stage == release.stage else others, (stage,))
    yield Reading(meters.VERSION, version, (release.stage,))


def of_releasing(release: Release, cause: str) -> Iterator[Reading]:
    """Read that a policy was put into service, by "promotion" or "rollback"."""
    yield Reading(meters.RELEASES, 1, (release.stage, cause))


def of_replica(status: Mapping[str, Any]) -> Iterator[Reading]:
    """Read a replica's status."""
    yield Reading(meters.DECISIONS, status["decisions"])
    yield Reading(meters.REPLICA_VERSION, status["version"])
    yield Reading(meters.QUEUE, status["waiting"])
    yield Reading(meters.LOSSES, status["dropped"], ("dropped",))


def route_of(path: str) -> str:
    """Return the route that a path belongs to, which has a series of its own, or "other"."""
    path = f"{POLICIES}{{digest}}" if path.startswith(POLICIES) else path
    return path if path in ROUTES else "other"


def of_requests(counts: Mapping[tuple[str, str], int]) -> Iterator[Reading]:
    """Read how many requests there were of each route and code."""
    for key, num in counts.items():
        yield Reading(meters.REQUESTS, num, key)


def of_request(key: tuple[str, str], seconds: float) -> Reading:
    """Read how long one request of a route and code took."""
    return Reading(meters.REQUEST_SECONDS, seconds, key)


def of_spans(sent: int, lost: int) -> Iterator[Reading]:
    """Read what became of a process's spans so far."""
    yield Reading(meters.SPANS, sent, ("sent",))
    yield Reading(meters.SPANS, lost, ("lost",))


def of_exported(sent: int, lost: int) -> Iterator[Reading]:
    """Read what became of the spans that the run's owner of traces sends to a collector, too."""
    yield Reading(meters.SPANS, sent, ("exported",))
    yield Reading(meters.SPANS, lost, ("not_exported",))


def of_traces(num_spans: int) -> Iterator[Reading]:
    """Read how many spans are kept."""
    yield Reading(meters.TRACES, num_spans)


def of_progress(progress: Progress) -> Iterator[Reading]:
    """Read one iteration of training."""
    yield Reading(meters.TRAINING_STEPS, progress.num_steps_total)
    yield Reading(meters.TRAINING_RETURN, progress.mean_return)
    if progress.steps_per_s > 0:
        yield Reading(meters.TRAINING_SPEED, progress.steps_per_s)
    yield from of_work("iteration", progress.seconds)


def of_batch(told: Mapping[str, Any]) -> Iterator[Reading]:
    """Read what the last batch of an off-policy algorithm was made of; nothing before the first one."""
    if told:
        yield Reading(meters.BATCH_SHARE, told["production"], ("production",))
        yield Reading(meters.BATCH_SHARE, 1.0 - told["production"], ("simulation",))
        yield Reading(meters.BATCH_AGE, told["age"])
        yield Reading(meters.BATCH_EFFECTIVE, told["effective"])


def of_left(seconds: float | None) -> Iterator[Reading]:
    """Read how long a round of training may still take; None is not known."""
    if seconds is not None:
        yield Reading(meters.TRAINING_LEFT, seconds)


def of_work(work: str, seconds: float) -> Iterator[Reading]:
    """Read a piece of work that a room did."""
    yield Reading(meters.WORK, 1, (work,))
    yield Reading(meters.WORK_SECONDS, seconds, (work,))


def of_stage(stage: str, seconds: float) -> Iterator[Reading]:
    """Read a stage of the loop."""
    yield Reading(meters.STAGES, 1, (stage,))
    yield Reading(meters.STAGE_SECONDS, seconds, (stage,))


def of_turn(turn: Turn) -> Iterator[Reading]:
    """Read a finished turn."""
    yield Reading(meters.TURNS, 1, (turn.plan.strategy,))
