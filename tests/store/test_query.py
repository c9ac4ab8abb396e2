"""A condition speaks of documented columns, and can do nothing but choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel.errors import UsageError
from flywheel.store.intake import Intake, Reader, open_readonly
from flywheel.store.query import COLUMNS
from tests.store.test_intake import episode
from tests.store.test_segments import some


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Intake(tmp_path) as store:
        store.append([*some(30), episode("it's", at=50.0, digests=("b",) * 3), episode("l", end="lost", failed=False)])
    with open_readonly(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("failed and digest='b'", ["it's"]),
        ("id = 'it''s'", ["it's"]),
        ("failed and started_at < 50", ["e20", "e10", "e0"]),
        ("lost", ["l"]),
        ("ended_by = 'lost' or id in ('e1', 'e2')", ["e2", "e1", "l"]),
        ("num_steps = 7 and fine and id like 'e2%'", ["e27"]),
        ("not kept", []),
    ],
)
def test_a_condition_chooses(reader: Reader, where: str, ids: list[str]) -> None:
    assert reader.where(where) == ids
    assert [each.id for each in reader.came_out(ids)] == ids


def test_every_column_can_be_asked_for_and_a_wrong_one_is_named(reader: Reader) -> None:
    for name in COLUMNS:
        assert len(reader.where(f"{name} is not null", 5)) == 5
    with pytest.raises(UsageError, match=r"no column 'digset'\. Did you mean 'digest'\? Known: "):
        reader.where("digset = 'a'")


@pytest.mark.parametrize(
    "where",
    [
        "body is not null or content is null", "1) union select name from sqlite_master where (1", "failed) --",
        "id in (select id from quarantine)", "failed; drop table episodes", "load_extension('x')", "total >", "\0",
        "id in (select name from pragma_table_info('episodes'))", "randomblob(1000000000)", "failed /*",
        "exists (with recursive n(i) as (select 1 union all select i + 1 from n) select 1 from n where i < 0)",
    ],
)  # fmt: skip
def test_it_reads_nothing_else_and_changes_nothing(reader: Reader, where: str) -> None:
    with pytest.raises(UsageError):
        reader.where(where)
    assert reader.count() == 32  # and the connection is as good as before


def test_the_beginning_of_a_digest_is_no_digest_and_finds_nothing_silently(tmp_path: Path) -> None:
    digest = "ffefd89e" * 8
    with Intake(tmp_path) as store:
        store.append([episode("a", 2, digests=(digest,) * 2)])
        for condition in ("failed and digest='ffefd89e'", "digest == 'ffefd89e'"):
            with pytest.raises(UsageError, match=f"beginning of one: say digest = '{digest}', or digest like"):
                store.where(condition)
        assert store.where(f"digest = '{digest}'") == store.where("digest like 'ffefd89e%'") == ["a"]
        assert store.where("digest = 'abcdef'") == [] == store.where("digest = 'ffefd89e'", 0)
        assert store.where("digest = 'ffefd89e' or failed in (0, 1)") == ["a"]
