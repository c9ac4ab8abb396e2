"""`flywheel decide`: the last decision in words, every past one again, other rules on trial, and the switch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flywheel import archive, cli, console
from flywheel.analyze.strategy import decide, decision
from flywheel.config import Config
from flywheel.errors import FlywheelError, UsageError
from flywheel.facts import Facts, plain
from flywheel.records import Plan, Turn
from tests.analyze.test_strategy import NOW, SHIFT, calibration, facts, turn


def never_retrain(found: Facts) -> Plan:
    """Other rules, as a person may bring them."""
    plan = decide(found)
    return dataclasses.replace(plan, strategy="hold") if found.signals else plan


def broken(found: Facts) -> Plan:
    raise KeyError("length")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with a turn from before decisions were kept, and two later ones."""
    path = tmp_path / "run"
    archive._begin(path, Config(), "cartpole", "d")
    history: list[Turn] = []
    keep(path, history, dataclasses.replace(turn(), artifact=None))
    for number, incident in enumerate(({}, {"signals": [SHIFT], "calibration": calibration()}), 2):
        made = decision(facts(history=list(history), now=NOW + number, previous="p" * 64, **incident))
        keep(path, history, Turn(number=number, plan=made.plan, decision=plain(made)))
    return path


def keep(path: Path, history: list[Turn], done: Turn) -> None:
    archive.append_turn(path, done)
    history[:] = archive.read_turns(path)


def ask(run_dir: Path, *words: str) -> int:
    return cli.call(["decide", "--run-dir", str(run_dir), *words])


def test_it_shows_the_last_decision_with_its_evidence(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run_dir) == 0
    told = capsys.readouterr().out
    assert told.startswith("turn 3 is retrain_prioritize_recent, decided 1970-01-12 13:46:43 UTC\n")
    for line in (
        "rule      changed_world: Production shows other parameters than were trained in",
        "because   length is 2 (1.98 to 2.02)",
        "service   policy champion in service; policy pppppppp could come back",
        "alarm     shift_detected by the world monitor at episode e205",
        "episodes  e201, e205",
        "verdicts  champion, pppppppp",
        "turns     2",
        "worlds    gravity 9.31 to 10.3, length 1.9 to 2.1",
    ):
        assert f"  {line}" in told
    assert "other ones than the present" not in told


def test_a_turn_under_way_counts_and_what_became_of_its_plan_is_told(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = decision(facts(history=archive.read_turns(run_dir), now=NOW + 99))
    reasons = (*made.plan.reasons, "no candidate was worth a verdict")
    plan = dataclasses.replace(made.plan, strategy="hold", reasons=reasons)
    archive.keep_draft(run_dir, Turn(number=4, plan=plan, decision=plain(made)))
    assert ask(run_dir) == 0
    told = capsys.readouterr().out
    assert "turn 4 is continue_training" in told and "then      no candidate was worth a verdict" in told


def test_every_past_decision_is_made_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run_dir, "--replay") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "  turn 1    has no decision: it is from before they were kept",
        "  turn 2    continue_training: the same",
        "  turn 3    retrain_prioritize_recent: the same",
        "2 of 2 the same",
    ]


def test_a_decision_that_comes_out_otherwise_is_an_error_with_its_fields(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / archive.JOURNAL
    *lines, last = path.read_text().splitlines()
    forged = json.loads(last)
    forged["decision"]["plan"]["warm_start"] = None
    forged["decision"]["facts"]["past"]["rounds"] = 7
    forged["decision"]["rules"] = "0123456789ab"
    path.write_text("\n".join([*lines, json.dumps(forged), ""]))
    assert ask(run_dir, "--replay") == 1
    told = capsys.readouterr().out
    assert 'turn 3    retrain_prioritize_recent: OTHERWISE\n    warm_start null -> "champion"' in told
    assert "journal   says other things of the turns before it: rounds" in told
    assert "1 of 2 the same\n1 of them were made by other rules than the present ones (" in told


def test_other_rules_are_tried(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run_dir, "--rules", "tests.test_reasons:never_retrain") == 0
    told = capsys.readouterr().out
    assert 'turn 3    retrain_prioritize_recent: otherwise\n    strategy  "retrain_prioritize_recent" -> "hold"' in told
    assert "decides otherwise in 1 of 2" in told and "turn 2" not in told
    assert ask(run_dir, "--rules", "flywheel.analyze.strategy:decide") == 0
    assert "decides otherwise in 0 of 2" in capsys.readouterr().out
    with pytest.raises(UsageError, match="give module:function"):
        ask(run_dir, "--rules", "tests.test_reasons:nothing")
    with pytest.raises(FlywheelError, match="These rules fail on turn 2 \\(KeyError: 'length'\\)"):
        ask(run_dir, "--rules", "tests.test_reasons:broken")


def test_a_person_holds_the_wheel_and_lets_it_go(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run_dir, "--hold", "the plant is being cleaned") == 0
    assert archive.held(run_dir) == "the plant is being cleaned"
    assert ask(run_dir) == 0
    assert "held      a person holds the wheel: the plant is being cleaned" in capsys.readouterr().out
    assert ask(run_dir, "--go") == 0
    assert archive.held(run_dir) == ""
    assert ask(run_dir, "--go") == 0
    assert capsys.readouterr().out.splitlines() == [
        "The wheel may turn again.", "Nobody held the wheel: it turns as before.",
    ]  # fmt: skip


def test_wrong_calls_change_nothing(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one at a time"):
        ask(run_dir, "--go", "--replay")
    with pytest.raises(UsageError, match="for a reason"):
        ask(run_dir, "--hold", "")
    for words in ([], ["--replay"], ["--go"], ["--hold", "why"]):
        with pytest.raises(UsageError, match="is no run directory"):
            ask(tmp_path / "nowhere", *words)
    assert not (tmp_path / "nowhere").exists() and not archive.held(run_dir)


def test_before_the_first_turn_nothing_was_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive._begin(tmp_path / "run", Config(), "cartpole", "d")
    assert ask(tmp_path / "run") == ask(tmp_path / "run", "--replay") == 0
    assert capsys.readouterr().out == "Nothing was decided yet: no turn has begun.\n0 of 0 the same\n"


def test_a_journal_from_before_decisions_were_kept_is_read(run_dir: Path) -> None:
    path = run_dir / archive.JOURNAL
    old = [
        {name: value for name, value in json.loads(line).items() if name != "decision"}
        for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert [each.decision for each in archive.read_turns(run_dir)] == [{}, {}, {}]
    assert ask(run_dir) == ask(run_dir, "--replay") == 0


def test_a_damaged_switch_says_how_it_is_mended(run_dir: Path) -> None:
    (run_dir / archive.HELD).write_text("{")
    with pytest.raises(FlywheelError, match=r"held\.json is damaged .* --go"):
        archive.held(run_dir)
    assert ask(run_dir, "--go") == 0 and not archive.held(run_dir)


def test_no_line_is_wider_than_the_terminal(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", lambda: 44)
    assert ask(run_dir) == 0 and ask(run_dir, "--replay") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 44
