"""The body of traces on Ray: the owner of the run directory's spans, and the sink by which other processes reach it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError

from flywheel.config import TraceConfig
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.trace import sinks
from flywheel.trace.outlet import Outlet, Sink
from flywheel.trace.row import AwayError, Row, packed, unpacked
from flywheel.trace.spanstore import SpanStore

TRACE = "trace"
"""Name of the actor in the wheel's namespace."""
COLLECT_S = 1.0
"""Seconds between two looks for spans that programs left in the run directory."""
HAND_OVER_S = 1.0
"""Seconds that processes have at the end for their last spans."""
_WAIT_S, _AWAY_S = 5.0, 5.0
log = logging.getLogger(__name__)


class TraceActor:
    """Owner of the run directory's spans; after a restart it goes on from the disk."""

    def __init__(self, run_dir: str, config: TraceConfig, wheel: str = WHEEL) -> None:
        """Open the file; spans go to OpenTelemetry's collector, too, where the environment names one."""
        self._meters = Recorder(wheel)
        self._store, self._lock = SpanStore(run_dir, config.max_spans, _WAIT_S), threading.Lock()
        to_collector = sinks.to_collector()
        self._collector = None if to_collector is None else _outlet(to_collector, config)
        threading.Thread(target=self._collect, daemon=True, name="collect").start()

    def __repr__(self) -> str:
        return f"trace({self._meters.wheel})"

    def append(self, data: bytes) -> int:
        """Make packed spans durable and return how many were taken; safe to call again."""
        rows = unpacked(data)
        try:
            with self._lock:
                self._store.append(rows)
        except sqlite3.Error:  # the disk may have room again in a moment
            raise
        except Exception:
            log.exception("%d spans could not be stored.", len(rows))
            return 0
        if self._collector is not None:  # programs send theirs to the collector by themselves
            self._collector.put([row for row in rows if row.source != "client"])
            exported = self._collector.counts()
            self._meters.record(readings.of_exported(exported.sent, exported.lost))
        self._meters.record(readings.of_traces(self._store.count()))
        return len(rows)

    def count(self) -> int:
        """Return the number of spans."""
        return self._store.count()

    def _collect(self) -> None:
        stop = threading.Event()
        while not stop.wait(COLLECT_S):
            try:
                with self._lock:
                    self._store.collect()
            except Exception:  # they stay where they are until the next look
                log.exception("Spans in the run directory could not be taken in.")


def to_actor(namespace: str | None) -> Sink:
    """Return a sink that hands spans to the owner, for any process of Ray."""
    handle: Any = None

    def send(rows: Sequence[Row]) -> int:
        nonlocal handle
        try:
            handle = handle or ray.get_actor(TRACE, namespace=namespace)
            return int(handle.append.remote(packed(rows)).future().result(_AWAY_S))
        except (RayError, ValueError, TimeoutError) as error:
            handle = None
            raise AwayError(f"actor {TRACE!r}: {type(error).__name__}") from error

    return send


def hand_over(serving: Future[Any]) -> None:
    """Let what serves, if it came up, and ends in a moment hand over its spans: those of production's last moments."""
    if not serving.done() or serving.exception() is not None:
        return
    try:
        ray.get(serving.result().observer.flush.remote(HAND_OVER_S), timeout=2 * HAND_OVER_S)
        serving.result().deployment.flush(HAND_OVER_S)
    except Exception as error:  # whatever is the matter there, an end goes on
        log.warning("Some of the last spans may be missing: %r", error)


def outlet(config: TraceConfig, namespace: str | None) -> Outlet[Row]:
    """Return the outlet of a process of the wheel; None is the namespace of the process."""
    return _outlet(to_actor(namespace), config)


def _outlet(sink: Sink, config: TraceConfig) -> Outlet[Row]:
    return Outlet(sink, max_waiting=config.max_waiting, flush_s=config.flush_s)
