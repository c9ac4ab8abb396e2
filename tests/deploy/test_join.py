"""What measures safety sees what isn't safe: the join of answers with verdicts, last answers, and a soak's slope."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from experiments.serve_callers import Answers
from experiments.serve_safety import Rolled, last_answers
from experiments.soak import memory
from experiments.verdict_join import proven, unproven
from tests.deploy.conftest import NOW, World, verdict_on


def test_only_a_passing_verdict_as_it_was_signed_proves_a_policy(world: World) -> None:
    good, forged, moved = world.judged(1.0), world.judged(2.0), world.judged(3.0)
    unjudged, failed, others = world.artifact(4.0), world.artifact(5.0), world.artifact(6.0)
    world.registry.record(verdict_on(failed, "fail"))
    world.registry.record(verdict_on(others, task="0" * 64))
    with closing(sqlite3.connect(world.run_dir / "registry.sqlite")) as db, db:
        (text,) = db.execute("SELECT record FROM verdicts WHERE digest = ?", (failed.digest,)).fetchone()
        lie = text.replace('"outcome":"fail"', '"outcome":"pass"')
        db.execute("UPDATE verdicts SET record = ?, outcome = 'pass' WHERE digest = ?", (lie, failed.digest))
        db.execute("UPDATE verdicts SET record = replace(record, '\"seed\":7', '\"seed\":8') WHERE digest = ?",
                   (forged.digest,))  # fmt: skip
    (world.run_dir / "policies" / moved.digest / "manifest.json").write_bytes(b"{}")
    since = proven(world.run_dir)
    assert since == {good.digest: NOW}
    answers = Answers([good.digest, unjudged.digest], np.array([0, 0, 1, 0]), np.arange(4), NOW + np.arange(4) - 1.0)
    assert unproven(answers, since) == 2, "one before its verdict, one without any"


def test_the_last_answer_of_a_policy_is_found_apart_for_episodes_that_begin_and_that_go_on() -> None:
    answers = Answers(["bad", "good"], np.array([0, 0, 0, 1]), np.array([0, 5, 0, 0]), np.array([1.0, 2.5, 1.5, 9.0]))
    assert last_answers([Rolled("bad", 2.0)], answers, True) == [0.0]
    assert last_answers([Rolled("bad", 2.0)], answers, False) == [0.5]
    with pytest.raises(RuntimeError, match="answered nobody"):
        last_answers([Rolled("worse", 2.0)], answers, True)


@pytest.mark.parametrize(("mib_an_hour", "passes"), [(0.0, True), (-5.0, True), (0.1, False), (5.0, False)])
def test_a_process_that_grows_is_found_in_steps_and_noise(mib_an_hour: float, passes: bool) -> None:
    at, noise = np.arange(0.0, 600.0, 2.0), np.random.default_rng(0)
    grown = np.floor((100.0 + mib_an_hour * at / 3600.0) / 0.004) * 0.004 + noise.normal(0.0, 0.001, len(at))
    row = memory("replica", list(zip(at.tolist(), grown.tolist(), strict=True)))
    assert row["passed"] is passes, row
