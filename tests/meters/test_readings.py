"""Readings fit their meters, and say what the records say."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
import pytest

from flywheel import meters
from flywheel.config import GateConfig, ObserveConfig
from flywheel.deploy.routes import ROUTES
from flywheel.gate.judge import SafetyGate
from flywheel.gate.stress import PILOT, STRETCHES
from flywheel.meters import METERS, Meter, Reading, readings
from flywheel.observe.observer import Observer
from flywheel.records import Plan, Probe, Progress, Release, Turn
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, load_linear
from tests.observe.streams import DIGEST, rows_of, steps_of
from tests.store.test_intake import episode

RELEASE = Release(digest=DIGEST, stage="full", share=1.0, previous=None, released_at=0.0)
PROBE = Probe(num_failed=1, num_episodes=4, mean_return=100.0, edge_failed=())
PROGRESS = Progress(iteration=1, num_steps=10, num_steps_total=30, mean_return=math.nan, seconds=0.5, network=b"")


def table(found: Iterable[Reading]) -> dict[tuple[Meter, tuple[str, ...]], float]:
    """Return readings by series, after seeing that each has its meter's tags."""
    made: dict[tuple[Meter, tuple[str, ...]], float] = {}
    for reading in found:
        assert reading.meter in METERS
        assert len(reading.tags) == len(reading.meter.tags), reading
        assert all(isinstance(tag, str) and tag for tag in reading.tags), reading
        made[reading.meter, reading.tags] = made.get((reading.meter, reading.tags), 0.0) + reading.value
    return made


def test_meters_have_names_that_ray_and_prometheus_take() -> None:
    assert len({meter.name for meter in METERS}) == len(METERS)
    for meter in METERS:
        assert re.fullmatch(r"flywheel_[a-z_]+", meter.name) and not meter.name.endswith("_total")
        assert meter.help.endswith(".")
        assert "wheel" not in meter.tags
        assert bool(meter.boundaries) == (meter.kind == "histogram")
        assert meter.boundaries == tuple(sorted(meter.boundaries)) and all(b > 0 for b in meter.boundaries)
        assert not meter.running or meter.kind == "counter"


def test_production_is_read_from_the_observers_status() -> None:
    observer = Observer(cartpole, ObserveConfig(wait_s=0.0))
    observer.release(RELEASE, 0.05)
    for name, length in (("a", 3), ("b", 5)):
        steps = steps_of(rows_of(name, length, start=1.0))
        observer.add(steps, 2.0)
        whole = observer.whole(steps)
        observer.close(whole, {name: "stored"}, 3.0)
    observer.tick(10.0)
    found = table(readings.of_production(observer.status(1), observer.heard(readings.LAST)[1]))
    _, heard = observer.heard(2)
    assert found[meters.RETURN, ()] == np.mean([outcome.total for outcome in heard])
    assert found[meters.FAILURE_RATE, ()] == 1.0
    assert found[meters.ROWS, ("received",)] == found[meters.ROWS, ("kept",)] == 3 + 5 + 2
    assert {tags for meter, tags in found if meter is meters.EVIDENCE} == {
        ("failed",),
        ("loss",),
        ("world",),
        ("inputs",),
    }
    assert all(found[meters.THRESHOLD, tags] > 1 for meter, tags in found if meter is meters.EVIDENCE)
    silent = Observer(cartpole)
    assert meters.RETURN not in {meter for meter, _ in table(readings.of_production(silent.status(1), []))}


def test_the_numbers_of_losses_are_those_that_the_observer_counts() -> None:
    observer = Observer(cartpole, ObserveConfig(episode_timeout_s=1.0))
    rows = rows_of("quiet", 9, start=0.0)
    observer.add(steps_of(rows[:4]), 0.0)
    late = observer.overdue(10.0)
    observer.close(late, {"quiet": "stored"}, 10.0)
    found = table(readings.of_production(observer.status(1), []))
    assert found[meters.LOSSES, ("lost",)] == 1 and found[meters.LOSSES, ("quarantined",)] == 0


def test_an_end_is_timed_once_it_is_durable() -> None:
    ends = steps_of([rows_of("a", 3, start=100.0)[-1], rows_of("b", 3, start=100.0)[-1]])
    found = list(readings.of_ends(ends, {"a": (), "b": (1,)}, float(ends.seen_at[0]) + 0.25))
    assert [(reading.meter, round(reading.value, 6)) for reading in found] == [(meters.INGEST, 0.25)]


def test_the_store_counts_what_is_new() -> None:
    answers = {"a": "stored", "b": "same"}
    found = table(readings.of_commit([episode("a"), episode("a"), episode("b")], answers, 0.01))
    assert sum(value for (meter, _), value in found.items() if meter is meters.EPISODES) == 1
    assert (found[meters.WORK, ("commit",)], found[meters.WORK_SECONDS, ("commit",)]) == (1, 0.01)


def test_a_verdict_counts_every_simulation_and_shows_its_checks() -> None:
    gate = SafetyGate(cartpole, GateConfig(max_sims=100, search_sims=0))
    policy = load_linear(cartpole, GOOD)
    alone, beside = (gate.judge(policy, baseline=old, seed=1, now=0.0) for old in (None, policy))
    pilot = len(STRETCHES) * PILOT
    assert table(readings.of_verdict(alone))[meters.SIMULATIONS, ("judge",)] == len(alone.trials)
    found = table(readings.of_verdict(beside))
    assert found[meters.SIMULATIONS, ("judge",)] == len(beside.trials) + len(beside.rivals) + pilot
    assert found[meters.VERDICTS, (beside.outcome,)] == 1
    (check,) = [check for check in beside.checks if check.name == "failure_rate"]
    assert found[meters.CHECK, ("failure_rate", "bound")] == check.bound == cartpole.limits.max_failure_rate
    assert found[meters.CHECK, ("failure_rate", "high")] == check.interval[1]


@pytest.mark.parametrize(
    ("stage", "share", "shares"),
    [("full", 1.0, (0.0, 0.0, 1.0)), ("canary", 0.25, (0.0, 0.25, 0.75)), ("shadow", 0.0, (0.0, 0.0, 1.0))],
)
def test_the_shares_of_the_stages_that_answer_sum_to_one(stage: str, share: float, shares: tuple[float, ...]) -> None:
    release = dataclasses.replace(RELEASE, stage=stage, share=share)  # type: ignore[arg-type]
    found = table(readings.of_release(release, 7))
    assert tuple(found[meters.SHARE, (name,)] for name in ("shadow", "canary", "full")) == shares
    assert found[meters.VERSION, (stage,)] == 7


def test_a_path_that_a_stranger_made_up_gets_no_series_of_its_own() -> None:
    assert readings.route_of("/v1/act") == "/v1/act"
    assert readings.route_of("/admin.php") == "other"
    assert readings.route_of("/v1/policies/@champion") == "/v1/policies/{digest}"
    assert {route.path for route in ROUTES} == readings.ROUTES


def test_training_and_the_loop_are_read() -> None:
    found = table(readings.of_progress(PROGRESS))
    fast = table(readings.of_progress(dataclasses.replace(PROGRESS, steps_per_s=20.0)))
    assert fast[meters.TRAINING_SPEED, ()] == 20.0 and (meters.TRAINING_SPEED, ()) not in found
    assert table(readings.of_left(9.0)) == {(meters.TRAINING_LEFT, ()): 9.0} and not table(readings.of_left(None))
    assert found[meters.TRAINING_STEPS, ()] == 30 and math.isnan(found[meters.TRAINING_RETURN, ()])
    assert table(readings.of_probe(PROBE, 1.0))[meters.PROBE_FAILURE_RATE, ()] == 0.25
    plan = Plan(strategy="hold", reasons=())
    turn = Turn(number=1, plan=plan, artifact=None, verdict=None, release=None, evidence={})
    assert table(readings.of_turn(turn)) == {(meters.TURNS, ("hold",)): 1}


def test_spans_are_read_by_what_became_of_them() -> None:
    assert [(r.meter, r.value, r.tags) for r in readings.of_spans(5, 2)] == [
        (meters.SPANS, 5, ("sent",)),
        (meters.SPANS, 2, ("lost",)),
    ]
    assert [(r.value, r.tags) for r in readings.of_exported(3, 1)] == [(3, ("exported",)), (1, ("not_exported",))]
    assert [(r.meter, r.value) for r in readings.of_traces(9)] == [(meters.TRACES, 9)]
