"""The run directory's own files: never half written, never another task's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flywheel import archive
from flywheel.config import Config
from flywheel.errors import UsageError
from flywheel.records import Plan, Release, Signal, Turn

SIGNAL = Signal(
    kind="shift_detected", monitor="world", digest="d", value=float("inf"), threshold=3e4, since_episode="a",
    at_episode="b", evidence={"read": 3}, at=1.0,
)  # fmt: skip
TURN = Turn(
    number=1,
    plan=Plan(
        strategy="retrain_prioritize_recent", reasons=("the world",), signals=(SIGNAL,), parameters={"l": (1, 2)}
    ),
    artifact=None,
    verdict=None,
    release=Release(digest="d", stage="full", share=1.0, previous=None, released_at=2.0),
    evidence={"recovered": False, "seconds": {"train": 1.5}},
)


def test_turns_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert archive.read_turns(tmp_path) == []
    turns = [TURN, dataclasses.replace(TURN, number=2)]
    for turn in turns:
        archive.append_turn(tmp_path, turn)
    assert archive.read_turns(tmp_path) == turns


def test_a_line_that_a_crash_cut_off_is_no_turn_and_is_in_nobodys_way(tmp_path: Path) -> None:
    archive.append_turn(tmp_path, TURN)
    with open(tmp_path / archive.JOURNAL, "a") as file:
        file.write('{"number": 2, "pl')
    assert archive.read_turns(tmp_path) == [TURN]
    archive.append_turn(tmp_path, dataclasses.replace(TURN, number=2))
    assert [turn.number for turn in archive.read_turns(tmp_path)] == [1, 2]


def test_a_run_directory_of_another_task_is_refused_and_left_alone(tmp_path: Path) -> None:
    for _ in range(2):
        with archive.opened(tmp_path, Config(), "cartpole", "digest-1"):
            before = (tmp_path / archive.CONFIG).read_bytes()
    for task in ("pendulum", "cartpole"):
        with (
            pytest.raises(UsageError, match="another --run-dir"),
            archive.opened(tmp_path, Config(turns=9), task, "digest-2"),
        ):
            raise AssertionError("it was opened")
    assert (tmp_path / archive.CONFIG).read_bytes() == before


def test_a_second_driver_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with archive.opened(tmp_path, Config(), "cartpole", "digest"):
        before = (tmp_path / archive.CONFIG).read_bytes()
        with (
            pytest.raises(UsageError, match="Another process"),
            archive.opened(tmp_path, Config(turns=9), "cartpole", "digest"),
        ):
            raise AssertionError("it was opened twice")
        assert (tmp_path / archive.CONFIG).read_bytes() == before
    with archive.opened(tmp_path, Config(turns=9), "cartpole", "digest"):
        assert archive.read_config(tmp_path)["config"]["turns"] == 9


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="--run-dir"), archive.opened(place, Config(), "cartpole", "digest"):
            raise AssertionError("it was opened")


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(UsageError, match="no run directory"),
        archive.opened(tmp_path, Config(), "cartpole", "digest"),
    ):
        raise AssertionError("it was opened")
    with pytest.raises(UsageError, match="no run directory"):
        archive.read_config(tmp_path)
