"""A law: a row alone in its request is answered, logged and refused as it would be among many, to the last bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.deploy.admission import Admission
from flywheel.deploy.lines import Line
from flywheel.deploy.outbox import join
from flywheel.deploy.session import Session
from flywheel.deploy.wire import ActRow, Decision, RejectedError
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Spec, Steps
from flywheel.testing import linear_policy
from tests.client.test_quick import CARTPOLE, flat, specs

CHAMPION, CHALLENGER, STRANGER = ("a" * 64, "b" * 64, "c" * 64)
NOW = 1_000.0
Outcome = tuple[list[Decision] | None, Steps | None, tuple[int, str, str] | None]


def session(spec: Spec, seed: int, scale: float) -> Session:
    """Return a session with a champion and a challenger that has half of all episodes."""
    found, rng = Session(b"k" * 32), np.random.default_rng(seed)
    for digest in (CHAMPION, CHALLENGER):
        gains = rng.normal(0.0, scale, (spec.num_outputs, *spec.observation_shape))
        found.hold(Policy(linear_policy(spec, gains)[0], spec, digest))
    both = (CHAMPION, CHALLENGER)
    found.adopt(Admission(CHAMPION, both, frozenset(both), challenger=CHALLENGER, share=0.5))
    return found


def outcome(session: Session, way: Any, row: ActRow[Any]) -> Outcome:
    """Return what is answered, logged and refused, and take it in."""
    try:
        with np.errstate(all="ignore"):  # numbers that no policy should give
            decisions, piece = way([row], NOW)
    except RejectedError as error:
        return None, None, (error.status, error.sentence, error.field)
    except Refused as error:
        return None, None, (503, str(error), "")
    return decisions, None if piece is None else join([piece]), None


def assert_same(one: Outcome, other: Outcome) -> None:
    assert repr(one[0]) == repr(other[0]), "NaN, too"
    assert one[2] == other[2]
    assert (one[1] is None) == (other[1] is None)
    if one[1] is not None and other[1] is not None:
        for field in dataclasses.fields(Steps):
            mine, theirs = getattr(one[1], field.name), getattr(other[1], field.name)
            if isinstance(mine, np.ndarray):
                assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), field
            else:
                assert mine == theirs, field


WRONG: list[dict[str, Any]] = [
    {"observation": [1e39]}, {"observation": []}, {"observation": [float("nan")]}, {"reward": float("inf")},
    {"digest": STRANGER}, {"digest": None}, {"action": None}, {"action": 99}, {"action": [0.5]}, {"t": 0}, {"t": 7},
    {"reward": None}, {"digest": CHALLENGER}, {"digest": CHAMPION}, {"episode": "other"},
]  # fmt: skip


FLAT = specs().filter(lambda spec: not spec.observation_leaves)


@settings(max_examples=60, deadline=None)
@given(
    spec=FLAT, seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 5.0, 1e37]),
    story=st.lists(st.sampled_from([{}, {}, {}, *WRONG]), min_size=2, max_size=5),
)  # fmt: skip
def test_a_row_alone_is_as_a_row_among_many(spec: Spec, seed: int, scale: float, story: list[dict[str, Any]]) -> None:
    alone, among = session(spec, seed, scale), session(spec, seed, scale)
    rng, last = np.random.default_rng(seed), None
    for changes in story:
        seen = rng.normal(size=spec.observation_shape).tolist()
        fields: dict[str, Any] = {"episode": "e", "t": 0, "observation": seen}
        if last is not None:
            fields |= {"t": last.t + 1, "reward": 1.0, "digest": last.digest, "action": last.raw_action}
        row: ActRow[Any] = ActRow(**fields | changes)
        one, other = outcome(alone, alone.decide, row), outcome(among, among._decide, row)
        assert_same(one, other)
        assert alone.broken == among.broken
        last = one[0][0] if one[0] and not changes else last


def test_the_usual_row_takes_the_short_way() -> None:
    short = session(dataclasses.replace(CARTPOLE, **flat(4)), 0, 0.1)
    row: ActRow[Any] = ActRow(episode="e", t=0, observation=[0.0, 1.0, 2.0, 3.0])
    (decision,), piece = short.decide([row], NOW)
    assert isinstance(piece, Line)
    after: ActRow[Any] = msgspec.structs.replace(
        row, t=1, reward=0.5, digest=decision.digest, action=decision.raw_action
    )
    assert isinstance(short.decide([after], NOW)[1], Line)


def test_lines_between_arrays_keep_their_order() -> None:
    short = session(dataclasses.replace(CARTPOLE, **flat(4)), 0, 0.1)
    rows: list[ActRow[Any]] = [ActRow(episode=f"e{i}", t=0, observation=[0.0, 0.1 * i, 0.0, 0.0]) for i in range(9)]
    some = [rows[:1], rows[1:2], rows[2:5], rows[5:6], rows[6:]]
    pieces = [piece for piece in (short.decide(each, NOW)[1] for each in some) if piece is not None]
    joined = join(pieces)
    assert joined.episodes == tuple(row.episode for row in rows)
    whole = session(short.policy(CHAMPION).spec, 0, 0.1)._decide(rows, NOW)[1]  # type: ignore[union-attr]
    assert_same((None, joined, None), (None, whole, None))


def test_a_champion_whose_numbers_are_not_finite_says_so() -> None:
    broken = session(CARTPOLE, 0, 1e37)
    with pytest.raises(Refused, match="not finite"):
        for i in range(20):
            broken.decide([ActRow(episode=f"e{i}", t=0, observation=[1e3] * 4)], NOW)
