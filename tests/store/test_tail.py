"""What is kept of a long tail tells of all of it without bias."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel.errors import UsageError
from flywheel.store import tail

NUM, SHARE, REPEATS = 10_000, 0.2, 200


def test_places_are_spread_evenly_and_smaller_shares_keep_a_part() -> None:
    ids = [f"episode-{i}" for i in range(20_000)]
    places = np.array([tail.place(id_) for id_ in ids])
    counts = np.histogram(places, 20, (0.0, 1.0))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees, 0.1 %
    fewer, more = ({i for i in ids if tail.is_kept(i, False, share)} for share in (0.04, 0.2))
    assert fewer < more and all(tail.is_kept(id_, True, 0.0) for id_ in ids[:100])


def test_the_interval_covers_the_mean_of_all_that_there_were() -> None:
    rng, naive, errors = np.random.default_rng(11), 0, list[float]()
    hits = {False: 0, True: 0}
    for repeat in range(REPEATS):
        failed = rng.random(NUM) < 0.05
        returns = np.where(failed, rng.uniform(0.0, 200.0, NUM), 500.0 - rng.exponential(20.0, NUM))
        kept = failed | np.array([tail.is_kept(f"{repeat}-{i}", False, SHARE) for i in range(NUM)])
        inclusion = np.where(failed, 1.0, SHARE)[kept]
        for of_process, truth in ((False, returns.mean()), (True, 0.05 * 100.0 + 0.95 * 480.0)):
            found = tail.weighted_mean(returns[kept], inclusion, of_process=of_process)
            hits[of_process] += found.interval[0] <= truth <= found.interval[1]
        naive += found.interval[0] <= returns[kept].mean() <= found.interval[1]
        errors.append(found.value - float(returns.mean()))
    assert all(0.93 <= num / REPEATS < 1.0 for num in hits.values())
    assert naive == 0  # who forgets the weights is off by far
    assert abs(np.mean(errors)) < 4 * np.std(errors) / REPEATS**0.5


def test_who_was_kept_for_sure_leaves_no_doubt() -> None:
    found = tail.weighted_mean([1.0, 2.0, 6.0], [1.0, 1.0, 1.0])
    assert found.value == 3.0 and found.interval == (3.0, 3.0) and found.effective == 3.0
    low, high = tail.weighted_mean([1.0, 2.0, 6.0], [1.0, 1.0, 1.0], of_process=True).interval
    assert low < 3.0 < high


@pytest.mark.parametrize(("values", "inclusion"), [([], []), ([1.0], [0.0]), ([1.0], [1.5]), ([1.0, 2.0], [1.0])])
def test_what_has_no_mean_is_refused(values: list[float], inclusion: list[float]) -> None:
    with pytest.raises(UsageError, match="inclusion probabilities"):
        tail.weighted_mean(values, inclusion)
