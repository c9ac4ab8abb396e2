"""The suite grows by itself: what production failed in becomes a scenario once, and closes and opens by verdicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.gate_suite import TASK, Chance, holed, produced, pushed, refusals
from flywheel.config import GateConfig
from flywheel.gate import SafetyGate
from flywheel.gate.grow import NEAR, Growth, grow, obstacle
from flywheel.gate.suite import CLOSED, GIVEN_UP, check_suite, hopeless, most_failed, standings, try_suite
from flywheel.gate.trials import Alone
from flywheel.policy import Policy
from flywheel.records import Check, Episode, Trial, Verdict
from flywheel.simulate import play
from flywheel.tapes import Scenario
from flywheel.task import spec_of
from flywheel.testing import GOOD, SHORT_POLE, load_linear
from tests.rooms import SteeredRoom, failed, set_parameters

CONFIG = GateConfig(latency_calls=50, search_sims=0, workers=1)
CENTRE = 0.9
HOLED = Policy(holed(CENTRE), spec_of(TASK), "holed")
GOOD_ONE = load_linear(TASK, digest="good")
IN_THE_HOLE = (CENTRE, 0.0, 0.0, 0.0)
MADE = Scenario(
    name="made", parameters={}, fork=("ab12cd34ef5678900000", 0), saved_at=10.0, state=IN_THE_HOLE, origin="production"
)
SAVED = dataclasses.replace(MADE, name="saved", origin="fork")


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def fine(num: int = 12, seed: int = 1) -> list[Episode]:
    """Return episodes in which the policy with the hole never came to it."""
    episodes = produced(HOLED, rng(seed), [None] * num)
    assert not any(episode.failed for episode in episodes)
    return episodes


def fallen(num: int = 1, state: tuple[float, ...] = IN_THE_HOLE, seed: int = 2) -> list[Episode]:
    """Return episodes that began in the hole, the last ones that production had."""
    episodes = produced(HOLED, rng(seed), [state] * num)
    assert all(episode.failed for episode in episodes)
    return [dataclasses.replace(episode, started_at=2000.0 + i) for i, episode in enumerate(episodes)]


def test_a_failure_of_production_becomes_a_scenario_that_refuses_who_fails_it_by_the_episodes_name() -> None:
    (failure,) = fallen()
    growth = grow(TASK, HOLED, [*fine(), failure], now=5.0)
    (scenario,) = growth.scenarios
    assert scenario.origin == "production" and scenario.fork == (failure.id, 0) and scenario.saved_at == 5.0
    assert scenario.state == pytest.approx(IN_THE_HOLE) and not scenario.parameters
    assert scenario.name == f"failure-{failure.id[:12]}" and growth.fates == {failure.id: scenario.name}
    gate = SafetyGate(TASK, CONFIG)
    assert gate.judge(HOLED, seed=1, now=9.0).outcome == "pass", "nothing but production shows the hole"
    refused = gate.judge(HOLED, suite=growth.scenarios, seed=1, now=9.0)
    assert [check.name for check in refused.checks if check.passed is False] == ["scenarios"]
    note = f"not mastered: {scenario.name} (episode {failure.id[:12]})"
    assert [check.note for check in refused.checks if check.name == "scenarios"] == [note]
    assert gate.judge(GOOD_ONE, suite=growth.scenarios, seed=1, now=9.0).outcome == "pass"
    assert gate.probe(HOLED, suite=growth.scenarios, seed=1, episodes=10).edge_failed == (f"suite:{scenario.name}",)
    assert gate.grow(HOLED, [*fine(), failure], now=5.0) == growth


def test_fifty_copies_of_one_failure_are_one_scenario_then_and_later() -> None:
    episodes = [*fine(), *fallen(50)]
    growth = grow(TASK, HOLED, episodes)
    (scenario,) = growth.scenarios
    assert set(growth.fates.values()) == {scenario.name} and len(growth.fates) == 50
    later = fallen(3, state=(CENTRE + 0.01, 0.01, 0.0, 0.0), seed=7)
    again = grow(TASK, HOLED, [*fine(), *later], suite=growth.scenarios)
    assert again == Growth(fates=dict.fromkeys([e.id for e in later], scenario.name))


def test_it_is_no_copy_where_the_policy_that_failed_masters_the_scenario() -> None:
    """A scenario that doesn't catch this failure stands for another one, however near it is."""
    growth = grow(TASK, HOLED, [*fine(), *fallen()])
    near = dataclasses.replace(growth.scenarios[0], state=(CENTRE - 0.26, 0.5, 0.0, 0.0))
    assert not grow(TASK, GOOD_ONE, [*fine(), *fallen()], suite=[near]).scenarios, "nor does it fail again"
    elsewhere = dataclasses.replace(growth.scenarios[0], name="other", state=(0.0, 0.0, 0.0, 0.0))
    found = grow(TASK, HOLED, [*fine(), *fallen()], suite=[elsewhere])
    assert [scenario.fork for scenario in found.scenarios] == [growth.scenarios[0].fork]


def test_a_failure_that_does_not_come_again_is_no_scenario() -> None:
    chance = [dataclasses.replace(episode, failed=True) for episode in fine(4)]
    growth = grow(TASK, HOLED, [*fine(8, seed=3), *chance])
    assert growth.scenarios == () and growth.fates == dict.fromkeys([e.id for e in chance], "")


def test_what_bad_luck_made_is_no_scenario() -> None:
    """A policy that fails 2 % of all episodes by its own draws fails again from nowhere but where all is lost."""
    nervous = load_linear(TASK, tuple(0.17 * gain for gain in GOOD), digest="nervous")
    episodes = produced(nervous, rng(5), [None] * 300)
    num = sum(episode.failed for episode in episodes)
    assert num > 2
    growth = grow(TASK, nervous, episodes, rivals=[GOOD_ONE])
    assert growth.scenarios == () and len(growth.fates) == num


def test_a_later_state_has_to_be_one_that_somebody_survived() -> None:
    calm = fine()
    failure = pushed(HOLED, rng(4), calm[0], 200, CENTRE)
    assert failure.failed and failure.num_steps < 230
    assert grow(TASK, HOLED, [*calm, failure]).scenarios == (), "nobody is known to survive where it fails again"
    (scenario,) = grow(TASK, HOLED, [*calm, failure], rivals=[GOOD_ONE]).scenarios
    assert scenario.fork[1] >= 200 and scenario.survived
    doomed = (0.0, 0.0, 0.2, 3.0)
    steps = dataclasses.replace(failure, observations=np.array([*failure.observations[:-9], *[doomed] * 9], np.float32))
    assert grow(TASK, HOLED, [*calm, steps], rivals=[GOOD_ONE]).scenarios == ()


def test_what_another_world_did_is_a_scenario_in_that_world_only() -> None:
    """States that a longer pole led to are none that the simulator's own pole has to be caught in."""
    short_pole = load_linear(TASK, SHORT_POLE, digest="short")
    keys = range(30)
    longer = play(TASK, short_pole, seeds=keys, parameters=[{"length": 2.0}] * 30, draw_keys=keys, origin="production")
    failures = [dataclasses.replace(episode, seed=None, started_at=3000.0 + i) for i, episode in enumerate(longer)]
    assert all(episode.failed for episode in failures)
    calm = produced(short_pole, rng(9), [None] * 12)
    assert grow(TASK, short_pole, [*calm, *failures]).scenarios == ()
    there = grow(TASK, short_pole, [*calm, *failures], parameters={"length": 2.0}).scenarios
    assert there and {scenario.fork[1] for scenario in there} == {0}


def test_what_comes_most_often_is_first_and_there_are_no_more_than_fit() -> None:
    two_holes = load_linear(TASK, np.array([[0.0, 0.0, 30.0, 0.0], [0.0, 0.0, -30.0, 0.0]]), digest="bad")
    starts = [(x, 0.0, 0.0, 0.0) for x in (-1.5, 0.0, 1.5)]
    episodes = [*fine(), *produced(two_holes, rng(6), [starts[0]] + [starts[1]] * 3 + [starts[2]] * 2)]
    growth = grow(TASK, two_holes, episodes, most=2)
    assert [round(scenario.state[0], 1) if scenario.state else None for scenario in growth.scenarios] == [0.0, 1.5]
    waiting = [episode.id for episode in episodes if episode.failed and episode.id not in growth.fates]
    assert waiting == [episodes[12].id], "it is looked at again when there is room"
    later = grow(TASK, two_holes, episodes, suite=growth.scenarios, most=1)
    assert [scenario.fork[0] for scenario in later.scenarios] == waiting
    assert grow(TASK, two_holes, episodes, most=0) == Growth()


def test_what_was_dropped_is_not_made_again() -> None:
    episodes = [*fine(), *fallen(2)]
    growth = grow(TASK, HOLED, episodes)
    again = grow(TASK, HOLED, episodes, dropped=growth.scenarios)
    assert again.scenarios == () and set(again.fates.values()) == {""}


def test_a_world_that_breaks_ends_nothing_and_is_told() -> None:
    class Broken(Alone):
        def play(self, policy: Policy, situations: Any, now: float) -> Any:
            if any(situation.state[0] > 1.0 for situation in situations):
                raise ArithmeticError("the track is too short")
            return super().play(policy, situations, now)

    two = fallen(1, state=(CENTRE + 0.2, 0.0, 0.0, 0.0)) + fallen(1, state=(CENTRE - 0.2, 0.0, 0.0, 0.0), seed=8)
    growth = grow(TASK, HOLED, [*fine(), *two], crew=Broken(TASK, 64))
    assert [scenario.fork[0] for scenario in growth.scenarios] == [two[1].id]
    assert growth.notes[0] == f"{two[0].id}: the track is too short"


def test_a_task_without_states_says_what_it_lacks_and_grows_nothing() -> None:
    hidden = dataclasses.replace(TASK, observed_state=None)
    assert obstacle(hidden) == "task cartpole gives no observed_state" and obstacle(TASK) == ""
    assert grow(hidden, HOLED, [*fine(), *fallen()]) == Growth()


def test_angles_are_near_each_other_across_a_whole_turn() -> None:
    from flywheel.gate.grow import _Failure, _Search
    from flywheel.tasks.pendulum import pendulum

    policy = load_linear(pendulum, np.zeros((2, 3)))
    search = _Search(pendulum, [policy], {}, Alone(pendulum, 8), np.array([0.1, 1.0]))
    failure = _Failure(fine(1)[0], np.array([[3.13, 0.0], [1.0, 0.0]]))
    assert search.passes(failure, (-3.13, 0.2)) and not search.passes(failure, (-3.0, 0.0))
    assert not search.passes(failure, (3.13, 2 * NEAR)) and not search.passes(failure, (3.13,))


def test_the_state_of_a_box_policy_is_explored_by_its_own_deviation() -> None:
    from flywheel.gate.grow import _exploring
    from flywheel.task import Task

    steered = Task(name="steered", env=SteeredRoom, failed=failed, set_parameters=set_parameters, greedy=True)
    explorer = _exploring(load_linear(steered, np.zeros((4, 5))))
    assert explorer.spec.rule.greedy is False and explorer.spec.rule.exploration_rate == 0.0
    assert _exploring(HOLED).spec.rule.exploration_rate > 0


# Judging


def trials_of(*counts: tuple[str, int, int]) -> tuple[Trial, ...]:
    """Return trials of scenarios: (name, failed, number)."""
    return tuple(
        Trial(
            seed=i, parameters={}, scenario=f"suite:{name}", total=0.0, length=1, failed=i < num_failed, margin=0.0,
            episode="e",
        )
        for name, num_failed, num in counts
        for i in range(num)
    )  # fmt: skip


def verdict(judged_at: float, *counts: tuple[str, int, int]) -> Verdict:
    check = Check(name="failure_rate", value=0.0, interval=(0.0, 0.0), bound=0.05, passed=True)
    return Verdict(
        digest="d", baseline=None, task="t", config="c", simulator="s", outcome="pass", checks=(check,),
        trials=trials_of(*counts), seed=1, cost_s=0.0, judged_at=judged_at, valid_until=judged_at + 1.0,
    )  # fmt: skip


def test_a_good_policy_is_hardly_ever_refused_by_chance_and_a_bad_one_always_is() -> None:
    assert refusals(0.02, 8, 400, seed=1).mean() <= 0.01
    assert refusals(1.0, 8, 50, seed=2).all() and refusals(0.5, 1, 200, seed=3).all()


@given(rate=st.floats(0.0, 1.0), seed=st.integers(0, 2**31), num=st.integers(1, 4), persons=st.booleans())
def test_a_scenario_is_tried_until_it_is_settled(rate: float, seed: int, num: int, persons: bool) -> None:
    suite = [dataclasses.replace(SAVED if persons else MADE, name=f"s{i}") for i in range(num)]
    trials = try_suite(Chance(rate, rng(seed)), GOOD_ONE, suite, 1, {}, CONFIG, TASK.limits, 0.0)
    check = check_suite(trials, suite, TASK.limits, CONFIG.error)
    for scenario in suite:
        mine = [trial for trial in trials if trial.scenario == f"suite:{scenario.name}"]
        some, most = CONFIG.edge_trials, 16 * CONFIG.edge_trials
        assert len(mine) in (some, 4 * some, most) and len({trial.seed for trial in mine}) == len(mine)
        num_failed = sum(trial.failed for trial in mine)
        if not num_failed:
            assert len(mine) == (some if persons else 4 * some)
        if scenario.name not in check.note and num_failed:
            assert len(mine) == most or persons, "failures that are no evidence ask for more"
        if num_failed == len(mine):
            assert scenario.name in check.note and not check.passed
    assert check.passed == check.note.startswith("all")


def test_a_probe_allows_in_a_scenario_what_the_limit_allows() -> None:
    assert most_failed("pole_tilted", CONFIG, TASK.limits) == 0
    assert most_failed("suite:made", CONFIG, TASK.limits) == 2


# How they stand


def test_a_scenario_closes_after_passes_in_a_row_and_opens_again() -> None:
    mastered, failure = ("made", 0, 16), ("made", 16, 16)
    history: list[Verdict] = []
    states = []
    for number, found in enumerate([mastered, failure, mastered, mastered, mastered, mastered, failure, mastered]):
        history.append(verdict(20.0 + number, found))
        states.append(standings([MADE], history, 0.05)["made"])
    assert [state.is_open for state in states] == [True, True, True, True, False, False, True, True]
    assert [state.last for state in states[:3]] == ["mastered", "not mastered", "mastered"]
    assert states[-1].judged_at == 27.0
    assert standings([MADE], [], 0.05)["made"] == dataclasses.replace(states[0], last="", judged_at=None)


@given(st.lists(st.one_of(st.none(), st.booleans()), max_size=12))
def test_how_it_stands_is_what_the_last_verdicts_that_tried_it_say(fates: list[bool | None]) -> None:
    """None: a verdict that didn't try it, such as one that broke, says nothing."""
    history = [
        verdict(20.0 + i, *([] if fate is None else [("made", 0 if fate else 16, 16)])) for i, fate in enumerate(fates)
    ]
    before = [verdict(9.0, ("made", 16, 16))]  # of another one of that name
    known = [fate for fate in fates if fate is not None]
    found = standings([MADE], before + history, 0.05)["made"]
    assert found.is_open == (len(known) < CLOSED or not all(known[-CLOSED:]))
    assert (found.last == "mastered") == bool(known and known[-1])


def test_what_nobody_ever_survived_is_given_up_and_nothing_else() -> None:
    lost = dataclasses.replace(MADE, survived=False)
    failing = [verdict(20.0 + i, ("made", 4, 4)) for i in range(GIVEN_UP)]
    assert hopeless([lost], failing) == (lost,)
    assert hopeless([lost], failing[1:]) == () and hopeless([MADE], failing) == ()
    assert hopeless([dataclasses.replace(lost, origin="fork")], failing) == (), "a person vouches for theirs"
    once = verdict(30.0, ("made", 63, 64))
    assert hopeless([lost], [*failing, once]) == (), "somebody did"
