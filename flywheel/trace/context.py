"""Where a span belongs: its trace, its parent, and what it is about. Light: OpenTelemetry's API, without its SDK.

An episode's trace is a hash of its id, so that client, replicas and observer mean the same trace, and agree on whether
it is sampled, without a word between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

EPISODE = "flywheel.episode_id"
STEP = "flywheel.step"
DIGEST = "flywheel.policy.digest"
TURN = "flywheel.turn"
VERDICT = "flywheel.verdict"
RELEASE = "flywheel.release"
"""Names of the attributes that tie a span to the wheel's records; the code that knows them sets them."""

_ABOUT = otel.create_key("flywheel.about")
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
_DIGITS = 16
_ODD = frozenset("13579bdf")


@lru_cache(maxsize=2_048)
def trace_of(episode: str) -> str:
    """Return the trace of an episode: 32 hexadecimal digits, a hash of its id."""
    return blake2b(episode.encode(), digest_size=16, person=b"episode").hexdigest()


def trace_named(kind: str, *parts: object) -> str:
    """Return the trace of something else that has a name of its own (a turn, a signal): 32 hexadecimal digits."""
    return blake2b("/".join(map(str, parts)).encode(), digest_size=16, person=kind.encode()).hexdigest()


def root_of(trace: str) -> str:
    """Return the id of such a trace's first span: 16 hexadecimal digits."""
    return trace[:_DIGITS]


def bar_of(share: float) -> str:
    """Return what `is_sampled` compares with, for a share of all episodes."""
    return f"{int(share * 2**64):016x}" if share < 1 else "g"


def is_sampled(trace: str, bar: str) -> bool:
    """Say whether an episode's trace is kept by chance: the same for everybody who asks."""
    return trace[_DIGITS:] < bar


def parse(traceparent: str) -> tuple[str, str] | None:
    """Return the trace and the span of a W3C traceparent; None when it is none, which is to be ignored."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return None if found is None else (found[1], found[2])


def asked(traceparent: str) -> str:
    """Return the trace of a W3C traceparent with the flag "sampled", "" otherwise.

    A program that is traced itself asks so for spans of what it does, whatever chance says.
    """
    found = parse(traceparent) if traceparent[54:55] in _ODD else None
    return "" if found is None else found[0]


def headers() -> dict[str, str]:
    """Return the W3C headers that tie a request to the present span; none where there is no span."""
    found: dict[str, str] = {}
    _PROPAGATOR.inject(found)
    return found


def about() -> dict[str, Any]:
    """Return the attributes that every span gets that begins here."""
    found: dict[str, Any] | None = otel.get_value(_ABOUT)  # type: ignore[assignment]
    return {} if found is None else found


class EpisodeScope:
    """The part of a program that plays an episode: spans that begin inside belong to its trace."""

    def __init__(self, episode: str) -> None:
        """Name the episode; nothing changes before the block."""
        self._trace = trace_of(episode)
        self._about: dict[str, Any] = {EPISODE: episode}

    def __enter__(self) -> EpisodeScope:
        is_traced = trace.get_current_span().get_span_context().trace_flags.sampled
        flags = TraceFlags(TraceFlags.SAMPLED if is_traced else TraceFlags.DEFAULT)
        self._about = {**about(), **self._about}
        here = trace.set_span_in_context(NonRecordingSpan(_context(self._trace, flags)))
        self._token = otel.attach(otel.set_value(_ABOUT, self._about, here))
        return self

    def __exit__(self, *_: object) -> None:
        otel.detach(self._token)

    def acted(self, t: int, digest: str) -> None:
        """Let spans that begin from now on be about this step, and the policy that decided it."""
        about = self._about
        about[STEP], about[DIGEST] = t, digest


def link(episodes: Iterable[str]) -> None:
    """Tie the present span, where there is one, to episodes that begin inside it."""
    span = trace.get_current_span()
    if span.is_recording():
        for episode in episodes:
            span.add_link(_context(trace_of(episode), TraceFlags(TraceFlags.DEFAULT)), {EPISODE: episode})


def _context(name: str, flags: TraceFlags) -> SpanContext:
    return SpanContext(int(name, 16), int(root_of(name), 16), is_remote=False, trace_flags=flags)
