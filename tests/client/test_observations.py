"""What a client observes goes out as it is, or is refused before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flywheel.client.observations import plain
from flywheel.errors import UsageError

NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (np.zeros((1, 2), np.float32), [[0.0, 0.0]]),
        ([np.ones((2, 1), np.float16)], [[[1.0], [1.0]]]),
        (np.array([3]), [3]),
        (np.array([[True, False]]), [[1, 0]]),
        ([{"a": np.float32(0.5), "b": (np.int64(2), [True])}], [{"a": 0.5, "b": [2, [1]]}]),
        ([(14, 10, 0)], [[14, 10, 0]]),
        ([[0.25, 1]], [[0.25, 1]]),
        ([7], [7]),
    ],
    ids=str,
)
def test_observations_become_plain_values_in_their_own_shape(given: Any, sent: Any) -> None:
    assert json.dumps(plain(given, ["e"])) == json.dumps(sent)


def test_a_single_precision_number_is_sent_exactly() -> None:
    row = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    assert np.array_equal(np.array(json.loads(json.dumps(plain(row, ["e"]))), np.float32), row)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.array([[0.0, 0.0], [0.0, NAN]]), r"at \[1\] of episode 'b' is nan: nothing was sent"),
        ([{"p": [0.0]}, {"p": [-np.inf]}], r"at p\[0\] of episode 'b' is -inf"),
        ([{"p": np.zeros(2)}, {"p": (1, np.array([0, NAN]))}], r"at p\[1\]\[1\] of episode 'b' is nan"),
        ([0.0, NAN], "The observation of episode 'b' is nan"),
        ([{"p": 0}, {"p": "north"}], "at p of episode 'b' is 'north', no number"),
        ([[0.0], [None]], r"at \[0\] of episode 'b' is None, no number"),
        (np.zeros((3, 2)), "2 episodes need as many observations, not 3"),
    ],
)
def test_what_is_no_finite_number_is_named(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plain(given, ["a", "b"])
