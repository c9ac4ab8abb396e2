"""A worker outlives what its work raises, comes again, and ends when it is told to."""

from __future__ import annotations

import threading

import pytest

from flywheel.client import UnavailableError
from flywheel.client.worker import Worker

LONG_S = 30.0


def test_it_outlives_what_its_work_raises(caplog: pytest.LogCaptureFixture) -> None:
    raised: list[Exception] = [OSError("no space left"), UnavailableError("away")]

    def work() -> None:
        if raised:
            raise raised.pop(0)

    worker = Worker(work, LONG_S, "tester")
    assert worker.wait_for(lambda: not raised and worker.trouble is None, LONG_S), "after an error it comes again soon"
    worker.close()
    assert [record.message for record in caplog.records] == ["tester failed, and tries again."]


def test_a_round_is_one_that_began_after_the_call() -> None:
    begun, free, seen = threading.Event(), threading.Event(), list[bool]()

    def work() -> None:
        seen.append(free.is_set())
        begun.set()
        assert free.wait(LONG_S)

    worker = Worker(work, LONG_S, "tester")
    assert begun.wait(LONG_S)
    asked = threading.Timer(0.0, free.set)
    asked.start()
    assert worker.round(lambda: False, LONG_S)
    assert seen[:2] == [False, True], "the round under way began with old news"
    worker.close()
    asked.join()


def test_nobody_waits_for_a_worker_that_is_closed() -> None:
    worker = Worker(lambda: None, LONG_S, "tester")
    worker.close()
    assert not worker.wait_for(lambda: False, LONG_S)
