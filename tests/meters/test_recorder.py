"""The recorder: running totals become increments, wheels stay apart, and nothing it does can break a room."""

from __future__ import annotations

import logging
import math

import pytest

from flywheel import meters
from flywheel.meters import Meter, Reading, on_ray
from flywheel.meters.on_ray import Recorder


class Kept:
    """What would be handed to Ray."""

    def __init__(self) -> None:
        self.values: list[tuple[tuple[str, ...], float]] = []

    def put(self, series: tuple[Meter, tuple[str, ...]], value: float) -> None:
        self.values.append((series[1], value))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    process = Kept()
    monkeypatch.setattr(on_ray, "_on_ray", lambda: True)
    monkeypatch.setattr(on_ray, "_process", lambda: process)
    return process


def test_outside_ray_nothing_is_made() -> None:
    Recorder().record([Reading(meters.TURNS, 1, ("hold",))])
    assert on_ray._process.cache_info().currsize == 0


def test_running_totals_become_increments_of_each_series(kept: Kept) -> None:
    recorder = Recorder("a")
    for lost, void in ((2, 0), (5, 1)):
        recorder.record([Reading(meters.LOSSES, lost, ("lost",)), Reading(meters.LOSSES, void, ("void",))])
    assert kept.values == [(("a", "lost"), 2), (("a", "void"), 0), (("a", "lost"), 3), (("a", "void"), 1)]


def test_wheels_of_one_process_are_told_apart(kept: Kept) -> None:
    for wheel in ("a", "b"):
        Recorder(wheel).record([Reading(meters.DECISIONS, 7)])
    assert kept.values == [(("a",), 7), (("b",), 7)]


def test_what_is_no_number_is_left_out(kept: Kept) -> None:
    Recorder().record([Reading(meters.TRAINING_RETURN, math.nan), Reading(meters.RETURN, 1.0)])
    assert kept.values == [((meters.WHEEL,), 1.0)]


def test_a_fault_is_logged_and_not_raised(
    kept: Kept, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "put", None)
    with caplog.at_level(logging.ERROR):
        Recorder().record([Reading(meters.TURNS, 1, ("hold",))])
    assert "not recorded" in caplog.text


def test_each_meter_becomes_an_object_of_ray_with_its_tags() -> None:
    for meter in meters.METERS:
        made = on_ray._made(meter)
        assert made.info["name"] == meter.name
        assert made.info["tag_keys"] == ("wheel", *meter.tags)
    series = (meters.EPISODES, ("w", "production", "lost", "no"))
    assert on_ray._tags(series) == {"wheel": "w", "origin": "production", "end": "lost", "failed": "no"}
