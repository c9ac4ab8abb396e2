"""The story of a run: every sentence is kept, a torn line is nobody's, and a reader goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import archive, story
from flywheel.console import silent
from flywheel.records import Told


def told(number: int) -> Told:
    return Told(at=float(number), stage="train", text=f"sentence {number} é", turn=1, numbers={"steps": number})


def test_sentences_come_back_in_order_and_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    assert archive.read_told(tmp_path) == []
    for number in range(3):
        archive.tell(tmp_path, told(number))
    found = archive.read_told(tmp_path)
    assert [each for _, each in found] == [told(number) for number in range(3)]
    archive.tell(tmp_path, told(3))
    assert [each for _, each in archive.read_told(tmp_path, found[-1][0])] == [told(3)]
    assert found[-1][0] == archive.read_told(tmp_path)[2][0]


@given(cut=st.integers(2, 60), begin=st.integers(0, 400))
def test_a_torn_line_is_read_by_nobody_and_is_in_nobodys_way(
    cut: int, begin: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    for number in range(2):
        archive.tell(run_dir, told(number))
    path = run_dir / archive.EVENTS
    path.write_bytes(path.read_bytes()[:-cut])
    assert [each for _, each in archive.read_told(run_dir)] == [told(0)]
    archive.tell(run_dir, told(2))
    whole = archive.read_told(run_dir)
    assert [each for _, each in whole] == [told(0), told(2)]
    rest = archive.read_told(run_dir, begin)
    assert rest == whole[len(whole) - len(rest) :]
    for number, (end, _) in enumerate(whole, 1):
        assert archive.read_told(run_dir, end) == whole[number:]


def test_a_story_keeps_what_it_says_and_how_it_ended(tmp_path: Path) -> None:
    said: list[str] = []
    clock = iter(range(100))
    with story.kept(tmp_path, lambda stage, text, *, passing=False: said.append(text)) as telling:
        telling._clock = lambda: float(next(clock))
        telling.turn = 4
        for number in range(7):
            telling("observe", f"{number} episodes", passing=True)
        for number in range(3):
            telling("train", f"{number} steps", passing=True, steps=number)
        telling("observe", "production is good again")
    kept = [each for _, each in archive.read_told(tmp_path)]
    assert len(said) == 11
    assert [each.text for each in kept] == [
        "0 episodes", "5 episodes", "0 steps", "1 steps", "2 steps", "production is good again",
        "the process ended in order",
    ]  # fmt: skip
    assert {each.turn for each in kept} == {4} and kept[3].numbers == {"steps": 1}
    with pytest.raises(ValueError), story.kept(tmp_path, silent):
        raise ValueError("of this")
    assert archive.read_told(tmp_path)[-1][1].text == "the process ended by ValueError: of this"
