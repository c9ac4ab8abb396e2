"""The store's body: it seals and thins beside its answers, and goes on where a file can't be written."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flywheel.config import StoreConfig
from flywheel.store import on_ray, sealing, segments
from flywheel.store.intake import Intake, open_readonly
from flywheel.store.on_ray import StoreActor
from tests.store.test_intake import same
from tests.store.test_segments import some

NOW = StoreConfig(group_s=0.0, seal_after_s=0.0)


async def tidied(store: StoreActor) -> None:
    """Return when the store has tidied up after a commit."""
    while store._tidying is None:
        await asyncio.sleep(0)
    await store._tidying


async def test_sealing_and_thinning_go_on_beside_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "REPORT_S", 0.0)
    told = some(250)
    store = StoreActor(str(tmp_path), NOW)
    await store.append(told)
    await tidied(store)
    with open_readonly(tmp_path) as reader:
        assert [each.episodes for each in sealing.listed(reader._connection)] == [100, 100]
        assert all(same(a, b) for a, b in zip(reader.recent(250), await store.recent(250), strict=True))
    store._config = dataclasses.replace(NOW, most_gib=1e-9, keep_whole_s=0.0)
    store._tidying = None
    await store.append(some(251)[-1:])
    await tidied(store)
    with open_readonly(tmp_path) as reader:
        assert len(reader.kept(e.id for e in told)) < 150 and await store.count() == 251


async def test_a_segment_that_cannot_be_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_ray, "REPORT_S", 0.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "write_table", full)
    store = StoreActor(str(tmp_path), NOW)
    await store.append(some(100))
    await tidied(store)
    assert "00000001.parquet was not written: [Errno 28] No space left" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(on_ray, "REPORT_S", 0.0)
    store._tidying = None
    await store.append(some(101)[-1:])
    await tidied(store)
    assert all(same(a, b) for a, b in zip(await store.recent(101), some(101), strict=True))
    with open_readonly(tmp_path) as reader:
        assert [each.number for each in sealing.listed(reader._connection)] == [1]


# what Ray Data's own modules warn of
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ray_data_reads_the_segments(ray_cluster: Any, tmp_path: Path) -> None:
    import ray.data

    with Intake(tmp_path) as store:
        store.append([*some(100), *(dataclasses.replace(e, digests=("b",) * e.num_steps) for e in some(200)[100:])])
        store.sealer.seal(1e9)
    found = ray.data.read_parquet(str(tmp_path / "segments"), columns=["episode_id", "failed"])
    assert found.count() == sum(e.num_steps for e in some(200))
    assert {row["episode_id"] for row in found.take_all() if row["failed"]} == {e.id for e in some(200) if e.failed}
    counts = ray.data.read_parquet(str(tmp_path / "segments"), columns=["policy"]).groupby("policy").count().take_all()
    assert {row["policy"] for row in counts} == {"a", "b"}, "each file has another one"
    assert sum(row["count()"] for row in counts) == sum(e.num_steps for e in some(200))


async def test_what_is_excluded_is_kept_by_the_living_owner(tmp_path: Path) -> None:
    store = StoreActor(str(tmp_path), StoreConfig(group_s=0.0))
    await store.append(some(3))
    found = await store.exclude("episode=e1", "a hand")
    assert (found.kind, found.name) == ("episode", "e1")
    assert await store.excluded() == {("episode", "e1"): "a hand"}
    assert [e.id for e in await store.recent(9, learnable=True)] == ["e0", "e2"]
    await store.readmit("episode=e1")
    assert await store.excluded() == {}
