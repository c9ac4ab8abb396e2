"""Memory is bounded, nothing acknowledged is lost by it, and every loss is counted."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import ObserveConfig
from flywheel.observe.assemble import EPISODE_BYTES, Assembler
from flywheel.observe.observer import Observer
from flywheel.outcomes import outcome_of
from flywheel.records import Episode
from flywheel.store.encode import encode
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import DIGEST, rows_of, steps_of
from tests.observe.test_assemble import check, expected, failed
from tests.observe.test_late import lacking, upload, with_reward
from tests.observe.test_observer import feed, keep, release

SPEC = spec_of(cartpole)
ROW = Assembler(SPEC, "task", failed, 30.0)._rows.row_bytes
EPISODES = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def bounded(num_rows: int) -> Assembler:
    """Return an assembler that has room for so many rows."""
    return Assembler(SPEC, "task", failed, 30.0, num_rows * (ROW + EPISODE_BYTES) / 2**20)


class Store:
    """What is durable: a whole episode never gives way."""

    def __init__(self) -> None:
        self.held: dict[str, Episode] = {}

    def keep(self, assembler: Assembler, episodes: list[Episode], now: float) -> None:
        for episode in episodes:
            if episode.end != "lost" or episode.id not in self.held:
                self.held[episode.id] = episode
            assembler.close(episode, now)

    def room(self, assembler: Assembler, num_rows: int, now: float) -> None:
        while evicted := assembler.crowded(num_rows, now):
            self.keep(assembler, evicted, now)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_under_any_disorder_loss_and_want_of_memory_the_counts_add_up_and_what_is_acknowledged_is_whole(
    data: st.DataObject,
) -> None:
    truth = {f"e{i}": rows_of(f"e{i}", n, start=float(i)) for i, n in enumerate(data.draw(EPISODES))}
    sent = [row for rows in truth.values() for row in rows]
    kept = [row for row in sent if data.draw(st.integers(0, 4))]
    stream = data.draw(st.permutations(kept + data.draw(st.lists(st.sampled_from(sent), max_size=15))))
    assembler, store, acknowledged, now = bounded(data.draw(st.integers(3, 40))), Store(), set[str](), 0.0
    while stream:
        size = data.draw(st.integers(1, 8))
        batch, stream = stream[:size], stream[size:]
        now += data.draw(st.sampled_from([0.0, 1.0, 31.0]))
        store.room(assembler, len(batch), now)
        check(assembler)
        assembler.add(steps_of(batch), now)
        check(assembler)
        if data.draw(st.booleans()):  # others may crowd it out while the end waits for its steps
            store.room(assembler, data.draw(st.integers(0, 9)), now)
        if data.draw(st.booleans()):
            store.keep(assembler, assembler.overdue(now), now)
        ended = {row[0]: row[1] for row in batch if row[5] != "no"}
        whole = assembler.whole(ended)
        missing = {id_: assembler.missing(id_, num_steps) for id_, num_steps in ended.items()}
        store.keep(assembler, whole, now)
        acknowledged |= {id_ for id_, steps in missing.items() if not steps and truth[id_][-1][1]}
        check(assembler)
    assert all(encode(store.held[id_]) == expected(truth[id_]) for id_ in acknowledged)
    for id_, rows in truth.items():  # each client repeats its end, sends what is missing, and is answered at last
        for batch in (rows[-1:], rows, rows[-1:]):
            store.room(assembler, len(batch), now)
            assembler.add(steps_of(batch), now)
            store.keep(assembler, assembler.whole([id_]), now)
        assert not assembler.missing(id_, rows[-1][1])
    assert {id_: encode(e) for id_, e in store.held.items()} == {id_: expected(rows) for id_, rows in truth.items()}
    check(assembler)


def test_memory_holds_what_it_may_and_the_longest_silent_one_goes_first() -> None:
    assembler, store = bounded(20), Store()
    for t in range(10):
        for i in range(50):
            rows = rows_of(f"e{i:02d}", 20, start=float(i))[t : t + 1]
            store.room(assembler, 1, now=float(t))
            assembler.add(steps_of(rows), now=float(t))
            assert assembler.num_bytes <= 20 * (ROW + EPISODE_BYTES)
    assert assembler.counts.evicted == assembler.counts.void > 400
    check(assembler)
    heard = list(assembler._open)
    assert heard == sorted(heard), "what is left are those that were heard of last, in that order"
    assert heard[-1] == "e49"


def test_an_end_that_waits_while_its_episode_is_evicted_is_told_to_send_all() -> None:
    for num_rows in (1, 3):  # nothing is left of the first, a lost episode of the second
        assembler, store, rows = bounded(8), Store(), rows_of("a", 5, 0.0)
        assembler.add(steps_of([*rows[:num_rows], rows[-1]]), now=0.0)
        assert assembler.missing("a", 5) == tuple(range(num_rows, 5))
        store.room(assembler, 8, now=0.0)
        assert assembler.num_open == 0 and assembler.missing("a", 5) == (0, 1, 2, 3, 4)
        assembler.add(steps_of(rows), now=0.0)
        (episode,) = assembler.whole(["a"])
        assert assembler.close(episode, now=0.0) == (num_rows == 1), "a lost one was counted already"
        assert assembler.missing("a", 5) == ()


def test_a_message_larger_than_the_memory_finds_an_empty_one() -> None:
    assembler, store, rows = bounded(2), Store(), rows_of("a", 9, 0.0)
    assembler.add(steps_of(rows_of("b", 3, 0.0)), now=0.0)
    store.room(assembler, len(rows), now=1.0)
    assert assembler.num_open == 0
    assembler.add(steps_of(rows), now=1.0)
    assert len(assembler.whole(["a"])) == 1


def few(num: int, **changes: float) -> Observer:
    observer = Observer(cartpole, ObserveConfig(max_waiting=num, **changes))  # type: ignore[arg-type]
    observer.release(release(), 0.05)
    return observer


def test_what_waits_is_bounded_and_the_oldest_running_one_is_passed_by_and_read_by_nobody() -> None:
    observer = few(3)
    slow = {name: rows_of(name, 5, start=at) for name, at in (("slow", 0.0), ("slower", 1.5))}
    feed(observer, [row for rows in slow.values() for row in rows[:2]], 2.0)
    for i in range(3):
        feed(observer, rows_of(f"e{i}", 2, start=1.0 + i), 5.0)
    observer.tick(5.0)
    assert observer.heard(9)[0] == 0 and observer.counts.passed == 0
    feed(observer, rows_of("e3", 2, start=4.0), 5.0)
    observer.tick(5.0)
    assert [o.id for o in observer.heard(9)[1]] == ["e0"], "only as many are read as there were too many"
    assert observer.counts.passed == 1 and observer.settled_until(5.0) == (1.5, "slower")
    assert feed(observer, slow["slow"][2:], 6.0) == ["slow"]
    observer.tick(6.0)
    assert observer.is_unread("slow") and observer.episodes(DIGEST) == 5 and observer.heard(9)[0] == 1
    feed(observer, slow["slower"][2:], 7.0)
    observer.tick(7.0)
    assert [o.id for o in observer.heard(9)[1]] == ["e0", "slower", "e1", "e2", "e3"]


def test_a_leased_episode_is_passed_by_too_and_word_of_it_holds_no_place_again() -> None:
    observer = few(2)
    observer.begun({"running": 0.5}, 1.0)
    upload(observer, [lacking(f"e{i}", 1.0 + i) for i in range(3)], now=5.0)
    observer.tick(6.0)
    assert observer.counts.passed == 1
    observer.begun({"running": 0.5}, 7.0)
    observer.tick(9.0)
    assert [o.id for o in observer.heard(9)[1]] == ["e0", "e1", "e2"]
    late = lacking("running", 0.5)
    observer.uploaded([late], {"running": "stored"}, 9.0)
    assert observer.is_unread("running") and observer.counts.late == 1


def judged(**changes: float) -> Observer:
    """Return an observer of a task whose episodes fail on a negative return."""
    task = dataclasses.replace(cartpole, failed=lambda e: e.total < 0.0, version="negative")
    observer = Observer(task, ObserveConfig(reward_window_s=10.0, **changes))  # type: ignore[arg-type]
    observer.release(release(), 0.05)
    return observer


def test_unknown_rewards_are_read_as_the_default_once_their_window_is_over() -> None:
    observer, late = judged(reward_default=-1000.0), lacking("late", 1.0, 3, 4)
    upload(observer, [late], now=5.0)
    observer.tick(14.9)
    assert observer.heard(1)[0] == 0 and not observer.order.assumed()
    observer.tick(15.0)
    (read,) = observer.heard(1)[1]
    assert read.total == late.total - 2000.0 and read.failed and observer.counts.defaulted == 2
    assert observer.status()["digests"][DIGEST]["total"] == late.total, "what is counted is what is known"
    assert observer.order.assumed() == {"late": True} and observer.settled_until(15.0) == (1.0, "late")
    observer.order.settled(observer.order.assumed())
    assert not observer.order.assumed() and observer.settled_until(15.0) > (1.0, "late")


def test_a_reward_that_comes_within_the_window_counts_instead_of_the_default() -> None:
    observer, late = judged(reward_default=-1000.0), lacking("late", 1.0, 3)
    upload(observer, [late], now=5.0)
    observer.rewarded(with_reward(late, 7.0), outcome_of(late))
    observer.tick(16.0)
    assert observer.heard(1)[1][0].total == late.total + 7.0
    assert observer.counts.defaulted == observer.counts.belated == 0
    observer.rewarded(with_reward(late, 8.0), outcome_of(late))
    assert observer.counts.belated == 1


def test_without_a_default_unknown_rewards_are_left_out() -> None:
    observer, late = judged(), lacking("late", 1.0, 3)
    upload(observer, [late], now=5.0)
    observer.tick(15.0)
    assert observer.heard(1)[1][0].total == late.total and observer.counts.defaulted == 0
    assert Observer(cartpole, ObserveConfig(reward_default=-5.0)).watch(DIGEST).observe(late) == []


def test_every_late_reward_is_counted_once() -> None:
    observer = few(3)
    observer.counts.tell(["stored", "same", "stored", "unknown", "conflict"])
    c = observer.counts
    assert c.rewards == 5 == c.rewards_kept + c.rewards_same + c.rewards_conflicts + c.unmatched
    assert (c.rewards_kept, c.unmatched) == (2, 1)


def test_a_full_memory_changes_no_signal_of_episodes_that_end_in_time() -> None:
    rows = {f"e{i:03d}": rows_of(f"e{i:03d}", 4, start=float(i)) for i in range(60)}
    silent = [rows_of(f"silent{i:03d}", 4, start=1e3)[:2] for i in range(60)]
    found = []
    for mib in (256.0, 0.05):
        observer = Observer(cartpole, ObserveConfig(open_mib=mib))
        observer.release(release(), 0.05)
        for i, (mine, other) in enumerate(zip(rows.values(), silent, strict=True)):
            for batch in (other, mine):
                steps = steps_of(batch)
                while evicted := observer.crowded(steps, 100.0):
                    keep(observer, evicted, 100.0)
                feed(observer, batch, 100.0 + i)
        observer.tick(1000.0)
        found.append((observer.heard(99), [s.value for s in observer.signals], observer.counts.evicted > 0))
    assert found[0][:2] == found[1][:2] and [evicted for *_, evicted in found] == [False, True]
    assert found[0][1], "the episodes failed, so that there is a signal to compare"


def test_an_end_that_waits_is_not_forgotten_because_its_episode_was_evicted_long_ago_too() -> None:
    assembler, store, rows = bounded(8), Store(), rows_of("a", 5, 0.0)
    assembler.add(steps_of(rows[:1]), now=0.0)
    store.room(assembler, 8, now=0.0)
    assembler.add(steps_of(rows[-1:]), now=61.0)
    store.room(assembler, 8, now=61.0)
    store.keep(assembler, assembler.overdue(61.0), 61.0)
    assert assembler.missing("a", 5) == (0, 1, 2, 3, 4), "nothing of it is durable"
