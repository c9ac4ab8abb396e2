"""A program's own spans: OpenTelemetry's SDK makes them, and they are kept beside those of the wheel.

    tracer = Tracer.to_run_dir("runs/x")                  # or Tracer.to_url("http://127.0.0.1:8000", token)
    with tracer.span("rl-deployment", site="Berlin") as span:
        span.log_metric("prediction_value", 0.3)

A span that begins inside another is under it; one that begins inside an episode (or around one) is tied to it.
"""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from flywheel.config import TraceConfig
from flywheel.errors import UsageError
from flywheel.net import is_loopback
from flywheel.trace import row, sinks
from flywheel.trace.context import about
from flywheel.trace.outlet import Counts, Outlet, Sink
from flywheel.trace.row import Row, Source

_LIMITS = SpanLimits(
    max_span_attributes=row.MAX_ATTRIBUTES,
    max_links=row.MAX_ATTRIBUTES,
    max_attribute_length=row.MAX_TEXT,
)


_PLAIN = frozenset({str, bool, int, float})


class Told:
    """What a span says of itself: OpenTelemetry's own attributes and events would carry it, for 30 µs more a span."""

    __slots__ = ("attributes", "metrics", "num_logged")

    def __init__(self, attributes: dict[str, Any]) -> None:
        """Begin with these attributes and no metric."""
        self.attributes = attributes
        self.metrics: deque[tuple[str, float, int]] | None = None
        self.num_logged = 0

    def log(self, name: str, value: float) -> None:
        """Note a number and when it was, in nanoseconds."""
        if self.metrics is None:
            self.metrics = deque(maxlen=row.MAX_METRICS)
        self.metrics.append((name, value, time.time_ns()))
        self.num_logged += 1


_Ended = tuple[ReadableSpan, Told | None]


class Span:
    """A part of a program's work, as a block; nothing that goes wrong with it disturbs the work."""

    def __init__(self, tracer: trace.Tracer, told: dict[int, Told], name: str, attributes: dict[str, Any]) -> None:
        """Begin nothing before the block; `told` gets what it says by its id when it ends."""
        self._tracer, self._told, self._name, self._own = tracer, told, name, Told(attributes)
        self._span: trace.Span = trace.INVALID_SPAN

    def __enter__(self) -> Span:
        given = {**about(), **self._own.attributes}
        # a list may be another one by the time that a row is made
        self._own.attributes = given if _PLAIN.issuperset(map(type, given.values())) else row.attributes(given)
        self._span = self._tracer.start_span(self._name)
        self._token = otel.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        otel.detach(self._token)
        if error is not None:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._told[self._span.get_span_context().span_id] = self._own
        self._span.end()

    def log_metric(self, name: str, value: float) -> None:
        """Note a number, as often as there is a new one; the last 512 are kept."""
        self._own.log(name, float(value))

    def set(self, **attributes: Any) -> None:
        """Give it further attributes."""
        self._own.attributes.update(row.attributes(attributes))

    @property
    def trace(self) -> str:
        """The trace that it belongs to: 32 hexadecimal digits, once it has begun."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def id(self) -> str:
        """Its id: 16 hexadecimal digits, once it has begun."""
        return f"{self._span.get_span_context().span_id:016x}"


class Tracer:
    """Makes spans and hands them over from a thread of its own; close it, or use it in a `with`."""

    def __init__(self, sink: Sink, config: TraceConfig | None = None, *, source: Source = "client") -> None:
        """Send spans to a sink, and to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, if it does."""
        given, collector = config or TraceConfig(), sinks.to_collector()
        self._outlets = [
            Outlet(_of_spans(to, source), max_waiting=given.max_waiting, flush_s=given.flush_s)
            for to in (sink, collector)
            if to is not None
        ]
        self.provider = TracerProvider(
            ALWAYS_ON, Resource({"service.name": f"flywheel-{source}"}), shutdown_on_exit=False, span_limits=_LIMITS
        )
        """OpenTelemetry's own, for libraries that are instrumented with it: their spans go the same way."""
        self._told: dict[int, Told] = {}
        self.provider.add_span_processor(_Processor(self._outlets, self._told))
        self._tracer = self.provider.get_tracer("flywheel")
        self._http: httpx.Client | None = None
        _OPEN.add(self)

    @classmethod
    def to_run_dir(cls, path: str | Path, config: TraceConfig | None = None) -> Tracer:
        """Return a tracer whose spans are kept in a run directory, whether something is up there or not.

        Raises UsageError where there is no directory.
        """
        if not Path(path).is_dir():
            raise UsageError(f"There is no run directory at {path}, so no spans can be kept there.")
        given = config or TraceConfig()
        return cls(sinks.to_run_dir(Path(path), given.max_spans), given)

    @classmethod
    def to_url(cls, url: str, token: str, config: TraceConfig | None = None, *, path: str = "/v1/spans") -> Tracer:
        """Return a tracer whose spans are told to a living run over HTTP, with the run's client token.

        A run that can't be reached costs nothing but spans, which are counted as lost in the end.
        """
        base = httpx.URL(url)
        http = httpx.Client(
            base_url=base,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            trust_env=not is_loopback(base.host),
        )
        made = cls(sinks.to_url(http, path), config)
        made._http = http
        return made

    def span(self, name: str, /, **attributes: Any) -> Span:
        """Return a span, for a `with`: text, numbers, booleans and lists of them can be its attributes."""
        return Span(self._tracer, self._told, name[:256] or "span", attributes)

    @property
    def counts(self) -> Counts:
        """What became of the spans so far: made = sent + lost + waiting."""
        return self._outlets[0].counts()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Return True once every span that is over was handed over or lost, False when time is over."""
        return all([outlet.flush(timeout_s) for outlet in self._outlets])

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand over what can be handed over within the time, and end."""
        for outlet in self._outlets:
            outlet.close(timeout_s)
        if self._http is not None:
            self._http.close()
        _OPEN.discard(self)

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_OPEN: set[Tracer] = set()


@atexit.register
def _close_all() -> None:
    for tracer in list(_OPEN):
        tracer.close(timeout_s=2.0)


class _Processor(SpanProcessor):
    """Takes spans that are over to the outlets; unlike OpenTelemetry's own it counts what it loses."""

    def __init__(self, outlets: Sequence[Outlet[_Ended]], told: dict[int, Told]) -> None:
        self._outlets, self._told = outlets, told

    def on_end(self, span: ReadableSpan) -> None:
        """Put the span into the outlets, whose threads make a row of it."""
        assert span.context is not None
        ended = span, self._told.pop(span.context.span_id, None)
        for outlet in self._outlets:
            outlet.put((ended,))


def _of_spans(sink: Sink, source: Source) -> Callable[[Sequence[_Ended]], int]:
    """Return a sink of spans that are over, with what they said."""
    return lambda spans: sink([_row_of(*ended, source) for ended in spans])


def _row_of(span: ReadableSpan, told: Told | None, source: Source) -> Row:
    """Return a span of OpenTelemetry that is over as a row."""
    context, told = span.get_span_context(), told or Told({})
    assert context is not None
    attributes = row.attributes({**(span.attributes or {}), **told.attributes})
    metrics = tuple(row.metric(name, value, at / 1e9) for name, value, at in told.metrics or ())
    if told.num_logged > len(metrics):
        attributes["flywheel.metrics_lost"] = told.num_logged - len(metrics)
    failed = span.status.status_code is trace.StatusCode.ERROR
    return Row(
        trace=f"{context.trace_id:032x}",
        id=f"{context.span_id:016x}",
        parent="" if span.parent is None else f"{span.parent.span_id:016x}",
        name=span.name[:256],
        source=source,
        started_at=(span.start_time or 0) / 1e9,
        ended_at=(span.end_time or 0) / 1e9,
        attributes=attributes,
        metrics=metrics,
        links=tuple((f"{to.context.trace_id:032x}", f"{to.context.span_id:016x}") for to in span.links),
        error=(span.status.description or "error")[: row.MAX_TEXT] if failed else "",
    )
