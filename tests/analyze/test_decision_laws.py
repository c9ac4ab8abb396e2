"""Laws of deciding, over incidents that hypothesis makes up: what is written is decided again, and what never is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flywheel import archive
from flywheel.analyze.past import open_signals, recall
from flywheel.analyze.replay import replayed
from flywheel.analyze.strategy import decide, decision
from flywheel.config import AnalyzeConfig, canonical
from flywheel.correction import Surface
from flywheel.facts import Facts, Past, decision_of, differing, plain
from flywheel.records import Calibration, Correction, Outcome, Plan, Release, Signal, Turn
from tests.analyze.test_strategy import NOMINAL, artifact, calibration, signal, turn

DIGESTS = ["a", "b", "c", "d"]
digests = st.sampled_from(DIGESTS)
kinds = st.sampled_from(["shift_detected", "degradation", "reward_hacking"])
causes = st.none() | st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["policy", "dynamics", "initial_states", "sensors", "reward", "logging", "nothing", "unknown"]
        )
    }
)
spans = st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 10.0))
ranges = st.dictionaries(st.sampled_from(list(NOMINAL)), spans)
signals = st.builds(signal, kinds, digests, st.sampled_from(["e1", "e2", "e3"]))
corrections = st.sampled_from(
    [
        Correction(),
        Correction(actions=(1, 0), delay=1, waiting=(0.0,), explained=0.9, num_transitions=300),
        Correction(gain=((-1.0,),), offset=(0.1,), explained=1.0),
        Correction(
            state=Surface(low=(0.0,), high=(1.0,), centre=(0.5,), scale=(1.0,), weights=(((0.1,), (0.2,), (0.3,)),))
        ),
    ]
)
plans = st.builds(
    Plan,
    strategy=st.sampled_from(["continue_training", "increase_exploration", "retrain_prioritize_recent", "hold"]),
    reasons=st.just(("before",)),
    signals=st.lists(signals, max_size=2).map(tuple),
    parameters=ranges,
    exploration=st.floats(1.0, 8.0),
    correction=st.none() | corrections,
)


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    outcome: Outcome | None = draw(st.sampled_from([None, "pass", "fail", "inconclusive"]))
    return Past(
        plan=draw(plans),
        candidate=draw(digests),
        outcome=outcome,
        refusals=0 if outcome in (None, "pass") else draw(st.integers(1, 5)),
        parameters=draw(ranges),
        released=draw(ranges),
        correction=draw(st.none() | corrections),
        corrected=draw(st.none() | corrections),
        is_champion_known=draw(st.booleans()),
        accused=tuple(sorted(draw(st.sets(digests)))),
        incident=draw(st.integers(0, 9)),
        rollbacks=draw(st.integers(0, 2)),
        rounds=draw(st.integers(0, 2000)),
        cause=draw(st.sampled_from(["", "dynamics", "shift_detected", "logging"])),
        acted_at=draw(st.floats(0.0, 100.0)),
    )


fits = st.builds(calibration, st.floats(0.1, 9.0), st.floats(0.0, 1.0), st.floats(0.0, 0.5)) | st.just(
    dataclasses.replace(calibration(), residual=float("nan"))
)


@st.composite
def many_facts(draw: st.DrawFn) -> Facts:
    champion = draw(digests | st.none())
    raised = (
        [] if champion is None else [signal(draw(kinds), champion, f"e{i}") for i in range(draw(st.integers(0, 3)))]
    )
    return Facts(
        number=10,
        now=draw(st.floats(0.0, 200.0)),
        champion=champion,
        previous=draw(digests | st.none()),
        condemned=tuple(sorted(draw(st.sets(digests)))),
        signals=tuple(raised),
        past=draw(pasts()),
        calibration=draw(st.none() | fits),
        obstacle=draw(st.sampled_from(["", "too few"])),
        correction=draw(st.none() | corrections),
        no_correction=draw(st.sampled_from(["", "too few"])),
        nominal=NOMINAL,
        served=draw(st.none() | ranges),
        served_correction=draw(st.none() | corrections),
        elsewhere=tuple(sorted(draw(st.sets(digests)))),
        is_spent=draw(st.booleans()),
        contradiction=draw(st.sampled_from(["", "the gate is wrong"])),
        blame=draw(st.sampled_from(["policy", "world", "unknown"])),
        cause=draw(causes),
        held=draw(st.sampled_from(["", "", "maintenance"])),
    )


@given(many_facts())
def test_the_same_facts_give_the_same_plan_also_after_they_were_written_as_json(facts: Facts) -> None:
    made = decision(facts)
    assert not differing(made.plan, decide(facts))
    again = decision_of(dataclasses.replace(turn(), decision=json.loads(json.dumps(plain(made)))))
    assert again is not None
    assert not differing(again.plan, decide(again.facts)) and not differing(again.plan, made.plan)
    assert again.by == made.by and again.evidence == made.evidence
    assert canonical(plain(again)) == canonical(plain(made))


@given(many_facts())
def test_nobody_goes_back_to_a_condemned_or_accused_policy_to_itself_or_twice(facts: Facts) -> None:
    found = decide(facts)
    if found.strategy == "rollback_and_retrain":
        assert facts.previous is not None
        assert facts.previous not in (facts.champion, *facts.condemned, *facts.past.accused)
        assert not facts.past.rollbacks and facts.blame != "world"
        assert any(s.kind == "degradation" for s in facts.signals), "nothing else is a reason to roll back"


@given(many_facts(), st.text(min_size=1))
def test_a_person_always_holds_the_wheel(facts: Facts, reason: str) -> None:
    found = decide(dataclasses.replace(facts, held=reason))
    assert found.strategy == "hold" and found.sampling == "none" and reason in found.reasons[0]
    assert found.signals == facts.signals, "else its look at production would end at once, for the same alarms"


@given(many_facts())
def test_what_holds_waits_for_other_alarms_and_every_plan_has_reasons(facts: Facts) -> None:
    found = decide(facts)
    assert found.reasons and all(found.reasons)
    if found.strategy == "hold" and facts.past.outcome in (None, "pass"):
        assert found.signals == facts.signals


@given(many_facts())
def test_broken_data_are_never_trained_on(facts: Facts) -> None:
    kind = (facts.cause or {}).get("kind")
    found = decide(facts)
    if kind in ("logging", "sensors", "reward") and facts.signals and found.strategy != "increase_exploration":
        assert found.sampling == "none"


step = st.fixed_dictionaries(
    {
        "kinds": st.sets(kinds, max_size=2),
        "outcome": st.sampled_from(["pass", "pass", "fail"]),
        "end": st.sampled_from(["recovered", "uncured", "alarm", "stopped"]),
        "blame": st.sampled_from(["policy", "unknown"]),
        "worth": st.booleans(),
        "calibration": st.none() | fits,
    }
)


class Production:
    """Carries plans out as the stages do, and counts rollbacks of an incident in a way of its own."""

    def __init__(self) -> None:
        self.releases = ["p0", "p1"]
        self.condemned: set[str] = set()
        self.history: list[Turn] = []
        self.raised: list[Signal] = []
        self.before: float | None = None
        self.num_rollbacks = 0

    @property
    def champion(self) -> str:
        return self.releases[-1]

    def previous(self) -> str | None:
        ok = [d for d in dict.fromkeys(reversed(self.releases)) if d not in self.condemned]
        return next((d for d in ok if d != self.champion), None)

    def turn(self, number: int, step: dict[str, Any]) -> None:
        self.raised += [signal(kind, self.champion, f"e{number}") for kind in sorted(step["kinds"])]
        now = 100.0 * number
        made = decision(
            Facts(
                number=number,
                now=now,
                champion=self.champion,
                previous=self.previous(),
                condemned=tuple(sorted(self.condemned)),
                signals=open_signals(self.history, self.raised, self.champion),
                past=recall(self.history, self.champion, now),
                calibration=step["calibration"],
                nominal=NOMINAL,
                blame=step["blame"],
                config=AnalyzeConfig(),
            )
        )
        plan, release = made.plan, None
        if plan.strategy == "rollback_and_retrain":
            self.num_rollbacks += 1
            assert self.num_rollbacks == 1, "an incident has one rollback"
            assert plan.warm_start == self.previous() and plan.warm_start not in self.condemned
            self.condemned.add(self.champion)
            self.releases.append(plan.warm_start)
            release = Release(digest=plan.warm_start, stage="full", share=1.0, previous=None, released_at=now)
        done = Turn(number=number, plan=plan, release=release, decision=plain(made))
        if plan.strategy != "hold" and not step["worth"]:
            done = dataclasses.replace(done, plan=dataclasses.replace(plan, strategy="hold"))
        elif plan.strategy != "hold":
            judged = turn(plan, step["outcome"], digest=f"p{number + 1}")
            done = dataclasses.replace(done, artifact=artifact(f"p{number + 1}"), verdict=judged.verdict)
            if step["outcome"] == "pass":
                self.releases.append(f"p{number + 1}")
                assert judged.release is not None
                done = dataclasses.replace(done, release=dataclasses.replace(judged.release, released_at=now))
        self.history.append(dataclasses.replace(done, evidence=self.seen(done, step["end"])))

    def seen(self, done: Turn, end: str) -> dict[str, Any]:
        evidence: dict[str, Any] = {"recovered": False, "stopped": end == "stopped", "before": self.before}
        waits = done.plan.strategy == "hold" and done.plan.signals
        if end == "alarm":
            self.raised.append(signal("degradation", self.champion, f"late{done.number}"))
            self.before = self.before or 490.0
            return evidence | {"before": self.before, "signals": [{"kind": "degradation"}]}
        if end == "recovered" and self.before is not None:
            self.before, self.num_rollbacks = None, 0
            return evidence | {"before": None, "recovered": True}
        if end != "stopped" and self.before is None and not waits:
            self.num_rollbacks = 0  # production was good for a whole turn
        return evidence


@given(st.lists(step, min_size=1, max_size=12))
def test_an_incident_has_at_most_one_rollback_whatever_happens_and_all_of_it_is_decided_again(
    tmp_path_factory: Any, steps: list[dict[str, Any]]
) -> None:
    production = Production()
    for number, each in enumerate(steps, 1):
        production.turn(number, each)
    run_dir: Path = tmp_path_factory.mktemp("run")
    for done in production.history:
        archive.append_turn(run_dir, dataclasses.replace(done, artifact=None, verdict=None))
    plain_turns = archive.read_turns(run_dir)
    again = [
        dataclasses.replace(read, artifact=done.artifact, verdict=done.verdict)  # a stub has no spec to be read again
        for read, done in zip(plain_turns, production.history, strict=True)
    ]
    assert all(each.is_same for each in replayed(again)), [each for each in replayed(again) if not each.is_same]


def test_a_calibration_is_the_same_record_before_and_after() -> None:
    found: Calibration = calibration()
    made = decision(
        Facts(number=1, now=0.0, champion="a", signals=(signal(digest="a"),), calibration=found, nominal=NOMINAL)
    )
    again = decision_of(dataclasses.replace(turn(), decision=plain(made)))
    assert again is not None and again.facts == made.facts
