"""`flywheel why`: the last diagnosis of the journal, or one made now, in lines that fit, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flywheel import archive, causes, cli
from flywheel.analyze.cause import find
from flywheel.analyze.picture import draw
from flywheel.causes import CAUSE, Cause, Moved, Odd
from flywheel.connection import Connection
from flywheel.errors import UsageError
from flywheel.records import Plan, Turn
from flywheel.store import intake, sealing
from flywheel.task import spec_of
from flywheel.why import lines, settled
from tests.runs import RELAXED, make_run, produced

PLAN = Plan(strategy="retrain_prioritize_recent", reasons=("because",))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose pole got longer, and that nobody has asked why yet."""
    path = tmp_path_factory.mktemp("why") / "run"
    make_run(path, before=30, after=15)
    return path


def why(*words: str, run_dir: Path) -> int:
    return cli.call(["why", "--run-dir", str(run_dir), *words])


def test_it_is_made_now_from_what_the_store_holds(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why("--now", run_dir=run_dir) == 0
    text = capsys.readouterr().out
    assert text.startswith("the world's dynamics changed, since 1970-01-01 00:17:10 UTC (asked now)\n")
    assert "since episode episode_00030 (1" in text
    assert "observation 3: error of a step" in text
    assert f"flywheel fork episode_000{30}"[:-2] in text


def test_the_last_one_of_the_journal_is_told_and_a_turn_under_way_counts(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", before=2, after=0)
    assert why(run_dir=tmp_path / "run") == 0
    assert "No turn has asked why" in capsys.readouterr().out
    first = Cause(kind="reward", sentences=("rewards are 2 times what they were",), since_episode="e", since_at=60.0)
    archive.append_turn(tmp_path / "run", Turn(number=1, plan=PLAN, evidence={CAUSE: causes.to_plain(first)}))
    archive.append_turn(tmp_path / "run", Turn(number=2, plan=PLAN))
    assert why(run_dir=tmp_path / "run") == 0
    assert capsys.readouterr().out.startswith("the reward changed, since 1970-01-01 00:01:00 UTC (asked in turn 1)\n")
    missing = Odd(episode="e", t=3, what="reward", expected=float("nan"), seen=1.0)
    second = dataclasses.replace(first, kind="logging", transitions=(missing,))
    archive.keep_draft(tmp_path / "run", Turn(number=3, plan=PLAN, evidence={CAUSE: causes.to_plain(second)}))
    assert why("--json", run_dir=tmp_path / "run") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["kind"] == "logging" and plain["transitions"][0] == {
        "episode": "e", "t": 3, "what": "reward", "expected": None, "seen": 1.0,
    }  # fmt: skip


def test_the_picture_is_drawn_around_where_it_began(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why("--now", "--plot", str(tmp_path / "why.png"), run_dir=run_dir) == 0
    assert f"picture   {tmp_path / 'why.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size[0] == 1500 and np.asarray(picture.convert("L")).std() > 10
    gone = Cause(kind="reward", sentences=("x",), since_episode="gone", since_at=60.0)
    archive.keep_draft(run_dir, Turn(number=1, plan=PLAN, evidence={CAUSE: causes.to_plain(gone)}))
    try:
        with pytest.raises(UsageError, match="no longer holds gone"):
            why("--plot", str(tmp_path / "never.png"), run_dir=run_dir)
    finally:
        (run_dir / archive.DRAFT).unlink()
    assert not (tmp_path / "never.png").exists()


def test_the_picture_leaves_out_what_was_thinned_out(tmp_path: Path) -> None:
    make_run(tmp_path / "run", before=30, after=15)
    assert why("--now", "--plot", str(tmp_path / "whole.png"), run_dir=tmp_path / "run") == 0
    with intake.Intake(tmp_path / "run") as store:
        num = len(store.kept(store.ids()))
        store.sealer.seal(1e12, all_now=True)
        work = store.sealer.begin_thinning(1e12, 0.0, 0.5)
        assert work is not None
        store.sealer.finish(work, sealing.write(work))
        assert len(store.kept(store.ids())) < num
    assert why("--now", "--plot", str(tmp_path / "thinned.png"), run_dir=tmp_path / "run") == 0


def test_panels_show_what_moved_and_mark_the_beginning(run_dir: Path) -> None:
    with intake.open_readonly(run_dir) as store:
        episodes = store.recent(100)
    spec = spec_of(RELAXED)
    cause = find(episodes, spec)
    figure = draw(cause, episodes, spec, None)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0] == "return" and titles[1].startswith(cause.moved[0].what)
    marks = [line for line in figure.axes[1].lines if list(line.get_xdata()) == [29.5, 29.5]]
    assert len(marks) == 1
    quiet = draw(find(episodes[:30], spec), episodes[:30], spec, None)
    assert not any(line.get_xdata()[0] == line.get_xdata()[-1] for axis in quiet.axes for line in axis.lines)


@pytest.mark.parametrize("width", [60, 100])
def test_lines_fit_and_commands_stay_whole(run_dir: Path, width: int) -> None:
    with intake.open_readonly(run_dir) as store:
        cause = find(store.recent(100), spec_of(RELAXED))
    cause = dataclasses.replace(cause, moved=(*cause.moved, Moved(
        what="reward", measure="share of rewards that are missing", before=0.0, after=float("nan"), p_value=0.25
    )))  # fmt: skip
    found = lines(cause, "turn 12", Path("runs/a b"), width)
    for line in found:
        assert len(line) <= width or line.startswith("  flywheel "), line
        assert line == line.rstrip()
    assert any(line.endswith("--run-dir 'runs/a b'") for line in found)
    one = lines(cause, "turn 12", Path("runs/a b"), 10_000)
    assert textwrap.dedent("\n".join(one)).count("what moved") == 1 and len(one) < len(found)


def test_short_episodes_that_are_over_first_are_not_read_before_their_time() -> None:
    episodes = [
        dataclasses.replace(e, started_at=float(i), ended_at=float(i + (2 if i == 8 else 5)))
        for i, e in enumerate(produced(RELAXED, _policy(), 10))
    ]
    assert [e.started_at for e in settled(episodes)] == [float(i) for i in range(10)]
    open_yet = [e for e in episodes if e.ended_at <= 10]  # 6, 7 and 9 run on
    assert [e.started_at for e in open_yet] == [0, 1, 2, 3, 4, 5, 8]
    assert [e.started_at for e in settled(open_yet)] == [0, 1, 2, 3, 4, 5]
    assert settled([]) == []


def _policy():  # type: ignore[no-untyped-def]
    from flywheel.testing import GOOD, load_linear

    return load_linear(RELAXED, GOOD, digest="d" * 64)


def test_a_run_without_production_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "run", before=1, after=0)
    (tmp_path / "run" / intake.FILE).unlink()
    with pytest.raises(UsageError, match="no production"):
        why("--now", run_dir=tmp_path / "run")
    with Connection(tmp_path / "run") as tp:
        assert tp.task.name == RELAXED.name
