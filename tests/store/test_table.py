"""Steps in memory: what is drawn is what was stored, as often as the rule says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from flywheel.errors import UsageError
from flywheel.records import Episode
from flywheel.sampling import Sampling
from flywheel.store.priorities import Priorities
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole

SPEC = spec_of(cartpole)


def episode(number: int, num_steps: int, *, digest: str = "a", end: str = "terminated", **changes: object) -> Episode:
    """Return an episode whose every number says where it belongs: (number, t) in observations, t in rewards."""
    observations = np.zeros((num_steps + 1, 4), np.float32)
    observations[:, 0], observations[:, 1] = number, np.arange(num_steps + 1)
    made = Episode(
        id=f"e{number}", origin="production", task="t", parameters={}, draw_key=0, digests=(digest,) * num_steps,
        observations=observations, raw_actions=np.arange(num_steps) % 2, rewards=np.arange(num_steps, dtype=float),
        logps=-np.arange(num_steps, dtype=float), end=end, failed=False,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def table(**options: object) -> Table:
    return Table(SPEC, **{"capacity": 1000, **options})  # type: ignore[arg-type]


def places(held: Table, num: int = 4000, rule: Sampling | None = None) -> tuple[np.ndarray, np.ndarray]:
    batch = held.sample(np.random.default_rng(0), num, rule)
    return batch.observations[:, 0].astype(int), batch.observations[:, 1].astype(int)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    capacity=st.integers(5, 120),
    num_steps=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_drawn_transition_is_one_that_was_added_last(
    lengths: list[int], capacity: int, num_steps: int, seed: int
) -> None:
    held = table(capacity=capacity, num_steps=num_steps, gamma=0.5)
    for number, length in enumerate(lengths):
        held.add(episode(number, length))
    assert 0 < held.num_transitions <= capacity
    batch = held.sample(np.random.default_rng(seed), 200)
    for i in range(200):
        number, t = batch.observations[i, :2].astype(int)
        length = lengths[number]
        ahead = min(num_steps, length - t)
        assert batch.next_observations[i, 0] == number and batch.next_observations[i, 1] == t + ahead
        assert batch.actions[i] == t % 2 and batch.logps[i] == -t
        assert batch.rewards[i] == pytest.approx(sum(0.5**k * (t + k) for k in range(ahead)))
        assert batch.terminated[i] == (t + ahead == length)
        assert batch.discounts[i] == (0.0 if batch.terminated[i] else pytest.approx(0.5**ahead))
        assert batch.ages[i] == len(lengths) - 1 - number
    # what has left is older than all that is there
    drawn = set(batch.observations[:, 0].astype(int))
    space = sum(lengths[n] + 1 for n in range(min(drawn), len(lengths)))
    assert space <= 2 * (capacity * 9 // 8 + 2) + max(lengths)


def test_what_began_before_a_time_is_not_drawn_and_age_may_count_for_one_source_alone() -> None:
    held = table()
    for number in range(40):
        origin = "production" if number % 2 else "train"
        held.add(dataclasses.replace(episode(number, 5, origin=origin), started_at=1000.0 + number))

    def drawn(rule: Sampling) -> np.ndarray:
        return np.bincount(places(held, 40_000, rule)[0], minlength=40)

    assert set(np.flatnonzero(drawn(Sampling(since=1030.0)))) == set(range(30, 40))
    assert held.drawable(Sampling(since=1030.0)) == 50 and held.drawable(Sampling(since=2000.0)) == 0
    counts = drawn(Sampling(half_life=5, aged=("production",)))
    assert counts[39] / counts[29] == pytest.approx(2, rel=0.15), "five of production's own episodes lie between"
    assert counts[::2].std() / counts[::2].mean() < 0.1, "simulation's don't grow older"


@pytest.mark.parametrize("capacity", [1000, 50])
def test_all_transitions_are_drawn_alike(capacity: int) -> None:
    held = table(capacity=capacity)
    for number, length in enumerate([1, 2, 7, 40]):
        held.add(episode(number, length))
    numbers, steps = places(held, 20_000)
    counts = np.bincount(numbers * 100 + steps)
    assert chisquare(counts[counts > 0]).pvalue > 1e-4 and (counts > 0).sum() == 50


def test_half_life_failures_policies_and_quotas_set_the_shares() -> None:
    held = table()
    for number in range(40):
        held.add(
            episode(
                number,
                5,
                digest="ab"[number % 2],
                failed=number % 4 == 0,
                origin="fork" if number < 10 else "production",
            )
        )

    def share(rule: Sampling, hit: np.ndarray) -> float:
        return float(hit[places(held, 20_000, rule)[0]].mean())

    old, young = np.arange(40) < 10, np.arange(40) >= 30
    ratio = share(Sampling(half_life=10), young) / share(Sampling(half_life=10), old)
    assert ratio == pytest.approx(8, rel=0.15)
    assert share(Sampling(failed=3.0), np.arange(40) % 4 == 0) == pytest.approx(0.5, abs=0.02)
    assert share(Sampling(policies=("b",)), np.arange(40) % 2 == 1) == 1.0
    assert share(Sampling(quotas={"fork": 1, "production": 1}), old) == pytest.approx(0.5, abs=0.02)
    assert share(Sampling(quotas={"fork": 1, "gate": 1}), old) == 1.0
    batch = held.sample(np.random.default_rng(0), 1000, Sampling(policies=("b",)))
    assert batch.told()["share"] == {"b": 1.0} and batch.effective == pytest.approx(100)


def test_what_is_excluded_is_drawn_no_more_and_comes_back() -> None:
    held = table()
    for number in range(6):
        held.add(episode(number, 4, digest="ab"[number % 2]))
    held.exclude("policy", "b", "it was rolled back")
    held.add(episode(6, 4, digest="b"))
    for rule in (None, Sampling(alpha=1.0)):
        assert set(places(held, 500, rule)[0]) == {0, 2, 4}
    held.exclude("episode", "e0", "a person touched the cart")
    assert set(places(held, 500)[0]) == {2, 4} and held.drawable() == 8
    held.readmit("policy", "b")
    for rule in (None, Sampling(alpha=1.0)):
        assert set(places(held, 500, rule)[0]) == {1, 2, 3, 4, 5, 6}
    held.exclude("origin", "production", "a broken sensor")
    with pytest.raises(IndexError):
        held.sample(np.random.default_rng(0), 1)


def test_an_episode_is_cut_at_unknown_rewards_and_where_another_policy_acts() -> None:
    held = table(num_steps=3)
    rewards = np.arange(8, dtype=float)
    rewards[3] = np.nan
    held.add(episode(0, 8, rewards=rewards, digests=("a",) * 6 + ("b",) * 2))
    batch = held.sample(np.random.default_rng(0), 500)
    t, after = batch.observations[:, 1], batch.next_observations[:, 1]
    assert set(t) == {0, 1, 2, 4, 5, 6, 7}
    ends = {0: 3, 1: 3, 2: 3, 4: 6, 5: 6, 6: 8, 7: 8}
    assert all(ends[int(a)] == b for a, b in zip(t, after, strict=True))
    assert set(t[batch.terminated]) == {6, 7}
    held.add(episode(0, 8))  # the reward came, late
    assert held.num_transitions == 8 and set(places(held)[1]) == set(range(8))


def test_a_lost_episode_is_no_terminated_one() -> None:
    held = table()
    held.add(episode(0, 3, end="lost"))
    batch = held.sample(np.random.default_rng(0), 50)
    assert not batch.terminated.any() and (batch.discounts > 0).all()


def test_priorities_draw_in_proportion_and_weights_make_up_for_it() -> None:
    held, rule = table(), Sampling(alpha=1.0, beta=1.0)
    held.add(episode(0, 10))
    rng = np.random.default_rng(0)
    batch = held.sample(rng, 2000, rule)
    held.prioritize(batch, 1.0 + batch.observations[:, 1].astype(float))
    batch = held.sample(rng, 50_000, rule)
    counts = np.bincount(batch.observations[:, 1].astype(int))
    assert chisquare(counts, 50_000 * np.arange(1, 11) / 55).pvalue > 1e-4
    mean = np.average(batch.observations[:, 1], weights=batch.weights)
    assert mean == pytest.approx(4.5, abs=0.1)
    assert batch.effective == pytest.approx(55**2 / (np.arange(1, 11) ** 2).sum(), rel=0.02)


def test_priorities_of_steps_that_have_left_change_nothing() -> None:
    held, rule = table(capacity=10), Sampling(alpha=1.0)
    held.add(episode(0, 10))
    batch = held.sample(np.random.default_rng(0), 20, rule)
    held.add(episode(1, 10))
    held.prioritize(batch, np.full(20, 1e6))
    drawn = held.sample(np.random.default_rng(0), 5000, rule).observations
    assert set(drawn[:, 0]) == {1} and chisquare(np.bincount(drawn[:, 1].astype(int))).pvalue > 1e-4


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 100)), max_size=40), st.integers(0, 99))
def test_a_tree_of_sums_finds_what_a_running_sum_finds(sets: list[tuple[int, float]], seed: int) -> None:
    tree, plain = Priorities(13), np.zeros(13)
    for row, value in sets:
        tree.set(np.array([row]), np.array([value]))
        plain[row] = value
    assert tree.total == pytest.approx(plain.sum())
    if plain.sum() > 0:
        rows = tree.find(np.random.default_rng(seed).random(50) * tree.total)
        assert (plain[rows] > 0).all()


def test_sequences_follow_each_other_and_whole_runs_are_whole() -> None:
    held = table()
    for number, length in enumerate([3, 9]):
        held.add(episode(number, length))
    rng = np.random.default_rng(0)
    found = held.sequences(rng, 100, 4)
    assert found.observations.shape == (100, 5, 4) and found.mask[:, 0].all()
    for observations, mask in zip(found.observations, found.mask, strict=True):
        num = int(mask.sum())
        assert (np.diff(observations[: num + 1, 1]) == 1).all() and (np.diff(observations[: num + 1, 0]) == 0).all()
    whole = held.whole(rng, 2000)
    lengths = whole.mask.sum(axis=1)
    assert whole.mask.shape == (2000, 9) and set(lengths) == {3, 9}
    assert (lengths == 9).mean() == pytest.approx(9 / 12, abs=0.04), "in proportion to their length"
    assert (whole.observations[:, 0, 1] == 0).all() and whole.terminated.sum() == 2000
    assert (whole.terminated[np.arange(2000), lengths - 1]).all()
    short = whole.observations[lengths == 3]
    assert (short[:, 3:, 1] == 3).all() and not whole.rewards[lengths == 3, 3:].any()


def test_sequences_say_what_they_are_made_of_and_may_be_drawn_by_priority() -> None:
    held, rule = table(), Sampling(alpha=1.0, beta=1.0)
    held.add(episode(0, 3, digest="a"))
    held.add(episode(1, 9, digest="b"))
    rng = np.random.default_rng(0)
    told = held.whole(rng, 4000).told()
    assert told["share"]["b"] == pytest.approx(0.9, abs=0.01), "three of four runs, each of thrice the steps"
    assert told["oldest"] == 1 and told["age"] == pytest.approx(0.25, abs=0.03) and told["effective"] == 12
    first = held.sequences(rng, 4000, 2, rule)
    held.prioritize(first, np.where(first.observations[:, 0, 0] == 0, 3.0, 1.0))
    found = held.sequences(rng, 20_000, 2, rule)
    assert (found.observations[:, 0, 0] == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert set(np.round(found.weights, 5)) == {np.float32(0.33333), 1.0}
    with pytest.raises(UsageError, match=r"can't be drawn by priority.*[.]$"):
        held.whole(rng, 1, rule)


def test_mapped_columns_hold_the_same(tmp_path) -> None:
    plain, mapped = table(capacity=50), table(capacity=50, directory=tmp_path)
    for number in range(9):
        plain.add(episode(number, 8))
        mapped.add(episode(number, 8))
    one, other = (each.sample(np.random.default_rng(1), 64) for each in (plain, mapped))
    assert (one.observations == other.observations).all() and (one.rewards == other.rewards).all()


@pytest.mark.parametrize(
    "options", [{"half_life": -1.0}, {"failed": float("nan")}, {"quotas": {"fork": -1}}, {"alpha": 1, "failed": 2.0}]
)
def test_a_rule_that_can_not_be_is_refused_in_a_sentence(options: dict) -> None:
    with pytest.raises(UsageError, match=r"[.]$"):
        Sampling(**options)


def test_a_table_bounded_in_memory_holds_less() -> None:
    held = table(capacity=10**6, most_mib=1)
    assert held.capacity < 30_000
    held.add(episode(0, held.capacity + 100))
    assert held.num_transitions == held.capacity
    assert places(held)[1].min() >= 100
