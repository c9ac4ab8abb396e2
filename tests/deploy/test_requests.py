"""Requests in numbers: each counts, and an even sample of their seconds is kept."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from flywheel import meters
from flywheel.deploy.requests import MOST, Requests


@given(st.lists(st.integers(0, 5 * MOST), min_size=1, max_size=4))
def test_all_are_counted_and_an_even_sample_is_kept(windows: list[int]) -> None:
    requests, total = Requests(), 0
    for num in windows:
        for i in range(num):
            requests.add("/v1/act", 200, float(i))
        total += num
        found = list(requests.take())
        counted = [reading.value for reading in found if reading.meter is meters.REQUESTS]
        kept = [reading.value for reading in found if reading.meter is meters.REQUEST_SECONDS]
        assert counted == ([total] if total else [])
        assert MOST // 2 - 1 <= len(kept) < MOST or len(kept) == num
        assert len({b - a for a, b in itertools.pairwise(kept)}) <= 1, "evenly"


def test_routes_and_codes_are_told_apart() -> None:
    requests = Requests()
    for path, code in [("/v1/act", 200), ("/v1/act", 422), ("/admin.php", 404)]:
        requests.add(path, code, 0.5)
    found = {(reading.meter, reading.tags): reading.value for reading in requests.take()}
    assert found[meters.REQUESTS, ("other", "404")] == 1
    assert found[meters.REQUEST_SECONDS, ("/v1/act", "422")] == 0.5
