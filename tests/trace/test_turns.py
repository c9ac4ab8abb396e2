"""The spans of a turn: a stage each, iterations under training, and the turn itself when it is in the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flywheel.records import Plan, Probe, Progress, Release, Signal, Turn
from flywheel.trace.context import DIGEST, RELEASE, TURN, VERDICT, root_of
from flywheel.trace.row import Row
from flywheel.trace.spanstore import SpanStore
from flywheel.trace.tail import trace_of_signal
from flywheel.trace.turns import TurnSpans


def progress(iteration: int, mean_return: float = 20.0) -> Progress:
    return Progress(
        iteration=iteration, num_steps=1024 * iteration, num_steps_total=1024 * iteration, mean_return=mean_return,
        seconds=1.0, network=b"",
    )  # fmt: skip


PROBE = Probe(num_failed=3, num_episodes=200, mean_return=30.0, edge_failed=())


def turn(number: int, **fields: Any) -> Turn:
    return Turn(**{"number": number, "plan": Plan(strategy="continue_training", reasons=()), **fields})


def test_a_turn_is_one_trace_with_its_stages_and_its_training_curve(tmp_path: Path) -> None:
    spans, rows = TurnSpans("runs/x"), list[Row]()
    rows += spans.enter(1, "analyze", 1.0) + spans.leave(2.0)
    rows += spans.enter(1, "train", 3.0) + spans.leave(4.0)
    for i in (1, 2):
        assert spans.enter(1, "train", 4.0 + i) == [], "a stage goes on"
        rows += spans.leave(4.5 + i) + spans.trained(progress(i), PROBE, 4.0 + i, 4.5 + i)
    rows += spans.enter(1, "gate", 8.0)
    spans.tell({DIGEST: "d", VERDICT: "pass"})
    rows += spans.leave(9.0)
    release = Release(digest="d", stage="full", share=1.0, previous=None, released_at=9.5)
    rows += spans.end(turn(1, release=release), 10.0)
    with SpanStore(tmp_path, 100) as store:
        store.append(rows)
        found = store.of_turn(1)
        assert len({span.trace for span in found}) == 1 and store.why(found[0].trace) == "turn"
    assert [(span.depth, span.name, span.started_at, span.ended_at) for span in found] == [
        (0, "turn", 1.0, 10.0), (1, "analyze", 1.0, 2.0), (1, "train", 3.0, 6.5), (2, "iteration", 5.0, 5.5),
        (2, "iteration", 6.0, 6.5), (1, "gate", 8.0, 9.0),
    ]  # fmt: skip
    assert found[0].attributes == {TURN: 1, DIGEST: "d", RELEASE: 9.5, "flywheel.strategy": "continue_training"}
    assert found[5].attributes == {TURN: 1, DIGEST: "d", VERDICT: "pass"}
    assert {name: value for name, value, _ in found[4].metrics} == {
        "steps": 2048, "mean_return": 20.0, "probe_failed": 3, "probe_episodes": 200, "probe_return": 30.0
    }  # fmt: skip


def test_before_an_episode_has_ended_there_is_no_mean_return() -> None:
    spans = TurnSpans("runs/x")
    spans.enter(1, "train", 1.0)
    (row,) = spans.trained(progress(1, float("nan")), PROBE, 1.0, 2.0)
    assert dict((name, value) for name, value, _ in row.metrics)["mean_return"] is None


def test_a_stage_that_went_wrong_says_so_at_once() -> None:
    spans = TurnSpans("runs/x")
    spans.enter(1, "gate", 1.0)
    (row,) = spans.leave(2.0, ValueError("no"))
    assert (row.name, row.error) == ("gate", "ValueError: no")
    assert spans.enter(1, "gate", 3.0) == [], "and nothing of it is left"


def test_a_turn_that_is_gone_on_with_keeps_its_trace_and_another_has_its_own() -> None:
    first, again, other = TurnSpans("runs/x"), TurnSpans("runs/x"), TurnSpans("runs/y")
    ids = []
    for spans, number in ((first, 2), (again, 2), (again, 3), (other, 2)):
        spans.enter(number, "observe", 1.0)
        ids.append(spans.end(turn(number), 2.0)[-1].trace)
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_turn_is_tied_to_the_signals_that_it_is_about() -> None:
    signal = Signal(
        kind="degradation", monitor="failed", digest="d", value=1.0, threshold=1.0, since_episode="a", at_episode="b",
        evidence={}, at=1.0,
    )  # fmt: skip
    spans = TurnSpans("runs/x")
    spans.enter(1, "analyze", 1.0)
    plan = Plan(strategy="hold", reasons=(), signals=(signal,))
    root = spans.end(turn(1, plan=plan), 2.0)[-1]
    assert root.links == ((trace_of_signal(signal), root_of(trace_of_signal(signal))),)
