"""Steps on their way keep their order, and what can't be kept is counted."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flywheel.deploy.outbox import MESSAGE, Outbox
from flywheel.records import Steps


def rows(start: int, count: int) -> Steps:
    """Return `count` rows whose t counts on from `start`."""
    return Steps(
        episodes=tuple(str(i) for i in range(start, start + count)),
        t=np.arange(start, start + count),
        digests=("d",) * count,
        observations=np.zeros((count, 4), np.float32),
        raw_actions=np.zeros(count, np.int64),
        logps=np.zeros(count),
        draw_keys=np.zeros(count, np.uint64),
        rewards=np.zeros(count),
        ends=tuple("no" for _ in range(count)),
        seen_at=np.zeros(count),
        repeated_digests=("r",) * count,
        repeated_actions=np.arange(start, start + count),
    )


@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
def test_the_newest_rows_are_kept_in_order_and_the_others_counted(sizes: list[int], most: int) -> None:
    outbox, start = Outbox(most), 0
    for size in sizes:
        outbox.put(rows(start, size))
        start += size
    assert len(outbox) <= most
    assert len(outbox) + outbox.dropped == start
    kept = len(outbox)
    taken = outbox.take()
    assert (taken.t.tolist() if taken else []) == list(range(start - kept, start))
    assert outbox.take() is None
    assert len(outbox) == kept, "they are on their way"
    if taken:
        outbox.sent(taken)
    assert len(outbox) == 0


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "sent", "put_back"]), st.integers(1, 50)), max_size=60))
def test_every_row_is_sent_waits_or_was_dropped(story: list[tuple[str, int]]) -> None:
    outbox, num_put, num_sent, taken = Outbox(100), 0, 0, list[Steps]()
    for what, size in story:
        if what == "put":
            outbox.put(rows(num_put, size))
            num_put += size
        elif what == "take":
            steps = outbox.take()
            taken += [] if steps is None else [steps]
        elif taken and what == "sent":
            steps = taken.pop()
            outbox.sent(steps)
            num_sent += len(steps.t)
        elif taken:
            outbox.put_back(taken.pop())
        assert num_sent + len(outbox) + outbox.dropped == num_put


def test_what_could_not_be_sent_goes_first_again() -> None:
    outbox = Outbox(10_000)
    outbox.put(rows(0, 2))
    failed = outbox.take()
    assert failed is not None
    outbox.put(rows(2, 2))
    outbox.put_back(failed)
    taken = outbox.take()
    assert taken is not None
    assert taken.t.tolist() == taken.repeated_actions.tolist() == [0, 1, 2, 3]
    assert taken.repeated_digests == ("r",) * 4
    assert taken.episodes == ("0", "1", "2", "3")


def test_a_message_is_bounded() -> None:
    outbox = Outbox(100_000)
    for start in range(0, 3 * MESSAGE, 512):
        outbox.put(rows(start, 512))
    taken = outbox.take()
    assert taken is not None
    assert len(taken.t) == MESSAGE
