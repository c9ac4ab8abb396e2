"""A time is told alike everywhere, and never in the time of the machine that tells it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import flywheel
from flywheel import moments, told

AT = 1_795_000_000.9


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine eleven hours ahead of UTC."""
    monkeypatch.setenv("TZ", "XST-11")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_time_is_told_in_utc_whatever_the_machines_own_is(elsewhere: None) -> None:
    assert time.localtime(AT).tm_hour != time.gmtime(AT).tm_hour
    assert moments.utc(AT) == "2026-11-18 11:06:40 UTC"
    assert len(moments.column(AT)) == moments.WIDTH and moments.column(None) == "-"


def test_what_is_told_can_be_asked_for_again(elsewhere: None) -> None:
    assert told.seconds(moments.column(AT)) == float(int(AT))


def test_nobody_else_formats_a_time() -> None:
    home = Path(flywheel.__file__).parent
    used = {str(path.relative_to(home)) for path in home.rglob("*.py") if re.search(r"strftime", path.read_text())}
    assert used == {"moments.py", "run.py"}, "run.py names a directory"
