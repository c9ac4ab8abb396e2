"""Readings to Ray's metrics: one object a meter and process, made at the first reading in a process of Ray."""

from __future__ import annotations

import functools
import logging
import math
import sys
import threading
from collections.abc import Iterable
from typing import Any

from flywheel.meters import METERS, WHEEL, Meter, Reading

REPEAT_S = 1.0
"""Seconds after which gauges are set again: Ray exports what was set since the last export (every 10 s), and
forgets what wasn't exported for two of them."""
log = logging.getLogger(__name__)
_Series = tuple[Meter, tuple[str, ...]]


class Recorder:
    """Records one wheel's readings in this process; outside Ray it does nothing."""

    def __init__(self, wheel: str = WHEEL) -> None:
        """Tag everything with the wheel's name."""
        self.wheel = wheel
        self._totals: dict[_Series, float] = {}

    def record(self, readings: Iterable[Reading]) -> None:
        """Let Ray's next export carry these; a number that isn't one is left out. Nothing is raised."""
        if not _on_ray():
            return
        try:
            for reading in readings:
                self._record(reading)
        except Exception:  # a number on a screen is never worth an episode or a verdict
            log.exception("A metric was not recorded.")

    def _record(self, reading: Reading) -> None:
        meter, value = reading.meter, float(reading.value)
        if math.isnan(value):
            return
        series = (meter, (self.wheel, *reading.tags))
        if meter.running:
            value, self._totals[series] = value - self._totals.get(series, 0.0), value
        _process().put(series, value)


class _Process:
    """Ray's objects of this process, and the last value of each gauge."""

    def __init__(self) -> None:
        self._objects = {meter: _made(meter) for meter in METERS}
        self._gauges: dict[_Series, float] = {}
        threading.Thread(target=self._repeat, daemon=True, name="meters").start()

    def put(self, series: _Series, value: float) -> None:
        """Hand one number to Ray, which exports it the next time."""
        meter, _ = series
        if meter.kind == "gauge":
            self._gauges[series] = value
            self._objects[meter].set(value, _tags(series))
        elif meter.kind == "histogram":
            self._objects[meter].observe(value, _tags(series))
        elif value > 0:  # Ray raises on less
            self._objects[meter].inc(value, _tags(series))

    def _repeat(self) -> None:
        stop = threading.Event()
        while not stop.wait(REPEAT_S):
            if not _on_ray():  # the driver may begin again with another Ray, and other values
                self._gauges.clear()
            for series, value in list(self._gauges.items()):
                self._objects[series[0]].set(value, _tags(series))


def _on_ray() -> bool:
    """Say whether this is a process of Ray; a room that is used alone never loads it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@functools.cache
def _process() -> _Process:
    return _Process()


@functools.lru_cache(maxsize=1024)
def _tags(series: _Series) -> dict[str, str]:
    meter, values = series
    return dict(zip(("wheel", *meter.tags), values, strict=True))


def _made(meter: Meter) -> Any:
    from ray.util import metrics

    tags = ("wheel", *meter.tags)
    if meter.kind == "histogram":
        return metrics.Histogram(meter.name, meter.help, boundaries=list(meter.boundaries), tag_keys=tags)
    kind = metrics.Counter if meter.kind == "counter" else metrics.Gauge
    return kind(meter.name, meter.help, tag_keys=tags)
