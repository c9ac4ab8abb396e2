"""Pages of a list of episodes: together they are the whole list, whatever is filtered and however it is sorted."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.records import End, Episode
from flywheel.store.intake import FILE, Intake, Outcome, open_readonly
from flywheel.store.query import Wanted
from flywheel.tasks.cartpole import cartpole

EPISODES = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=3),
        st.sampled_from([1.0, 2.0, 3.0]),
        st.sampled_from(["terminated", "truncated", "lost"]),
        st.integers(1, 3),
        st.sampled_from(["a" * 64, "b" * 64]),
    ),
    unique_by=lambda parts: parts[0],
    max_size=12,
)


def episode(id_: str, started_at: float, end: End, num_steps: int, digest: str) -> Episode:
    return dataclasses.replace(
        cartpole.episode([[0.0] * 4] * (num_steps + 1), [0] * num_steps, [1.0] * num_steps, id=id_, policy=digest),
        end=end,
        failed=end == "terminated",
        started_at=started_at,
        ended_at=started_at + 1,
    )


def fits(outcome: Outcome, wanted: Wanted) -> bool:
    how = {"": True, "failed": outcome.failed, "fine": not outcome.failed and outcome.end != "lost"}
    return (
        how.get(wanted.how, outcome.end == "lost")
        and outcome.id.encode().startswith(wanted.begins.encode())
        and wanted.digest in ("", outcome.digest)
        and (wanted.since is None or outcome.started_at >= wanted.since)
        and (wanted.until is None or outcome.started_at < wanted.until)
    )


@settings(max_examples=60)
@given(
    parts=EPISODES,
    wanted=st.builds(
        Wanted,
        how=st.sampled_from(["", "failed", "fine", "lost"]),
        digest=st.sampled_from(["", "a" * 64]),
        begins=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=1),
        since=st.sampled_from([None, 2.0]),
        until=st.sampled_from([None, 3.0]),
        by=st.sampled_from(["started_at", "total", "num_steps"]),
        descending=st.booleans(),
        limit=st.integers(1, 4),
    ),
)
def test_pages_together_are_the_whole_list(
    parts: list[Any], wanted: Wanted, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Intake(tmp_path_factory.mktemp("store")) as store:
        store.append([episode(*each) for each in parts])
        seen: list[Outcome] = []
        page = store.page(wanted)
        while page:
            assert len(page) <= wanted.limit
            seen += page
            page = store.page(dataclasses.replace(wanted, after=(getattr(page[-1], wanted.by), page[-1].id)))
        every = [outcome for outcome in store.outcomes("production") if fits(outcome, wanted)]
    every.sort(key=lambda outcome: (getattr(outcome, wanted.by), outcome.id.encode()), reverse=wanted.descending)
    assert seen == every


def test_a_page_reads_one_index_and_no_body(tmp_path: Path) -> None:
    with Intake(tmp_path) as store:
        store.append([episode("x", 1.0, "truncated", 2, "a" * 64)])
        plans: list[str] = []

        def explain(statement: str) -> None:
            if "FROM episodes" in statement:
                with sqlite3.connect(tmp_path / FILE) as other:
                    plans.extend(row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {statement}"))

        store._connection.set_trace_callback(explain)
        for wanted in (Wanted(), Wanted(digest="a" * 64, by="total"), Wanted(how="failed", by="num_steps", since=0.0)):
            assert isinstance(store.page(wanted), list)
    assert plans and all("COVERING INDEX by_outcome" in plan or "TEMP B-TREE" in plan for plan in plans), plans


def test_a_store_of_an_earlier_version_is_read_as_it_is_and_mended_by_its_owner(tmp_path: Path) -> None:
    with Intake(tmp_path) as store:
        store.append([episode("x", 1.0, "truncated", 2, "a" * 64)])
        store._connection.execute("DROP INDEX by_outcome")
        store._connection.execute("CREATE INDEX by_start ON episodes (origin, started_at, id)")
    with open_readonly(tmp_path) as reader:
        assert [outcome.id for outcome in reader.page(Wanted(by="total"))] == ["x"]
    with Intake(tmp_path) as store:
        names = {name for (name,) in store._connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert "by_outcome" in names and "by_start" not in names


def test_a_reader_notices_what_others_write(tmp_path: Path) -> None:
    with Intake(tmp_path) as store, open_readonly(tmp_path) as reader:
        before = reader.version()
        assert reader.version() == before and not reader.holds("x")
        store.append([episode("x", 1.0, "truncated", 2, "a" * 64)])
        assert reader.version() != before and reader.holds("x")
