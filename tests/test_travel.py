"""What `flywheel episodes`, `fork`, `diverge` and `scenarios` print, and their exit codes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

import flywheel
from flywheel import cli
from flywheel.records import Episode
from flywheel.tapes import chain
from tests.runs import make_run
from tests.test_cli import call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[Episode]]:
    directory = tmp_path_factory.mktemp("travel")
    return directory, make_run(directory / "run", before=20, after=5)


@pytest.fixture
def episodes(made: tuple[Path, Sequence[Episode]], monkeypatch: pytest.MonkeyPatch) -> Sequence[Episode]:
    """Production's episodes of a run directory `run` where one stands."""
    monkeypatch.chdir(made[0])
    return made[1]


RUN = ["--run-dir", "run"]


def test_episodes_are_listed(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "episodes", "failed", "production", "--limit", "2", *RUN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["episode", "began", "(UTC)", "policy", "return", "steps", "came", "out", "where"]
    assert [line.split()[0] for line in lines[1:]] == ["episode_00024", "episode_00023"]
    assert lines[1].split()[-2:] == ["failed", "production"]
    assert call(monkeypatch, "episodes", "gate", "--json", "--limit", "1", *RUN) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["origin"] == "gate" and len(row["digest"]) == 64
    assert call(monkeypatch, "episodes", "gat", *RUN) == 2
    assert "Did you mean 'gate'" in capsys.readouterr().err


def test_a_fork_says_what_it_found_and_the_python_that_does_the_same(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "length=2", "--set", "exploration_rate=0.1", "--times", "30", "--seed", "3"]
    assert call(monkeypatch, "fork", "episode_00003", "--at", "20", *words, "--picture", "fork.png", *RUN) == 0
    told = capsys.readouterr().out
    assert "edits     length 0.5 → 2; exploration_rate 0 → 0.1" in told
    assert "in 30 pairs of runs" in told and Path("fork.png").stat().st_size > 10_000
    line = told.splitlines()[-1].split(maxsplit=1)[1]
    result = eval(line, {"flywheel": flywheel})
    assert str(result) == told.split("\n  picture")[0]
    by_digest = ["--set", f"policy={episodes[0].digests[0][:8]}", "--set", "action=1"]
    assert call(monkeypatch, "fork", "episode_00003", "--at", "20", *by_digest, *RUN) == 0
    assert f"policy → {episodes[0].digests[0][:8]}; action → 1" in capsys.readouterr().out


def test_a_saved_fork_is_listed_and_dropped(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "scenarios", "list", *RUN) == 0
    assert "suite is empty" in capsys.readouterr().out
    assert call(monkeypatch, "fork", "episode_00003", "--at", "20", "--set", "length=2", "--save", "longer", *RUN) == 0
    assert "scenario longer: every candidate from now on must master it" in capsys.readouterr().out
    assert call(monkeypatch, "scenarios", "list", *RUN) == 0
    assert capsys.readouterr().out.split() == [
        "longer", "episode_00003", "at", "20", "saved", "fork;", "a", "start", "state;", "length", "2;", "open,", "not",
        "tried", "yet",
    ]  # fmt: skip
    assert call(monkeypatch, "scenarios", "drop", "longr", *RUN) == 2
    assert "Did you mean 'longer'" in capsys.readouterr().err
    assert call(monkeypatch, "scenarios", "drop", "longer", *RUN) == 0
    assert not flywheel.connect("run").scenarios()


def test_where_things_part(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "diverge", *RUN) == 0
    assert "flywheel fork episode_00020 --at 0 --run-dir run" in capsys.readouterr().out
    assert call(monkeypatch, "diverge", "episode_00003", "--exact", *RUN) == 0
    assert capsys.readouterr().out.startswith("It never parts")
    assert call(monkeypatch, "diverge", "episode_00022", *RUN) == 0
    assert "--at 0" in capsys.readouterr().out
    assert call(monkeypatch, "diverge", "episode_00003", "episode_00003", *RUN) == 0
    assert capsys.readouterr().out == "They never part.\n"
    assert call(monkeypatch, "diverge", "episode_00003", "episode_00004", *RUN) == 0
    assert capsys.readouterr().out.startswith("step 0: observation")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["fork", "episode_00003", "--at", "20", "--set", "lenth=2"], 2, "Did you mean 'length'"),
        (["fork", "episode_00003", "--at", "20", "--set", "length"], 2, "name=value"),
        (["fork", "episode_00003", "--at", "900"], 2, "the steps 0 to 499"),
        (["fork", "episode_0000", "--at", "3"], 2, "begins 10 episode names"),
        (["fork", "episode_00003"], 2, "--at"),
        (["diverge", "episode_00003", "--policy", "zzz"], 2, "no policy 'zzz'"),
        (["diverge", "episode_00003", "episode_00004", "--policy", "zzz"], 2, "name no other one"),
        (["diverge", "episode_00003", "--beyond", "1"], 2, "name the other one"),
        (["diverge", "--exact"], 2, "asked of an episode"),
        (["episodes", "--limit", "-1"], 2, "at least 0"),
        (["fork", "episode_00003", "--at", "20", "--set", "greedy=2"], 2, "greedy takes true or false, not '2'"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    words: list[str], code: int, said: str, episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(monkeypatch, *words, *RUN) == code
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_a_run_directory_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["episodes"], ["fork", "x", "--at", "1"], ["diverge", "x"], ["scenarios", "list"]):
        assert call(monkeypatch, *words, *RUN) == 2
        assert "no run directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert {"fork", "episodes", "diverge", "scenarios list", "scenarios drop"} < set(cli.COMMANDS)


@pytest.mark.parametrize("word", ["1", "true"])
def test_yes_has_two_words(
    word: str, episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "fork", "episode_00003", "--at", "490", "--set", f"greedy={word}", *RUN) == 0
    told = capsys.readouterr().out
    assert "greedy false → true" in told
    eval(told.splitlines()[-1].split(maxsplit=1)[1], {"flywheel": flywheel})


def test_a_printed_command_can_be_called_as_it_stands(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("my run").exists():
        Path("my run").symlink_to("run")
    for words in ([], ["episode_00022"]):
        assert call(monkeypatch, "diverge", *words, "--run-dir", "my run") == 0
        command = next(line for line in capsys.readouterr().out.splitlines() if "flywheel fork" in line)
        assert call(monkeypatch, *shlex.split(command)[1:]) == 0


def test_a_trial_is_forked_exactly(
    episodes: Sequence[Episode], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = flywheel.connect("run").episodes("gate")[0]
    assert call(monkeypatch, "fork", row.id, "--at", str(row.num_steps // 2), *RUN) == 0
    told = capsys.readouterr().out
    assert "every observation equal to the last bit" in told and "never: equal to the last bit" in told
    assert chain(flywheel.connect("run").episode(row.id))
