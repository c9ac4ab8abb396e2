"""A program's own spans, made by OpenTelemetry: nested, tied to what they are about, kept, and exported."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from flywheel.config import TraceConfig
from flywheel.errors import UsageError
from flywheel.trace.context import DIGEST, EPISODE, STEP, EpisodeScope, link, root_of, trace_of
from flywheel.trace.outlet import Counts
from flywheel.trace.row import MAX_METRICS, TELL
from flywheel.trace.spans import Tracer
from flywheel.trace.spanstore import SPOOL, SpanStore, Stored, open_readonly

QUICK = TraceConfig(flush_s=0.0)


class Door(BaseHTTPRequestHandler):
    """Takes what is sent, and answers as it is told to."""

    bodies: list[tuple[str, bytes, str | None]]
    codes: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.bodies.append((self.path, body, self.headers.get("authorization")))
        code = self.codes.pop(0) if self.codes else 200
        taken = len(TELL.decode(body).spans) if self.path == "/v1/spans" else 0
        answer = json.dumps({"taken": taken, "lost": 0}).encode() if self.path == "/v1/spans" else b""
        self.send_response(code)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def door() -> Iterator[tuple[str, type[Door]]]:
    class Mine(Door):
        bodies, codes = [], []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Mine
    server.shutdown()
    thread.join()
    server.server_close()


def stored(run_dir: Path) -> dict[str, Stored]:
    """Return every span by its name."""
    with open_readonly(run_dir) as reader:
        traces = {row[0].hex() for row in reader._connection.execute("SELECT trace FROM spans")}
        return {span.name: span for trace in traces for span in reader.of_trace(trace)}


def test_spans_nest_by_context_and_keep_what_they_are_told(tmp_path: Path) -> None:
    with Tracer.to_run_dir(tmp_path) as tracer:
        with tracer.span("outer", site="Berlin", lap=3) as outer:
            outer.log_metric("prediction_value", 0.3)
            outer.log_metric("prediction_value", float("nan"))
            with tracer.span("inner") as inner:
                inner.set(found=True)
            assert inner.trace == outer.trace
        with tracer.span("beside"):
            pass
    found = stored(tmp_path)
    assert (found["inner"].parent, found["inner"].depth) == (outer.id, 1)
    assert found["inner"].attributes == {"found": True}
    assert found["outer"].attributes == {"site": "Berlin", "lap": 3} and found["outer"].parent == ""
    (first, second) = found["outer"].metrics
    assert (first[:2], second[:2]) == (("prediction_value", 0.3), ("prediction_value", None))
    assert found["outer"].started_at <= first[2] <= second[2] <= found["outer"].ended_at
    assert found["beside"].trace != outer.trace
    assert found["outer"].source == "client"


def test_a_span_is_tied_to_the_episode_around_it_and_to_those_inside_it(tmp_path: Path) -> None:
    with Tracer.to_run_dir(tmp_path) as tracer, tracer.span("rl-deployment"):
        link(["e"])
        with EpisodeScope("e") as scope:
            scope.acted(5, "d")
            with tracer.span("prepare"):
                pass
    found = stored(tmp_path)
    assert found["prepare"].trace == trace_of("e") and found["prepare"].parent == root_of(trace_of("e"))
    assert found["prepare"].attributes == {EPISODE: "e", STEP: 5, DIGEST: "d"}
    assert found["rl-deployment"].links == ((trace_of("e"), root_of(trace_of("e"))),)
    with open_readonly(tmp_path) as reader:
        assert [span.name for span in reader.of_episode("e")] == ["prepare", "rl-deployment"]


def test_an_exception_passes_through_and_is_noted(tmp_path: Path) -> None:
    with Tracer.to_run_dir(tmp_path) as tracer:
        with pytest.raises(ZeroDivisionError), tracer.span("outer"), tracer.span("inner"):
            raise ZeroDivisionError("by zero")
        with tracer.span("after") as after:
            pass
    found = stored(tmp_path)
    assert found["inner"].error == found["outer"].error == "ZeroDivisionError: by zero"
    assert found["after"].parent == "" and found["after"].id == after.id


def test_the_last_values_of_a_long_span_are_kept_and_the_others_counted(tmp_path: Path) -> None:
    with Tracer.to_run_dir(tmp_path) as tracer, tracer.span("long") as span:
        for i in range(MAX_METRICS + 7):
            span.log_metric("i", i)
    found = stored(tmp_path)["long"]
    assert [value for _, value, _ in found.metrics] == list(range(7, MAX_METRICS + 7))
    assert found.attributes == {"flywheel.metrics_lost": 7}


def test_a_run_that_has_an_owner_finds_spans_where_they_were_left(tmp_path: Path) -> None:
    with SpanStore(tmp_path, 1000) as owner:
        with Tracer.to_run_dir(tmp_path) as tracer, tracer.span("left"):
            pass
        assert tracer.counts.sent == 1 and len(list((tmp_path / SPOOL).iterdir())) == 1
        assert owner.collect() == 1
        assert [span.name for span in owner.named("left")] == ["left"]


def test_spans_are_told_over_http_with_the_token(door: tuple[str, type[Door]]) -> None:
    url, taken = door
    taken.codes[:] = [503, 200]
    with Tracer.to_url(url, "secret", QUICK) as tracer, tracer.span("rl-deployment", n=1) as span:
        span.log_metric("prediction_value", 0.3)
    assert tracer.counts == Counts(made=1, sent=1, lost=0, waiting=0)
    (first, second) = taken.bodies
    assert first == second and first[0] == "/v1/spans" and first[2] == "Bearer secret"
    (one,) = TELL.decode(first[1]).spans
    assert (one.name, one.attributes, one.metrics[0][:2]) == ("rl-deployment", {"n": 1}, ("prediction_value", 0.3))


def test_large_spans_are_sent_in_pieces_and_what_is_refused_is_lost(
    door: tuple[str, type[Door]], caplog: pytest.LogCaptureFixture
) -> None:
    url, taken = door
    with Tracer.to_url(url, "t", TraceConfig(flush_s=60.0)) as tracer:
        for i in range(40):
            with tracer.span("large", **{f"a{k}": ["x" * 1000] * 64 for k in range(i % 2)}):
                pass
        assert tracer.flush(30) and tracer.counts.sent == 40 and len(taken.bodies) == 2
        with tracer.span("too large", **{f"a{k}": ["x" * 1000] * 64 for k in range(2)}):
            pass
        assert tracer.flush(30) and (tracer.counts.sent, tracer.counts.lost) == (40, 1)
        taken.codes[:] = [401]
        with tracer.span("refused"):
            pass
        assert tracer.flush(30) and tracer.counts.lost == 2
    assert "refused spans" in caplog.text


def test_nobody_at_the_url_costs_spans_and_nothing_else() -> None:
    with Tracer.to_url("http://127.0.0.1:9", "t", TraceConfig(flush_s=0.0)) as tracer:
        with tracer.span("lost"):
            pass
        tracer.close(0.0)
    assert tracer.flush(30) and tracer.counts.lost == tracer.counts.made == 1


def test_a_collector_of_the_environment_gets_them_too(
    door: tuple[str, type[Door]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, taken = door
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with Tracer.to_run_dir(tmp_path, QUICK) as tracer, EpisodeScope("e"), tracer.span("x", mixed=[1, "a"]) as span:
        span.log_metric("prediction_value", 0.3)
    (path, body, _), *_ = taken.bodies
    assert path == "/v1/traces"
    (group,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert [(a.key, a.value.string_value) for a in group.resource.attributes] == [("service.name", "flywheel-client")]
    (found,) = group.scope_spans[0].spans
    assert (found.trace_id.hex(), found.span_id.hex()) == (trace_of("e"), span.id)
    assert found.parent_span_id.hex() == root_of(trace_of("e"))
    assert {a.key for a in found.attributes} == {EPISODE, "mixed"}
    assert [a.value.double_value for a in found.events[0].attributes if a.key == "value"] == [0.3]
    assert list(stored(tmp_path)) == ["x"]


def test_what_a_program_left_open_is_handed_over_at_its_end(tmp_path: Path) -> None:
    code = (
        "import sys; from flywheel.trace.spans import Tracer\n"
        "with Tracer.to_run_dir(sys.argv[1]).span('last'): pass\n"
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()" and list(stored(tmp_path)) == ["last"]


def test_a_library_that_knows_opentelemetry_is_traced_with_the_program(tmp_path: Path) -> None:
    with Tracer.to_run_dir(tmp_path) as tracer:
        theirs = tracer.provider.get_tracer("library")
        with tracer.span("mine") as mine, theirs.start_as_current_span("theirs"), tracer.span("inner"):
            pass
    found = stored(tmp_path)
    assert found["theirs"].parent == mine.id and found["inner"].parent == found["theirs"].id


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        Tracer.to_run_dir(tmp_path / "typo")
    assert not list(tmp_path.iterdir())
