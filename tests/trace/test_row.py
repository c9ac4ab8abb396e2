"""Rows: what a span may carry, and what comes from outside."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.trace.row import MAX_ATTRIBUTES, MAX_TEXT, TELL, Row, attributes, body, metric, packed, told, unpacked

ONE: dict[str, Any] = {"trace": "1" * 32, "id": "2" * 16, "name": "n", "started_at": 1.0, "ended_at": 2.0}


def row(**fields: Any) -> Row:
    """Return a row with these fields."""
    return Row(**{**ONE, "parent": "", "source": "client", **fields})


scalars = st.one_of(st.text(), st.integers(), st.floats(), st.booleans())
anything = st.dictionaries(
    st.text(min_size=1, max_size=20), st.one_of(scalars, st.lists(scalars), st.none(), st.binary(), st.tuples(scalars))
)


@given(anything, st.lists(st.tuples(st.text(min_size=1, max_size=9), st.floats())))
def test_whatever_a_program_says_a_row_travels_and_rests_unchanged(
    given: dict[str, Any], logged: list[tuple[str, float]]
) -> None:
    one = row(attributes=attributes(given), metrics=tuple(metric(name, value, 1.0) for name, value in logged))
    (again,) = unpacked(packed([one]))
    assert again == one
    (over_http,) = told(TELL.decode(body([one])))
    assert over_http == one


def test_attributes_are_cut_to_their_limits() -> None:
    found = attributes({"text": "x" * 5000, "list": list(range(1000)), "large": 2**70, "nan": math.nan, "none": None})
    assert found == {"text": "x" * MAX_TEXT, "list": list(range(MAX_ATTRIBUTES)), "large": str(2**70), "nan": "nan"}
    numbers = {"scalar": np.float32(0.5), "array": np.arange(3), "many": np.zeros((99, 2), np.float32)}
    assert attributes(numbers) == {"scalar": 0.5, "array": [0, 1, 2], "many": ["[0.0, 0.0]"] * MAX_ATTRIBUTES}
    assert len(attributes({str(i): i for i in range(1000)})) == MAX_ATTRIBUTES


@pytest.mark.parametrize(
    "changes",
    [
        {"trace": "0" * 32}, {"trace": "x" * 32}, {"trace": "1" * 31}, {"trace": "1" * 32 + "\n"}, {"id": "2" * 17},
        {"id": "0" * 16}, {"name": ""}, {"name": "n" * 257}, {"started_at": -1}, {"started_at": "now"},
        {"ended_at": 1e300}, {"parent": ""}, {"attributes": {"a": {"b": 1}}}, {"attributes": {"a": None}},
        {"attributes": {"a": "x" * 1025}}, {"attributes": {"a": [1] * 65}}, {"attributes": {"a": 2**63}},
        {"attributes": {str(i): i for i in range(65)}}, {"metrics": [["m", 1.0]]}, {"links": [["1" * 32, "2"]]},
        {"why": "turn"}, {"source": "loop"},
    ],
)  # fmt: skip
def test_a_program_can_say_nothing_that_a_span_is_not(changes: dict[str, Any]) -> None:
    TELL.decode(json.dumps({"spans": [ONE]}))
    with pytest.raises(msgspec.ValidationError):
        TELL.decode(json.dumps({"spans": [ONE | changes]}))


def test_a_program_cannot_say_where_a_span_came_from() -> None:
    (one,) = told(TELL.decode(json.dumps({"spans": [ONE | {"ended_at": 0.5}]})))
    assert (one.source, one.why, one.ended_at) == ("client", "", 1.0)
