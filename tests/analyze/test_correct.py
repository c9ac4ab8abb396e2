"""What production does otherwise than the simulator: named right where it can be known, and refused where it can't."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from experiments.changed_worlds import Change, changed, episodes
from flywheel.analyze.correct import Found, correct
from flywheel.analyze.diagnose import diagnose
from flywheel.analyze.strategy import decide
from flywheel.config import AnalyzeConfig
from flywheel.correction import Correction, Surface
from flywheel.facts import Facts
from flywheel.gate import SafetyGate
from flywheel.records import Episode, Signal
from flywheel.simulate import play
from flywheel.simulate.corrected import corrected
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from flywheel.testing import GOOD, SHORT_POLE, load_linear

CONFIG = AnalyzeConfig()
POLE = load_linear(cartpole, SHORT_POLE, digest="served")
ROD = load_linear(pendulum, [[-1.0, -1.0, -0.3], [0.0, 0.0, 0.0]], digest="served")
NUM = 40


def found(change: Change, seed: int, task: Task = cartpole, noise: float = 0.0, **given: Any) -> Found:
    """Return what is made of episodes of a changed world, beside as many of the old one."""
    policy, first = (POLE if task is cartpole else ROD), 1000 * seed
    before = episodes(task, Change(), policy, range(first, first + NUM), noise=noise)
    shown = episodes(task, change, policy, range(first + 500, first + 500 + NUM), noise=noise)
    config = dataclasses.replace(CONFIG, **given.pop("config", {}))
    return correct(task, shown, config, parameters=task.nominal, **{"before": before, **given})


def acting(correction: Correction | None) -> Correction:
    """Return the form of acting alone."""
    assert correction is not None
    return dataclasses.replace(correction, state=None, reward=None, explained=0.0, num_transitions=0)


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize(
    ("change", "form", "words"),
    [
        (Change(swapped=True), Correction(actions=(1, 0)), "as if actions 0 and 1 were swapped"),
        (Change(delay=1), Correction(delay=1), "as if actions arrived 1 step late"),
        (Change(delay=2, initial=1), Correction(delay=2, waiting=(1.0,)), "as if actions arrived 2 steps late"),
        (
            Change(swapped=True, delay=1, initial=0),
            Correction(actions=(1, 0), delay=1, waiting=(0.0,)),
            "as if actions 0 and 1 were swapped and arrived 1 step late",
        ),
        (Change(stuck=True), Correction(actions=(0, 0)), "as if action 1 were action 0"),
    ],
)
def test_what_arrives_is_named_in_words(change: Change, form: Correction, words: str, noise: float) -> None:
    for seed in range(3):
        correction = found(change, seed, noise=noise).correction
        assert acting(correction) == form
        assert correction is not None and correction.explained > 0.99 and correction.state is None
        assert str(correction) == f"production acts {words}"


@pytest.mark.parametrize(
    ("change", "gain", "delay", "words"),
    [
        (Change(gain=-1.0), -1.0, 0, "as if the action's sign were flipped"),
        (Change(gain=0.5), 0.5, 0, "as if the action were 0.5 times itself"),
        (Change(gain=-1.0, delay=2, initial=0.0), -1.0, 2, "as if the action's sign were flipped and arrived 2 steps"),
    ],
)
def test_a_box_action_is_turned_or_late(change: Change, gain: float, delay: int, words: str) -> None:
    correction = found(change, 1, pendulum).correction
    assert correction is not None and words in str(correction)
    assert np.isclose(correction.gain[0][0], gain, rtol=1e-3)
    assert (correction.delay, correction.offset, correction.state) == (delay, (), None)
    assert correction.explained > 0.99
    followed = found(change, 1, pendulum, config={"follow_rewards": True}).correction
    assert followed is not None and followed.reward is None, "they are other ones by what acts alone"


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize("task", [cartpole, pendulum], ids=["discrete", "box"])
def test_nothing_is_corrected_where_nothing_changed(task: Task, noise: float) -> None:
    for seed in range(3):
        assert found(Change(), seed, task, noise).correction == Correction()


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_a_constant_wind_is_learnt(noise: float) -> None:
    correction = found(Change(push=(0.0, 0.02, 0.0, 0.0)), 2, noise=noise).correction
    assert correction is not None and correction.explained > 0.95
    assert isinstance(correction.state, Surface) and correction.delay == 0 and not correction.actions
    both = found(Change(swapped=True, push=(0.0, 0.02, 0.0, 0.0)), 2, noise=noise).correction
    assert both is not None and both.actions == (1, 0) and both.state is not None


def test_how_much_is_explained_is_what_new_episodes_say() -> None:
    """Half of what gusts of chance do can't be foretold: the share is that of the steady part, in any episode."""
    change = Change(push=(0.0, 0.02, 0.0, 0.0), gusts=0.02)
    refused = found(change, 3)
    assert refused.correction is None and "explains more than" in refused.why
    correction = found(change, 3, config={"corrected": 0.3}).correction
    assert correction is not None
    new = episodes(cartpole, change, POLE, range(9000, 9000 + NUM))
    with_it, without = (_missed(new, form) for form in (correction, None))
    assert abs(correction.explained - (1.0 - with_it / without)) < 0.1
    assert 0.35 < correction.explained < 0.65


def _missed(shown: list[Episode], form: Correction | None) -> float:
    """Return the mean square of the velocity's one-step misses."""
    from flywheel.trace.residuals import residuals

    return float(np.mean(np.concatenate(residuals(corrected(cartpole, form), shown, {}))[:, 1] ** 2))


def test_rewards_are_corrected_only_where_they_are_to_be_followed() -> None:
    change = Change(cost=0.3)
    assert found(change, 4).correction == Correction()
    correction = found(change, 4, config={"follow_rewards": True}).correction
    assert correction is not None and correction.reward is not None and correction.state is None
    assert correction.explained > 0.9
    both = found(dataclasses.replace(change, swapped=True), 4, config={"follow_rewards": True}).correction
    assert both is not None and both.actions == (1, 0) and both.reward is not None


def test_what_is_corrected_already_stays_and_what_is_over_goes() -> None:
    present = Correction(actions=(1, 0), explained=1.0, num_transitions=300)
    assert found(Change(swapped=True), 5, present=present, before=()).correction is present
    back = found(Change(), 5, present=present, before=episodes(cartpole, Change(swapped=True), POLE, range(40)))
    assert back.correction is not None and back.correction.is_none


def test_a_fit_that_says_the_same_again_changes_nothing() -> None:
    """Where nothing is known of noise, a noisy world is missed at any correction."""
    shown = episodes(cartpole, Change(swapped=True), POLE, range(NUM), noise=0.002)
    present = correct(cartpole, shown, CONFIG, parameters={}).correction
    again = episodes(cartpole, Change(swapped=True), POLE, range(100, 100 + NUM), noise=0.002)
    assert correct(cartpole, again, CONFIG, parameters={}, present=present).correction is present


def test_a_task_without_parameters_or_a_vector_form_is_corrected_too() -> None:
    bare = dataclasses.replace(cartpole, parameters=(), set_parameters=None, edge_cases=(), drift={})
    shown = episodes(bare, Change(swapped=True, delay=1), POLE, range(60))
    for task in (bare, dataclasses.replace(bare, vector=None)):
        made = diagnose(task, shown, SIGNALS, CONFIG)
        assert made.calibration is None and "names no parameters" in made.obstacle
        assert acting(made.correction) == Correction(actions=(1, 0), delay=1)


def test_episodes_of_the_world_before_are_left_out() -> None:
    old = episodes(cartpole, Change(), POLE, range(12))
    new = episodes(cartpole, Change(delay=2), POLE, range(100, 128))
    mixed = [each for pair in zip(old, new[:12], strict=True) for each in pair] + new[12:]
    correction = correct(cartpole, mixed, CONFIG, parameters={}).correction
    assert correction is not None and correction.delay == 2 and correction.explained > 0.99


def test_what_it_cannot_do_is_refused_in_a_phrase() -> None:
    shown = episodes(cartpole, Change(swapped=True), POLE, range(3))
    assert "only" in correct(cartpole, shown, CONFIG, parameters={}).why
    dark = [
        dataclasses.replace(each, observations=np.full_like(each.observations, np.nan))
        for each in episodes(cartpole, Change(swapped=True), POLE, range(NUM))
    ]
    assert "broken sensor" in correct(cartpole, dark, CONFIG, parameters={}).why
    blind = dataclasses.replace(cartpole, observed_state=None)
    assert "gives no observed_state" in correct(blind, shown * 20, CONFIG, parameters={}).why


# From production to the gate


def signal(kind: Any, monitor: str) -> Signal:
    return Signal(
        kind=kind, monitor=monitor, digest="served", value=9.0, threshold=1.0, since_episode="episode_00040",
        at_episode="episode_00050", evidence={}, at=1.0,
    )  # fmt: skip


def production(change: Change) -> list[Episode]:
    shown = [*episodes(cartpole, Change(), POLE, range(40)), *episodes(cartpole, change, POLE, range(500, 540))]
    return [
        dataclasses.replace(each, id=f"episode_{number:05d}", started_at=float(number))
        for number, each in enumerate(shown)
    ]


SIGNALS = [signal("shift_detected", "world"), signal("degradation", "outcome")]


def given(change: Change, signals: list[Signal]) -> Facts:
    made = diagnose(cartpole, production(change), signals, CONFIG)
    return Facts(
        number=2, now=100.0, champion="served", signals=tuple(signals), calibration=made.calibration,
        obstacle=made.obstacle, correction=made.correction, no_correction=made.no_correction,
        nominal=cartpole.nominal, config=CONFIG,
    )  # fmt: skip


def test_a_policy_that_is_good_in_the_changed_world_passes_in_the_corrected_one_and_the_old_one_fails() -> None:
    change = Change(swapped=True, delay=1, initial=0)
    plan = decide(given(change, SIGNALS))
    assert plan.strategy == "retrain_prioritize_recent" and plan.sampling == "production"
    assert any("actions 0 and 1 were swapped and arrived 1 step late" in reason for reason in plan.reasons)
    good = load_linear(cartpole, -np.array(GOOD), digest="good")
    old = load_linear(cartpole, GOOD, digest="old")
    gate = SafetyGate(corrected(cartpole, plan.correction))
    passed, failed = (gate.judge(policy, seed=1, now=0.0) for policy in (good, old))
    assert (passed.outcome, failed.outcome) == ("pass", "fail")
    assert passed.correction == plan.correction and passed.task == failed.task
    unaware = SafetyGate(cartpole).judge(good, seed=1, now=0.0)
    assert unaware.outcome == "fail", "that is why the gate has to know"
    assert unaware.simulator != passed.simulator and unaware.task == passed.task
    shown = play(
        changed(cartpole, change), good, seeds=range(60), parameters=[{}] * 60, draw_keys=range(60)
    )  # the world itself
    assert not any(each.failed for each in shown)


def test_a_policy_that_does_its_work_is_left_in_peace() -> None:
    plan = decide(given(Change(delay=1), SIGNALS[:1]))
    assert plan.strategy == "hold" and plan.correction is None
    assert any("arrived 1 step late" in reason for reason in plan.reasons)


def test_parameters_are_asked_first() -> None:
    heavy = dataclasses.replace(cartpole)
    shown = play(heavy, POLE, seeds=range(80), parameters=[{}] * 40 + [{"length": 1.0}] * 40, draw_keys=range(80))
    shown = [
        dataclasses.replace(each, id=f"episode_{i:05d}", started_at=float(i), seed=None) for i, each in enumerate(shown)
    ]
    made = diagnose(cartpole, shown, SIGNALS, CONFIG)
    assert made.calibration is not None and made.calibration.explained > 0.9
    assert made.correction is None and not made.no_correction
