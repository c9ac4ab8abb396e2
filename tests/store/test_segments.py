"""Sealed segments: every bit comes back, nothing is lost at any step, and damage is named and stays where it is."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Episode, Reward
from flywheel.store import sealing, segments, tail
from flywheel.store.encode import Entry, encode, layout
from flywheel.store.intake import FILE, Intake, Outcome, open_readonly
from tests.store.test_intake import episode, same

AFTER = 1e9
DTYPES = ["bool", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64"]


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path) as store:
        yield store


def some(num: int, **changes: object) -> list[Episode]:
    return [episode(f"e{i}", 1 + i % 7, seed=i, at=float(i), failed=i % 10 == 0, **changes) for i in range(num)]


def entry(one: Episode, **changes: object) -> Entry:
    made = Entry(
        id=one.id, body=encode(one), failed=one.failed, started_at=one.started_at, ended_at=one.ended_at,
        inclusion=one.inclusion,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def numbers(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of any bits at all that its type may have: NaNs of all kinds, infinities, negative zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype == "bool":
        return rng.random(shape) < 0.5
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    made = np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()
    if made.dtype.kind == "f" and made.size:
        made.reshape(-1)[0] = draw(st.sampled_from([0.0, -0.0, np.nan, -np.inf, 1.0]))
    return made


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_segment_gives_every_bit_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    draw = data.draw
    kinds = {name: draw(st.sampled_from(DTYPES)) for name in ("observations", "raw_actions")}
    shapes = {name: draw(st.sampled_from([(), (1,), (4,), (2, 3)])) for name in kinds}
    entries = []
    for number, length in enumerate(draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))):
        made = episode(
            f"é{number}",
            length,
            at=draw(st.floats(0, 1e9)),
            digests=tuple(draw(st.lists(st.sampled_from(["a", "b", ""]), min_size=length, max_size=length))),
            observations=numbers(draw, kinds["observations"], (length + 1, *shapes["observations"])),
            raw_actions=numbers(draw, kinds["raw_actions"], (length, *shapes["raw_actions"])),
            logps=numbers(draw, "float64", (length,)),
            parameters={"mass": draw(st.floats())},
            end=draw(st.sampled_from(["terminated", "truncated", "lost"])),
            seed=draw(st.none() | st.integers(0, 2**62)),
            parent=draw(st.none() | st.tuples(st.text(max_size=3), st.integers(0, 9))),
            inclusion=draw(st.floats(0.01, 1.0)),
        )
        late = {t: 2.5 for t in np.flatnonzero(np.isnan(made.rewards)).tolist()[:1]}
        entries.append(entry(made, late=late))
    path = tmp_path_factory.mktemp("law") / "s.parquet"
    sha256, size = segments.write(path, entries)
    assert size == path.stat().st_size
    assert list(segments.Shelf(path.parent).episodes(path.name, sha256).values()) == entries


def test_columns_are_those_that_users_look_for(tmp_path: Path) -> None:
    one = episode("a", 3, rewards=np.array([1.0, np.nan, np.nan]), digests=("p", "q", "q"), end="truncated")
    other = episode("b", 2, seed=1, end="terminated", failed=False)
    segments.write(tmp_path / "s.parquet", [entry(one, late={1: 7.0}), entry(other)])
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [(r["episode_id"], r["t"]) for r in rows] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert [r["rewards"] for r in rows[:2]] == [1.0, 7.0] and np.isnan(rows[2]["rewards"])
    assert [r["late"] for r in rows] == [False, True, False, False, False]
    assert [r["terminations"] for r in rows] == [False] * 4 + [True]
    assert [r["truncations"] for r in rows] == [False, False, True, False, False]
    assert [r["policy"] for r in rows[:3]] == ["p", "q", "q"] and [r["failed"] for r in rows[2:4]] == [True, False]
    assert [r["actions"] for r in rows[:3]] == one.raw_actions.tolist()
    assert rows[1]["observations"] == one.observations[1].tolist()
    assert [r["last_observations"] for r in rows[1:3]] == [None, one.observations[3].tolist()]
    assert pq.read_schema(tmp_path / "s.parquet").metadata[b"schema_version"] == b"1"


def test_what_parquet_cannot_hold_has_no_layout() -> None:
    assert layout(encode(episode("a", observations=np.zeros((4, 2), ">f4")))) is None
    assert layout(encode(episode("a", observations=np.zeros((4, 0), np.float32)))) is None
    assert layout(encode(episode("a"))) == (("<f4", (4,)), ("<i8", ()), ("<f8", ()), ("<f8", ()))


def test_sealed_episodes_are_found_wherever_they_are(intake: Intake, tmp_path: Path) -> None:
    told = some(250)
    intake.append(told)
    outcomes, summary = intake.outcomes(), intake.summary()
    assert intake.sealer.seal(AFTER) == 200
    held = intake._connection.execute("SELECT segment, count(*), sum(length(body) > 0) FROM episodes GROUP BY 1")
    assert held.fetchall() == [(None, 50, 50), (1, 100, 0), (2, 100, 0)]
    assert [each.episodes for each in sealing.listed(intake._connection)] == [100, 100]
    with open_readonly(tmp_path) as reader:
        for store in (intake, reader):
            assert all(same(a, b) for a, b in zip(store.read([e.id for e in told]), told, strict=True))
            assert all(same(a, b) for a, b in zip(store.recent(120), told[-120:], strict=True))
            assert [e.id for e in store.following("a", 40.0, "e40", n=3)] == ["e41", "e42", "e43"]
            assert (store.outcomes(), store.summary()) == (outcomes, summary)
    assert {each.name for each in (tmp_path / "segments").iterdir()} == {"00000001.parquet", "00000002.parquet"}


def test_a_segment_waits_for_enough_episodes_that_are_past_their_window(intake: Intake) -> None:
    intake.append(some(150))
    assert intake.sealer.seal(100.0) == 0  # e99 ended at 100.0
    assert intake.sealer.seal(101.0) == 100 and intake.sealer.seal(101.0) == 0
    assert intake.sealer.seal(121.0, all_now=True) == 20


def test_kinds_of_episodes_go_to_segments_of_their_own_and_what_parquet_cannot_hold_stays(intake: Intake) -> None:
    pictures = [episode(f"p{i}", observations=np.full((4, 2, 2), i, np.uint8)) for i in range(5)]
    strange = [episode("s", observations=np.zeros((4, 2), ">f4"))]
    intake.append([*some(20), *strange, *pictures])
    assert intake.sealer.seal(AFTER, all_now=True) == 25
    assert [each.episodes for each in sealing.listed(intake._connection)] == [20, 5]
    assert all(same(a, b) for a, b in zip(intake.read(["s", "p3"]), [strange[0], pictures[3]], strict=True))


def test_what_comes_again_after_sealing_is_judged_by_the_same_rules(intake: Intake) -> None:
    told = [*some(3), episode("lost", end="lost", failed=False)]
    intake.append(told)
    intake.sealer.seal(AFTER, all_now=True)
    assert intake.append([told[0]]) == {"e0": "same"}
    other_cpu = dataclasses.replace(told[1], logps=told[1].logps + 9e-6)
    assert intake.append([other_cpu]) == {"e1": "same"}
    assert intake.append([episode("e2", 3, seed=99)]) == {"e2": "conflict"}
    whole = episode("lost", 5, failed=False)
    assert intake.append([whole]) == {"lost": "stored"} and same(intake.read(["lost"])[0], whole)
    assert intake.sealer.seal(AFTER, all_now=True) == 1 and same(intake.read(["lost"])[0], whole)


def test_a_reward_that_comes_after_sealing_is_joined_all_the_same(intake: Intake) -> None:
    intake.append([episode("a", rewards=np.array([1.0, np.nan, np.nan]))])
    intake.reward([Reward(episode="a", t=1, reward=2.0, seen_at=0.0)], [None])
    intake.sealer.seal(AFTER, all_now=True)
    assert intake.read(["a"])[0].total == 3.0
    found, changed = intake.reward([Reward(episode="a", t=2, reward=4.0, seen_at=0.0)], [None])
    assert found == ["stored"] and changed[0].total_before == 3.0 and intake.read(["a"])[0].total == 7.0
    assert intake.reward([Reward(episode="a", t=1, reward=5.0, seen_at=0.0)], [None])[0] == ["conflict"]


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_is_named_and_takes_nothing_else_with_it(intake: Intake, tmp_path: Path, how: str) -> None:
    told = some(200)
    intake.append(told)
    intake.sealer.seal(AFTER)
    path = tmp_path / "segments" / "00000001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data if how == "flipped" else data[:-1])
    with open_readonly(tmp_path) as reader:
        with pytest.raises(FlywheelError, match=r"Segment .*00000001.parquet is damaged \("):
            reader.read(["e3"])
        assert all(same(a, b) for a, b in zip(reader.recent(100), told[100:], strict=True))
        assert reader.count() == 200 and len(reader.outcomes()) == 200
    assert intake.append([episode("e3", 4, seed=77), episode("new")]) == {"e3": "conflict", "new": "stored"}
    late = [Reward(episode=id_, t=0, reward=9.0, seen_at=0.0) for id_ in ("e3", "e150")]
    answers, changed = intake.reward(late, [None, None])
    assert answers == ["unknown", "conflict"] and [each.episode.id for each in changed] == ["e150"]


def test_a_store_of_an_earlier_version_opens_as_it_is(tmp_path: Path) -> None:
    with Intake(tmp_path) as store:
        store.append(some(3))
        store._connection.executescript(
            "DROP INDEX unsealed; DROP TABLE segments; DROP TABLE loose; ALTER TABLE episodes DROP COLUMN segment;"
        )
    with open_readonly(tmp_path) as reader:
        assert (
            len(reader.recent(9)) == len(reader.following("a", 0.0, n=9)) == len(reader.read(["e0", "e1", "e2"])) == 3
        )
        assert reader.kept(["e1", "x"]) == ["e1"]
        with Intake(tmp_path) as store:
            assert store.sealer.seal(AFTER, all_now=True) == 3
        assert len(reader.recent(9)) == 3  # also one that was opened before its owner came


def test_only_a_store_that_has_a_segment_is_refused_by_earlier_versions(tmp_path: Path) -> None:
    def version() -> int:
        with sqlite3.connect(tmp_path / FILE) as connection:
            return int(connection.execute("SELECT schema_version FROM meta").fetchone()[0])

    with Intake(tmp_path) as store:
        store.append(some(2))
        assert version() == 1
        store.sealer.seal(AFTER, all_now=True)
        assert version() == sealing.FORMAT == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from flywheel.store import sealer, sealing, segments
from flywheel.store.intake import Intake
from tests.store.test_segments import some
what, at, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
store, seen = Intake(directory), 0
sealing.GROUP = 25 if what == "merge" else 100
store.append(some(100))
if what != "seal":
    store.sealer.seal(1e9)
for _ in range(4 if what == "merge" else 0):
    work = store.sealer.begin_thinning(1e9, 0, 0.2)
    store.sealer.finish(work, sealing.write(work))
sealing.GROUP = 100
rooms = (sealer.__file__, sealing.__file__, segments.__file__)
def kill(frame, event, argument):
    global seen
    if event in ("c_call", "c_return") and frame.f_code.co_filename in rooms and getattr(argument, "__name__", "") in (
        "execute", "executemany", "open", "fsync", "replace", "write_table", "_path_unlink", "unlink", "flush", "close"
    ):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(kill)
where = store._connection, sealing.Path(directory) / "segments"
begin = {{
    "seal": lambda: sealing.begin(*where, 1e9), "thin": lambda: store.sealer.begin_thinning(1e9, 0, 0.2),
    "merge": store.sealer.begin_merging,
}}
work = begin[what]()
store.sealer.finish(work, sealing.write(work))
sys.setprofile(None)
print("done", seen, flush=True)
"""


@pytest.mark.parametrize("what", ["seal", "thin", "merge"])
def test_a_crash_between_any_two_steps_loses_nothing(tmp_path: Path, what: str) -> None:
    root = str(Path(__file__).parents[2])
    told = {e.id: e for e in some(100)}
    steps, at = 0, 1
    while True:
        directory = tmp_path / str(at)
        command = [sys.executable, "-c", KILLED.format(root=root), what, str(at), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        with Intake(directory) as store:
            names = {each.name for each in sealing.listed(store._connection)}
            assert {path.name for path in (directory / "segments").glob("*")} == names
            assert store._connection.execute("SELECT count(*) FROM loose").fetchone() == (0,)
            assert store.count() == 100 and store.summary()["a"]["failed"] == 10
            kept = store.kept(told)
            assert set(kept) >= {id_ for id_, e in told.items() if e.failed}
            for found in store.read(kept):
                assert same(dataclasses.replace(found, inclusion=1.0), told[found.id])
            assert what != "seal" or len(kept) == 100
            assert what != "merge" or kept == [id_ for id_, e in told.items() if tail.is_kept(id_, e.failed, 0.2)]
            if done.returncode == 0:
                assert what != "merge" or len(names) == 1
                break
            store.sealer.seal(AFTER)
            assert all(e.inclusion in (1.0, 0.2) for e in store.read(store.kept(told)))
            steps, at = steps + 1, at + 2
    assert steps >= 5


def test_thinned_episodes_leave_their_outcome(intake: Intake, tmp_path: Path) -> None:
    told = some(1000)
    intake.append(told)
    before = intake.outcomes(), intake.summary(), intake.count()
    intake.sealer.seal(AFTER)
    size = sealing.num_bytes(intake._connection)
    assert intake.sealer.thin(AFTER, size + 1, 0.2) == 0
    assert intake.sealer.thin(500.0, size - 1, 0.2) == 1  # one is enough, and it is the oldest
    assert intake.kept(e.id for e in told[100:]) == [e.id for e in told[100:]]
    kept = intake.kept(e.id for e in told[:100])
    assert set(kept) > {e.id for e in told[:100] if e.failed} and 12 < len(kept) < 60
    assert (intake.outcomes(), intake.summary(), intake.count()) == before
    assert {(e.failed, e.inclusion) for e in intake.read(kept)} == {(True, 1.0), (False, 0.2)}
    (gone, *_) = [e.id for e in told[:100] if e.id not in kept]
    with pytest.raises(UsageError, match="kept no more"):
        intake.read([gone])
    recent = told_ids(intake.recent(2000))
    assert recent[-900:] == told_ids(told[100:]) and set(recent[:-900]) < set(kept)
    assert {e.id for e in told[:100] if not e.failed} & set(kept) <= set(recent), "an even sample has all that are fine"
    assert sum(e.failed for e in intake.recent(2000)[:-900]) < 6, "and a like share of those that failed"
    (again,) = [e for e in told if e.id == gone]
    assert intake.append([again]) == {gone: "same"}
    late = Reward(episode=gone, t=0, reward=1.0, seen_at=0.0)
    assert (
        intake.reward([late, Reward(episode="e999", t=99, reward=1.0, seen_at=0.0)], [None, None])[0] == ["unknown"] * 2
    )


def test_who_reads_again_after_a_thinning_reads_every_outcome_and_an_even_sample(
    intake: Intake, tmp_path: Path
) -> None:
    told = some(1000)
    intake.append(told)
    intake.sealer.seal(AFTER)
    for _ in range(5):
        work = intake.sealer.begin_thinning(501.0, 0, 0.2)
        assert work is not None
        intake.sealer.finish(work, sealing.write(work))
    (tmp_path / "segments" / "00000008.parquet").write_bytes(b"?")
    found, after = list[Episode | Outcome](), (-1.0, "")
    while page := intake.again("a", *after, n=300):
        found, after = [*found, *page], (page[-1].started_at, page[-1].id)
    assert [each.id for each in found] == told_ids(told) and sum(each.failed for each in found) == 100
    whole = [each for each in found if isinstance(each, Episode)]
    thinned = [e for e in whole if e.started_at < 500]
    assert 60 < len(thinned) < 140 and 3 < sum(e.failed for e in thinned) < 20, "as large a share of those that failed"
    late = {e.id for e in whole} & set(told_ids(told[500:]))
    assert late == {*told_ids(told[500:700]), *told_ids(told[800:])}, "what is damaged is an outcome, too"
    assert intake.ended(-1.0) == intake.kept(told_ids(told)) != told_ids(told)


def test_small_segments_that_were_thinned_alike_become_one(intake: Intake, tmp_path: Path) -> None:
    told = some(1000)
    intake.append(told)
    intake.sealer.seal(AFTER)
    assert intake.sealer.merge() == 0
    for _ in range(8):
        work = intake.sealer.begin_thinning(AFTER, 0, 0.1)
        assert work is not None
        intake.sealer.finish(work, sealing.write(work))
    ids = told_ids(told)
    kept, outcomes = intake.kept(ids), intake.outcomes()
    with open_readonly(tmp_path) as reader:
        before, recent = intake.read(kept), told_ids(reader.recent(2000))
        assert intake.sealer.merge() == 1 and intake.sealer.merge() == 0
        assert told_ids(reader.recent(2000)) == told_ids(intake.recent(2000)) == recent
    sizes = [each.episodes for each in sealing.listed(intake._connection)]
    assert len(sizes) < 8 and max(sizes) == 100 and sum(sizes) == len(kept)
    assert len(list((tmp_path / "segments").iterdir())) == len(sizes)
    assert intake.kept(ids) == kept and intake.outcomes() == outcomes and intake.verify() == []
    for a, b in zip(before, intake.read(kept), strict=True):
        assert same(a, b) and a.inclusion == b.inclusion
    intake.sealer.thin(AFTER, 0, 0.5)
    found = {(e.failed, e.inclusion) for e in intake.read(intake.kept(ids))}
    assert all(inclusion == 1.0 if failed else inclusion <= sealing.LEAST_SHARE for failed, inclusion in found)


def test_segments_that_can_not_be_merged_stay_as_they_are(intake: Intake, tmp_path: Path) -> None:
    intake.append(some(500))
    intake.sealer.seal(AFTER)
    for _ in range(5):
        work = intake.sealer.begin_thinning(AFTER, 0, 0.1)
        assert work is not None
        intake.sealer.finish(work, sealing.write(work))
    work = intake.sealer.begin_merging()
    assert work is not None and len(work.olds) >= 4
    (tmp_path / "segments" / work.olds[0].name).write_bytes(b"?")
    with pytest.raises(FlywheelError, match="damaged"):
        sealing.write(work)
    intake.sealer.finish(work, None)
    assert intake.sealer.begin_merging() is None and len(list((tmp_path / "segments").iterdir())) == 5
    assert intake.sealer.begin_thinning(AFTER, 0, 0.1) is not None, "what can't be merged can be thinned"


def told_ids(episodes: list[Episode]) -> list[str]:
    return [e.id for e in episodes]


def test_thinning_never_touches_what_ended_after_a_time_and_ends_with_what_failed(intake: Intake) -> None:
    intake.append(some(400))
    intake.sealer.seal(AFTER)
    intake.sealer.thin(201.0, 0, 0.1)
    held = set(intake.kept(e.id for e in some(400)))
    assert held >= {e.id for e in some(400)[200:]}
    assert {e.id for e in some(200)} & held == {e.id for e in some(200) if e.failed}
    assert intake.sealer.thin(201.0, 0, 0.1) == 0


def test_what_is_damaged_in_the_log_holds_up_nobody_else(intake: Intake) -> None:
    intake.append(some(101))
    intake._connection.execute("UPDATE episodes SET body = x'c1' WHERE id = 'e7'")
    assert intake.sealer.seal(AFTER, all_now=True) == 100
    assert len(intake.read([f"e{i}" for i in range(101) if i != 7])) == 100
    assert [sentence for sentence in intake.verify() if "e7" in sentence]


def test_a_damaged_segment_is_not_thinned(intake: Intake, tmp_path: Path) -> None:
    intake.append(some(200))
    intake.sealer.seal(AFTER)
    (tmp_path / "segments" / "00000001.parquet").write_bytes(b"?")
    work = intake.sealer.begin_thinning(AFTER, 0, 0.2)
    assert work is not None and [old.number for old in work.olds] == [1]
    with pytest.raises(FlywheelError, match="damaged"):
        sealing.write(work)
    intake.sealer.finish(work, None)
    work = intake.sealer.begin_thinning(AFTER, 0, 0.2)
    assert work is not None and [old.number for old in work.olds] == [2]
    intake.sealer.finish(work, sealing.write(work))
    assert intake.kept(["e1"]) == ["e1"] and len(list((tmp_path / "segments").iterdir())) == 2


def test_any_reader_of_parquet_reads_the_segments(intake: Intake, tmp_path: Path) -> None:
    intake.append(some(200))
    intake.sealer.seal(AFTER)
    found = pyarrow.dataset.dataset(tmp_path / "segments", format="parquet")
    failed = found.to_table(columns=["episode_id"], filter=pyarrow.dataset.field("failed"))
    assert set(failed["episode_id"].to_pylist()) == {e.id for e in some(200) if e.failed}
    assert found.count_rows() == sum(e.num_steps for e in some(200))


def test_columns_of_names_are_plain_strings_which_every_reader_joins(intake: Intake) -> None:
    intake.append(some(100))
    intake.sealer.seal(AFTER)
    (file,) = (intake._directory).glob("*.parquet")
    names = ("episode_id", "policy", "origin", "task", "scenario")
    assert {pq.read_schema(file).field(name).type for name in names} == {pyarrow.string()}
