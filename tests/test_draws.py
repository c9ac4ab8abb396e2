"""Draws: uniform, independent of their place in a batch, a function of key and step alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flywheel.draws import draw_key, draws

KEYS = st.integers(0, 2**64 - 1)
STEPS = st.integers(0, 2**31)


@given(st.lists(st.tuples(KEYS, STEPS), min_size=1, max_size=20), st.integers(1, 5))
def test_a_row_is_the_same_alone_and_in_a_batch(rows: list[tuple[int, int]], num_draws: int) -> None:
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    t = np.array([step for _, step in rows])
    together = draws(keys, t, num_draws)
    alone = np.concatenate([draws([key], [step], num_draws) for key, step in rows])
    assert together.shape == (len(rows), num_draws)
    assert np.array_equal(together, alone)
    assert ((together > 0) & (together < 1)).all()


def test_more_columns_leave_the_first_ones_as_they_are() -> None:
    assert np.array_equal(draws([7], [3], 5)[:, :2], draws([7], [3], 2))


def test_they_are_uniform_over_keys_over_steps_and_over_columns() -> None:
    many = 50_000
    samples = {
        "neighbouring keys": draws(np.arange(many), np.zeros(many), 1)[:, 0],
        "steps of one key": draws(np.full(many, 7), np.arange(many), 1)[:, 0],
        "columns": draws([7], [0], many)[0],
    }
    for name, sample in samples.items():
        assert stats.kstest(sample, "uniform").pvalue > 1e-4, name
        assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 0.02, name


def test_a_draw_key_depends_on_the_run_and_on_the_episode() -> None:
    keys = {draw_key(run, episode) for run in (b"one", b"two") for episode in ("a", "b")}
    assert len(keys) == 4
    assert all(0 <= key < 2**64 for key in keys)
    assert draw_key(b"one", "a") == draw_key(b"one", "a")
