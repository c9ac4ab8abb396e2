"""When a look at production is over: on an alarm, on enough quiet episodes, on a recovery or its absence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.analyze.recovery import conclude, mean_before, span_shown
from flywheel.config import LoopConfig
from flywheel.records import Episode, Signal

CONFIG = LoopConfig(observe_episodes=10, recovered_episodes=5, recovered_share=0.95)
SIGNAL = Signal(
    kind="degradation",
    monitor="failed",
    digest="d",
    value=2.0,
    threshold=1.0,
    since_episode="a",
    at_episode="b",
    evidence={},
    at=0.0,
)


def episode(total: float) -> Episode:
    """One whole production episode of one step."""
    return Episode(
        id="e",
        origin="production",
        task="t",
        parameters={},
        draw_key=0,
        digests=("d",),
        observations=np.zeros((2, 1)),
        raw_actions=np.zeros(1),
        rewards=np.array([total]),
        logps=np.zeros(1),
        end="terminated",
        failed=False,
    )


def test_quiet_production_is_watched_until_enough_new_episodes_came() -> None:
    many = [episode(1.0)] * 20
    assert conclude(many, 9, (), None, CONFIG) is None
    found = conclude(many, 10, (), None, CONFIG)
    assert found is not None
    assert (found["recovered"], found["mean_return"]) == (False, 1.0)


def test_an_alarm_ends_the_look_at_once() -> None:
    found = conclude([episode(1.0)], 0, [SIGNAL], None, CONFIG)
    assert found is not None
    assert [signal["monitor"] for signal in found["signals"]] == ["failed"]
    assert not found["recovered"]


@pytest.mark.parametrize(
    ("before", "now", "recovered"),
    [(100.0, 95.0, True), (100.0, 94.9, False), (-100.0, -105.0, True), (-100.0, -105.1, False)],
)
def test_recovery_is_a_share_of_the_return_before_whatever_its_sign(before: float, now: float, recovered: bool) -> None:
    assert conclude([episode(now)] * 4, 4, (), before, CONFIG) is None
    found = conclude([episode(now)] * 5, 5, (), before, CONFIG)
    assert found is not None
    assert found["recovered"] is recovered
    assert found["before"] == (None if recovered else before)


def test_where_the_range_of_returns_is_known_the_share_is_of_its_width() -> None:
    for now, recovered in ((-240.0, True), (-260.0, False)):
        found = conclude([episode(now)] * 5, 5, (), -150.0, CONFIG, span=2000.0)
        assert found is not None
        assert found["recovered"] is recovered


def test_where_no_range_is_known_the_share_is_of_what_production_has_shown() -> None:
    shown = [episode(-1.4), episode(-9.0), dataclasses.replace(episode(-99.0), end="lost")]
    assert span_shown(shown, -1.4) == pytest.approx(7.6)
    assert span_shown([episode(500.0)] * 2, 500.0) == 500.0 and span_shown([], -3.0) == 3.0
    found = conclude([episode(-1.7)] * 5, 5, (), -1.42, CONFIG, span=7.6)
    assert found is not None and found["recovered"] and found["needed"] == pytest.approx(-1.8)


def test_a_lost_episode_decides_nothing() -> None:
    lost = dataclasses.replace(episode(0.0), end="lost")
    found = conclude([*[episode(1.0)] * 5, lost], 6, (), 1.0, CONFIG)
    assert found is not None
    assert found["mean_return"] == 1.0


def test_old_episodes_decide_nothing_about_a_release_that_is_watched_again() -> None:
    assert conclude([], 0, (), 1.0, CONFIG) is None
    assert conclude([], 0, (), None, CONFIG) is None


def test_what_was_before_a_change_stays_known_until_it_is_cured() -> None:
    assert mean_before([episode(3.0), episode(5.0)], None) == 4.0
    assert mean_before([episode(3.0)], 9.0) == 9.0
    assert mean_before([], None) is None
