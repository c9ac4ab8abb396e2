"""When a round of training is over, and when its candidate deserves a verdict."""

from __future__ import annotations

import pytest

from flywheel.config import TrainConfig
from flywheel.records import Plan, Probe, Progress
from flywheel.train.ending import beats, deserves_verdict, is_good, is_over

CONFIG = TrainConfig(min_steps=100, max_steps=1000, quiet_steps=500, probe_max_failed=1)
PLAN = Plan(strategy="continue_training", reasons=())


def at(num_steps: int) -> Progress:
    """Training after some steps."""
    return Progress(iteration=1, num_steps=num_steps, num_steps_total=0, mean_return=0.0, seconds=0.0, network=b"")


def shows(num_failed: int, mean_return: float = 0.0, edges: tuple[str, ...] = ()) -> Probe:
    """A probe of 200 episodes."""
    return Probe(num_failed=num_failed, num_episodes=200, mean_return=mean_return, edge_failed=edges)


@pytest.mark.parametrize(
    ("steps", "probe", "over"),
    [
        (50, shows(0), False),
        (100, shows(0), True),
        (100, shows(1), True),
        (100, shows(2), False),
        (100, shows(0, edges=("tilted",)), False),
        (1000, shows(200), True),
    ],
)
def test_a_round_ends_on_a_good_probe_or_when_its_steps_are_used_up(steps: int, probe: Probe, over: bool) -> None:
    assert is_over(PLAN, at(steps), probe, None, 500.0, CONFIG) is over


def test_in_quiet_times_a_good_probe_must_beat_the_policy_in_service() -> None:
    rival = shows(1, 480.0)
    assert is_over(PLAN, at(1), shows(200), shows(0, 500.0), 500.0, CONFIG), "nothing can beat a perfect one"
    assert not is_over(PLAN, at(200), shows(1, 480.0), rival, 500.0, CONFIG)
    assert is_over(PLAN, at(200), shows(1, 481.0), rival, 500.0, CONFIG)
    assert is_over(PLAN, at(500), shows(9), rival, 500.0, CONFIG)
    assert not deserves_verdict(shows(1, 480.0), rival)
    assert deserves_verdict(shows(0, 100.0), rival)
    assert deserves_verdict(shows(200), None)


def test_a_plan_may_set_its_own_number_of_steps() -> None:
    plan = Plan(strategy="continue_training", reasons=(), max_steps=150)
    assert is_over(plan, at(150), shows(200), None, 500.0, CONFIG)


def test_failures_in_edge_cases_count() -> None:
    assert beats(shows(0), shows(0, edges=("tilted",)))
    assert not beats(shows(0, edges=("tilted",)), shows(1))
    assert not is_good(shows(0, edges=("tilted",)), CONFIG)


def test_a_probe_that_was_broken_off_beats_nobody() -> None:
    broken_off = Probe(num_failed=2, num_episodes=20, mean_return=500.0, edge_failed=())
    assert not beats(broken_off, shows(9, 100.0))
