"""river's drift detectors beside the rollback alarm of `observer_power`: as they come, and calibrated to its mean run.

They read what they are meant for: returns (500 for an episode that goes well) as they come, failures where they are
calibrated. ADWIN looks after every 32 values by default, calibrated after each. All rows are for information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from river.drift import ADWIN, PageHinkley

from experiments.observer_streams import BAD, BEFORE, CLEAN, Alarms, Whole, delays_after, runs
from experiments.report import median

Detector = Callable[[], Any]
MOST = 50_000
"""Episodes of a run without a change at most."""


def beside(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows: mean run to a false alarm, and median delay, of each detector and of ours."""
    rng, num = np.random.default_rng([seed, 11]), 8 if quick else 60
    known = np.full(300, CLEAN)
    own = runs(Alarms(known), lambda _: known, rng)
    yield _mean("Flywheel (guaranteed)", own, seed)
    for bad in BAD:
        found = delays_after(lambda: Alarms(known), len(known), bad, rng)
        yield median("PEER", f"Flywheel: median delay at {bad:.1%} failures", found, None, seed)
    goal = float(own.mean())
    peers: dict[str, tuple[Detector, bool]] = {
        "ADWIN, defaults, returns": (ADWIN, True),
        "ADWIN, defaults, failures": (ADWIN, False),
        "Page-Hinkley, defaults, returns": (PageHinkley, True),
        "Page-Hinkley, defaults, failures": (PageHinkley, False),
        "ADWIN, calibrated": (calibrated(_adwin, (0.3, 0.5, 0.7, 0.9), goal, num, rng), False),
        "Page-Hinkley, calibrated": (
            calibrated(_page_hinkley, (25.0, 18.0, 14.0, 11.0, 8.0, 6.0, 4.0), goal, num, rng),
            False,
        ),
    }
    for name, (make, of_returns) in peers.items():
        yield _mean(name, np.array([alarm(make(), CLEAN, CLEAN, 0, MOST, of_returns, rng) for _ in range(num)]), seed)
        for bad in BAD:
            delays = [alarm(make(), CLEAN, bad, BEFORE, 5_000, of_returns, rng) for _ in range(num)]
            quiet = np.array([delay for delay in delays if delay > 0])
            case = f"{name}: median delay at {bad:.1%} failures"
            if len(quiet):
                yield median("PEER", f"{case} ({len(quiet)} of {num} streams quiet before)", quiet, None, seed)


def _adwin(delta: float) -> Any:
    return ADWIN(delta=delta, clock=1)


def _page_hinkley(threshold: float) -> Any:
    return PageHinkley(threshold=threshold, delta=0.005, mode="up")


def calibrated(
    make: Callable[[float], Any], values: tuple[float, ...], goal: float, num: int, rng: np.random.Generator
) -> Detector:
    """Return the detector with that value, of some that alarm ever oftener, whose mean run is nearest to `goal`."""
    found = {}
    for value in values:
        mean = float(np.mean([alarm(make(value), CLEAN, CLEAN, 0, MOST, False, rng) for _ in range(num)]))
        found[value] = abs(np.log(mean / goal))
        if mean < goal:
            break
    best = min(found, key=lambda value: found[value])
    return lambda: make(best)


def alarm(
    detector: Any, clean: float, bad: float, before: int, most: int, of_returns: bool, rng: np.random.Generator
) -> int:
    """Return the episodes from the change to the first alarm, `most` where there is none, 0 where it came before."""
    failed = rng.random(before + most) < np.where(np.arange(before + most) < before, clean, bad)
    values = np.where(failed, rng.uniform(10.0, 200.0, len(failed)), 500.0) if of_returns else failed.astype(float)
    for t, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected:
            return max(0, t + 1 - before)
    return most


def _mean(name: str, values: Whole, seed: int) -> dict[str, Any]:
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    mean = float(values.mean())
    return {
        "id": "PEER", "case": f"{name}: mean episodes to a false alarm", "value": round(mean),
        "interval": [round(mean - half), round(mean + half)], "goal": "for information", "passed": True,
        "runs": len(values), "seed": seed,
    }  # fmt: skip
