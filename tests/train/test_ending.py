"""When a round of training is over, and when its candidate deserves a verdict."""

from __future__ import annotations

import dataclasses

import pytest

from flywheel.config import TrainConfig
from flywheel.correction import Correction, Surface
from flywheel.records import Plan, Probe, Progress
from flywheel.train.ending import Ending, beats, deserves_verdict, ending, is_good, is_over, is_quiet

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


PAID = Surface(low=(0.0,), high=(1.0,), centre=(0.0,), scale=(1.0,), weights=(((0.0,), (1.0,), (0.0,)),))
FOLLOWED = Plan(strategy="retrain_prioritize_recent", reasons=(), correction=Correction(reward=PAID))


def ends(plan: Plan, before: float | None = 500.0, rival: Probe | None = None) -> Ending:
    """How a round of this plan ends where returns of 0 to 500 are possible, of which 5 % may be missing."""
    return ending(plan, rival, CONFIG, (0.0, 500.0), before, 0.95)


def test_a_round_for_another_reward_ends_when_that_is_as_good_as_before_not_when_nothing_fails() -> None:
    """The policy in service never fails there, so that the first probe would end the round with nothing learnt."""
    round = ends(FOLLOWED)
    assert not round.is_over(at(100), shows(0, 310.0))
    assert not round.is_over(at(200), shows(5, 480.0)), "it may not fail either"
    assert round.is_over(at(300), shows(0, 475.0))
    assert ends(Plan(strategy="retrain_prioritize_recent", reasons=())).is_over(at(100), shows(0, 310.0))


def test_a_round_for_another_reward_ends_when_its_worlds_give_no_more_with_the_best_policy_it_had() -> None:
    """What production has not shown of a reward isn't known, so that its worlds may pay less than is needed."""
    round = ends(FOLLOWED, None)
    assert not round.is_over(at(90), shows(0, 310.0)) and not round.is_worth_keeping(at(90), shows(0, 310.0))
    assert not round.is_worth_keeping(at(100), shows(2, 310.0)), "it fails too often"
    assert not round.is_lost_again(shows(9, 0.0)), "nothing was kept"
    for steps, mean in ((100, 310.0), (400, 320.0)):
        assert not round.is_over(at(steps), shows(0, mean)) and round.is_worth_keeping(at(steps), shows(0, mean))
        round.keep(at(steps), shows(0, mean))
    assert not round.is_worth_keeping(at(450), shows(0, 324.0)), "it rises by less than 1 % of the range"
    assert not round.is_over(at(899), shows(0, 324.0))
    assert round.is_over(at(900), shows(99, 200.0)), "500 steps without a better one"
    assert round.is_lost_again(shows(99, 400.0)) and round.is_lost_again(shows(0, 319.0))
    assert not round.is_lost_again(shows(0, 324.0))


def test_a_round_that_runs_out_of_steps_had_its_best_policy_where_least_failed() -> None:
    """Found in a run: DQN lost in its last steps what it could, and 23 of 100 worlds failed."""
    round = ends(PLAN)
    out = shows(0, 500.0, edges=("cart_rolling_out",))
    assert not round.is_worth_keeping(at(50), out)
    assert round.is_worth_keeping(at(100), out)
    round.keep(at(100), out)
    assert not round.is_over(at(900), shows(5)), "a round that doesn't climb uses all of its steps"
    assert not round.is_worth_keeping(at(500), dataclasses.replace(out, mean_return=510.0))
    assert round.is_lost_again(shows(46)) and not round.is_lost_again(out)
    assert not round.is_lost_again(shows(1)), "what is good ends the round, and is its candidate"
    assert not ends(PLAN, rival=shows(3)).is_worth_keeping(at(500), shows(0))


def test_where_every_probe_is_broken_off_the_first_episodes_tell_which_policy_was_best() -> None:
    """Found in a run: edge cases failed in each probe, so that none of a hundred policies was kept but the last one."""
    round = ends(PLAN)
    best, worse = (dataclasses.replace(shows(num, edges=("tilted",)), num_episodes=20) for num in (0, 12))
    assert not round.is_in_doubt(shows(9)), "nothing was kept"
    for steps, probe in ((100, worse), (200, best)):
        assert round.is_worth_keeping(at(steps), probe)
        round.keep(at(steps), probe)
    assert not round.is_worth_keeping(at(300), worse) and not round.is_worth_keeping(at(300), best)
    assert round.is_in_doubt(shows(9)) and not round.is_in_doubt(shows(1)), "what is good is the candidate anyway"
    further = dataclasses.replace(shows(3, edges=("tilted",)), num_episodes=80)
    assert round.is_worth_keeping(at(350), further), "it got through its first episodes, and failed in later ones"
    round.keep(at(350), further)
    assert not round.is_worth_keeping(at(360), best)
    whole = shows(46, edges=("tilted",))
    assert not round.is_worth_keeping(at(400), shows(200)), "a look at it broke, which counts as failing everywhere"
    assert round.is_worth_keeping(at(400), whole), "no failure broke it off"
    round.keep(at(400), whole)
    assert not round.is_worth_keeping(at(500), best) and not round.is_in_doubt(shows(9))


def test_in_quiet_times_another_reward_changes_nothing() -> None:
    assert ends(FOLLOWED, None, shows(0, 320.0)).is_over(at(100), shows(0, 321.0))


def test_nothing_is_beaten_where_a_followed_reward_is_to_be_put_right() -> None:
    assert is_quiet(PLAN) and is_quiet(FOLLOWED), "what is trained in quiet times is to be better than what serves"
    assert not is_quiet(dataclasses.replace(FOLLOWED, sampling="production"))
    swapped = dataclasses.replace(FOLLOWED, sampling="production", correction=Correction(actions=(1, 0)))
    assert is_quiet(swapped), "no alarm is open"
