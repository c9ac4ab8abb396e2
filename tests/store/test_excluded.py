"""What is excluded from training: kept with its reason, obeyed by what reads for training, and never by the record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flywheel import sqlite
from flywheel.errors import UsageError
from flywheel.store.intake import Intake, open_readonly
from tests.store.test_intake import episode

A, B = "ab" * 32, "cd" * 32


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a directory whose store holds e0 to e5 by A and B in turns, and e6 of a fork."""
    with Intake(tmp_path) as store:
        for number in range(7):
            made = episode(f"e{number}", 3)
            made = dataclasses.replace(
                made, digests=((A, B)[number % 2],) * 3, started_at=float(number), ended_at=number + 1.0,
                origin="fork" if number == 6 else "production",
            )  # fmt: skip
            store.append([made])
    return tmp_path


def learnable(run_dir: Path) -> list[str]:
    with open_readonly(run_dir) as store:
        return [e.id for e in store.recent(10, origin=None, learnable=True)]


def test_it_is_durable_and_its_end_is_kept_too(run_dir: Path) -> None:
    with Intake(run_dir) as store:
        assert store.exclude("policy=cdcd", "it was hacked", 10.0).name == B
        store.exclude("episode=e0", "a person touched the cart", 11.0)
        store.exclude("origin=fork", "made up", 12.0)
    assert learnable(run_dir) == ["e2", "e4"]
    with open_readonly(run_dir) as store:
        assert store.excluded() == {
            ("policy", B): "it was hacked",
            ("episode", "e0"): "a person touched the cart",
            ("origin", "fork"): "made up",
        }
        assert len(store.recent(10, origin=None)) == 7 == store.count(), "the record is as it was"
    with Intake(run_dir) as store:
        store.readmit(f"policy={B[:6]}", 20.0)
        store.exclude("episode=e0", "two persons did", 21.0)
        with pytest.raises(UsageError, match="is not excluded"):
            store.readmit("episode=e1", 22.0)
    assert learnable(run_dir) == ["e1", "e2", "e3", "e4", "e5"]
    with open_readonly(run_dir) as store:
        assert [(each.kind, each.why, each.at, each.readmitted_at) for each in store.exclusions()] == [
            ("policy", "it was hacked", 10.0, 20.0),
            ("episode", "two persons did", 11.0, None),
            ("origin", "made up", 12.0, None),
        ]


@pytest.mark.parametrize(
    ("what", "why", "said"),
    [
        ("policy=cdcd", " ", "give one by --why"),
        ("policy", "x", "policy=DIGEST"),
        ("polcy=cdcd", "x", "Did you mean 'policy'"),
        ("origin=prod", "x", "production"),
        ("episode=e9", "x", "holds no episode 'e9'"),
        ("policy=ffff", "x", "No policy whose digest begins with 'ffff'"),
        ("policy=cd", "x", "at least 4"),
    ],
)
def test_what_can_not_be_excluded_is_refused_in_a_sentence(run_dir: Path, what: str, why: str, said: str) -> None:
    with Intake(run_dir) as store:
        with pytest.raises(UsageError, match=said):
            store.exclude(what, why, 0.0)
        assert store.exclusions() == []
        assert store.exclude(f"policy={'e' * 64}", "it is to come", 1.0).name == "e" * 64


def test_a_store_from_before_it_excludes_nothing(run_dir: Path) -> None:
    with Intake(run_dir) as store:
        store._connection.execute("DROP TABLE excluded")
        assert not sqlite.has_table(store._connection, "excluded")
    with open_readonly(run_dir) as store:
        assert store.excluded() == {} and len(store.recent(10, learnable=True)) == 6
    with Intake(run_dir) as store:
        store.exclude("episode=e0", "why not", 1.0)
