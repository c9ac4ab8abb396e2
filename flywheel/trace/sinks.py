"""Where a program's spans go: into the run directory, over HTTP, or to an OpenTelemetry collector."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from flywheel.errors import UsageError
from flywheel.trace import row
from flywheel.trace.outlet import Sink
from flywheel.trace.row import AwayError, Row
from flywheel.trace.spanstore import SpanStore, leave

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TIMEOUT_S = 5.0


def to_run_dir(run_dir: Path, max_spans: int) -> Sink:
    """Return a sink that writes the run directory's spans, or leaves them for the process that owns them now."""

    def send(rows: Sequence[Row]) -> int:
        try:
            store = SpanStore(run_dir, max_spans)
        except UsageError:
            leave(run_dir, rows, uuid.uuid4().hex)
        else:
            with store:
                store.append(rows)
        return len(rows)

    return send


def to_url(http: httpx.Client, path: str) -> Sink:
    """Return a sink that tells a living run its spans over HTTP."""

    def send(rows: Sequence[Row]) -> int:
        body = row.body(rows)
        if len(body) > row.MAX_BODY or row.is_heavy(len(body), len(rows)):
            if len(rows) == 1:
                return 0
            half = len(rows) // 2
            return send(rows[:half]) + send(rows[half:])
        try:
            answer = http.post(path, content=body, timeout=_TIMEOUT_S)
        except httpx.TransportError as error:
            raise AwayError(f"{http.base_url}: {type(error).__name__}") from error
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise AwayError(f"{http.base_url}: HTTP {answer.status_code}")
        if not answer.is_success:
            raise UsageError(f"{http.base_url} refused spans: {answer.text[:200]}")
        return int(answer.json()["taken"])

    return send


def to_collector() -> Sink | None:
    """Return a sink that exports spans by OTLP over HTTP, as OpenTelemetry's environment variables say.

    None where they name no collector.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = OTLPSpanExporter()

    def send(rows: Sequence[Row]) -> int:
        if exporter.export([readable(one) for one in rows]) is not SpanExportResult.SUCCESS:
            raise AwayError("the collector took no spans")
        return len(rows)

    return send


def readable(one: Row) -> ReadableSpan:
    """Return a row as OpenTelemetry has a span that is over."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(trace: str, span: str) -> SpanContext:
        return SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=TraceFlags(1))

    def event(name: str, value: float | None, at: float) -> Event:
        attributes: dict[str, Any] = {"name": name, "value": "nan" if value is None else value}
        return Event("metric", attributes, _ns(at))

    return ReadableSpan(
        one.name,
        context(one.trace, one.id),
        context(one.trace, one.parent) if one.parent else None,
        Resource({"service.name": f"flywheel-{one.source}"}),
        {name: _same_kind(value) for name, value in one.attributes.items()},
        [event(*metric) for metric in one.metrics],
        [Link(context(*to)) for to in one.links],
        SpanKind.SERVER if one.source == "replica" else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, one.error) if one.error else Status(StatusCode.UNSET),
        start_time=_ns(one.started_at),
        end_time=_ns(one.ended_at),
    )


def _same_kind(value: row.Value) -> Any:
    """Return a list's parts as text where they are of several kinds, which OpenTelemetry doesn't carry."""
    if isinstance(value, list) and len({type(part) for part in value}) > 1:
        return [str(part) for part in value]
    return value


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
