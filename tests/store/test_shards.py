"""Several tables are drawn from as one: to the last digit in their chances, and so in what comes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from flywheel.errors import LostError, UsageError
from flywheel.sampling import Batch, Sampling
from flywheel.store.shard import Shard
from flywheel.store.shards import BLOCK, Here, Shards, deal, split
from flywheel.store.table import Table
from tests.store.test_table import episode, table

RULES = (
    Sampling(),
    Sampling(half_life=5.0),
    Sampling(failed=3.0, half_life=8.0),
    Sampling(policies=("b",)),
    Sampling(quotas={"fork": 0.3, "production": 0.7}, half_life=6.0),
    Sampling(quotas={"fork": 1.0, "train": 2.0}),
    Sampling(half_life=4.0, aged=("production",), quotas={"fork": 1.0, "production": 2.0}),
    Sampling(half_life=4.0, aged=("production",), since=20.0),
)


def several(num: int, **options: object) -> tuple[Shards, list[Shard]]:
    shards = [Shard(lambda: table(**options), born=k) for k in range(num)]
    return Shards(Here(shards), 1000), shards


def some(seed: int, num: int = 40) -> list:
    rng = np.random.default_rng(seed)
    return [
        episode(
            number, int(rng.integers(1, 9)), digest="abc"[rng.integers(3)], failed=bool(rng.random() < 0.3),
            origin=("production", "fork")[int(rng.random() < 0.3)], started_at=float(number),
        )
        for number in range(num)
    ]  # fmt: skip


def chances(held: Table, rule: Sampling) -> dict[int, float]:
    """Return by episode's number how likely one of its transitions is drawn, up to a common factor of the table."""
    weights, sums, _ = held._chances(rule)
    whole = sums[-1] if len(sums) and sums[-1] > 0 else 1.0
    return {int(record["episode"]): w / whole for record, w in zip(held._entries.records, weights, strict=True)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(RULES))
def test_each_transition_has_the_chance_that_one_table_gives_it(num: int, seed: int, rule: Sampling) -> None:
    whole, (front, shards) = table(), several(num)
    for each in some(seed):
        assert front.add(each) == whole.add(each)
    for held in (whole, front):
        held.exclude("policy", "c", "it was rolled back")
    found = split(rule, front._standings(rule))
    assert found.drawable == whole.drawable(rule) and front.num_transitions == whole.num_transitions
    assert found.effective == pytest.approx(whole._chances(rule)[2], rel=1e-9)
    union = {
        number: share * chance
        for shard, share, mine in zip(shards, found.shares, found.rules, strict=True)
        for number, chance in chances(shard._table, mine).items()
    }
    assert union == pytest.approx(chances(whole, rule), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_drawn_is_distributed_as_one_tables_draws(rule: Sampling) -> None:
    whole, (front, _) = table(), several(3)
    for each in some(7):
        whole.add(each)
        front.add(each)
    rng = np.random.default_rng(11)
    batches = [front.sample(rng, 500, rule) for _ in range(2 * BLOCK)]
    drawn = np.concatenate([batch.observations[:, 0] for batch in batches]).astype(int)
    expected = np.zeros(40)
    for record in whole._entries.records:
        expected[record["episode"]] = chances(whole, rule)[int(record["episode"])] * record["count"]
    counts = np.bincount(drawn, minlength=40)
    likely = expected > 0.0
    assert counts[~likely].sum() == 0
    assert chisquare(counts[likely], expected[likely] / expected.sum() * len(drawn)).pvalue > 1e-4
    # within a block batches are as different as any: each episode's count is spread as of independent draws
    per = np.array([np.bincount(b.observations[:, 0].astype(int), minlength=40) for b in batches])[:, likely]
    share = expected[likely] / expected.sum()
    assert per.var(axis=0, ddof=1).sum() == pytest.approx(500 * (share * (1 - share)).sum(), rel=0.2)


@pytest.mark.parametrize("rule", RULES)
def test_each_sequence_and_each_whole_run_is_as_likely_as_from_one_table(rule: Sampling) -> None:
    whole, (front, _) = table(), several(3)
    told = some(7)
    for each in told:
        whole.add(each)
        front.add(each)
    for held in (whole, front):
        held.exclude("policy", "c", "it was rolled back")
    rng, num, of = np.random.default_rng(5), 24_000, chances(whole, rule)
    steps = {(n, t): chance for n, chance in of.items() for t in range(told[n].num_steps)}
    runs = {(n, 0): chance * told[n].num_steps for n, chance in of.items()}
    sequences, episodes = front.sequences(rng, num, 4, rule), front.whole(rng, num, rule)
    for found, expected in ((sequences, steps), (episodes, runs)):
        counts = {key: 0 for key in expected}
        for n, t in found.observations[:, 0, :2].astype(int):
            counts[n, t] += 1
        share = np.array([expected[key] for key in expected])
        seen, likely = np.array([*counts.values()]), share > 0.0
        assert seen[~likely].sum() == 0
        assert chisquare(seen[likely], share[likely] / share.sum() * num).pvalue > 1e-4
        for times, chance in zip(seen[likely], share[likely] / share.sum(), strict=True):
            interval = binomtest(int(times), num).proportion_ci(1 - 1e-5, "wilson")
            assert interval.low <= chance <= interval.high
        numbers, lengths = found.observations[:, 0, 0].astype(int), found.mask.sum(axis=1)
        begins = found.observations[:, 0, 1].astype(int)
        all_steps = np.array([each.num_steps for each in told])[numbers]
        assert (lengths == np.minimum(all_steps - begins, 4 if found is sequences else 99)).all()
        assert (found.ages == 39 - numbers).all()
        assert [found.policies[i] for i in found.policy] == [told[n].digests[0] for n in numbers]
        assert found.effective == pytest.approx(whole._chances(rule)[2], rel=1e-9)
        for i in range(0, num, 97):
            made, length = told[numbers[i]], lengths[i]
            steps_of = slice(begins[i], begins[i] + length)
            assert (found.observations[i, : length + 1] == made.observations[begins[i] : begins[i] + length + 1]).all()
            assert (found.rewards[i, :length] == made.rewards[steps_of]).all() and not found.rewards[i, length:].any()
            assert (found.actions[i, :length] == made.raw_actions[steps_of]).all()
            assert (found.logps[i, :length] == made.logps[steps_of]).all()
            assert found.terminated[i].sum() == (begins[i] + length == made.num_steps)


def test_sequences_by_priority_find_their_shard() -> None:
    front, _ = several(3)
    rule, rng = Sampling(alpha=1.0, beta=1.0), np.random.default_rng(3)
    for number in range(10):
        front.add(episode(number, 1))
    for _ in range(30):
        drawn = front.sequences(rng, 20, 2, rule)
        front.prioritize(drawn, 1.0 + drawn.observations[:, 0, 0].astype(float))
    found = front.sequences(rng, 30_000, 2, rule)
    numbers, expected = found.observations[:, 0, 0].astype(int), np.arange(1, 11) / 55
    assert chisquare(np.bincount(numbers), 30_000 * expected).pvalue > 1e-4
    assert found.weights == pytest.approx(1.0 / (numbers + 1), rel=1e-4)
    with pytest.raises(UsageError, match=r"can't be drawn by priority"):
        front.whole(rng, 1, rule)
    front.exclude("origin", "production", "a broken sensor")
    with pytest.raises(IndexError):
        front.sequences(rng, 1, 2)


def test_a_batch_says_of_whom_it_is_and_how_old() -> None:
    front, _ = several(3)
    for number in range(30):
        front.add(episode(number, 4, digest="abc"[number % 3]))
    batch = front.sample(np.random.default_rng(0), 200)
    numbers = batch.observations[:, 0].astype(int)
    assert (batch.ages == 29 - numbers).all()
    assert [batch.policies[i] for i in batch.policy] == ["abc"[n % 3] for n in numbers]
    assert sum(batch.told()["share"].values()) == pytest.approx(1.0)
    assert (batch.next_observations[:, 1] == batch.observations[:, 1] + 1).all()


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_priorities_find_their_shard_and_weights_are_the_wholes(beta: float) -> None:
    front, _ = several(3)
    rule, rng = Sampling(alpha=1.0, beta=beta), np.random.default_rng(3)
    for number in range(10):
        front.add(episode(number, 1))

    def learn(batch: Batch) -> None:
        front.prioritize(batch, 1.0 + batch.observations[:, 0].astype(float))

    for _ in range(30):
        learn(front.sample(rng, 20, rule))
    batch = front.sample(rng, 30_000, rule)
    numbers = batch.observations[:, 0].astype(int)
    expected = np.arange(1, 11) / 55
    assert chisquare(np.bincount(numbers), 30_000 * expected).pvalue > 1e-4
    weights = expected[numbers] ** -beta
    assert batch.weights == pytest.approx(weights / weights.max(), rel=1e-4)
    assert batch.effective == pytest.approx(55**2 / (np.arange(1, 11) ** 2).sum(), rel=0.05)
    # a newcomer is as likely as the most surprising one, whatever shard that is in
    front.add(episode(10, 1))
    drawn = front.sample(rng, 30_000, rule).observations[:, 0]
    assert (drawn == 10).mean() == pytest.approx(10 / 65, abs=0.01)


def test_what_comes_or_is_excluded_ends_a_block() -> None:
    front, _ = several(2)
    rng = np.random.default_rng(0)
    front.add(episode(0, 5))
    assert set(front.sample(rng, 64).observations[:, 0]) == {0}
    front.add(episode(1, 5, digest="b"))
    assert set(front.sample(rng, 64).observations[:, 0]) == {0, 1}
    front.exclude("policy", "b", "it was rolled back")
    assert set(front.sample(rng, 64).observations[:, 0]) == {0} and front.drawable() == 5
    front.readmit("policy", "b")
    assert set(front.sample(rng, 64).observations[:, 0]) == {0, 1} and front.excluded == {}
    front.exclude("origin", "production", "a broken sensor")
    with pytest.raises(IndexError):
        front.sample(rng, 1)


def test_an_episode_replaces_what_was_held_of_it() -> None:
    front, _ = several(3)
    rewards = np.arange(6, dtype=float)
    rewards[2:] = np.nan
    assert front.add(episode(0, 6, rewards=rewards)) == 2
    assert front.add(episode(0, 6)) == 6 and front.drawable() == 6 == front.num_transitions


def test_a_shard_that_came_back_empty_is_noticed_and_filled_again() -> None:
    front, shards = several(3)
    told = [episode(number, 5, digest="ab"[number % 2]) for number in range(30)]
    for each in told:
        front.add(each)
    front.exclude("policy", "b", "it was rolled back")
    rng = np.random.default_rng(0)
    front.sample(rng, 64)
    assert not front.lacks()
    lost = deal("e0", 3)
    shards[lost] = front._ports._shards[lost] = Shard(table, born=99)  # type: ignore[attr-defined]
    kept = {n for n in range(0, 30, 2) if deal(f"e{n}", 3) != lost}
    assert front.lacks() and not front.lacks()
    batch = front.sample(rng, 2000)
    assert set(batch.observations[:, 0].astype(int)) == kept
    for each in told:  # as the trainer is given all of production again
        front.add(each)
    batch = front.sample(rng, 4000)
    assert set(batch.observations[:, 0].astype(int)) == set(range(0, 30, 2)) and front.num_transitions == 150


def test_a_shard_that_is_lost_between_look_and_draw_costs_one_attempt() -> None:
    front, _ = several(2)
    for number in range(12):
        front.add(episode(number, 5))
    assert front.drawable() == 60
    front._ports._shards[0] = Shard(table, born=99)  # type: ignore[attr-defined]
    batch = front.sample(np.random.default_rng(0), 2000)
    assert set(batch.observations[:, 0].astype(int)) == {n for n in range(12) if deal(f"e{n}", 2) == 1}
    assert front.lacks()


def test_all_that_was_lost_is_named_until_it_is_asked_what_lacks() -> None:
    front, _ = several(2)
    front.add(episode(0, 5))
    assert front.drawable() == 5
    front._ports._shards[:] = [Shard(table, born=k) for k in (98, 99)]  # type: ignore[attr-defined]
    front.add(episode(1, 5))
    front.exclude("episode", "e1", "a person touched the cart")
    with pytest.raises(LostError, match=r"^The processes that held what is learnt from were lost"):
        front.sample(np.random.default_rng(0), 1)
    assert front.lacks()
    with pytest.raises(IndexError):
        front.sample(np.random.default_rng(0), 1)


def test_another_reader_draws_from_what_the_trainer_put_there() -> None:
    front, shards = several(2)
    for number in range(12):
        front.add(episode(number, 3))
    assert front.drawable() == 36
    reader = Shards(Here(shards), 1000, is_new=False)
    assert reader.drawable() == 36
    assert (reader.sample(np.random.default_rng(0), 50).ages <= 11).all()
    front.add(episode(12, 3))
    assert front.drawable() == 39 == reader.drawable()


def test_episodes_are_dealt_evenly() -> None:
    counts = np.bincount([deal(f"episode-{i}", 4) for i in range(8000)])
    assert chisquare(counts).pvalue > 1e-4
