"""Episodes leave for other programs and come back."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Episode, Reward
from flywheel.store import export, sealing
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
        "module_id", "inclusion",
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


def broken(store: Intake) -> Path:
    """Damage a store's first segment, and return its file."""
    file = store._directory / "00000001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_what_is_damaged_is_left_out_and_named_where_that_is_asked(store: Intake, tmp_path: Path) -> None:
    ids, file, damage = store.where(""), broken(store), list[str]()
    with pytest.raises(FlywheelError, match=r"00000001\.parquet is damaged"):
        export.write(store, ids, tmp_path / "x", "parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["run"], "nothing half done is left"
    assert export.write(store, ids, tmp_path / "x", "parquet", damage) == 150
    assert len(damage) == 1 and str(file) in damage[0]
    with Intake(tmp_path / "other") as other:
        assert export.bring(other, tmp_path / "x", "t") == {"stored": 150}
        whole = other.ids()
    assert [each.id for each in store.recent(250, readable=True)] == whole
    with pytest.raises(FlywheelError, match="is damaged"):
        store.recent(250)
    with pytest.raises(UsageError, match="no episode to export"):
        export.write(store, sorted({*ids} - {*whole}), tmp_path / "y", "parquet", damage)


def test_a_disk_that_is_full_leaves_nothing_under_the_name(
    store: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.segments, "write_table", full)
    for name in ("x", "x.parquet"):
        with pytest.raises(FlywheelError, match=r"could not be written \(No space left on device\), and nothing is"):
            export.write(store, store.where(""), tmp_path / name, "rllib")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["rllib", "minari"])
def test_with_what_probability_an_episode_was_kept_goes_along(store: Intake, tmp_path: Path, kind: str) -> None:
    work = store.sealer.begin_thinning(AFTER, 0, 0.2)
    assert work is not None
    store.sealer.finish(work, sealing.write(work))
    ids = store.where("kept and num_steps > 1")
    assert {each.inclusion for each in store.read(ids)} == {0.2, 1.0}
    export.write(store, ids, tmp_path / "x", kind)
    with Intake(tmp_path / "other") as other:
        export.bring(other, tmp_path / "x", "t")
        back = everything(other)
    told = sorted((each.observations.tobytes(), each.inclusion) for each in store.read(ids))
    assert sorted((each.observations.tobytes(), each.inclusion) for each in back) == told


FINE = {
    "eps_id": ["a", "a"], "t": [0, 1], "obs": [[1.0, 2.0], [3.0, 4.0]], "actions": [0, 1], "rewards": [1.0, 1.0],
    "terminateds": [False, True], "truncateds": [False, False], "new_obs": [[3.0, 4.0], [5.0, 6.0]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obs": [[1.0, 2.0, 3.0], [3.0, 4.0]]}, "Column obs of .* holds what is no number, nothing in some rows, or"),
        ({"obs": [["x", "y"], ["z", "w"]]}, "Column obs of .* holds what is no number"),
        ({"actions": [None, 1]}, "Column actions of .* holds what is no number, nothing in some rows"),
        ({"new_obs": [[3.0, 4.0], None]}, "Column new_obs of .* holds what is no number, nothing in some rows"),
        ({"new_obs": [[3.0], [5.0]]}, "new_obs has another shape than obs"),
        ({"t": [0, 5]}, "Episode a of .* goes from step 0 to 5: an episode is one step after the other"),
        ({"t": [1, 1]}, "Episode a of .* goes from step 1 to 1"),
    ],
)
def test_columns_that_are_no_steps_are_refused_and_nothing_of_them_is_kept(
    tmp_path: Path, changes: dict, said: str
) -> None:
    pq.write_table(pa.table({**FINE, **changes}), tmp_path / "x.parquet")
    with Intake(tmp_path / "run") as store:
        with pytest.raises(UsageError, match=said + r".*[.]$"):
            export.bring(store, tmp_path / "x.parquet", "t")
        assert not store.count() and not store.conflicts()


def test_episodes_of_another_task_are_refused_where_there_are_others(store: Intake, tmp_path: Path) -> None:
    (like,) = store.recent(1)
    pq.write_table(pa.table({**FINE, "obs": [[1.0], [2.0]], "new_obs": [[2.0], [3.0]]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=r"Episode a has observations of float32\[1\], and those held here"):
        export.bring(store, tmp_path / "x.parquet", "t", like)
    assert not store.holds("a")
    with Intake(tmp_path / "other") as other:
        other.append([episode("wide", observations=np.zeros((4, 7), np.float32))])
        export.write(other, ["wide"], tmp_path / "y.parquet", "parquet")
    with pytest.raises(UsageError, match="Episode wide has observations of"):
        export.bring(store, tmp_path / "y.parquet", "t", like)


def test_small_integers_come_back_from_rllibs_columns_as_they_are(tmp_path: Path) -> None:
    seen = np.arange(12, dtype=np.uint8).reshape(4, 3)
    with Intake(tmp_path / "run") as store, Intake(tmp_path / "other") as other:
        store.append([episode("a", observations=seen)])
        export.write(store, ["a"], tmp_path / "x", "rllib")
        export.bring(other, tmp_path / "x", "t", store.recent(1)[0])
        (back,) = other.read(["a"])
    assert back.observations.dtype == np.uint8 and (back.observations == seen).all()


def test_a_minari_dataset_has_one_kind_of_spaces(store: Intake, tmp_path: Path) -> None:
    store.append([episode("other", observations=np.zeros((4, 2)))])
    with pytest.raises(UsageError, match="2 kinds of spaces, and a dataset has one"):
        export.write(store, ["e1", "other"], tmp_path / "m", "minari")
