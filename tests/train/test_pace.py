"""How long a round may still take: right where the speed is even, never negative, and forgetful."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import TrainConfig
from flywheel.records import Plan, Probe, Progress
from flywheel.train.ending import most_steps
from flywheel.train.pace import RECENT, Pace


def at(num_steps: int) -> Progress:
    return Progress(iteration=1, num_steps=num_steps, num_steps_total=0, mean_return=0.0, seconds=1.0, network=b"")


def test_at_an_even_speed_the_time_left_is_what_the_rest_takes() -> None:
    pace = Pace(10_000, now=5.0)
    assert [pace.told(at(1_000 * k), 5.0 + 2.0 * k).left_s for k in (1, 2, 10)] == [18.0, 16.0, 0.0]


def test_a_slow_beginning_is_forgotten() -> None:
    pace = Pace(100_000, now=0.0)
    left = [pace.told(at(1_000 * k), 60.0 + k).left_s for k in range(1, RECENT + 3)]
    assert left[0] == 99 * 61.0 and left[-1] == 100 - (RECENT + 2)


def test_a_round_that_began_again_is_timed_anew() -> None:
    pace = Pace(10_000, now=0.0)
    pace.told(at(5_000), 10.0)
    assert pace.told(at(1_000), 500.0).left_s is None
    assert pace.told(at(2_000), 501.0).left_s == 8.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**9)), max_size=30))
def test_it_is_never_negative_nor_no_number(seen: list[tuple[float, int]]) -> None:
    pace, now = Pace(100_000, now=0.0), 0.0
    for seconds, steps in seen:
        now += seconds
        left = pace.told(at(steps), now).left_s
        assert left is None or 0.0 <= left < float("inf")


def test_quiet_rounds_give_up_earlier_and_a_plan_outranks_both() -> None:
    config, plan = TrainConfig(), Plan(strategy="continue_training", reasons=())
    probe = Probe(num_failed=0, num_episodes=1, mean_return=0.0, edge_failed=())
    assert most_steps(plan, None, config) == config.max_steps
    assert most_steps(plan, probe, config) == config.quiet_steps
    assert most_steps(Plan(strategy="hold", reasons=(), max_steps=7), probe, config) == 7
