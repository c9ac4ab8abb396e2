"""The durable log: acknowledged means durable, and the same id never holds two contents."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import FlywheelError, UsageError
from flywheel.records import Episode
from flywheel.sqlite import transaction
from flywheel.store.encode import content, decode, encode
from flywheel.store.intake import FILE, Intake, open_readonly
from flywheel.tasks.cartpole import cartpole


def episode(id_: str, num_steps: int = 3, *, at: float = 0.0, seed: int = 0, **changes: object) -> Episode:
    rng = np.random.default_rng(seed)
    made = Episode(
        id=id_,
        origin="production",
        task="t",
        parameters={},
        draw_key=2**64 - 1,
        digests=("a",) * num_steps,
        observations=rng.normal(size=(num_steps + 1, 4)).astype(np.float32),
        raw_actions=rng.integers(0, 2, num_steps),
        rewards=np.where(rng.random(num_steps) < 0.2, np.nan, 1.0),
        logps=rng.normal(size=num_steps),
        end="terminated",
        failed=True,
        started_at=at,
        ended_at=at + 1,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def same(a: Episode, b: Episode) -> bool:
    return encode(a) == encode(b) and (a.started_at, a.ended_at) == (b.started_at, b.ended_at)


@pytest.fixture
def intake(tmp_path: Path):
    store = Intake(tmp_path)
    yield store
    store.close()


@given(
    num_steps=st.integers(0, 20),
    dtype=st.sampled_from(["float32", "float64", "uint8"]),
    shape=st.sampled_from([(), (4,), (2, 3)]),
    digests=st.lists(st.sampled_from("abc"), min_size=20, max_size=20),
    parent=st.none() | st.tuples(st.text(max_size=5), st.integers(0, 100)),
    seed=st.none() | st.integers(0, 2**62),
)
def test_bytes_give_the_same_episode_back(num_steps, dtype, shape, digests, parent, seed) -> None:
    whole = episode(
        "é",
        num_steps,
        at=1.25,
        observations=np.ones((num_steps + 1, *shape), dtype),
        raw_actions=np.ones((num_steps, 2), np.float32),
        digests=tuple(digests[:num_steps]),
        parent=parent,
        seed=None,
        parameters={"b": 1.0, "a": 2.0},
        edits=("x",),
    )
    whole = dataclasses.replace(whole, seed=seed)
    back = decode(encode(whole), whole.started_at, whole.ended_at)
    assert same(whole, back)
    for field in dataclasses.fields(Episode):
        np.testing.assert_equal(getattr(back, field.name), getattr(whole, field.name))
    assert back.observations.dtype == whole.observations.dtype
    assert content(encode(whole)) == content(encode(dataclasses.replace(whole, started_at=9.0)))


def test_an_object_array_is_never_built_from_bytes() -> None:
    body = encode(episode("a")).replace(b"<f4", b"|O8")
    with pytest.raises(FlywheelError, match="no plain number"):
        decode(body, 0.0, 0.0)


def test_same_content_is_one_row_and_other_content_goes_to_quarantine(intake: Intake) -> None:
    first = episode("a")
    assert intake.append([first]) == {"a": "stored"}
    assert intake.append([dataclasses.replace(first, started_at=5.0)]) == {"a": "same"}
    assert intake.append([episode("a", seed=1), episode("b")]) == {"a": "conflict", "b": "stored"}
    assert intake.append([episode("a", seed=1)]) == {"a": "conflict"}
    assert intake.count() == 2 and intake.conflicts() == ["a"]
    assert same(intake.read(["b", "a"])[1], first)


def test_log_probabilities_that_another_kind_of_cpu_computed_are_the_same(intake: Intake) -> None:
    first = episode("a", logps=np.array([-0.5, -np.inf, -1.0]))
    intake.append([first])
    other = dataclasses.replace(first, logps=first.logps + 9e-6)
    assert intake.append([other]) == {"a": "same"} and same(intake.read(["a"])[0], first)
    for changes in (
        {"logps": first.logps + 2e-5},
        {"logps": first.logps[:2]},
        {"logps": other.logps, "rewards": np.zeros(3)},
        {"logps": other.logps, "raw_actions": 1 - first.raw_actions},
    ):
        assert intake.append([dataclasses.replace(first, **changes)]) == {"a": "conflict"}


def test_what_ended_after_a_time_is_named_in_order_of_start(intake: Intake) -> None:
    ends = {"b": (2.0, 9.0), "a": (1.0, 5.0), "c": (0.0, 7.0)}
    for id_, (start, end) in ends.items():
        intake.append([episode(id_, started_at=start, ended_at=end)])
    intake.append([episode("gate's", origin="gate", started_at=8.0, ended_at=9.0)])
    assert intake.ended(5.0) == ["c", "b"] and intake.ended(0.0) == ["c", "a", "b"]


def test_a_lost_episode_gives_way_to_the_whole_one_and_never_the_reverse(intake: Intake) -> None:
    whole, lost = episode("a", 5), episode("a", 2, end="lost", failed=False)
    assert intake.append([lost]) == {"a": "stored"}
    assert intake.whole(["a"]) == []
    assert intake.append([whole]) == {"a": "stored"}
    assert intake.append([lost]) == {"a": "same"}
    assert intake.whole(["a", "b"]) == ["a"] and intake.count() == 1
    assert same(intake.read(["a"])[0], whole)


def test_reading_is_in_order_of_start_and_by_digest_origin_and_first_episode(intake: Intake) -> None:
    intake.append(
        [
            episode("late", at=3.0),
            episode("b", at=1.0),
            episode("a", at=1.0),
            episode("mid", at=2.0, digests=("z",) * 3),
        ]
    )
    intake.append([episode("sim", at=9.0, origin="gate")])
    assert [e.id for e in intake.recent(10)] == ["a", "b", "mid", "late"] == intake.ids(origin="production")
    assert [e.id for e in intake.recent(2)] == ["mid", "late"]
    assert [e.id for e in intake.recent(10, since="b")] == ["b", "mid", "late"]
    assert [e.id for e in intake.recent(10, digest="a")] == ["a", "b", "late"]
    assert [e.id for e in intake.recent(10, origin=None)][-1] == "sim"
    assert intake.count(origin="gate") == 1 and intake.count(digest="z") == 1
    page = intake.following("a", 1.0, "", n=2)
    assert [e.id for e in page] == ["a", "b"]
    assert [e.id for e in intake.following("a", page[-1].started_at, page[-1].id)] == ["late"]
    assert intake.summary()["a"] == {"episodes": 3, "failed": 3, "lost": 0, "total": intake.summary()["a"]["total"]}


def test_outcomes_are_the_columns_in_order_of_start_and_no_body_is_read(intake: Intake) -> None:
    episodes = [episode("b", at=1.0), episode("a", 2, at=1.0, failed=False), episode("lost", at=0.5, end="lost")]
    intake.append([*episodes, episode("sim", at=9.0, origin="gate")])
    intake._connection.execute("UPDATE episodes SET body = x''")
    found = intake.outcomes("production")
    assert [o.id for o in found] == ["lost", "a", "b"] and [o.id for o in intake.outcomes()][-1] == "sim"
    for one in episodes:
        (held,) = (o for o in found if o.id == one.id)
        assert held.failed is one.failed
        for name in ("started_at", "ended_at", "end", "total", "num_steps"):
            assert getattr(held, name) == getattr(one, name)
        assert held.digest == one.digests[0]


@pytest.mark.parametrize("begun", [False, True])
def test_a_store_that_was_killed_before_its_tables_is_an_empty_one(tmp_path: Path, begun: bool) -> None:
    made = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    if begun:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("BEGIN IMMEDIATE")
        made.execute("CREATE TABLE meta (schema_version INTEGER NOT NULL)")
    reader = open_readonly(tmp_path)
    assert (reader.count(), reader.outcomes(), reader.whole(["a"])) == (0, [], [])
    reader.close()
    made.close()
    Intake(tmp_path).close()


def test_errors_are_sentences(intake: Intake, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no episode 'x'"):
        intake.read(["x"])
    with pytest.raises(UsageError, match="no episode 'x'"):
        intake.recent(1, since="x")
    with pytest.raises(UsageError, match="writer already"):
        Intake(tmp_path)
    with pytest.raises(UsageError, match="no store at"):
        open_readonly(tmp_path / "none")


def test_others_read_while_the_owner_writes_and_can_not_write(intake: Intake, tmp_path: Path) -> None:
    reader = open_readonly(tmp_path)
    intake.append([episode("a")])
    assert reader.ids() == ["a"]
    with pytest.raises(Exception, match="readonly"):
        reader._connection.execute("DELETE FROM episodes")
    reader.close()


def test_a_failing_commit_changes_nothing(intake: Intake) -> None:
    with pytest.raises(AttributeError):
        intake.append([episode("a"), None])  # type: ignore[list-item]
    assert intake.count() == 0 and intake.append([episode("a")]) == {"a": "stored"}


def test_notes_and_episodes_outlive_the_process_and_a_newer_format_is_refused(tmp_path: Path) -> None:
    first = Intake(tmp_path)
    first.append([episode("a")])
    first.note("n", "1")
    first.note("n", "2")
    first.close()
    again = Intake(tmp_path)
    assert again.noted("n") == "2" and again.noted("m") is None and again.ids() == ["a"]
    again._connection.execute("UPDATE meta SET schema_version = 99")
    again.close()
    with pytest.raises(FlywheelError, match="format 99"):
        open_readonly(tmp_path)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from tests.store.test_intake import episode
from flywheel.store.intake import Intake
store, prefix = Intake(sys.argv[1]), sys.argv[2]
for i in range(100_000):
    group = [episode(f"{{prefix}}-{{i}}-{{j}}", 50, seed=i) for j in range(1 + i % 4)]
    store.append(group)
    print(*(e.id for e in group), flush=True)
"""


def test_no_acknowledged_episode_is_lost_when_the_store_is_killed(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    acknowledged: list[str] = []
    for kill in range(4):
        command = [sys.executable, "-c", WRITER.format(tests=root), str(tmp_path), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(25 + 10 * kill):
                acknowledged += process.stdout.readline().split()
            os.kill(process.pid, signal.SIGKILL)
            acknowledged += process.stdout.read().rpartition("\n")[0].split()
    store = Intake(tmp_path)
    held = set(store.ids())
    assert len(acknowledged) > 300 and held.issuperset(acknowledged)
    assert len(store.read(acknowledged)) == len(acknowledged)
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=20))
def test_what_is_held_is_the_first_whole_content_in_any_grouping(tmp_path_factory, calls) -> None:
    store = Intake(tmp_path_factory.mktemp("law"))
    held: dict[str, Episode] = {}
    for id_, seed, lost in calls:
        new = episode(str(id_), seed=seed, end="lost" if lost else "terminated")
        answer = store.append([new])[new.id]
        old = held.get(new.id)
        if old is None or (old.end == "lost" and not lost):
            held[new.id] = new
            assert answer == "stored"
        else:
            equal = encode(old) == encode(new) or (lost and old.end != "lost")
            assert answer == ("same" if equal else "conflict")
    assert sorted(store.ids()) == sorted(held)
    assert all(same(store.read([id_])[0], kept) for id_, kept in held.items())
    store.close()


def test_a_store_is_closed_at_the_end_of_its_block(tmp_path: Path) -> None:
    import flywheel

    episode = cartpole.episode(np.zeros((2, 4), np.float32), [1], id="mine")
    with flywheel.ReplayStore(tmp_path) as store:
        assert store.append([episode]) == {"mine": "stored"}
    with flywheel.ReplayStore(tmp_path) as store, open_readonly(tmp_path) as reader:
        (found,) = reader.recent(1)
        assert found.id == "mine" and np.array_equal(found.raw_actions, [1]) and np.isnan(found.logps).all()
        assert store.append([episode]) == {"mine": "same"}


def test_outcomes_between_two_starts_come_in_order_of_start(intake: Intake) -> None:
    some = [
        episode("d", at=2.0, digests=("a",) * 3),
        episode("c", at=2.0, digests=("b",) * 3, end="lost", failed=False),
        episode("b", at=5.0, digests=("a", "b", "b")),
        episode("a", at=1.0, digests=("a",) * 3),
        episode("x", at=3.0, digests=("x",) * 3),
        episode("g", at=3.0, origin="gate"),
        episode("z", at=9.0, digests=("b",) * 3),
    ]
    intake.append(some)
    found = intake.settled(["a", "b"], (1.0, "a"), (9.0, ""))
    assert [(o.id, o.digest, o.end, o.failed) for o in found] == [
        ("c", "b", "lost", False), ("d", "a", "terminated", True), ("b", "a", "terminated", True),
    ]  # fmt: skip
    assert [o.id for o in intake.settled(["b"], (0.0, ""), (2.0, "d"), n=1)] == ["c"]


def test_a_full_disk_is_named_and_costs_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    with Intake(tmp_path) as store:
        assert store.append([episode("held", 200)]) == {"held": "stored"}
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FlywheelError, match=r"store\.sqlite can't grow, as its disk is full: .*[.]$"):
            store.append([episode("more", 20_000)])
        assert store.ids() == ["held"] and not store.verify()
        store._connection.execute(f"PRAGMA max_page_count = {1000 * pages}")
        assert store.append([episode("more", 20_000)]) == {"more": "stored"}


def test_an_error_that_ended_the_transaction_by_itself_is_told_as_it_is(tmp_path: Path) -> None:
    with Intake(tmp_path) as store, pytest.raises(ValueError, match="full"), transaction(store._connection):
        store._connection.execute("ROLLBACK")  # as SQLite does on a full disk
        raise ValueError("full")
