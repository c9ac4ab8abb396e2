"""The store of spans: found by what they are about, one writer, and forgotten in the order that is stated."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.errors import FlywheelError, UsageError
from flywheel.trace.context import EPISODE, STEP, TURN, root_of, trace_of
from flywheel.trace.row import Row, Why, fresh_id
from flywheel.trace.spanstore import FILE, SPOOL, SpanStore, leave, open_readonly
from tests.trace.test_row import row


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    with SpanStore(tmp_path, 1000) as store:
        yield store


def episode(id_: str, num_steps: int = 2, why: Why = "", at: float = 0.0) -> list[Row]:
    """Return the spans of an episode, its first one last, as they come."""
    trace = trace_of(id_)
    about = {EPISODE: id_}
    steps = [
        row(trace=trace, id=fresh_id(), parent=root_of(trace), name="act", started_at=at + t,
            attributes={STEP: t, **about})
        for t in range(num_steps)
    ]  # fmt: skip
    return [*steps, row(trace=trace, id=root_of(trace), name="episode", started_at=at, attributes=about, why=why)]


def names(spans: object) -> list[tuple[int, str]]:
    return [(span.depth, span.name) for span in spans]  # type: ignore[attr-defined]


def test_the_spans_of_an_episode_come_parents_first_and_in_order(store: SpanStore, tmp_path: Path) -> None:
    spans = episode("e", 3)
    inner = row(trace=trace_of("e"), id=fresh_id(), parent=spans[1].id, name="inner", started_at=1.5)
    store.append([inner, *reversed(spans), *episode("other")])
    with open_readonly(tmp_path) as reader:
        found = reader.of_episode("e")
        assert names(found) == [(0, "episode"), (1, "act"), (1, "act"), (2, "inner"), (1, "act")]
        assert [span.attributes.get(STEP) for span in found] == [None, 0, 1, None, 2]
        assert reader.of_trace(trace_of("e")) == found
        assert [span.attributes[STEP] for span in reader.of_step("e", 2)] == [2]
        assert reader.of_episode("never") == []


def test_what_another_trace_tied_to_an_episode_is_found_with_it(store: SpanStore) -> None:
    outside = row(trace="a" * 32, name="rl-deployment", links=((trace_of("e"), root_of(trace_of("e"))),))
    store.append([outside, *episode("e")])
    assert names(store.of_episode("e"))[-1] == (0, "rl-deployment")
    (found,) = store.of_trace("a" * 32)
    assert found.links == ((trace_of("e"), root_of(trace_of("e"))),)
    assert [span.trace for span in store.named("rl-deployment")] == ["a" * 32]


def test_the_spans_of_a_turn_are_found_by_its_number(store: SpanStore) -> None:
    root = row(trace="b" * 32, id="1" * 16, name="turn", attributes={TURN: 2})
    stage = row(
        trace="b" * 32, id="3" * 16, parent="1" * 16, name="train", attributes={TURN: 2}, metrics=(("m", None, 5.0),)
    )
    store.append([stage, root, row(trace="c" * 32, name="turn", attributes={TURN: 3})])
    assert names(store.of_turn(2)) == [(0, "turn"), (1, "train")]
    assert store.of_turn(2)[1].metrics == (("m", None, 5.0),)


def test_spans_whose_parent_was_lost_or_that_go_in_a_circle_are_still_shown(store: SpanStore) -> None:
    trace = "d" * 32
    store.append(
        [
            row(trace=trace, id="1" * 16, parent="9" * 16, name="orphan"),
            row(trace=trace, id="2" * 16, parent="3" * 16, name="circle"),
            row(trace=trace, id="3" * 16, parent="2" * 16, name="circle"),
            row(trace=trace, id="4" * 16, parent="4" * 16, name="itself"),
        ]
    )
    assert sorted(name for _, name in names(store.of_trace(trace))) == ["circle", "circle", "itself", "orphan"]


def test_the_same_spans_again_change_nothing_but_a_better_reason_to_keep_them(store: SpanStore) -> None:
    spans = episode("e", why="failed")
    store.append(spans)
    store.append(spans)
    assert store.count() == 3 and store.why(trace_of("e")) == "failed"
    store.append(episode("e", 0, why="signal"))
    assert store.count() == 3 and store.why(trace_of("e")) == "signal"
    store.append(episode("e", 0, why="failed"))
    assert store.why(trace_of("e")) == "signal"


def test_a_program_cannot_take_the_place_of_the_observer(store: SpanStore) -> None:
    forged, real = (row(trace=trace_of("e"), id=root_of(trace_of("e")), name=name, source=source)
                    for name, source in (("forged", "client"), ("episode", "observer")))  # fmt: skip
    store.append([forged])
    store.append([real])
    assert [(span.name, span.source) for span in store.of_trace(trace_of("e"))] == [
        ("forged", "client"),
        ("episode", "observer"),
    ]


whys = st.sampled_from(["", "failed", "signal", "turn"])


@given(st.lists(st.tuples(whys, st.integers(1, 12)), max_size=40), st.integers(5, 60))
def test_the_oldest_of_what_matters_least_goes_first(episodes: list[tuple[Why, int]], max_spans: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory, SpanStore(directory, max_spans) as store:
        for i, (why, num_steps) in enumerate(episodes):
            store.append(episode(f"e{i}", num_steps, why))
            assert store.count() <= max_spans
        left = {i: len(store.of_trace(trace_of(f"e{i}"))) for i in range(len(episodes))}
        assert sum(left.values()) == store.count()
        whole = {i: left[i] == num_steps + 1 for i, (_, num_steps) in enumerate(episodes)}
        order = ["", "failed", "signal", "turn"]
        for i, (why, _) in enumerate(episodes):
            if whole[i]:
                continue
            # whatever went, nothing is left that should have gone before it, but for what came later
            worse = [j for j in range(i) if order.index(episodes[j][0]) <= order.index(why)]
            assert not [j for j in worse if left[j]], (i, left)


def test_links_and_reasons_go_with_their_spans(tmp_path: Path) -> None:
    with SpanStore(tmp_path, 10) as store:
        store.append([row(trace="e" * 32, name="old", links=(("f" * 32, "1" * 16),))])
        for i in range(20):
            store.append(episode(f"e{i}", 1, "failed"))
        assert store.of_trace("e" * 32) == []
        assert store.why(trace_of("e0")) == "" and store.why(trace_of("e19")) == "failed"
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("SELECT count(*) FROM links").fetchone() == (0,)
    connection.close()


def test_there_is_one_writer_and_others_leave_spans_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SpanStore(tmp_path, 1000) as store:
        with pytest.raises(UsageError, match="have a writer already"):
            SpanStore(tmp_path, 1000)
        leave(tmp_path, episode("e"), "one")
        (tmp_path / SPOOL / "two.spans").write_bytes(b"no spans")
        (tmp_path / SPOOL / ".three.new").write_bytes(b"half")
        assert store.collect() == 3
        assert len(store.of_episode("e")) == 3 and "two.spans are lost" in caplog.text
        assert [path.name for path in (tmp_path / SPOOL).iterdir()] == [".three.new"]
        leave(tmp_path, episode("f"), "one")
    with SpanStore(tmp_path, 1000) as again:
        assert again.count() == 6, "what waited is there, and what was there before"


def test_what_is_damaged_or_newer_is_said(tmp_path: Path) -> None:
    with open_readonly(tmp_path) as nothing:
        assert nothing.of_episode("e") == []
        with pytest.raises(UsageError, match="32 hexadecimal digits"):
            nothing.of_trace("no trace")
    with SpanStore(tmp_path, 10), sqlite3.connect(tmp_path / FILE, isolation_level=None) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    connection.close()
    with pytest.raises(FlywheelError, match="format 99"):
        open_readonly(tmp_path)
