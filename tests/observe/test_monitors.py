"""The monitors on the real CartPole: quick to see a change, silent without one, and fair by construction."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from flywheel.observe.monitors.outcome import FailureMonitor, LossMonitor, OutcomeMonitor, shown, upper_bound
from flywheel.observe.monitors.shiryaev_roberts import ShiryaevRoberts
from flywheel.observe.monitors.transitions import TransitionModel
from flywheel.observe.monitors.world import LEVELS, WorldMonitor
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.testing import SHORT_POLE, load_linear
from tests.observe.streams import real
from tests.rooms import room

THRESHOLD = 90_000.0
"""More than any outcome or world monitor's is by default."""


def world_delay(clean: list[Episode], changed: list[Episode]) -> tuple[int | None, str]:
    """(changed episodes read at the alarm, onset); fails when the clean ones raise it."""
    monitor = WorldMonitor(100)
    for episode in clean:
        assert monitor.update(episode.id, episode) < THRESHOLD
    for k, episode in enumerate(changed, start=1):
        if monitor.update(episode.id, episode) >= THRESHOLD:
            assert monitor.num_since == k
            return k, monitor.onset
    return None, monitor.onset


@pytest.fixture(scope="module", params=[0.0, 0.01], ids=["exact sensors", "noisy sensors"])
def noise(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def clean(noise: float) -> list[Episode]:
    return real(150, seed=1, noise=noise)


@pytest.mark.parametrize("changed", [{"length": 2.0}, {"force_mag": 8.0}, {"length": 0.75}, {"masspole": 0.3}], ids=str)
def test_another_world_is_seen_within_eight_episodes_that_do_not_even_fail(clean, noise, changed) -> None:
    episodes = real(10, seed=2, noise=noise, **changed)
    delay, onset = world_delay(clean, episodes)
    assert delay is not None and delay <= 8 and onset == episodes[0].id


def test_a_baseline_of_a_hundred_is_enough_for_a_policy_that_falls_at_once(noise: float) -> None:
    episodes = real(10, seed=2, gains=SHORT_POLE, noise=noise, length=2.0)
    assert max(e.num_steps for e in episodes) < 300
    delay, onset = world_delay(real(100, seed=1, gains=SHORT_POLE, noise=noise), episodes)
    assert delay is not None and delay <= 8 and onset == episodes[0].id


def test_starting_elsewhere_is_not_another_world(clean, noise) -> None:
    assert world_delay(clean, real(150, seed=3, noise=noise, spread=0.1))[0] is None


def test_an_unchanged_world_stays_quiet(clean, noise) -> None:
    assert world_delay(clean, real(300, seed=4, noise=noise))[0] is None


def test_a_learnt_action_or_sensor_that_never_moved_is_no_trouble() -> None:
    frozen = []
    for episode in real(30, seed=5):
        episode.observations[:, 0] = 0.0
        episode.raw_actions[:] = 0
        frozen.append(episode)
    monitor = WorldMonitor(20)
    for episode in frozen[:-1]:
        monitor.update(episode.id, episode)
    frozen[-1].raw_actions[::2] = 1
    assert np.isfinite(monitor.update("x", frozen[-1]))


def test_scores_that_tie_never_raise_evidence() -> None:
    monitor = WorldMonitor(2)
    episode = real(1, seed=6)[0]
    monitor.update("fit", episode)
    score = np.concatenate([LEVELS, np.zeros(28)])
    for i in range(2000):
        evidence = monitor.update(str(i), score)
    assert evidence < 100.0


def test_memory_is_bounded() -> None:
    monitor = WorldMonitor(2)
    monitor.update("fit", real(1, seed=6)[0])
    rng = np.random.default_rng(0)
    for i in range(2500):
        monitor.update(str(i), 2.0 + rng.random(30))
    assert monitor._bets is not None and len(monitor._bets) == monitor._bets._scores.shape[1] == 2000
    assert not monitor._first


def test_outcome_evidence_has_a_mean_of_at_most_its_episodes_at_the_limit() -> None:
    # The law behind the guarantee: E[M_t] <= t. All 2^10 histories at the limit, weighed by their probabilities.
    limit, num = 0.3, 10
    mean = 0.0
    for history in itertools.product((0.0, 1.0), repeat=num):
        monitor = OutcomeMonitor(limit)
        for i, value in enumerate(history):
            monitor.update(value, str(i))
        mean += monitor.evidence * limit ** sum(history) * (1 - limit) ** (num - sum(history))
    assert mean == pytest.approx(num)


def test_failing_episodes_are_seen_within_six_and_the_onset_is_the_first() -> None:
    monitor = FailureMonitor(0.05)
    for i in range(300):
        assert monitor.update(float(i % 40 == 0), f"clean-{i}") < THRESHOLD
    for k in range(1, 7):
        if monitor.update(1.0, f"bad-{k}") >= THRESHOLD:
            break
    assert monitor.evidence >= THRESHOLD and monitor.onset == "bad-1" and monitor.num_since == k


def test_false_alarms_at_the_limit_are_rarer_than_allowed() -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(10):
        monitor = OutcomeMonitor(0.05)
        alarms += any(monitor.update(float(x), "e") >= 1000.0 for x in rng.random(500) < 0.05)
    assert alarms <= 5  # 5,000 episodes at a mean run of at least 1,000


def test_a_head_start_is_all_that_the_evidence_has_beyond_its_episodes() -> None:
    # E[M_t] <= t + head start, and exactly that at the limit, over all 2^8 histories.
    limit, num, start = 0.2, 8, 50.0
    mean = 0.0
    for history in itertools.product((0.0, 1.0), repeat=num):
        monitor = FailureMonitor(limit, start)
        assert monitor.evidence == pytest.approx(start)
        for i, value in enumerate(history):
            monitor.update(value, str(i))
        mean += monitor.evidence * limit ** sum(history) * (1 - limit) ** (num - sum(history))
    assert mean == pytest.approx(num + start)


def test_a_head_start_finds_a_bad_release_sooner() -> None:
    rng = np.random.default_rng(9)
    delays = {0.0: [], 0.06: []}
    for _ in range(40):
        failed = rng.random(2000) < 0.06
        for share, found in delays.items():
            monitor = FailureMonitor(0.02, share * 14_000)
            found.append(next(i for i, x in enumerate(failed) if monitor.update(float(x), "e") >= 14_000))
    assert np.median(delays[0.06]) < 0.8 * np.median(delays[0.0])


@pytest.mark.parametrize(("num_failed", "rate"), [(0, 0.00299), (17, 0.0253), (100, 0.117)])
def test_what_a_policy_has_shown_is_clopper_and_pearsons_bound(num_failed: int, rate: float) -> None:
    assert shown(num_failed, 1000) == pytest.approx(rate, rel=0.01)
    assert shown(num_failed, 999) == 1.0, "too few episodes show nothing"
    assert shown(1000, 1000) == 1.0


def test_what_was_shown_covers_the_rate_and_dependent_outcomes_alarm_no_oftener() -> None:
    rng = np.random.default_rng(10)
    covered = np.mean([shown(int(rng.binomial(1000, 0.02)), 1000) >= 0.02 for _ in range(2000)])
    assert covered >= 0.94
    alarms = 0
    for _ in range(10):  # failures come in spells, at most 6 % given the past
        monitor, bad, top = FailureMonitor(0.06), False, 0.0
        for x in rng.random((500, 2)):
            bad ^= bool(x[0] < 1 / 200)
            top = max(top, monitor.update(float(x[1] < (0.06 if bad else 0.02)), "e"))
        alarms += top >= 1000.0
    assert alarms <= 5


def test_a_learnt_limit_lies_above_the_mean_and_tests_only_afterwards() -> None:
    rng = np.random.default_rng(8)
    covered = sum(upper_bound((rng.random(60) < 0.2).astype(float), 0.1) >= 0.2 for _ in range(300))
    assert covered >= 270
    assert upper_bound(np.zeros(100), 1e-3) < 0.1
    monitor = LossMonitor(0.01, 100)
    for i in range(100):
        assert monitor.update(0.4, str(i)) == 0.0
    assert monitor.testing and 0.4 < monitor.limit < 0.6
    assert max(monitor.update(0.4, str(i)) for i in range(500)) < THRESHOLD


def test_the_average_of_detectors_forgets_before_a_change() -> None:
    detector = ShiryaevRoberts(2)
    for i in range(50):
        detector.update(np.array([0.5, 0.9]), f"quiet-{i}")
    detector.update(np.array([10.0, 0.9]), "first")
    assert detector.onset == "first" and detector.num_since == 1
    detector.update(np.array([10.0, 0.9]), "second")
    assert detector.onset == "first" and detector.num_since == 2


def windy(num: int, seed: int, wind: float) -> list[Episode]:
    """Return episodes of the room with two sub-actions, played by a policy that has no preference."""
    policy = load_linear(room, np.zeros((5, 5)))
    return play(room, policy, seeds=range(seed, seed + num), parameters=[{"wind": wind}] * num, draw_keys=range(num))


def test_sub_actions_are_features_of_their_own_and_another_world_is_seen() -> None:
    clean = windy(150, 0, 0.3)
    model = TransitionModel(clean[:50])
    assert model.score(clean[60])[:2].max() < 2.0
    swapped = dataclasses.replace(clean[60], raw_actions=1 - np.minimum(clean[60].raw_actions, 1))
    assert model.score(swapped)[:2].max() > 100.0, "what an action does is told from the other one's"
    new = dataclasses.replace(clean[60], raw_actions=np.full_like(clean[60].raw_actions, 7))
    assert not model.score(new).any()
    delay, _ = world_delay(clean, windy(10, 500, 0.9))
    assert delay is not None and delay <= 8
