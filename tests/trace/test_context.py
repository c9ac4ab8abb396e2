"""Where spans belong: by the episode's id, across processes, without a word between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from flywheel.trace.context import (
    DIGEST,
    EPISODE,
    STEP,
    EpisodeScope,
    about,
    asked,
    bar_of,
    headers,
    is_sampled,
    parse,
    root_of,
    trace_of,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@given(st.text(min_size=1, max_size=128), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_kept(id_: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    trace = trace_of(id_)
    assert is_sampled(trace, bar_of(high)) or not is_sampled(trace, bar_of(low))
    assert is_sampled(trace, bar_of(1.0)) and not is_sampled(trace, bar_of(0.0))


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_the_share_is_what_was_asked_for(share: float) -> None:
    kept = sum(is_sampled(trace_of(f"episode-{i}"), bar_of(share)) for i in range(20_000))
    deviation = (20_000 * share * (1 - share)) ** 0.5
    assert abs(kept - 20_000 * share) < 4 * deviation


def test_a_request_in_an_episode_carries_its_trace() -> None:
    assert headers() == {}
    with EpisodeScope("e"):
        assert headers() == {"traceparent": f"00-{trace_of('e')}-{root_of(trace_of('e'))}-00"}
        with EpisodeScope("f"):
            assert parse(headers()["traceparent"]) == (trace_of("f"), root_of(trace_of("f")))
        assert parse(headers()["traceparent"]) == (trace_of("e"), root_of(trace_of("e")))
    assert headers() == {}


def test_a_program_that_is_traced_itself_asks_for_spans() -> None:
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with trace.use_span(span), EpisodeScope("e"):
        assert headers()["traceparent"].endswith("-01")
        assert asked(headers()["traceparent"]) == trace_of("e")
    with EpisodeScope("e"):
        assert asked(headers()["traceparent"]) == ""


def test_what_a_span_is_about_is_known_where_it_begins() -> None:
    scope = EpisodeScope("e")
    with scope:
        assert about() == {EPISODE: "e"}
        scope.acted(7, "d")
        assert about() == {EPISODE: "e", STEP: 7, DIGEST: "d"}
    assert about() == {}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", (TRACE, SPAN)),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_w3c_has_it(given: str, found: tuple[str, str] | None) -> None:
    assert parse(given) == found
    assert asked(given) == (found[0] if found and "-01" in given else "")
