"""The Stages over rooms, whose actors are stood in for: what a turn's evidence says of the start that took it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import archive, growth, stages
from flywheel.config import Config
from flywheel.console import silent
from flywheel.records import Check, Plan, Turn
from flywheel.tapes import Scenario
from flywheel.tasks.cartpole import cartpole

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
        return judged

    start._rooms.gate = SimpleNamespace(judge=judge, grow=None)
    plan = Plan(strategy="continue_training", reasons=(), parameters={"length": (1.9, 2.1)})
    start.begin(plan)
    assert asked == [("look",), ("begin", (scenario,))], "what is closed is not trained on"
    suite.clear()
    start.judge(plan, SimpleNamespace(digest="d"))  # type: ignore[arg-type]
    assert asked[2:] == [("look",), ("judge", (scenario, closed))], "but stays in the suite"
    assert said[0] == "gate: 1 failure of production became a scenario: made (episode e)"


def test_a_candidate_is_looked_at_on_productions_episodes_before_it_is_judged_and_the_turn_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = opened(tmp_path, Config(), monkeypatch)
    order: list[Any] = []
    doubt = Check(name="predictive", value=2.0, interval=(0.0, 1.0), bound=1.0, passed=None)
    start._foresight = SimpleNamespace(  # type: ignore[assignment]
        look=lambda *given: order.append(given[:3]), question=lambda worlds: doubt, is_slow=True,
        evidence=lambda: {"off_policy": {"num": 7}},
    )  # fmt: skip
    monkeypatch.setattr(start._suite, "grow", lambda worlds: None)
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
