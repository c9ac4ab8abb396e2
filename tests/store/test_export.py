"""Episodes leave for other programs and come back."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel.errors import UsageError
from flywheel.records import Episode, Reward
from flywheel.store import export
from flywheel.store.intake import Intake
from tests.store.test_intake import episode, same
from tests.store.test_segments import AFTER, some


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path / "run") as intake:
        intake.append(some(250))
        intake.sealer.seal(AFTER)
        yield intake


def everything(store: Intake) -> list[Episode]:
    return store.read(store.kept(store.ids()))


@pytest.mark.parametrize("name", ["one.parquet", "many"])
def test_parquet_comes_back_as_it_was(store: Intake, tmp_path: Path, name: str) -> None:
    late = episode("late", 3, rewards=np.array([1.0, np.nan, np.nan]), at=9e3)
    store.append([late, episode("gate", origin="gate", at=8e3)])
    store.reward([Reward(episode="late", t=1, reward=4.0, seen_at=0.0)], [None])
    store.judge({"late": False})
    store.sealer.thin(101.0, 0, 0.2)
    ids = store.where("")
    kept = len(store.kept(ids))
    assert 100 < kept < 252 and export.write(store, ids, tmp_path / name, "parquet") == kept
    with Intake(tmp_path / "other") as other:
        assert export.bring(other, tmp_path / name, "t") == {"stored": kept}
        assert all(same(a, b) for a, b in zip(everything(other), everything(store), strict=True))
        assert (other.read(["late"])[0].total, other.read(["late"])[0].failed) == (5.0, False)
        assert export.bring(other, tmp_path / name, "t") == {"same": kept}
    assert export.bring(store, tmp_path / name, "t") == {"same": kept}


def test_columns_of_rllib_go_and_come(store: Intake, tmp_path: Path) -> None:
    ids = store.where("num_steps > 1 and id like 'e1%'")
    assert export.write(store, ids, tmp_path / "r", "rllib") == len(ids) > 50
    (file,) = (tmp_path / "r").iterdir()
    found = pq.read_table(file)
    assert set(found.column_names) == {
        "eps_id", "t", "obs", "new_obs", "actions", "rewards", "terminateds", "truncateds", "action_logp", "agent_id",
        "module_id",
    }  # fmt: skip
    (one,) = store.read([ids[0]])
    mine = [row for row in found.to_pylist() if row["eps_id"] == one.id]
    np.testing.assert_array_equal([row["obs"] for row in mine], one.observations[:-1])
    np.testing.assert_array_equal([row["new_obs"] for row in mine], one.observations[1:])
    with Intake(tmp_path / "other") as other:
        assert export.bring(other, file, "t2") == {"stored": len(ids)}
        (back,) = other.read([one.id])
    np.testing.assert_array_equal(back.observations, one.observations)
    np.testing.assert_array_equal(back.raw_actions, one.raw_actions)
    np.testing.assert_array_equal(back.rewards, one.rewards)
    np.testing.assert_array_equal(back.logps, one.logps)
    assert (back.origin, back.task, back.end, back.observations.dtype) == ("train", "t2", "terminated", np.float32)


def test_columns_that_somebody_else_wrote_are_taken_in_any_order(store: Intake, tmp_path: Path) -> None:
    rows = {
        "episode_id": [2, 1, 1], "t": [0, 1, 0], "observations": [[0.5], [1.5], [1.0]],
        "actions": [[0.1], [0.3], [0.2]], "rewards": [1.0, 3.0, 2.0],
        "terminations": [False, True, False], "truncations": [True, False, False],
        "next_observations": [[0.6], [2.0], [1.5]],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    assert export.bring(store, tmp_path / "x.parquet", "t") == {"stored": 2}
    one, two = store.read(["1", "2"])
    assert one.observations.tolist() == [[1.0], [1.5], [2.0]] and one.rewards.tolist() == [2.0, 3.0]
    assert (one.end, two.end, one.raw_actions.dtype) == ("terminated", "truncated", np.float32)
    del rows["next_observations"]
    pq.write_table(pa.table(rows), tmp_path / "y.parquet")
    with pytest.raises(UsageError, match="none of the columns new_obs, next_observations, last_observations"):
        export.bring(store, tmp_path / "y.parquet", "t")


def test_what_cannot_be_is_refused_with_a_sentence(store: Intake, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("x")
    with pytest.raises(UsageError, match="is there already"):
        export.write(store, ["e1"], tmp_path / "there", "parquet")
    with pytest.raises(UsageError, match=r"no format 'parqet'\. Did you mean 'parquet'"):
        export.write(store, ["e1"], tmp_path / "new", "parqet")
    with pytest.raises(UsageError, match="no episode to export"):
        export.write(store, [], tmp_path / "new", "parquet")
    store.append([episode("other", observations=np.zeros((4, 2)))])
    with pytest.raises(UsageError, match="2 kinds of spaces"):
        export.write(store, ["e1", "other"], tmp_path / "new.parquet", "parquet")
    assert export.write(store, ["e1", "other"], tmp_path / "both", "parquet") == 2
    store.append([episode("odd", observations=np.zeros((4, 2), ">f4"))])
    with pytest.raises(UsageError, match="can't hold"):
        export.write(store, ["odd"], tmp_path / "new", "parquet")
    with pytest.raises(UsageError, match="no episodes at"):
        export.bring(store, tmp_path / "there", "t")
    with pytest.raises(UsageError, match="no Parquet file that can be read"):
        export.bring(store, tmp_path / "there" / "x", "t")


def test_without_minari_a_sentence_says_what_to_install(
    store: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'flywheel-rl\[minari\]'"):
        export.write(store, ["e1"], tmp_path / "m", "minari")


def test_minari_goes_and_comes(store: Intake, tmp_path: Path) -> None:
    ids = store.where("id like 'e1%'")
    assert export.write(store, ids, tmp_path / "m", "minari") == len(ids)
    with Intake(tmp_path / "other") as other:
        assert export.bring(other, tmp_path / "m", "t") == {"stored": len(ids)}
        back, (one,) = other.read(["episodes-v0-0"])[0], store.read([ids[0]])
    np.testing.assert_array_equal(back.observations, one.observations)
    np.testing.assert_array_equal(back.raw_actions, one.raw_actions)
    np.testing.assert_array_equal(back.rewards, one.rewards)
    np.testing.assert_array_equal(back.logps, one.logps)
    assert back.origin == "train" and back.end == one.end
