"""The suite: saved scenarios are played for each candidate, from a state or by the actions that led there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.config import GateConfig, TrainConfig
from flywheel.errors import UsageError
from flywheel.gate import SafetyGate
from flywheel.gate.on_ray import GateActor
from flywheel.gate.suite import check_suite, unmastered
from flywheel.gate.trials import play_situations, situation_of, suite_situations, trial_of
from flywheel.records import Plan
from flywheel.simulate import play
from flywheel.tapes import Scenario
from flywheel.task import Limits, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.testing import GOOD, SHORT_POLE, linear_policy, load_linear
from flywheel.trace import Fork, recheck
from flywheel.trace.snapshots import Opening
from flywheel.train.recipe import make_recipe

CONFIG = GateConfig(latency_calls=50, search_sims=0)
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
HIDDEN = dataclasses.replace(TASK, observed_state=None, edge_cases=())
"""CartPole whose observation nobody knows to be its state."""
LONG = Scenario(
    name="long", parameters={"length": 2.0}, fork=("episode_847", 20), saved_at=1.0, state=(0.0, 0.0, 0.05, 0.0)
)


def led(task: Task = HIDDEN, at: int = 30, **edits: float) -> Scenario:
    """Return a scenario that actions lead to, saved from a fork of a seeded episode."""
    size = int(np.prod(spec_of(task).observation_shape))
    policy = load_linear(task, GOOD if size == 4 else np.zeros((4, size)), digest="p")
    (episode,) = play(task, policy, seeds=[9], parameters=[task.nominal], draw_keys=[9])
    fork = Fork(task, episode, at, {"p": policy})
    for name, value in edits.items():
        fork.edit_parameter(name, value)
    return dataclasses.replace(fork.scenario(), name="led")


def test_a_candidate_that_does_not_master_the_suite_fails_for_that() -> None:
    gate, good, short = SafetyGate(TASK, CONFIG), load_linear(TASK), load_linear(TASK, SHORT_POLE)
    passed = gate.judge(good, suite=[LONG], seed=3, now=100.0)
    assert passed.outcome == "pass"
    failed = gate.judge(short, suite=[LONG], seed=3, now=100.0)
    assert failed.outcome == "fail"
    assert [c.name for c in failed.checks if c.passed is False] == ["scenarios"]
    (check,) = (c for c in failed.checks if c.name == "scenarios")
    assert check.note == "not mastered: long" and check.value == 0.0
    assert sum(t.scenario == "suite:long" for t in failed.trials) == CONFIG.edge_trials
    without = gate.judge(short, seed=3, now=100.0)
    assert without.outcome == "pass" and "scenarios" not in [c.name for c in without.checks]
    assert without.trials == tuple(t for t in failed.trials if t.scenario != "suite:long"), (
        "the others stay as they are"
    )


def test_a_probe_tries_it_too() -> None:
    gate = SafetyGate(TASK, CONFIG)
    assert gate.probe(load_linear(TASK), suite=[LONG], seed=1, episodes=20).edge_failed == ()
    assert gate.probe(load_linear(TASK, SHORT_POLE), suite=[LONG], seed=1, episodes=20).edge_failed == ("suite:long",)
    nan = gate.probe(load_linear(TASK, bias=[np.nan, 0.0]), suite=[LONG], seed=3, episodes=20)
    assert nan.edge_failed == (*(case.name for case in TASK.edge_cases), "suite:long")


def test_the_actor_forwards_it() -> None:
    spec = spec_of(TASK)
    actor = GateActor(TASK, CONFIG)
    probe = actor.probe(linear_policy(spec, SHORT_POLE)[0], spec, 1, None, 20, None, (LONG,))
    assert probe.edge_failed == ("suite:long",)


def test_actions_lead_there_and_the_candidate_goes_on() -> None:
    scenario = led()
    assert scenario.state is None and scenario.seed == 9 and len(scenario.actions) == 30
    situations = suite_situations([scenario], 1, "judge", 3, {**HIDDEN.nominal, "gravity": 12.0})
    episodes = play_situations(HIDDEN, load_linear(HIDDEN, digest="new"), situations, lockstep=2, now=0.0)
    assert len({e.draw_key for e in episodes}) == 3 and {e.seed for e in episodes} == {9}
    for episode in episodes:
        assert episode.digests == ("",) * 30 + ("new",) * 470 and episode.num_steps == 500
        assert tuple(episode.raw_actions[:30].tolist()) == scenario.actions
        assert np.isnan(episode.logps[:30]).all() and np.isfinite(episode.logps[30:]).all()
        assert (episode.observations[:31] == episodes[0].observations[:31]).all()
        assert recheck(episode, {"new": load_linear(HIDDEN, digest="new")}) is None
    assert (episodes[0].observations[35:] != episodes[1].observations[35:]).any(), "draws of their own"
    assert episodes[0].parameters["gravity"] == 12.0


def test_the_world_is_the_recorded_one_until_then_and_the_judged_one_after() -> None:
    scenario = led(length=1.5)
    assert scenario.parameters == {"length": 1.5} and scenario.before is not None and scenario.before["length"] == 0.5
    policy = load_linear(HIDDEN, digest="new")
    (situation,) = suite_situations([scenario], 1, "judge", 1, {**HIDDEN.nominal, "gravity": 12.0})
    (episode,) = play_situations(HIDDEN, policy, [situation], lockstep=1, now=0.0)
    assert episode.parameters["length"] == 1.5 and episode.parameters["gravity"] == 12.0
    opening = Opening(before=scenario.before, num_before=30, own=scenario.parameters)
    for at in (0, 10, 30, 31, 200):
        fork = Fork(HIDDEN, episode, at, {"new": policy}, opening=opening)
        assert fork.replay().difference is None and fork.replay(times=2).difference is None
    earlier = Fork(HIDDEN, episode, 10, {"new": policy}, opening=opening)
    heavy = earlier.edit_parameter("masscart", 4.0).replay().fork
    assert heavy.parameters["masscart"] == 4.0 and heavy.digests[:30] == ("",) * 30
    assert earlier.scenario().before == scenario.before
    with pytest.raises(UsageError, match="changed before the fork"):
        Fork(HIDDEN, episode, 40, {"new": policy}, opening=opening).scenario()


def test_every_trial_of_it_can_be_run_again_alone() -> None:
    task = dataclasses.replace(lunarlander, edge_cases=(), limits=Limits(max_failure_rate=0.999, max_latency_s=60.0))
    policy = load_linear(task, np.zeros((4, 8)))
    suite = (led(task, 12, wind_power=15.0), dataclasses.replace(led(task, 0), name="begun"))
    situations = suite_situations(suite, 5, "judge", 2, task.nominal)
    trials = [trial_of(task, e) for e in play_situations(task, policy, situations, lockstep=256, now=0.0)]
    assert len({t.seed for t in trials}) == 4 and len({t.chain for t in trials}) == 2, "a greedy policy draws nothing"
    assert [situation_of(task, t, suite).seed for t in trials] == [9] * 4
    gate = SafetyGate(task, CONFIG)
    assert [gate.rerun(t, policy, suite) for t in trials] == trials
    with pytest.raises(UsageError, match="no scenario 'suite:led'"):
        gate.rerun(trials[0], policy)


def test_actions_that_lead_nowhere_any_more_give_no_pass() -> None:
    scenario = dataclasses.replace(led(), actions=(0,) * 200)
    verdict = SafetyGate(HIDDEN, CONFIG).judge(load_linear(HIDDEN), suite=[scenario], seed=1, now=0.0)
    assert verdict.outcome == "inconclusive"
    assert "200 given actions lead into is over after action" in verdict.checks[0].note


def test_an_edited_action_is_the_last_that_leads_there() -> None:
    policy = load_linear(TASK, GOOD, digest="p")
    (episode,) = play(TASK, policy, seeds=[9], parameters=[TASK.nominal], draw_keys=[9])
    other = 1 - int(episode.raw_actions[30])
    fork = Fork(TASK, episode, 30, {"p": policy}).edit_parameter("action", other)
    saved = fork.scenario()
    assert saved == fork.replay().scenario() and saved.edits == (f"action → {other}",)
    assert np.allclose(saved.state or (), fork.replay().fork.observations[31])
    hidden = Fork(HIDDEN, episode, 30, {"p": policy}).edit_parameter("action", other).scenario()
    assert len(hidden.actions) == 31 and hidden.actions[-1] == other and hidden.actions[:30] == led().actions


def test_training_begins_where_it_can() -> None:
    suite = [LONG, dataclasses.replace(LONG, name="heavy", state=None, parameters={"masscart": 3.0})]
    nominal = dataclasses.replace(LONG, name="nominal", state=None, parameters={})
    recipe = make_recipe(TASK, Plan(strategy="continue_training", reasons=()), TrainConfig(), [*suite, nominal])
    added = recipe.edge_cases[len(TASK.edge_cases) :]
    assert [case.name for case in added] == ["suite:long", "suite:heavy"]
    assert added[0].state == LONG.state and added[0].parameters == {"length": 2.0}
    scenario = led()
    (case,) = make_recipe(HIDDEN, Plan(strategy="hold", reasons=()), TrainConfig(), [scenario]).edge_cases
    (situation,) = suite_situations([scenario], 1, "judge", 1, HIDDEN.nominal)
    (episode,) = play_situations(HIDDEN, load_linear(HIDDEN, digest="new"), [situation], lockstep=1, now=0.0)
    assert case.name == "suite:led" and np.allclose(np.asarray(case.state), episode.observations[30], atol=1e-6)
    lost = dataclasses.replace(scenario, actions=(0,) * 200)
    assert make_recipe(HIDDEN, Plan(strategy="hold", reasons=()), TrainConfig(), [lost]).edge_cases == ()
    bare = dataclasses.replace(TASK, edge_cases=())
    assert make_recipe(bare, Plan(strategy="hold", reasons=()), TrainConfig()).edge_case_share == 0.0
    assert make_recipe(bare, Plan(strategy="hold", reasons=()), TrainConfig(), [LONG]).edge_case_share == 0.25


def test_a_refusal_names_what_was_not_mastered() -> None:
    suite = [LONG, dataclasses.replace(LONG, name="easy", parameters={}, state=(0.0,) * 4)]
    gate = SafetyGate(TASK, CONFIG)
    refused = gate.judge(load_linear(TASK, SHORT_POLE), suite=suite, seed=3, now=0.0)
    names = unmastered(refused, TASK, CONFIG)
    assert "suite:long" in names and "suite:easy" not in names
    idle = gate.judge(load_linear(TASK, np.zeros((2, 4))), suite=suite, seed=3, now=0.0)
    assert unmastered(idle, TASK, CONFIG) == (*(case.name for case in TASK.edge_cases), "suite:long", "suite:easy")
    assert unmastered(gate.judge(load_linear(TASK), suite=suite, seed=3, now=0.0), TASK, CONFIG) == ()
    assert unmastered(None, TASK, CONFIG) == ()


def test_the_check_asks_for_every_trial_of_every_scenario() -> None:
    trials = SafetyGate(TASK, CONFIG).judge(load_linear(TASK), suite=[LONG], seed=3, now=100.0).trials
    assert check_suite(trials, [LONG], TASK.limits, 0.05).passed
    assert check_suite(trials, [LONG, led()], TASK.limits, 0.05).note == "not mastered: led", "it was not tried"
    fell = [dataclasses.replace(t, failed=True) if t.scenario == "suite:long" else t for t in trials]
    assert check_suite(fell, [LONG], TASK.limits, 0.05).passed is False
