"""The Stages over rooms, whose actors are stood in for: what a turn's evidence says of the start that took it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import archive, beside, causes, consider, explaining, growth, stages
from flywheel.analyze.diagnose import Diagnosis
from flywheel.analyze.past import recall
from flywheel.arms import Control
from flywheel.causes import Cause
from flywheel.config import Config, TrainConfig
from flywheel.console import silent
from flywheel.correction import Correction, Surface
from flywheel.errors import FlywheelError, LostError
from flywheel.facts import decision_of
from flywheel.outcomes import Outcome
from flywheel.records import (
    Artifact,
    Calibration,
    Check,
    Plan,
    Probe,
    Progress,
    Release,
    Signal,
    Trial,
    Turn,
    Verdict,
)
from flywheel.tapes import Scenario
from flywheel.tasks.cartpole import cartpole
from tests.test_arms import outcome

HOLD = Plan(strategy="hold", reasons=())


def opened(run_dir: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> stages.OnRay:
    """Return the Stages of a start in which no policy is in service."""
    monkeypatch.setattr(stages, "ask", lambda method, *arguments: method(*arguments))
    registry = SimpleNamespace(champion=lambda: None)
    spans = SimpleNamespace(put=lambda spans: None, counts=lambda: SimpleNamespace(sent=0, lost=0))
    place = SimpleNamespace(name="wheel")
    rooms = SimpleNamespace(place=place, begin_training=lambda: None, registry=registry, spans=spans, say=silent)
    return stages.OnRay(cartpole, config, run_dir, rooms)  # type: ignore[arg-type]


def turn(start: stages.OnRay) -> None:
    """Take the next turn, in which nothing happens."""
    start.record(Turn(number=start.numbers()[0], plan=HOLD, evidence=start.observe(HOLD)))


def test_a_start_goes_on_counting_where_the_last_one_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path, Config(turns=4), monkeypatch)
    assert list(first.numbers()) == [1, 2, 3, 4]
    turn(first)
    turn(first)
    second = opened(tmp_path, Config(turns=4), monkeypatch)
    assert list(second.numbers()) == [3, 4]
    turn(second)
    turn(second)
    assert [one.evidence[archive.LEFT] for one in archive.read_turns(tmp_path)] == [3, 2, 1, 0]
    assert list(opened(tmp_path, Config(turns=4), monkeypatch).numbers()) == [5, 6, 7, 8]


def test_a_start_without_end_leaves_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PAUSE_S", 0.0)
    turn(opened(tmp_path, Config(forever=True), monkeypatch))
    assert list(opened(tmp_path, Config(turns=2), monkeypatch).numbers()) == [2, 3]


@pytest.mark.parametrize(("num_failed", "num", "confirmed"), [(0, 60, False), (0, 100, True), (9, 100, False)])
def test_production_that_keeps_the_limit_fills_the_budget(
    num_failed: int, num: int, confirmed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    shown = {
        "champion": {"failed": num_failed, "episodes": num + 3, "lost": 3},
        "other": {"failed": 0, "episodes": 999},
    }
    filled: list[str] = []
    start._rooms.registry = SimpleNamespace(champion=lambda: "champion", tries=lambda: 2, refill=filled.append)
    start._rooms.serving = SimpleNamespace(store=SimpleNamespace(summary=lambda: shown))  # type: ignore[misc]
    start._confirm()
    assert bool(filled) == confirmed
    if confirmed:
        assert filled == ["production confirms policy champion: 0 of 100 episodes failed, so less than 4.8% do"]


def test_failures_become_scenarios_before_training_begins_and_before_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    said: list[str] = []
    start._suite._say = lambda stage, text, **_: said.append(f"{stage}: {text}")
    scenario = Scenario(name="made", parameters={}, fork=("e", 0), saved_at=0.0, state=(0.0,) * 4, origin="production")
    closed = dataclasses.replace(scenario, name="closed")
    suite: list[Scenario] = []
    asked: list[tuple[Any, ...]] = []
    ranges: list[Any] = []

    def look(*given: Any) -> growth.Look:
        assert given[0] is cartpole and given[2] == tmp_path and given[6] == {"length": 2.0}
        suite[:] = [scenario, closed]
        asked.append(("look",))
        return growth.Look(made=(scenario,), closed=frozenset({"closed"}))

    monkeypatch.setattr(growth, "look", look)
    start._rooms.registry = SimpleNamespace(
        scenarios=lambda: tuple(suite), champion=lambda: None, verdict=lambda digest: None, spend=lambda digest: 0,
        record=lambda verdict: verdict, set_terms=lambda *terms: None,
        bundle=SimpleNamespace(remote=lambda digest: digest),
    )  # fmt: skip
    judged = SimpleNamespace(digest="d", outcome="pass", checks=(), num_simulations=0)
    start._rooms.trainer = SimpleNamespace(begin=lambda plan, files, suite: asked.append(("begin", suite)))

    def judge(*given: Any) -> Any:
        asked.append(("judge", given[4]))
        ranges.append(given[8])
        return judged

    start._rooms.gate = SimpleNamespace(judge=judge, grow=None)
    plan = Plan(strategy="continue_training", reasons=(), parameters={"length": (1.9, 2.1)})
    start.begin(plan)
    assert asked == [("look",), ("begin", (scenario,))], "what is closed is not trained on"
    suite.clear()
    start.judge(plan, SimpleNamespace(digest="d"))  # type: ignore[arg-type]
    assert asked[2:] == [("look",), ("judge", (scenario, closed))], "but stays in the suite"
    assert ranges == [{"length": (1.9, 2.1)}], "what is open of the parameters is asked about, too"
    assert said[0] == "gate: 1 failure of production became a scenario: made (episode e)"


def test_what_the_gate_refused_the_last_candidate_for_is_hard_from_the_first_iteration_until_a_probe_passes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(train=TrainConfig(probe_episodes=200)), monkeypatch)
    plan = Plan(strategy="increase_exploration", reasons=())
    failed = [("pole_tilted", 4), ("suite:made", 16), ("nominal", 2)]
    trials = tuple(
        Trial(seed=i, parameters={}, scenario=name, total=1.0, length=1, failed=True, margin=0.0, episode="e")
        for name, num in failed for i in range(num)
    )  # fmt: skip
    refused = Verdict(
        digest="d", baseline=None, task="t", config="c", simulator="s", outcome="fail", checks=(), trials=trials,
        seed=1, cost_s=0.0, judged_at=0.0, valid_until=1.0,
    )  # fmt: skip
    start._turns = [Turn(number=1, plan=plan, verdict=refused), Turn(number=2, plan=HOLD)]
    asked: list[tuple[str, ...]] = []
    probes = [
        Probe(num_failed=0, num_episodes=20, mean_return=1.0, edge_failed=("suite:made",)),
        Probe(num_failed=0, num_episodes=200, mean_return=1.0, edge_failed=("suite:made",)),
        Probe(num_failed=0, num_episodes=200, mean_return=1.0, edge_failed=()),
    ]
    progress = Progress(iteration=1, num_steps=1, num_steps_total=1, mean_return=1.0, seconds=1.0, network=b"")

    def advance(hard: tuple[str, ...]) -> Progress:
        asked.append(hard)
        if len(asked) == 2:
            raise LostError("gone")  # a round that begins again knows it, too
        return progress

    monkeypatch.setattr(growth, "look", lambda *_: growth.Look())
    start._rooms.registry = SimpleNamespace(scenarios=lambda: (), champion=lambda: None, set_terms=lambda *terms: None)
    start._rooms.trainer = SimpleNamespace(begin=lambda *_: None, advance=advance)
    start._rooms.gate = SimpleNamespace(probe=lambda *_: probes.pop(0), grow=None)
    start._rooms.begin_serving = lambda: None  # type: ignore[method-assign]
    start._say = start.following._say = lambda *_, **__: None  # type: ignore[assignment]
    start.begin(plan)
    for _ in range(3):
        start.advance(plan)
    hard = ("pole_tilted", "suite:made")
    assert asked == [hard, tuple(reversed(hard)), tuple(reversed(hard)), ("suite:made",)]
    assert start._hard == ()
    start._turns.append(Turn(number=3, plan=plan, verdict=dataclasses.replace(refused, trials=(), outcome="pass")))
    start.begin(plan)
    assert start._hard == ()


ALARM = Signal(
    kind="degradation", monitor="failed", digest="champion", value=2.0, threshold=1.0, since_episode="e1",
    at_episode="e2", evidence={"released_at": 7.0}, at=8.0,
)  # fmt: skip


def serving(start: stages.OnRay, monkeypatch: pytest.MonkeyPatch, *signals: Signal) -> list[str]:
    """Let policies be in service, and signals be raised; return what the wheel will say."""
    for asking in (consider, explaining, beside):
        monkeypatch.setattr(asking, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    said: list[str] = []
    start._say = lambda stage, text, **_: said.append(text)  # type: ignore[assignment]
    start._rooms.say = start._say
    start._rooms.produce = lambda: None  # type: ignore[method-assign]
    start._rooms.registry = SimpleNamespace(
        champion=lambda: "champion", previous=lambda: "before", condemned=lambda: frozenset({"z", "y"}),
        releases=lambda: [SimpleNamespace(digest="champion", previous="before", released_at=7.0)], tries=lambda: 0,
        controls=lambda: [],
        artifact=lambda digest: SimpleNamespace(trained_on={"strategy": "hold", "parameters": {"length": [0.4, 0.6]}}),
        bundle=lambda digest: None,
    )  # fmt: skip
    observer = SimpleNamespace(signals=lambda: signals, wait=lambda **_: None)
    store = SimpleNamespace(recent=lambda *_, **__: [], count=lambda *_: 0)
    start._rooms.serving = SimpleNamespace(observer=observer, store=store)  # type: ignore[misc]
    start._rooms.gate = SimpleNamespace(is_spent=lambda tries: False)
    start._rooms.work = lambda function: function  # type: ignore[assignment]
    return said


def test_a_turn_begins_with_a_decision_that_its_journal_can_make_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(Config(), analyze=dataclasses.replace(Config().analyze, patience_s=0.0))
    start = opened(tmp_path, config, monkeypatch)
    said = serving(start, monkeypatch, ALARM)
    begun = start.analyze(1)
    assert (begun.number, begun.plan.strategy, begun.plan.warm_start) == (1, "rollback_and_retrain", "before")
    archive.append_turn(tmp_path, begun)
    (read,) = archive.read_turns(tmp_path)
    made = decision_of(read)
    assert made is not None and made.plan == begun.plan
    assert made.facts.condemned == ("y", "z") and made.facts.served == {"length": (0.4, 0.6)}
    assert made.facts.obstacle and made.evidence.episodes == ("e1", "e2")
    assert said[-1].startswith("turn 1 is rollback_and_retrain: outcomes got worse")


def test_what_the_control_group_says_is_heeded_and_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(Config(), analyze=dataclasses.replace(Config().analyze, patience_s=0.0))
    start = opened(tmp_path, config, monkeypatch)
    said = serving(start, monkeypatch, ALARM)
    control = Control(policy="before", champion="champion", share=0.5, begun_at=7.0, settled_at=8.0)
    before = [outcome(1.0 + t / 1000, "before", failed=t % 50 == 1) for t in range(1000)]
    beside_it = [outcome(10.0 + t, ("champion", "before")[t % 2], failed=t % 8 < 2) for t in range(400)]

    def outcomes(digests: tuple[str, ...], after: tuple[float, str]) -> list[Outcome]:
        return [o for o in before + beside_it if o.digest in digests and (o.started_at, o.id) > after]

    first = SimpleNamespace(digest="before", previous=None, released_at=0.5)
    start._rooms.registry.controls = lambda: [control]
    start._rooms.registry.releases = lambda: [
        first,
        SimpleNamespace(digest="champion", previous="before", released_at=7.0),
    ]
    start._rooms.serving.observer.outcomes = outcomes
    begun = start.analyze(1)
    assert begun.plan.strategy == "retrain_prioritize_recent", "the one before fails as often: it is no cure"
    assert begun.decision["facts"]["blame"] == "world"
    assert "the world did it, and going back is no cure" in said[-1]


def test_a_gate_that_production_contradicts_has_the_simulator_fitted_without_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(Config(), analyze=dataclasses.replace(Config().analyze, patience_s=0.0))
    start = opened(tmp_path, config, monkeypatch)
    said = serving(start, monkeypatch)
    asked: list[tuple[Any, ...]] = []
    found = Calibration(
        values={"length": 2.0}, intervals={"length": (1.9, 2.1)}, explained=1.0, residual=0.0, num_transitions=500
    )

    def fit(*given: Any) -> Diagnosis:
        asked.append(given)
        return Diagnosis(calibration=found, obstacle="", num_changed=9)

    start._rooms.work = lambda function: fit  # type: ignore[assignment]
    doubt = Check(name="predictive", value=2.0, interval=(0.0, 1.0), bound=1.0, passed=None, note="9 % fail, not 1 %")
    monkeypatch.setattr(consider.predicting, "question", lambda *_: None)
    assert start.analyze(1).plan.strategy == "continue_training" and not asked
    monkeypatch.setattr(consider.predicting, "question", lambda *_: doubt)
    begun = start.analyze(1)
    assert begun.plan.strategy == "retrain_prioritize_recent" and "length is 2" in said[-1]
    assert asked[0][2] == [] and asked[0][6] is True, "all episodes count, as no alarm tells which"
    monkeypatch.setattr(start._considering, "_served", lambda champion: {"length": (1.8, 2.2)})
    assert start.analyze(1).plan.strategy == "hold" and "no candidate could pass: 9 % fail, not 1 %" in said[-1]


def test_a_reward_that_is_followed_is_fitted_again_until_production_is_good_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that was trained for what was known of a reward goes where more is paid, or less, than was known."""
    analyze = dataclasses.replace(Config().analyze, patience_s=0.0, follow_rewards=True)
    start = opened(tmp_path, dataclasses.replace(Config(), analyze=analyze), monkeypatch)
    serving(start, monkeypatch)
    surface = Surface(low=(0.0,), high=(1.0,), centre=(0.0,), scale=(1.0,), weights=(((0.0,), (1.0,), (0.0,)),))
    known = Correction(reward=surface, explained=1.0)
    more = Correction(reward=dataclasses.replace(surface, high=(2.0,)), explained=0.99)
    found, asked = [more], list[Any]()

    def fit(*given: Any) -> Diagnosis:
        asked.append(given)
        return Diagnosis(calibration=None, obstacle="", num_changed=9, correction=found[0])

    start._rooms.work = lambda function: fit  # type: ignore[assignment]
    monkeypatch.setattr(consider.predicting, "question", lambda *_: None)
    monkeypatch.setattr(start._considering, "_served_correction", lambda champion: known)
    poor = {"before": 500.0, "needed": 475.0, "mean_return": 390.0, "signals": [], "recovered": False}
    start._turns.append(Turn(number=1, plan=dataclasses.replace(HOLD, correction=known), evidence=poor))
    begun = start.analyze(2)
    assert (begun.plan.strategy, begun.plan.correction) == ("retrain_prioritize_recent", more)
    assert asked[0][2] == [] and asked[0][8] == known, "all episodes of the policy in service show it"
    found[0] = known
    assert start.analyze(2).plan.strategy == "continue_training", "there is nothing new to be learnt"
    start._turns[-1] = dataclasses.replace(start._turns[-1], evidence={**poor, "before": None, "needed": None})
    asked.clear()
    assert start.analyze(2).plan.strategy == "continue_training" and not asked, "it is good again"


def test_a_person_who_holds_the_wheel_stops_it_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    said = serving(start, monkeypatch, ALARM)
    back = start.keep(start.analyze(1))
    assert start.begun(1) == back, "a rollback that was decided is gone on with"
    archive._begin(tmp_path / "other", Config(), "cartpole", "d")
    (tmp_path / archive.CONFIG).write_bytes((tmp_path / "other" / archive.CONFIG).read_bytes())
    archive.hold(tmp_path, "the plant is being cleaned", 1.0)
    assert start.begun(1) is None, "but not against a person's word"
    held = start.analyze(1)
    assert held.plan.strategy == "hold" and "the plant is being cleaned" in held.plan.reasons[0]
    assert held.plan.signals == (ALARM,), "which would end its look at production otherwise"
    progress = Progress(iteration=1, num_steps=1, num_steps_total=1, mean_return=0.0, seconds=0.0, network=b"")
    probe = Probe(num_failed=0, num_episodes=1, mean_return=1.0, edge_failed=())
    assert start.enough(back.plan, progress, probe, None)
    assert start.export(back.plan, progress, probe, None) is None
    assert start.release(SimpleNamespace(digest="candidate")) is None  # type: ignore[arg-type]
    assert "is not released: a person holds the wheel (the plant is being cleaned)" in said[-1]


def test_a_turn_that_holds_for_an_alarm_never_calls_production_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    said = serving(start, monkeypatch, ALARM)
    ended = [SimpleNamespace(total=500.0, end="truncated", failed=False, is_known=True) for _ in range(200)]
    heard = iter([(0, []), (len(ended), ended)])
    start._rooms.serving.observer.heard = lambda *_: next(heard)
    found = start._watch("champion", 500.0, (ALARM,))
    assert found["recovered"], "which is the wheel's measure, and only of the return"
    assert said == [
        "production's return is good again, but what was raised stays open (degradation by the failed monitor): "
        "200 episodes on policy champion, mean return 500"
    ]


def test_with_no_policy_in_service_a_held_wheel_waits_for_its_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    monkeypatch.setattr(stages, "LOOK_S", 0.01)
    (tmp_path / archive.HELD).write_text('{"reason": "not yet", "at": 1.0}')
    waiting = threading.Thread(target=start.observe, args=[HOLD])
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    (tmp_path / archive.HELD).unlink()
    waiting.join(10)
    assert not waiting.is_alive()


def test_why_production_changed_is_kept_from_the_first_draft_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = Signal(
        kind="shift_detected", monitor="world", digest="d", value=1.0, threshold=1.0, since_episode="e2",
        at_episode="e3", evidence={"released_at": 5.0}, at=0.0,
    )  # fmt: skip
    cause = Cause(kind="dynamics", sentences=("the world answers otherwise",), since_episode="e2", since_at=3.0)
    asked: list[tuple[Any, ...]] = []

    def found(episodes: Any, spec: Any, **given: Any) -> Cause:
        asked.append((tuple(e.id for e in episodes), given["champion"], given["previous"], given["signals"]))
        return cause

    def episode(id_: str, started_at: float) -> Any:
        return SimpleNamespace(id=id_, started_at=started_at)

    kept = {"d": [episode("e1", 1.0), episode("e2", 2.0), episode("open", 3.0)], "before": [episode("e0", 0.5)]}
    settled = {"d": ["e1", "e2"], "before": ["e0"]}
    start = opened(tmp_path, Config(), monkeypatch)
    monkeypatch.setattr(explaining, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    said: list[str] = []
    rooms: Any = SimpleNamespace(
        registry=SimpleNamespace(releases=lambda: [SimpleNamespace(previous="before")]),
        serving=SimpleNamespace(
            store=SimpleNamespace(recent=lambda num, since, digest: kept[digest]),
            observer=SimpleNamespace(
                outcomes=lambda digests, after: [
                    e for e in kept[digests[0]] if e.id in settled[digests[0]] and (e.started_at, e.id) > after
                ]
            ),
        ),
        work=lambda function: found,
        say=lambda stage, text: said.append(f"{stage}: {text}"),
    )
    start._cause = explaining.explain(rooms, start._spec, [alarm], [])
    assert asked == [(("e1", "e2", "e0"), "d", "before", [alarm])], "what is open yet is left out"
    assert said == ["analyze: the world's dynamics changed: the world answers otherwise"]
    artifact = Artifact(digest="new", version=2, uri="", spec=start._spec, parent=None, trained_on={}, made_at=0.0)
    draft = start.keep(Turn(number=1, plan=HOLD, artifact=artifact))
    assert causes.of(draft) == cause
    again = opened(tmp_path, Config(), monkeypatch)
    assert again.begun(1) is not None
    turn(again)
    (written,) = archive.read_turns(tmp_path)
    assert causes.of(written) == cause
    answered = dataclasses.replace(
        written, release=Release(digest="new", stage="full", share=1.0, previous="d", released_at=9.0)
    )
    explaining.explain(rooms, start._spec, [alarm], [answered])
    assert asked[1][0] == (), "what was before an answered change is history"


def test_a_candidate_is_looked_at_on_productions_episodes_before_it_is_judged_and_the_turn_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    order: list[Any] = []
    doubt = Check(name="predictive", value=2.0, interval=(0.0, 1.0), bound=1.0, passed=None)
    start._foresight = SimpleNamespace(  # type: ignore[assignment]
        look=lambda *given: order.append(given[:3]), question=lambda *worlds: doubt, is_slow=True,
        evidence=lambda: {"off_policy": {"num": 7}},
    )  # fmt: skip
    monkeypatch.setattr(start._suite, "grow", lambda *worlds: None)
    start._rooms.registry = SimpleNamespace(
        champion=lambda: None, verdict=lambda digest: None, spend=lambda digest: 0, record=lambda verdict: verdict,
        set_terms=lambda *terms: None, scenarios=lambda: (), bundle=SimpleNamespace(remote=lambda digest: digest),
    )  # fmt: skip
    judged = SimpleNamespace(digest="d", outcome="inconclusive", checks=(doubt,), num_simulations=0)
    start._rooms.gate = SimpleNamespace(judge=lambda *given: order.append(given[6]) or judged)
    plan = Plan(strategy="continue_training", reasons=())
    start.judge(plan, SimpleNamespace(digest="d"))  # type: ignore[arg-type]
    assert order == [("d", None, ()), doubt]
    assert start.observe(plan)["off_policy"] == {"num": 7}


@pytest.mark.parametrize("looked", ["d", None])
def test_a_candidate_that_was_judged_before_a_restart_is_looked_at_again_before_it_is_tried(
    looked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    start.keep(Turn(number=1, plan=Plan(strategy="continue_training", reasons=())))
    start._rooms.registry = SimpleNamespace(champion=lambda: "champion")
    start._rooms.serving = SimpleNamespace()  # type: ignore[misc]
    seen, tried = list[Any](), list[bool]()
    start._foresight = SimpleNamespace(  # type: ignore[assignment]
        looked=looked, look=lambda *given: seen.append(given[:3]), is_slow=True
    )

    def try_out(rooms: Any, verdict: Any, slowly: bool) -> Any:
        tried.append(slowly)
        return SimpleNamespace(state="rolled_back")

    monkeypatch.setattr(stages, "try_out", try_out)
    assert start.release(SimpleNamespace(digest="d")) is None  # type: ignore[arg-type]
    assert (seen, tried) == ([] if looked else [("d", "champion", ())], [True])


def test_a_damaged_segment_leaves_a_turn_undiagnosed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recent(*given: Any, **named: Any) -> Any:
        raise FlywheelError("segment 3 is damaged")

    monkeypatch.setattr(consider, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    rooms: Any = SimpleNamespace(serving=SimpleNamespace(store=SimpleNamespace(recent=recent)))
    start = opened(tmp_path, Config(), monkeypatch)
    considering = consider.Considering(cartpole, Config(), tmp_path, rooms, start._spec, lambda: 1)
    found = considering._diagnose("d", [], recall([], "d", 0.0), None)
    assert found.calibration is None
    assert found.obstacle == "production's episodes can't be read (segment 3 is damaged)"


def test_who_was_accused_while_it_was_tried_is_watched_anew_in_service() -> None:
    """Found in a run: a policy for another reward got 430 in place of 230, and the wheel held as it acted otherwise."""
    hacks = dataclasses.replace(ALARM, kind="reward_hacking", evidence={"released_at": 5.0})
    release = Release(digest=ALARM.digest, stage="full", share=1.0, previous="old", released_at=9.0)
    now = dataclasses.replace(hacks, evidence={"released_at": 9.0})
    assert consider.watched([ALARM, hacks], consider.about(release, [ALARM, hacks])) == [ALARM]
    assert consider.watched([hacks, now], consider.about(release, [hacks, now])) == [now]
