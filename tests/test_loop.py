"""The loop: every arrow in order, nothing released without a passing verdict, and it knows when to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from flywheel.loop import turns
from flywheel.records import Artifact, Outcome, Plan, Probe, Progress, Release, StrategyName, Turn, Verdict


class Script:
    """Stages that answer from a script and write down what they are asked."""

    def __init__(
        self,
        strategies: list[StrategyName],
        outcomes: list[Outcome],
        worth: bool = True,
        proven: bool = True,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        self.strategies, self.outcomes, self.worth = list(strategies), list(outcomes), worth
        self.proven = proven
        self.evidence = evidence or {"recovered": False, "stopped": False}
        self.asked: list[str] = []
        self.iterations = 0
        self.kept: list[Turn] = []
        self.draft: Turn | None = None

    def analyze(self, number: int) -> Turn:
        self.asked.append("analyze")
        return Turn(number=number, plan=Plan(strategy=self.strategies.pop(0), reasons=("a script",)))

    def begin(self, plan: Plan) -> Probe | None:
        self.asked.append("begin")
        self.iterations = 0
        return None

    def begun(self, number: int) -> Turn | None:
        return self.draft

    def keep(self, turn: Turn) -> Turn:
        self.kept.append(turn)
        return turn

    def advance(self, plan: Plan) -> tuple[Progress, Probe]:
        self.asked.append("advance")
        self.iterations += 1
        progress = Progress(
            iteration=self.iterations, num_steps=0, num_steps_total=0, mean_return=0.0, seconds=0.0, network=b""
        )
        return progress, Probe(num_failed=0, num_episodes=1, mean_return=0.0, edge_failed=())

    def enough(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> bool:
        return progress.iteration == 2

    def export(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> Artifact | None:
        if not self.worth:
            return None
        self.asked.append("export")
        return Artifact(
            digest="d",
            version=1,
            uri="",
            spec=None,  # type: ignore[arg-type]
            parent=None,
            trained_on={},
            made_at=0.0,
        )

    def judge(self, plan: Plan, artifact: Artifact) -> Verdict:
        self.asked.append("judge")
        return Verdict(
            digest="d",
            baseline=None,
            task="",
            config="",
            simulator="",
            outcome=self.outcomes.pop(0),
            checks=(),
            trials=(),
            seed=0,
            cost_s=0.0,
            judged_at=0.0,
            valid_until=1.0,
        )

    def rollback(self, plan: Plan) -> Release:
        self.asked.append("rollback")
        return Release(digest="old", stage="full", share=1.0, previous="d", released_at=1.0)

    def release(self, verdict: Verdict) -> Release | None:
        self.asked.append("release")
        assert verdict.outcome == "pass"
        if not self.proven:
            return None
        return Release(digest=verdict.digest, stage="full", share=1.0, previous=None, released_at=2.0)

    def observe(self, plan: Plan) -> Mapping[str, Any]:
        self.asked.append("observe")
        return self.evidence

    def record(self, turn: Turn) -> None:
        self.asked.append(f"record {turn.number}")


TRAINED = ["analyze", "begin", "advance", "advance", "export", "judge"]


def test_a_passing_candidate_goes_all_the_way() -> None:
    stages = Script(["continue_training"], ["pass"])
    (turn,) = turns(stages, [1])
    assert stages.asked == [*TRAINED, "release", "observe", "record 1"]
    assert turn.release is not None
    assert turn.release.digest == "d"


@pytest.mark.parametrize(("strategy", "released"), [("continue_training", None), ("rollback_and_retrain", "old")])
def test_a_challenger_that_does_not_prove_itself_leaves_what_served_before(
    strategy: StrategyName, released: str | None
) -> None:
    stages = Script([strategy], ["pass"], proven=False)
    (turn,) = turns(stages, [1])
    assert stages.asked[-3:] == ["release", "observe", "record 1"]
    assert not turn.is_released and (turn.release and turn.release.digest) == released


@pytest.mark.parametrize("outcome", [outcome for outcome in get_args(Outcome) if outcome != "pass"])
def test_nothing_but_a_pass_is_released(outcome: Outcome) -> None:
    stages = Script(["continue_training"], [outcome])
    (turn,) = turns(stages, [1])
    assert "release" not in stages.asked
    assert turn.release is None
    assert turn.verdict is not None


def test_a_candidate_that_is_not_worth_it_is_a_hold_and_never_reaches_the_gate() -> None:
    stages = Script(["continue_training"], [], worth=False)
    (turn,) = turns(stages, [1])
    assert "judge" not in stages.asked
    assert "export" not in stages.asked
    assert turn.plan.strategy == "hold"
    assert turn.plan.reasons == ("a script", "no candidate was worth a verdict")


def test_a_hold_trains_nothing() -> None:
    stages = Script(["hold"], [])
    list(turns(stages, [1]))
    assert stages.asked == ["analyze", "observe", "record 1"]


def test_a_rollback_comes_before_the_training_and_is_the_release_if_the_candidate_is_refused() -> None:
    stages = Script(["rollback_and_retrain"], ["fail"])
    (turn,) = turns(stages, [1])
    assert stages.asked[:3] == ["analyze", "rollback", "begin"]
    assert turn.release is not None
    assert turn.release.digest == "old"


@pytest.mark.parametrize("why", ["recovered", "stopped"])
def test_it_ends_early_with_the_turn_recorded(why: str) -> None:
    stages = Script(["continue_training"], ["pass"], evidence={"recovered": False, "stopped": False, why: True})
    assert [turn.number for turn in turns(stages, [1, 2, 3])] == [1]
    assert stages.asked[-1] == "record 1"


def test_it_turns_as_often_as_it_is_told() -> None:
    stages = Script(["continue_training", "hold", "increase_exploration"], ["fail", "pass"])
    assert [turn.number for turn in turns(stages, [4, 5, 6])] == [4, 5, 6]


@pytest.mark.parametrize(
    ("done", "asked"),
    [
        (("artifact",), ["judge", "release", "observe", "record 1"]),
        (("artifact", "verdict"), ["release", "observe", "record 1"]),
        (("artifact", "verdict", "release"), ["observe", "record 1"]),
    ],
)
def test_a_turn_goes_on_where_an_earlier_start_left_it(done: tuple[str, ...], asked: list[str]) -> None:
    (whole,) = turns(Script(["continue_training"], ["pass"]), [1])
    stages = Script([], ["pass"])
    stages.draft = Turn(number=1, plan=whole.plan, **{name: getattr(whole, name) for name in done})
    (turn,) = turns(stages, [1])
    assert stages.asked == asked
    assert (turn.artifact, turn.verdict, turn.release) == (whole.artifact, whole.verdict, whole.release)


def test_every_result_is_kept_before_the_next_stage_begins() -> None:
    stages = Script(["rollback_and_retrain"], ["pass"])
    list(turns(stages, [1]))
    kept = [tuple(part for part in ("release", "artifact", "verdict") if getattr(t, part)) for t in stages.kept]
    whole = ("release", "artifact", "verdict")
    assert kept == [(), ("release",), ("release", "artifact"), whole, whole]
    assert [turn.release and turn.release.digest for turn in stages.kept][-2:] == ["old", "d"]


def test_for_ever_goes_on_after_a_recovery_and_ends_on_a_stop() -> None:
    stages = Script(["hold", "hold"], [], evidence={"recovered": True, "stopped": False})
    forever = turns(stages, [1, 2, 3], forever=True)
    assert next(forever).number == 1
    stages.evidence = {"recovered": False, "stopped": True}
    assert [turn.number for turn in forever] == [2]
