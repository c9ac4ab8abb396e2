"""The run directory's own files: never half written, never another task's."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from flywheel import archive
from flywheel.config import Config
from flywheel.errors import FlywheelError, UsageError
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


def journal(*left: int | None) -> list[Turn]:
    """Return turns that say how many were left after them; an older journal's don't say it."""
    said = [{} if value is None else {archive.LEFT: value} for value in left]
    return [dataclasses.replace(TURN, number=number, evidence=one) for number, one in enumerate(said, 1)]


@pytest.mark.parametrize(
    ("left", "turns", "numbers"),
    [
        ((), 4, [1, 2, 3, 4]),  # a turn that is under way is the first of them, whatever it has done
        ((3,), 4, [2, 3, 4]),  # stopped in turn 2 of 4, before it was done
        ((3, 2), 4, [3, 4]),  # or after it
        ((3, 2), 6, [3, 4, 5, 6]),
        ((3, 2), 1, [3]),  # one at least
        ((3, 2, 1, 0), 4, [5, 6, 7, 8]),  # it ended by itself
        ((3, 0), 4, [3, 4, 5, 6]),  # by a recovery
        ((3, 2, 1, 0, 3), 4, [6, 7, 8]),  # stopped in the second lot
        ((None, None), 2, [3, 4]),
        ((0, 0, 0), 2, [4, 5]),  # after one without end
    ],
)
def test_turns_are_counted_on_after_a_stop_and_anew_after_an_end(
    left: tuple[int | None, ...], turns: int, numbers: list[int]
) -> None:
    assert list(archive.to_come(journal(*left), Config(turns=turns))) == numbers


def test_without_end_there_is_always_another_turn() -> None:
    numbers = archive.to_come(journal(0, 0), Config(forever=True))
    assert numbers[0] == 3 and len(numbers) > 10**9


def test_a_line_that_a_crash_cut_off_is_no_turn_and_is_in_nobodys_way(tmp_path: Path) -> None:
    archive.append_turn(tmp_path, TURN)
    with open(tmp_path / archive.JOURNAL, "a") as file:
        file.write('{"number": 2, "pl')
    assert archive.read_turns(tmp_path) == [TURN]
    archive.append_turn(tmp_path, dataclasses.replace(TURN, number=2))
    assert [turn.number for turn in archive.read_turns(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "read", "said"),
    [
        (archive.CONFIG, archive.read_config, "give another run directory"),
        (archive.LIVING, archive.read_living, "delete it"),
        (archive.DRAFT, archive.read_draft, "begins again"),
        (archive.JOURNAL, archive.read_turns, "Line 2 of"),
    ],
)
@pytest.mark.parametrize("cut", ['{"task": "cart', "[1]", "\udcff"])
def test_a_damaged_file_is_named_with_what_to_do(
    name: str, read: Callable[[Path], object], said: str, cut: str, tmp_path: Path
) -> None:
    archive.append_turn(tmp_path, TURN)
    with open(tmp_path / name, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(cut)
        if name == archive.JOURNAL:
            assert archive.read_turns(tmp_path) == [TURN], "it may be being written"
        file.write("\n")
        file.flush()
        with pytest.raises(FlywheelError, match=f"{name} is damaged.*: put a copy of it back, or ") as error:
            read(tmp_path)
    assert said in str(error.value)


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
        assert archive.read_config(tmp_path)["config"].turns == 9


def test_looks_see_no_owner_in_each_other_and_refuse_none_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive.opened(tmp_path, Config(), "cartpole", "digest"):
        pass
    take = fcntl.flock
    with open(tmp_path / archive.LOCK) as look:
        take(look, fcntl.LOCK_SH)
        assert not archive.is_held(tmp_path)

        def gone_once_it_was_in_the_way(lock: TextIO, how: int) -> None:
            try:
                take(lock, how)
            except BlockingIOError:
                look.close()
                raise

        monkeypatch.setattr(fcntl, "flock", gone_once_it_was_in_the_way)
        with archive.opened(tmp_path, Config(), "cartpole", "digest"):
            assert look.closed and archive.is_held(tmp_path)
    assert not archive.is_held(tmp_path)


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
