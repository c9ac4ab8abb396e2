"""Who gets more reward by going off is accused, who is just better isn't, and a restart forgets no reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from flywheel.config import ObserveConfig
from flywheel.observe import hacks
from flywheel.observe.hacks import LEAST, HackWatch
from flywheel.observe.monitors.hacking import ERROR, HackTest, learn, look, mean_bound
from flywheel.observe.observer import Observer
from flywheel.outcomes import outcome_of
from flywheel.records import Episode, Release, Signal, Spec
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum

OLD, NEW, NEXT = "o" * 64, "n" * 64, "x" * 64
SPEC = spec_of(cartpole)


def episodes(
    num: int, digest: str = OLD, *, seed: int = 0, pay: float = 1.0, right: float = 0.5, sway: float = 1.0,
    failed: float = 0.02, length: int = 60, start: float = 0.0, spec: Spec = SPEC,
) -> list[Episode]:  # fmt: skip
    """Made-up episodes: what a step pays, how often action 1 is taken, how far the sensors sway."""
    rng = np.random.default_rng([seed, *digest.encode()[:2]])
    made = []
    for i in range(num):
        steps = int(rng.integers(length // 2, length + 1))
        acted = (rng.random(steps) < right).astype(np.int64)
        raw = acted if spec.action_kind == "discrete" else (2.0 * acted[:, None] - 1.0).astype(np.float32)
        made.append(
            Episode(
                id=f"{digest[0]}{seed}{i:05d}", origin="production", task="t", parameters={}, draw_key=0,
                digests=(digest,) * steps,
                observations=(sway * rng.normal(size=(steps + 1, *spec.observation_shape))).astype(np.float32),
                raw_actions=raw, rewards=pay * rng.uniform(0.5, 1.5, steps), logps=np.zeros(steps), end="terminated",
                failed=bool(rng.random() < failed), started_at=start + i, ended_at=start + i + 0.5,
            )
        )  # fmt: skip
    return made


def release(digest: str = OLD, at: float = 0.0) -> Release:
    return Release(digest=digest, stage="full", share=1.0, previous=None, released_at=at)


def test_of(reference: Sequence[Episode], others: Sequence[Episode], spec: Spec = SPEC) -> HackTest:
    test = HackTest(learn(OLD, [outcome_of(e) for e in reference], [look(e, spec) for e in reference], spec))
    for episode in others:
        test.update(outcome_of(episode), look(episode, spec))
    return test


test_of.__test__ = False  # type: ignore[attr-defined]
OFF = {
    "failures": {"failed": 0.4},
    "actions": {"right": 0.95},
    "switching": {"right": 0.99},
    "spread": {"sway": 6.0},
    "length": {"length": 400, "pay": 0.3},
}


@pytest.mark.parametrize("channel", OFF)
def test_a_higher_return_with_any_channel_off_is_evidence_and_says_which(channel: str) -> None:
    reference = episodes(200)
    if channel == "length":  # in the reference a longer episode earns no more
        reference = [dataclasses.replace(e, rewards=e.rewards / e.rewards.sum() * 30.0) for e in reference]
    found = test_of(reference, episodes(120, NEW, **({"pay": 2.0} | OFF[channel])))  # type: ignore[arg-type]
    assert found.evidence >= 1.0 / ERROR and channel in found.channels()
    rise, low, high = found.rise()
    assert 0.0 < low < rise < high and f"up by {rise:.3g}" in found.words()


@pytest.mark.parametrize(
    "changed", [{"pay": 2.0}, {"length": 400}, {"pay": 2.0, "sway": 0.2}, {"pay": 2.0, "failed": 0.0}]
)
def test_a_higher_return_alone_is_none(changed: dict[str, float]) -> None:
    found = test_of(episodes(200), episodes(400, NEW, **changed))  # type: ignore[arg-type]
    assert found.is_up >= 1.0 / ERROR and found.evidence < 1.0


@pytest.mark.parametrize("channel", OFF)
def test_being_off_alone_is_none(channel: str) -> None:
    found = test_of(episodes(200), episodes(400, NEW, **(OFF[channel] | {"pay": 0.1})))  # type: ignore[arg-type]
    assert found.evidence < 1.0


@pytest.mark.parametrize(("failed", "is_accused"), [(0.3, True), (1.0, False)])
def test_a_champion_that_mostly_fails_shows_nobody_how_to_act(failed: float, is_accused: bool) -> None:
    watch, raised = HackWatch(SPEC), list[Signal]()
    watch.release(release())
    beside = episodes(120, NEW, pay=2.0, right=0.95, failed=0.0, start=500.0)
    for episode in [*episodes(200, failed=failed), *beside]:
        raised += watch.read(outcome_of(episode), watch.look(episode), 0.0)
    assert bool(raised) == is_accused
    watch.release(release(NEW, 1000.0))
    after = episodes(120, NEW, seed=1, pay=2.0, right=0.95, failed=0.0, start=1001.0)
    for episode in after:
        raised += watch.read(outcome_of(episode), watch.look(episode), 0.0)
    assert bool(raised) == is_accused


def test_of_continuous_actions_means_and_changes_count() -> None:
    spec = spec_of(pendulum)
    reference = episodes(200, spec=spec)
    assert test_of(reference, episodes(120, NEW, pay=2.0, spec=spec), spec).evidence < 1.0
    found = test_of(reference, episodes(120, NEW, pay=2.0, right=0.99, spec=spec), spec)
    assert found.evidence >= 1.0 / ERROR and "actions" in found.channels() and "switching" in found.channels()


def test_the_chance_of_false_evidence_is_what_is_promised() -> None:
    """The same policy over and over: at 5 %, of 400 runs no more than chance allows; the bounds are of 200 episodes."""
    accused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        totals = rng.normal(size=260)
        test = test_of(episodes(2), [])
        reference = dataclasses.replace(
            test.reference,
            returns=tuple(np.sort(totals[:100]).tolist()),
            rank_bound=mean_bound(float(np.searchsorted(np.sort(totals[:100]), totals[100:200]).mean() / 100), 100),
        )
        test, most = HackTest(reference), 0.0
        for total in totals[200:]:
            test._up += np.log1p(np.array([0.2, 0.5, 0.8]) * (reference.rank(total) / reference.rank_bound - 1.0))
            most = max(most, test.is_up)
        accused += most >= 20.0
    assert accused <= 12, "5 % of 400 is 20, and the bound makes it fewer"


@pytest.mark.parametrize(("mean", "num"), [(0.0, 100), (0.02, 400), (0.5, 200), (1.0, 50)])
def test_a_bound_is_missed_no_oftener_than_it_says(mean: float, num: int) -> None:
    rng, bound = np.random.default_rng(3), mean_bound(mean, num, 0.05)
    assert mean <= bound <= 1.0
    missed = [mean_bound(float((rng.random(num) < 0.3).mean()), num, 0.05) < 0.3 for _ in range(500)]
    assert np.mean(missed) <= 0.05


def feed(watch: HackWatch, given: Sequence[Episode], now: float = 1e6) -> list[Signal]:
    return [s for e in given for s in watch.read(outcome_of(e), watch.look(e), now)]


HACK = {"pay": 2.0, "right": 0.95}


def test_a_challenger_that_hacks_is_accused_once_in_a_signal_about_no_release() -> None:
    watch = HackWatch(SPEC)
    watch.release(release())
    assert feed(watch, episodes(200)) == []
    (signal,) = feed(watch, episodes(200, NEW, start=500.0, **HACK))  # type: ignore[arg-type]
    assert (signal.kind, signal.monitor, signal.digest) == ("reward_hacking", "hacking", NEW)
    assert signal.evidence["released_at"] == 500.0 and signal.evidence["reference"] == OLD
    assert signal.value >= signal.threshold == hacks.THRESHOLD and "actions" in signal.evidence["off"]
    assert watch.looks()[NEW]["raised"] and watch.tried() == {NEW: 500.0}


def test_a_champion_is_compared_with_the_one_before_it_and_a_challengers_test_goes_on() -> None:
    watch = HackWatch(SPEC)
    watch.release(release())
    feed(watch, episodes(200))
    feed(watch, episodes(10, NEW, start=500.0, **HACK))  # type: ignore[arg-type]
    before = watch.looks()[NEW]["read"]
    watch.release(release(NEW, 600.0))
    assert watch.looks()[NEW]["read"] == before == 10 and watch.tried() == {}
    (signal,) = feed(watch, episodes(200, NEW, seed=1, start=600.0, **HACK))  # type: ignore[arg-type]
    assert signal.evidence["released_at"] == 600.0
    watch.release(release(NEXT, 900.0))
    assert watch.looks()[NEXT]["reference"] == OLD, "who was accused is nobody's reference"
    assert feed(watch, episodes(50, NEW, seed=2, start=950.0, **HACK)) == [], "a former champion is nobody's to judge"  # type: ignore[arg-type]


def test_who_was_trained_for_another_reward_may_act_otherwise_and_get_more_and_the_next_one_may_not() -> None:
    watch = HackWatch(SPEC)
    watch.release(release())
    feed(watch, episodes(200))
    feed(watch, episodes(10, NEW, start=500.0, **HACK))  # type: ignore[arg-type]
    watch.release(dataclasses.replace(release(NEW, 600.0), pays_otherwise=True))
    assert feed(watch, episodes(200, NEW, seed=1, start=600.0, **HACK)) == [] and not watch.looks()  # type: ignore[arg-type]
    watch.release(release(NEXT, 900.0))
    assert watch.looks()[NEXT]["reference"] == NEW
    assert feed(watch, episodes(200, NEXT, seed=2, start=900.0, pay=4.0, right=0.05)), "it is watched as any other"


def test_without_enough_of_the_champions_episodes_nobody_is_judged() -> None:
    watch = HackWatch(SPEC)
    watch.release(release())
    feed(watch, episodes(LEAST - 1))
    assert feed(watch, episodes(200, NEW, start=500.0, **HACK)) == [] and not watch.looks()  # type: ignore[arg-type]


def drive(observer: Observer, given: Sequence[Episode]) -> list[Signal]:
    return [s for e in given for s in observer.observe(e) if s.kind == "reward_hacking"]


def watched(note: str | None = None, signals: Sequence[Signal] = (), at: Release | None = None) -> Observer:
    observer = Observer(cartpole, ObserveConfig())
    if note is not None:
        observer.resume({}, signals, hacks=note)
    observer.release(at or release(), 0.5)
    return observer


@pytest.mark.parametrize("is_released", [False, True])
def test_after_a_restart_the_reference_and_the_evidence_are_what_they_were(is_released: bool) -> None:
    old, new = episodes(200), episodes(200, NEW, start=500.0, **HACK)  # type: ignore[arg-type]
    observer = watched()
    drive(observer, old)
    if is_released:
        observer.release(release(NEW, 500.0), 0.5)
    assert drive(observer, new[:8]) == []
    note = observer.hacks.note()
    assert note is not None
    observer.hacks.noted(note)
    assert observer.hacks.note() is None, "nothing is noted twice"
    again = watched(note, observer.signals, observer.watched)
    assert observer.watched is not None
    again.replay(new[:8] if is_released else old, now=1e6)
    if not is_released:
        again.replay_beside(new[:8], now=1e6)
    again.caught_up()
    assert again.hacks.looks() == observer.hacks.looks() and again.hacks.looks()[NEW]["read"] == 8
    assert [s.evidence for s in drive(again, new[8:])] == [s.evidence for s in drive(observer, new[8:])] != []
    third = watched(note, again.signals, again.watched)
    third.replay(new if is_released else old, now=1e6)
    assert third.replay_beside([] if is_released else new, now=1e6) == [], "who was accused is so once"


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_a_reference_of_a_world_that_ran_away_is_noted_too() -> None:
    """A mean square that is no number must not keep the observer from coming back."""
    far = [dataclasses.replace(e, observations=e.observations.astype(np.float64) * 1e200) for e in episodes(2 * LEAST)]
    watch, again = HackWatch(SPEC), HackWatch(SPEC)
    watch.release(release())
    feed(watch, far)
    watch.release(release(NEW, 300.0))
    note = watch.note()
    assert note is not None and ("Infinity" in note or "NaN" in note)
    again.resume(note, [])
    again.release(release(NEW, 300.0))
    assert again.looks().keys() == watch.looks().keys() == {NEW}
    assert feed(again, episodes(50, NEW, start=300.0)) == []


def test_a_reference_whose_episodes_are_all_as_long_is_noted_too() -> None:
    same = [dataclasses.replace(e, rewards=np.ones(e.num_steps)) for e in episodes(4 * LEAST, length=1)]
    watch, again = HackWatch(SPEC), HackWatch(SPEC)
    watch.release(release())
    feed(watch, same)
    watch.release(release(NEW, 300.0))
    again.resume(watch.note(), [])
    again.release(release(NEW, 300.0))
    assert again.looks() == watch.looks() and NEW in again.looks()
    assert again._tested[NEW].reference == watch._tested[NEW].reference


def test_an_observer_without_a_note_begins_anew() -> None:
    watch = HackWatch(SPEC)
    assert watch.note() is None and watch.look(episodes(1)[0]) is None
    watch.resume(None, [])
    watch.release(release())
    assert watch.note() is not None
