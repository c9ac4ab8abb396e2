"""A replica's requests in numbers: all are counted, and the seconds of an even sample are kept. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from flywheel.meters import Reading, readings

MOST = 256
"""Requests whose seconds are kept between two readings: handing one over takes a tenth of what a decision takes."""


class Requests:
    """Takes in each request, and gives readings now and then."""

    def __init__(self) -> None:
        """Begin with none."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._kept: list[tuple[tuple[str, str], float]] = []
        self._num, self._stride = 0, 1

    def add(self, path: str, code: int, seconds: float) -> None:
        """Take in a request that was answered."""
        key = (readings.route_of(path), str(code))
        self._counts[key] += 1
        self._num += 1
        if self._num % self._stride == 0:
            self._kept.append((key, seconds))
            if len(self._kept) == MOST:  # every second one of them from now on, and of those that are there
                del self._kept[::2]
                self._stride *= 2

    def take(self) -> Iterator[Reading]:
        """Yield how many requests there were in all, and the seconds of those that were kept since the last call."""
        yield from readings.of_requests(self._counts)
        for key, seconds in self._kept:
            yield readings.of_request(key, seconds)
        self._kept.clear()
        self._num, self._stride = 0, 1
