"""The outlet: never waits, never grows beyond its bound, and knows what became of every span."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from flywheel.trace.outlet import Counts, Outlet
from flywheel.trace.row import MAX_ROWS, AwayError, Row
from tests.trace.test_row import row


class Sink:
    """Takes what it is given, unless it is away, broken, or held up."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.sizes: list[int] = []
        self.away = self.broken = False
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, rows: Sequence[Row]) -> int:
        self.asked.set()
        self.open.wait(30)
        if self.away:
            raise AwayError("gone")
        if self.broken:
            raise ZeroDivisionError
        self.rows += rows
        self.sizes.append(len(rows))
        return len(rows)


@contextmanager
def opened(sink: Sink, max_waiting: int = 10_000, flush_s: float = 0.0) -> Iterator[Outlet[Row]]:
    outlet = Outlet(sink, max_waiting=max_waiting, flush_s=flush_s)
    yield outlet
    sink.open.set()
    outlet.close(0.0)


def rows(n: int) -> list[Row]:
    return [row(name=str(i)) for i in range(n)]


def test_everything_arrives_in_order_in_messages_of_a_size() -> None:
    sink = Sink()
    with opened(sink, flush_s=60.0) as outlet:
        for one in rows(1200):
            assert outlet.put([one]) == 1
        assert not sink.asked.is_set(), "spans share a message"
        assert outlet.flush()
    assert [one.name for one in sink.rows] == [str(i) for i in range(1200)]
    assert sink.sizes == [MAX_ROWS, MAX_ROWS, 1200 - 2 * MAX_ROWS]
    assert outlet.counts() == Counts(made=1200, sent=1200, lost=0, waiting=0)


def test_what_there_is_no_room_for_is_lost_and_counted_and_nobody_waits() -> None:
    sink = Sink()
    sink.open.clear()
    with opened(sink, max_waiting=100) as outlet:
        began = time.monotonic()
        assert outlet.put(rows(70)) == 70
        assert sink.asked.wait(30)
        assert outlet.put(rows(70)) == 30, "what is on its way counts, too"
        assert outlet.put(rows(5)) == 0
        assert time.monotonic() - began < 20, "the sink is held up, the program is not"
        assert outlet.counts() == Counts(made=145, sent=0, lost=45, waiting=100)
        sink.open.set()
        assert outlet.flush()
        assert outlet.counts() == Counts(made=145, sent=100, lost=45, waiting=0)
        assert outlet.put(rows(5)) == 5


def test_a_sink_that_was_away_gets_everything_once() -> None:
    sink = Sink()
    sink.away = True
    with opened(sink) as outlet:
        outlet.put(rows(10))
        assert sink.asked.wait(30)
        assert outlet.counts() == Counts(made=10, sent=0, lost=0, waiting=10)
        assert not outlet.flush(0.01)
        sink.away = False
        assert outlet.flush(30)
    assert len(sink.rows) == 10


def test_spans_that_a_sink_breaks_on_do_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.broken = True
    with opened(sink) as outlet:
        outlet.put(rows(3))
        assert outlet.flush(30)
        sink.broken = False
        outlet.put(rows(2))
        assert outlet.flush(30)
        assert outlet.counts() == Counts(made=5, sent=2, lost=3, waiting=0)
    assert "3 spans were lost" in caplog.text


def test_an_end_counts_what_was_left() -> None:
    sink = Sink()
    sink.away = True
    outlet = Outlet(sink, max_waiting=10, flush_s=0.0)
    outlet.put(rows(4))
    assert sink.asked.wait(30)
    outlet.put(rows(2))
    outlet.close(0.0)
    assert outlet.put(rows(3)) == 0
    assert outlet.flush(30), "the thread gives up what it held"
    assert outlet.counts() == Counts(made=9, sent=0, lost=9, waiting=0)


def test_many_threads_lose_nothing_uncounted() -> None:
    sink = Sink()
    with opened(sink, max_waiting=500) as outlet:
        taken: list[int] = []

        def put() -> None:
            taken.append(sum(outlet.put(rows(7)) for _ in range(200)))

        threads = [threading.Thread(target=put) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outlet.flush(30)
        counts = outlet.counts()
    assert counts == Counts(made=4 * 1400, sent=sum(taken), lost=4 * 1400 - sum(taken), waiting=0)
    assert len(sink.rows) == counts.sent
