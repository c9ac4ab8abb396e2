"""`flywheel episodes` and `flywheel verify`, as a person calls them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pytest

from flywheel import archive, cli
from flywheel.config import Config
from flywheel.errors import UsageError
from flywheel.store import export
from flywheel.store.intake import FILE, Intake
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.store.test_intake import episode
from tests.store.test_segments import AFTER, some


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    with archive.opened(place, Config(), "cartpole", "t" * 64), Intake(place) as store:
        store.append(some(150))
        store.sealer.seal(AFTER)
    return place


def call(*words: object) -> int:
    return cli.call([str(word) for word in words])


def test_a_condition_lists_episodes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("episodes", "--where", "failed and started_at < 30", "--run-dir", run_dir) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["episode", "e20", "e10", "e0"] and "failed" in lines[1]
    assert call("episodes", "--where", "failed", "--json", "--limit", "2", "--run-dir", run_dir) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["e140", "e130"]
    assert call("episodes", "failed", "--run-dir", run_dir) == 0
    assert len(capsys.readouterr().out.splitlines()) == 16
    with pytest.raises(UsageError, match="Did you mean 'failed'"):
        call("episodes", "--where", "faild", "--run-dir", run_dir)
    with pytest.raises(UsageError, match="different things"):
        call("episodes", "failed", "--where", "failed", "--run-dir", run_dir)


def test_episodes_go_and_come(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "failed.parquet"
    assert call("episodes", "--where", "failed", "--export", file, "--run-dir", run_dir) == 0
    assert capsys.readouterr().out == f"15 episodes are in {file} (parquet).\n"
    assert call("episodes", "--import", file, "--run-dir", run_dir) == 0
    assert capsys.readouterr().out == "15 were there already.\n"
    with Intake(run_dir), pytest.raises(UsageError, match="has a writer already"):
        call("episodes", "--import", file, "--run-dir", run_dir)


def test_a_number_below_zero_is_no_limit(run_dir: Path) -> None:
    for words in (["--where", "failed"], []):
        with pytest.raises(UsageError, match="--limit is -3, and a number of episodes is at least 0"):
            call("episodes", *words, "--limit", "-3", "--run-dir", run_dir)


def test_an_export_beside_damage_says_what_it_left_out(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (segment,) = (run_dir / "segments").iterdir()
    segment.write_bytes(segment.read_bytes()[:-1])
    assert call("episodes", "--export", tmp_path / "x", "--run-dir", run_dir) == 1
    told, named = capsys.readouterr().out.splitlines()
    assert told == f"50 episodes are in {tmp_path / 'x'} (parquet); 100 are damaged."
    assert named.startswith(f"Segment {segment} is damaged")


def test_episodes_of_another_task_do_not_come_into_a_run(run_dir: Path, tmp_path: Path) -> None:
    with Intake(tmp_path / "other") as other:
        other.append([episode("wide", observations=np.zeros((4, 7), np.float32))])
        export.write(other, ["wide"], tmp_path / "wide.parquet", "parquet")
    with pytest.raises(UsageError, match="it is of another task"):
        call("episodes", "--import", tmp_path / "wide.parquet", "--run-dir", run_dir)


def test_verify_reads_all_of_it(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "--run-dir", run_dir) == 0
    assert capsys.readouterr().out == "All of it is as it was written: 150 episodes, 1 segments.\n"
    (run_dir / "segments" / "stray.parquet").write_text("?")
    with Intake(run_dir) as store:
        store._connection.execute("UPDATE episodes SET body = x'00' WHERE id = 'e140'")
    segment = run_dir / "segments" / "00000001.parquet"
    data = bytearray(segment.read_bytes())
    data[1000] ^= 1
    segment.write_bytes(data)
    assert call("verify", "--run-dir", run_dir) == 1
    said = capsys.readouterr().out
    assert "e140 is not what" in said and "00000001.parquet is damaged" in said and "stray.parquet is not" in said


def test_verify_names_a_damaged_page(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((run_dir / FILE).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = b"\xff" * 3000
    (run_dir / FILE).write_bytes(data)
    assert call("verify", "--run-dir", run_dir) == 1
    assert "SQLite" in capsys.readouterr().out


def test_duckdb_answers_as_the_readme_says(run_dir: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (query,) = re.findall(r'duckdb -c "(.*)"', readme)
    assert duckdb.sql(query.replace("runs/mine", str(run_dir))).fetchall() == [("a", 100.0, 0.1)]


def test_what_is_excluded_is_listed_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    with archive.opened(run_dir, Config(), "cartpole", task_digest(cartpole)), Intake(run_dir) as store:
        store.append(some(150))
    assert call("episodes", "--exclude", "episode=e149", "--why", "a hand", "--run-dir", run_dir) == 0
    assert "Nothing is learnt from episode=e149 any more" in capsys.readouterr().out
    assert call("episodes", "--where", "started_at >= 148", "--run-dir", run_dir) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.endswith("production, excluded") for row in rows] == [True, False]
    assert call("episodes", "--readmit", "episode=e149", "--run-dir", run_dir) == 0
    assert call("episodes", "--excluded", "--run-dir", run_dir) == 0
    listed = capsys.readouterr().out.splitlines()[-1]
    assert listed.endswith("episode=e149: a hand") and "  -  " not in listed
    for words in (["--exclude", "episode=e1", "failed"], ["--why", "so"], ["--excluded", "--json"]):
        with pytest.raises(UsageError, match="stand alone"):
            call("episodes", *words, "--run-dir", run_dir)
