"""The same rows give the same episodes, in whatever order, however often and however late they come."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import FlywheelError
from flywheel.observe.assemble import MAX_MISSING, MAX_OTHERS, Assembler
from flywheel.records import Episode, Steps
from flywheel.store.encode import encode
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import DIGEST, Row, rows_of, steps_of

SPEC = spec_of(cartpole)


def failed(episode: Episode) -> bool:
    return episode.end == "terminated"


def make(timeout_s: float = 30.0) -> Assembler:
    return Assembler(SPEC, "task", failed, timeout_s)


def check(assembler: Assembler) -> None:
    c = assembler.counts
    assert c.received == c.kept + c.duplicates + c.conflicts + c.stray + c.truncated + assembler.num_rows
    assert c.begun == c.whole + c.lost + c.void + assembler.num_open


def expected(rows: list[Row]) -> bytes:
    id_, start, end = rows[0][0], rows[0][6], rows[-1]
    return encode(
        Episode(
            id=id_, origin="production", task="task", parameters={}, draw_key=7 if len(rows) > 1 else 0,
            digests=(DIGEST,) * (len(rows) - 1),
            observations=np.array([r[2] for r in rows]),
            raw_actions=np.array([r[3] for r in rows[:-1]], np.int64),
            rewards=np.array([r[4] for r in rows[1:]], np.float64),
            logps=np.full(len(rows) - 1, -0.5), end=end[5],  # type: ignore[arg-type]
            failed=end[5] == "terminated", started_at=start, ended_at=end[6],
        )
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_permutation_duplication_and_delay_gives_the_same_episodes(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    truth = [rows_of(f"e{i}", n, start=float(i)) for i, n in enumerate(lengths)]
    sent = [row for rows in truth for row in rows]
    again = data.draw(st.lists(st.sampled_from(sent), max_size=15))
    stream = data.draw(st.permutations(sent + [(*row[:6], row[6] + 0.5) for row in again]))
    assembler, out, at = make(), {}, 0
    while at < len(stream):
        size = data.draw(st.integers(1, 12))
        batch = stream[at : at + size]
        at += size
        assembler.add(steps_of(batch), now=float(at))
        check(assembler)
        if data.draw(st.booleans()):
            for episode in assembler.whole([row[0] for row in batch]):
                out[episode.id] = episode
                assert assembler.missing(episode.id) == ()
                assert assembler.close(episode, now=float(at))
            check(assembler)
    for episode in assembler.whole(f"e{i}" for i in range(len(lengths))):
        out[episode.id] = episode
        assembler.close(episode, now=float(at))
    check(assembler)
    assert {id_: encode(e) for id_, e in out.items()} == {rows[0][0]: expected(rows) for rows in truth}
    assert assembler.num_open == assembler.num_rows == 0
    assert assembler.counts.duplicates == len(again) and assembler.counts.conflicts == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_times_and_order_do_not_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    truth = [rows_of(f"e{i}", n, start=float(-i)) for i, n in enumerate(lengths)]
    sent = [row for rows in truth for row in rows]
    again = [(*row[:6], row[6] + 0.5) for row in data.draw(st.lists(st.sampled_from(sent), max_size=9))]
    assembler = make()
    assembler.add(steps_of(data.draw(st.permutations(sent + again))), now=0.0)
    episodes = assembler.whole(f"e{i}" for i in range(len(lengths)))
    assert assembler.first_open() == (truth[-1][0][6], truth[-1][0][0])
    assert [(e.started_at, e.ended_at) for e in episodes] == [(rows[0][6], rows[-1][6]) for rows in truth]
    for episode, rows in zip(episodes, truth, strict=True):
        seen_at = assembler.seen_at(episode.id)
        assert seen_at is not None and seen_at.tolist() == [row[6] for row in rows]
        assembler.close(episode, now=0.0)
        assert assembler.seen_at(episode.id) is None


def test_missing_steps_are_named_until_they_come() -> None:
    assembler, rows = make(), rows_of("a", 6, 0.0)
    assembler.add(steps_of([rows[i] for i in (0, 3, 4)]), now=0.0)
    assert assembler.missing("a") == ()  # it has not ended yet
    assembler.add(steps_of([rows[6]]), now=0.0)
    assert assembler.missing("a") == (1, 2, 5) and assembler.whole(["a"]) == []
    assembler.add(steps_of([rows[i] for i in (1, 2, 5)]), now=0.0)
    assert assembler.missing("a") == () and len(assembler.whole(["a"])) == 1


def test_a_claim_of_very_many_steps_is_answered_within_bounds() -> None:
    assembler = make()
    last = rows_of("a", 1, 0.0)[-1]
    assembler.add(steps_of([(last[0], 10**15, *last[2:])]), now=0.0)
    assert len(assembler.missing("a")) == MAX_MISSING


def test_other_content_is_a_conflict_and_the_first_stays() -> None:
    assembler, rows = make(), rows_of("a", 3, 0.0)
    assembler.add(steps_of(rows), now=0.0)
    others = [
        (*rows[1][:2], rows[1][2] + 1, *rows[1][3:]),
        (*rows[1][:3], 1 - rows[1][3], *rows[1][4:]),
        (*rows[1][:4], rows[1][4] + 1, *rows[1][5:]),
        (*rows[3][:5], "truncated", rows[3][6]),
        (rows[3][0], 2, *rows[3][2:]),
    ]
    for other in others:
        assembler.add(steps_of([other]), now=0.0)
    check(assembler)
    (episode,) = assembler.whole(["a"])
    assert encode(episode) == expected(rows)
    assert assembler.close(episode, now=0.0) and assembler.counts.conflicts == len(others)
    check(assembler)


def repeating(rows: list[Row], digests: list[str], repeated: list[tuple[str, int]]) -> Steps:
    """Rows with the digests that answered them, and what the client repeated of the answer before."""
    return dataclasses.replace(
        steps_of(rows),
        digests=tuple(digests),
        repeated_digests=tuple(digest for digest, _ in repeated),
        repeated_actions=np.array([action for _, action in repeated], np.int64),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_of_two_answers_to_one_step_the_one_that_the_client_repeats_counts(data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 6))
    rows = rows_of("a", num, 0.0)
    executed = [(data.draw(st.sampled_from("xy")), row[3]) for row in rows[:-1]]
    before = [("", 0), *executed]
    sent = [(row, digest, said) for row, (digest, _), said in zip(rows, [*executed, ("", 0)], before, strict=True)]
    for t in data.draw(st.lists(st.integers(0, num - 1), max_size=6)):  # answers that never reached the client
        digest = data.draw(st.sampled_from([d for d in "xyz" if d != executed[t][0]]))
        action = data.draw(st.integers(0, 1))
        sent.append(((*rows[t][:3], action, *rows[t][4:]), digest, before[t]))
    assembler = make()
    for row, digest, said in data.draw(st.permutations(sent)):
        assembler.add(repeating([row], [digest], [said]), now=0.0)
        check(assembler)
    (episode,) = assembler.whole(["a"])
    if len(sent) - len(rows) <= MAX_OTHERS:
        assert list(zip(episode.digests, episode.raw_actions.tolist(), strict=True)) == executed
    assert assembler.close(episode, now=0.0) and assembler.num_rows == 0
    check(assembler)


def test_a_lost_episode_ends_where_its_steps_first_lack() -> None:
    assembler, rows = make(timeout_s=30.0), rows_of("a", 9, 0.0)
    assembler.add(steps_of([rows[i] for i in (0, 1, 2, 3, 7)]), now=10.0)
    assert assembler.overdue(now=40.0) == []
    (lost,) = assembler.overdue(now=40.1)
    assert (lost.end, lost.num_steps, lost.failed) == ("lost", 3, False)
    assert len(lost.observations) == 4 and lost.rewards.tolist() == [r[4] for r in rows[1:4]]
    assert assembler.close(lost, now=40.1) and assembler.counts.truncated == 1
    check(assembler)


def test_a_lost_episode_that_comes_back_is_whole_and_counts_only_once() -> None:
    assembler, rows = make(timeout_s=30.0), rows_of("a", 4, 0.0)
    assembler.add(steps_of(rows[:3]), now=0.0)
    (lost,) = assembler.overdue(now=31.0)
    assert assembler.close(lost, now=31.0)
    assembler.add(steps_of(rows[3:]), now=32.0)
    assert assembler.missing("a") == (0, 1, 2)
    assembler.add(steps_of(rows[:3]), now=32.0)
    (whole,) = assembler.whole(["a"])
    assert encode(whole) == expected(rows) and not assembler.close(whole, now=32.0)
    check(assembler)


def test_a_single_step_that_nothing_follows_is_void() -> None:
    assembler, rows = make(timeout_s=1.0), rows_of("a", 4, 0.0)
    assembler.add(steps_of(rows[:1]), now=0.0)
    assert assembler.overdue(now=2.0) == [] and assembler.num_open == 0 and assembler.counts.void == 1
    assembler.add(steps_of(rows), now=3.0)
    assert assembler.close(assembler.whole(["a"])[0], now=3.0)
    check(assembler)


def test_a_whole_episode_whose_store_was_away_is_not_lost() -> None:
    assembler, rows = make(timeout_s=1.0), rows_of("a", 4, 0.0)
    assembler.add(steps_of(rows), now=0.0)
    assert [e.end for e in assembler.overdue(now=5.0)] == ["terminated"]


def test_an_end_alone_is_unheard_and_settled_by_what_the_store_holds() -> None:
    assembler, rows = make(), rows_of("a", 4, 0.0)
    assembler.add(steps_of(rows[-1:]), now=0.0)
    assert assembler.unheard(["a", "b"]) == ["a"]
    assembler.settle(["a"], now=0.0)
    assert assembler.missing("a") == () and assembler.num_open == 0
    assembler.add(steps_of(rows), now=1.0)
    assert assembler.num_open == 0
    check(assembler)


def test_an_error_in_the_users_function_counts_as_failed_and_is_shown() -> None:
    def broken(episode: Episode) -> bool:
        raise ZeroDivisionError("oh")

    assembler = Assembler(SPEC, "task", broken, 30.0)
    assembler.add(steps_of(rows_of("a", 2, 0.0)), now=0.0)
    assert assembler.whole(["a"])[0].failed and "oh" in assembler.trouble and assembler.counts.unjudged == 1


def test_steps_of_another_task_change_nothing() -> None:
    assembler = make()
    steps = steps_of(rows_of("a", 2, 0.0))
    with pytest.raises(FlywheelError, match=r"float32\[3\] where its task has float32\[4\]"):
        assembler.add(dataclasses.replace(steps, observations=steps.observations[:, :3]), now=0.0)
    assert assembler.num_open == assembler.num_rows == assembler.counts.received == 0


def test_memory_is_used_again() -> None:
    assembler = make()
    for i in range(200):
        assembler.add(steps_of(rows_of(f"e{i}", 50, float(i))), now=float(i))
        for episode in assembler.whole([f"e{i}"]):
            assembler.close(episode, now=float(i))
        assembler.overdue(now=float(i))
    assert len(assembler._rows.rewards) == 1024 and len(assembler._over) <= 62
