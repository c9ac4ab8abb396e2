"""Columns of the chart: nothing is left out, means are means, bins hold one policy each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.correction import Correction
from flywheel.page import production, shapes, turns
from flywheel.page.source import About, Changes, Policies
from flywheel.records import Plan as PlanRecord
from flywheel.records import Told, Turn

ROWS = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.booleans(), st.sampled_from(["terminated", "lost"]), st.sampled_from("ab")),
    max_size=120,
)


def listed(rows: list[Any]) -> list[Any]:
    return [
        SimpleNamespace(id=f"e{i}", started_at=float(i), total=total, failed=failed, end=end, digest=digest)
        for i, (total, failed, end, digest) in enumerate(rows)
    ]


def columns(rows: list[Any], first: int = 1) -> dict[str, Any]:
    return production.series(listed(rows), first, Policies(), [], Changes())


@given(rows=ROWS, first=st.integers(1, 10_000))
def test_a_point_an_episode_and_the_mean_of_those_that_are_known(rows: list[Any], first: int) -> None:
    found = columns(rows, first)
    assert found["count"] == len(rows) and found["number"] == [first + i for i in range(len(rows))]
    window = found["window"]
    for i, (total, _, end, _) in enumerate(rows):
        assert (found["value"][i] is None) == (end == "lost")
        if end != "lost":
            assert found["value"][i] == pytest.approx(total, rel=1e-5, abs=1e-5)
        known = [t for t, _, e, _ in rows[max(0, i - window + 1) : i + 1] if e != "lost"]
        if i + 1 < window or not known:
            assert found["rolling"][i] is None
        else:
            assert found["rolling"][i] == pytest.approx(np.mean(known), rel=1e-4, abs=1e-2)


@given(rows=st.lists(ROWS, min_size=1, max_size=3))
def test_bins_cover_every_episode_once_and_hold_one_policy_each(rows: list[list[Any]]) -> None:
    flat = [row for some in rows for row in some]
    points, production.POINTS = production.POINTS, 10
    try:
        found = columns(flat)
    finally:
        production.POINTS = points
    size = max(1, -(-len(flat) // 10))
    starts = [int(at) for at in found["at"]]
    spans = zip(starts, [*starts, len(flat)][1:], found["policy"], found["value"], strict=True)
    for begin, end, place, value in spans:
        some = flat[begin:end]
        assert 0 < len(some) <= size and {digest for *_, digest in some} == {found["digests"][place]}
        known = [total for total, _, end_, _ in some if end_ != "lost"]
        assert (value is None) if not known else value == pytest.approx(np.mean(known), rel=1e-4, abs=1e-3)


def told(stage: str, at: float, turn: int = 1, **numbers: float) -> tuple[int, Told]:
    return int(at), Told(at=at, stage=stage, text=stage, turn=turn, numbers=numbers)


ABOUT: dict[str, Any] = {"task": "t", "reference": "t", "run": "r", "run_dir": "r", "return_range": None}


def test_the_wheel_knows_its_stage_since_when_and_what_each_took() -> None:
    story = [told("start", 0.0, 0), told("analyze", 5.0), told("train", 7.0), told("train", 9.0), told("gate", 12.0)]
    living = shapes.wheel(About(living=True, **ABOUT), story, None)
    assert (living["stage"], living["turn"], living["since"]) == ("gate", 1, 12.0)
    assert living["seconds"] == {"analyze": 5.0, "train": 4.0, "gate": 3.0}
    assert shapes.wheel(About(living=False, **ABOUT), story, None)["stage"] == ""
    assert shapes.wheel(About(living=True, **ABOUT), [*story, told("end", 13.0)], None)["stage"] == ""
    assert shapes.wheel(About(living=True, **ABOUT), [], None)["turn"] == 0


def test_a_round_of_training_that_began_again_is_drawn_from_its_beginning() -> None:
    story = [
        told("train", float(i), steps=float(s), failed=2.0, probed=200.0) for i, s in enumerate((10, 20, 10, 20, 30))
    ]
    found = turns.curve(story, 1)
    assert found == {"steps": [10.0, 20.0, 30.0], "return": [None] * 3, "failed": [0.01] * 3}
    assert turns.curve(story, 2)["steps"] == []


def test_a_turn_that_rolled_back_did_not_release_its_candidate() -> None:
    row = turns.listed_turn(Turn(number=1, plan=PlanRecord(strategy="hold", reasons=("quiet",))), False)
    assert (row["released"], row["rolled_back"], row["outcome"], row["over"]) == (False, False, None, False)


@pytest.mark.parametrize(
    ("sampling", "correction", "algorithm", "words"),
    [
        ("none", None, "dqn", ""),
        ("uniform", None, "dqn", "simulation, and all that production showed"),
        ("recent", None, "sac", "simulation, and what production showed of late"),
        ("failed", None, "dqn", "simulation, and what production showed, its failures more often"),
        ("production", Correction(delay=1), "dqn", "corrected simulation, and what production showed since the change"),
        ("production", None, "dqn", "what production showed since the change alone, as no simulation does what"),
        ("production", None, "ppo", "simulation alone, as PPO learns from no stored steps"),
        ("recent", None, "", "simulation, and what production showed of late (if DQN or SAC trains;"),
    ],
)
def test_what_a_round_learns_from_is_told_in_words(
    sampling: Any, correction: Correction | None, algorithm: str, words: str
) -> None:
    plan = PlanRecord(
        strategy="retrain_prioritize_recent", reasons=("a shift",), sampling=sampling, correction=correction
    )
    found = turns.plan(Turn(number=1, plan=plan, decision={"facts": {"algorithm": algorithm}} if algorithm else {}))
    assert found["learns_from"].startswith(words) and bool(found["learns_from"]) == bool(words)


@given(st.recursive(st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_values_hold_no_number_that_json_lacks(value: Any) -> None:
    import json

    json.dumps(shapes.plain(value), allow_nan=False)
