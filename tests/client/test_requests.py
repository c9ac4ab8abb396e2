"""What is sent is cut into requests that a server takes, whatever is observed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.client import book
from flywheel.client.book import ROWS, requests
from flywheel.config import DeployConfig

NUMBERS = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(width=32, allow_nan=False, allow_infinity=False)
)
OBSERVATIONS = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=70) | st.dictionaries(st.text("abcxyz", max_size=60), inner, max_size=4),
    max_leaves=100,
)


@given(observations=st.lists(OBSERVATIONS, max_size=30), body=st.integers(3_000, 30_000))
def test_requests_hold_all_rows_in_order_and_no_more_bytes_than_they_may(observations: list[Any], body: int) -> None:
    rows = [row(observation) for observation in observations]
    with pytest.MonkeyPatch.context() as small:
        small.setattr(book, "_BODY", body)
        groups = list(requests(rows))
    assert [one for group in groups for one in group] == rows and all(groups)
    for group in groups:
        assert len(group) == 1 or len(json.dumps({"steps": group}, separators=(",", ":"))) <= body


def row(observation: Any) -> dict[str, Any]:
    more = {"digest": "d" * 64, "action": [-1.2345678901234567e-300] * 3, "reward": -1.2345678901234567e-300}
    return {"episode": "\U0001f600" * 128, "t": 2**31 - 1, "observation": observation, **more}


def test_a_batch_that_sees_much_is_sent_in_several_requests() -> None:
    frames = np.random.default_rng(0).normal(size=(100, 84, 84)).astype(np.float32).tolist()
    groups = list(requests([row(frame) for frame in frames]))
    assert sum(map(len, groups)) == 100 and len(groups) > 1
    sizes = [len(json.dumps({"steps": group}, separators=(",", ":"))) for group in groups]
    assert max(sizes) <= DeployConfig().max_body / 2 and min(sizes[:-1]) > DeployConfig().max_body / 8


def test_small_rows_go_by_their_number() -> None:
    assert [len(group) for group in requests([row([0.0] * 4)] * (ROWS + 1))] == [ROWS, 1]
    assert list(requests([])) == []
