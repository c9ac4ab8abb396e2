"""The console: whole lines in a file, passing ones thinned out; a live line in a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flywheel import cli, told
from flywheel.console import EVERY_S, Narrator, folded
from flywheel.records import Check, Probe, Progress


def narrate(terminal: bool) -> str:
    """Tell the same story to a file or to a narrow terminal."""
    out, now = io.StringIO(), [100.0]
    console = Console(file=out, force_terminal=terminal, width=50, highlight=False)
    with Narrator(console, lambda: now[0]) as say:
        say("start", "begun")
        for step in range(20):
            now[0] += EVERY_S / 4
            say("train", f"step {step}", passing=True)
        say("gate", "word " * 30)
    return out.getvalue()


def test_a_file_gets_whole_lines_and_a_passing_one_now_and_then() -> None:
    lines = narrate(terminal=False).splitlines()
    assert lines[0] == "   0.0 s  start    begun"
    assert [line.split("train")[1].strip() for line in lines if "train" in line] == [
        "step 0",
        "step 4",
        "step 8",
        "step 12",
        "step 16",
    ]
    assert lines[-1].rstrip().endswith("word")
    assert lines[-1].count("word") == 30


def test_a_terminal_wraps_inside_its_own_column() -> None:
    lines = [line for line in narrate(terminal=True).splitlines() if "word" in line]
    assert len(lines) > 3
    assert all("word" not in line[:18] for line in lines)


def test_an_iteration_is_told_with_what_its_probe_failed() -> None:
    progress = Progress(
        iteration=1, num_steps=10_240, num_steps_total=1, mean_return=float("nan"), seconds=1.0, network=b""
    )
    probe = Probe(num_failed=3, num_episodes=200, mean_return=400.0, edge_failed=("pole_tilted",))
    assert told.progress(progress, probe) == (
        "10,240 steps, no return yet; probe: 3 of 200 failed; edge cases failed: pole_tilted"
    )


def test_speed_and_time_left_are_told_where_they_are_known() -> None:
    progress = Progress(
        iteration=9, num_steps=10_240, num_steps_total=1, mean_return=240.0, seconds=1.0, network=b"",
        steps_per_s=1480.4, left_s=62.1,
    )  # fmt: skip
    probe = Probe(num_failed=0, num_episodes=20, mean_return=400.0, edge_failed=())
    text = told.progress(progress, probe)
    assert text == "10,240 steps at 1,480/s, return 240, at most 63 s left; probe: 0 of 20 failed"
    assert told.numbers(progress, probe) == {
        "steps": 10_240, "failed": 0, "probed": 20, "return": 240.0, "steps_per_s": 1480.4, "left_s": 62.1,
    }  # fmt: skip
    out = io.StringIO()
    with Narrator(Console(file=out, force_terminal=True, width=60, highlight=False)) as say:
        say("train", text, passing=True)
    assert "10,240 steps at 1,480/s, return 240, at most 63 …" in out.getvalue(), (
        "the rest is cut off in so narrow a one"
    )


@pytest.mark.parametrize(
    ("seconds", "told_as"),
    [(0.0, "0 s"), (-1.0, "0 s"), (0.2, "1 s"), (90.0, "90 s"), (91.0, "2 min"), (5_401.0, "2 h"), (1e6, "12 days")],
)
def test_a_time_has_the_unit_that_fits_and_is_never_negative(seconds: float, told_as: str) -> None:
    assert told.duration(seconds) == told_as


def test_an_open_check_is_told_as_open() -> None:
    check = Check(name="failure_rate", value=0.04, interval=(0.01, 0.08), bound=0.05, passed=None, note="4 of 100")
    assert told._check(check) == "failure rate open (4 of 100)"


class Terminal(io.StringIO):
    """A terminal that can draw boxes."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("words", [["--help"], ["episodes", "--help"], ["run", "--help"], ["canary", "drop", "-h"]])
def test_help_is_no_wider_than_the_terminal(
    words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setattr(sys, "argv", ["flywheel", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = terminal.getvalue().splitlines()
    wide = [line for line in lines if len(line) > columns]
    assert end.value.code == 0 and len(lines) > 5 and (not wide or wide == [lines[0]]), "but for how it is called"
    assert (words == ["--help"]) or any(line.startswith("╭") for line in lines)


def test_a_command_that_is_asked_for_no_help_prints_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with folded(["episodes"]):
        print("x" * 200)
        assert capsys.readouterr().out == "x" * 200 + "\n"
