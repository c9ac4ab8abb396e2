"""Every number that Flywheel shows in Ray's metrics, in one list. Pure data; `on_ray` makes Ray's objects of it.

In: records and plain status values (readings.py turns them into Readings). Out: Readings. Never: an episode's id, a
digest, or anything else without end as a tag, since each value of a tag is a series of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WHEEL = "flywheel"
"""Value of the tag `wheel` where nobody gave the wheel a name."""
_FAST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meter:
    """One metric. Ray shows it as `ray_<name>`, a counter as `ray_<name>_total`; each has the tag `wheel`, too."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    unit: str
    """As Grafana calls it: short, s, percentunit, bytes."""
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in `unit`. Ray puts every value into the middle of its bucket, so that
    only quantiles can be had of it: a mean needs two counters."""
    running: bool = False
    """True: a counter whose readings are the process's own running totals."""

    @property
    def shown(self) -> str:
        """Its name as Prometheus has it (a histogram's series add _bucket, _sum and _count)."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


def _counter(name: str, help: str, *tags: str, unit: str = "short", running: bool = False) -> Meter:
    return Meter(name=f"flywheel_{name}", kind="counter", help=help, unit=unit, tags=tags, running=running)


def _gauge(name: str, unit: str, help: str, *tags: str) -> Meter:
    return Meter(name=f"flywheel_{name}", kind="gauge", help=help, unit=unit, tags=tags)


def _histogram(name: str, help: str, *tags: str) -> Meter:
    return Meter(name=f"flywheel_{name}", kind="histogram", help=help, unit="s", tags=tags, boundaries=_FAST_S)


# Production, as the observer has read it in order of episode start
RETURN = _gauge("production_return", "short", "Mean return of the last episodes of the release in service.")
FAILURE_RATE = _gauge("production_failure_rate", "percentunit", "Share of failed ones among the same episodes.")
OPEN = _gauge("open_episodes", "short", "Episodes that have begun and are neither whole nor lost.")
WAITING = _gauge("waiting_episodes", "short", "Episodes that wait for those that began before them.")
EPISODES = _counter("episodes", "Episodes made durable.", "origin", "end", "failed")

# Monitors
EVIDENCE = _gauge("monitor_evidence", "short", "Evidence of a monitor against the release in service.", "monitor")
THRESHOLD = _gauge("monitor_threshold", "short", "Evidence at which this monitor raises its Signal.", "monitor")
SIGNALS = _counter("signals", "Alarms raised.", "monitor", "kind")

# Gate
VERDICTS = _counter("verdicts", "Verdicts of the gate.", "outcome")
SIMULATIONS = _counter("simulations", "Episodes that the gate played (of probes the nominal ones).", "purpose")
CHECK = _gauge("gate_check", "short", "A check of the last verdict: low and high end, value, bound.", "check", "side")
PROBE_RETURN = _gauge("probe_return", "short", "Mean return of the last probe of a policy in training.")
PROBE_FAILURE_RATE = _gauge("probe_failure_rate", "percentunit", "Share of failed episodes of the last probe.")

# Releases
RELEASES = _counter("releases", "Policies put into service.", "stage", "cause")
SHARE = _gauge("release_share", "percentunit", "Share of new episodes that a stage's policy answers.", "stage")
VERSION = _gauge("policy_version", "short", "Version of a stage's policy, as the registry has it.", "stage")

# Serving
DECISIONS = _counter("decisions", "Steps that replicas decided, retries included.", running=True)
REQUESTS = _counter("requests", "Requests that replicas answered.", "route", "code", running=True)
REQUEST_SECONDS = _histogram("request_seconds", "Seconds behind the door, of an even sample.", "route", "code")
REPLICA_VERSION = _gauge("replica_policy_version", "short", "Version of the policy that a replica answers with.")
QUEUE = _gauge("outbox_steps", "short", "Steps that a replica holds for the observer.")

# Ingest and losses
INGEST = _histogram("ingest_seconds", "Seconds from an end's arrival at a replica to the store's commit.")
ROWS = _counter("rows", "Rows that the observer received, kept in episodes, or knew already.", "kind", running=True)
LOSSES = _counter("losses", "Rows and episodes that were not kept, or not as they were meant.", "kind", running=True)
STORED = _gauge("store_episodes", "short", "Episodes in the store.")
STORE_BYTES = _gauge("store_bytes", "bytes", "Size of the store's files.")

# Traces
SPANS = _counter("spans", "Spans that were handed over to be kept (or exported), or lost.", "kind", running=True)
TRACES = _gauge("trace_spans", "short", "Spans in the run directory's traces.")

# The loop and its training
TURNS = _counter("turns", "Turns of the wheel.", "strategy")
STAGES = _counter("stages", "Stages of the loop that were done.", "stage")
STAGE_SECONDS = _counter("stage_seconds", "Seconds that they took.", "stage", unit="s")
WORK = _counter("work", "Pieces of work that rooms did.", "work")
WORK_SECONDS = _counter("work_seconds", "Seconds that they took.", "work", unit="s")
TRAINING_STEPS = _counter("training_steps", "Environment steps that training took.", running=True)
TRAINING_RETURN = _gauge("training_return", "short", "Mean return of the last training episodes.")
BATCH_SHARE = _gauge("batch_share", "percentunit", "Share of the last batch's steps, of production or not.", "source")
BATCH_AGE = _gauge("batch_age_episodes", "short", "Mean age of the last batch's steps: episodes added since theirs.")
BATCH_EFFECTIVE = _gauge("batch_effective", "short", "Steps that would say as much if all were drawn equally often.")
TRAINING_SPEED = _gauge("training_speed", "short", "Environment steps a second of the last iteration of training.")
TRAINING_LEFT = _gauge("training_left_seconds", "s", "Seconds that the round of training may still take, at most.")

METERS: tuple[Meter, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Meter))
"""All of them, in the order above."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a meter; `tags` are the values of its tags, in their order."""

    meter: Meter
    value: float
    tags: tuple[str, ...] = ()
