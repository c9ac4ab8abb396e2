"""What an off-policy learner draws from, how often, and how it explores."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest

from flywheel import meters
from flywheel.config import TrainConfig
from flywheel.correction import Correction
from flywheel.meters import readings
from flywheel.records import Episode, Plan
from flywheel.replaying import ReplayConfig
from flywheel.store.shard import Shard
from flywheel.store.shards import Here, Shards
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train import replay as replaying
from flywheel.train.replay import Replay

SPEC = spec_of(cartpole)
CONFIG = TrainConfig(
    algorithm="dqn",
    reward_scale=0.5,
    replay=ReplayConfig(batch=10, samples_per_insert=2.0, begin_at=100, epsilon=0.1, epsilon_steps=400),
)


def plan(**changes: object) -> Plan:
    return Plan(**{"strategy": "continue_training", "reasons": (), **changes})  # type: ignore[arg-type]


def chunk(num: int, value: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        observations=np.full((num + 1, 4), value, np.float32),
        actions=np.zeros(num, np.int64),
        rewards=np.full(num, value),
        logps=np.zeros(num),
        end="truncated",
    )


def production(id_: str, num: int, digest: str = "a", started_at: float = 0.0) -> Episode:
    return Episode(
        id=id_, origin="production", task="t", parameters={}, draw_key=0, digests=(digest,) * num,
        observations=np.full((num + 1, 4), 7, np.float32), raw_actions=np.zeros(num, np.int64), rewards=np.ones(num),
        logps=np.zeros(num), end="terminated", failed=True, started_at=started_at,
    )  # fmt: skip


@pytest.fixture
def replay() -> Replay:
    made = Replay(Table(SPEC, capacity=5000), CONFIG, seed=1)
    made.begin(plan(), is_warm=False)
    return made


def test_draws_follow_what_came(replay: Replay) -> None:
    replay.simulated(chunk(99), "train")
    assert replay.due() == 0
    replay.simulated(chunk(51), "train")
    assert replay.due() == 2 * 50 // 10
    for _ in range(10):
        replay.batch()
    replay.simulated(chunk(20), "train")
    assert replay.produced([production("p", 10)]) == 10
    assert replay.due() == 2 * 30 // 10
    for _ in range(6):
        replay.batch()
    replay.simulated(chunk(20), "train")
    assert replay.produced([production("q", 900)]) == 900
    assert replay.due() == 2 * 2 * 20 // 10, "a heap that comes at once is made up for in part"


def test_production_has_its_share_where_the_plan_samples_it(replay: Replay) -> None:
    replay.simulated(chunk(1000), "train")
    replay.produced([production("p", 250)])

    def share() -> float:
        return float(np.mean([(replay.batch().observations[:, 0] == 7).mean() for _ in range(300)]))

    assert share() == 0.0  # a plan that samples nothing learns in simulation alone
    replay.begin(plan(sampling="uniform"), is_warm=True)
    assert share() == pytest.approx(0.5, abs=0.04)
    replay.table.exclude("policy", "a", "it was rolled back")
    assert share() == 0.0
    rewards = replay.batch().rewards
    assert (rewards == 1.0).all()  # simulated ones are in the learner's units already


def test_a_plan_can_ask_for_failures_and_for_the_steps_of_some_policies(replay: Replay) -> None:
    replay.simulated(chunk(1000), "train")
    good = [dataclasses.replace(production(id_, 100, digest), failed=False) for id_, digest in ("pa", "qb")]
    replay.produced([production("f", 100, "a"), *good])

    def shares() -> dict[str, float]:
        found = [replay.batch() for _ in range(300)]
        names = np.concatenate([np.array(batch.policies)[batch.policy] for batch in found])
        return {name: float((names == name).mean()) for name in ("a", "b", "train")}

    replay.begin(plan(sampling="failed"), is_warm=True)
    told = shares()  # a factor of 5: six parts in seven of production's half are a's
    assert told["a"] == pytest.approx(3 / 7, abs=0.03) and told["b"] == pytest.approx(0.5 / 7, abs=0.02)
    replay.begin(plan(sampling="uniform", policies=("b",)), is_warm=True)
    told = shares()
    assert told["a"] == 0.0 and told["b"] > 0.2 and told["train"] > 0.2
    assert told["b"] + told["train"] == pytest.approx(1.0)


def test_rewards_of_production_come_in_the_learners_units(replay: Replay) -> None:
    replay.produced([production("p", 500)])
    replay.begin(plan(sampling="recent"), is_warm=True)
    assert (replay.batch().rewards == 0.5).all()


def test_a_fresh_round_explores_less_and_less_and_a_plan_can_ask_for_more(replay: Replay) -> None:
    assert replay.epsilon == 1.0
    replay.simulated(chunk(200), "train")
    assert replay.epsilon == pytest.approx(0.55)
    replay.simulated(chunk(400), "train")
    assert replay.epsilon == pytest.approx(0.1)
    replay.begin(plan(exploration=4.0), is_warm=True)
    assert replay.epsilon == pytest.approx(0.4)
    replay.explore(2.0)
    assert replay.epsilon == pytest.approx(0.2) and np.exp(2 * replay.noise) == pytest.approx(2.0)
    replay.begin(plan(), is_warm=True)
    assert replay.epsilon == pytest.approx(0.1)
    replay.begin(plan(exploration=4.0), is_warm=False)
    replay.explore(3.0)
    assert replay.epsilon == 1.0, "a fresh round begins by chance alone"
    replay.simulated(chunk(400), "train")
    assert replay.epsilon == pytest.approx(0.3)


def test_before_the_first_round_it_holds_and_explores_as_usual() -> None:
    made = Replay(Table(SPEC, capacity=100), CONFIG, seed=1)
    made.explore(2.0)
    made.simulated(chunk(30), "train")
    assert made.epsilon == 2 * CONFIG.replay.epsilon and made.table.num_transitions == 30


def test_what_a_batch_was_made_of_can_be_told(replay: Replay) -> None:
    assert replay.told() == {} == dict(readings.of_batch(replay.told()))
    replay.begin(plan(sampling="uniform"), is_warm=False)
    replay.simulated(chunk(200), "train")
    replay.produced([production("p", 100, "a"), production("q", 100, "b")])
    replay.due()
    batches = []
    for _ in range(200):
        replay.batch()
        batches.append(replay.told())
    assert np.mean([told["production"] for told in batches]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([told["share"].get("b", 0.0) for told in batches]) == pytest.approx(0.25, abs=0.05)
    assert batches[0]["effective"] == pytest.approx(400)
    found = {(r.meter, r.tags): r.value for r in readings.of_batch(batches[-1])}
    assert found[meters.BATCH_SHARE, ("production",)] + found[meters.BATCH_SHARE, ("simulation",)] == 1.0
    assert found[meters.BATCH_AGE, ()] == batches[-1]["age"]


def test_shards_count_the_inserts_of_all() -> None:
    whole = Replay(Table(SPEC, capacity=5000), CONFIG, seed=1)
    shards = [Shard(functools.partial(Table, SPEC, capacity=2500), born=k) for k in range(3)]
    split = Replay(Shards(Here(shards), 2500), CONFIG, seed=1)
    due = []
    for made in (whole, split):
        made.begin(plan(sampling="uniform"), is_warm=False)
        due.append([])
        for n in range(6):
            made.simulated(chunk(60 + n), "train")
            made.produced([production(f"p{n}", 30)])
            due[-1].append(made.due())
            for _ in range(due[-1][-1]):
                made.learnt(made.batch(), np.ones(10))
    assert due[0] == due[1] and sum(due[0]) > 50
    assert split.table.num_transitions == whole.table.num_transitions == 555


def test_what_is_barred_is_drawn_no_more_until_it_is_not(replay: Replay) -> None:
    replay.begin(plan(sampling="recent"), is_warm=False)
    replay.produced([production("p", 50, "a"), production("q", 50, "b")])
    replay.bar({("policy", "a"): "it was rolled back", ("episode", "q"): "a hand"})
    assert replay.table.drawable(replay.rule) == 0
    replay.bar({("policy", "a"): "it was rolled back"})
    assert replay.table.drawable(replay.rule) == 50 and replay.table.excluded == {("policy", "a"): "it was rolled back"}


def test_a_few_steps_of_production_are_not_learnt_by_heart(replay: Replay) -> None:
    replay.begin(plan(sampling="uniform"), is_warm=True)
    replay.simulated(chunk(1000), "train")
    replay.produced([production("p", 10)])
    assert replay.due() > 0
    assert replay.rule.quotas["production"] == pytest.approx(10 * 10 / (10 * 10 + 1000))
    replay.produced([production("q", 500)])
    replay.due()
    assert replay.rule.quotas["production"] == 0.5


def seen(replay: Replay) -> set[float]:
    return {float(value) for _ in range(100) for value in replay.batch().observations[:, 0]}


def test_production_alone_is_learnt_from_where_nothing_explains_the_change(replay: Replay) -> None:
    replay.simulated(chunk(1000), "train")
    replay.begin(plan(sampling="production"), is_warm=True)
    replay.simulated(chunk(500, value=2.0), "train")
    assert replay.due() == 0, "simulation's steps are neither drawn nor counted"
    replay.produced([production("p", 60)])
    replay.simulated(chunk(500, value=2.0), "train")
    assert replay.due() == 0, "that is too little to begin with"
    replay.produced([production(f"q{n}", 60) for n in range(4)])
    replay.simulated(chunk(500, value=2.0), "train")
    assert replay.due() == 2 * 300 // 10
    assert seen(replay) == {7.0} and replay.rule.half_life == CONFIG.replay.half_life


def test_a_heap_of_production_is_learnt_from_bit_by_bit_and_all_of_it(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "MOST_AT_ONCE", 20)
    replay.produced([production("p", 1000)])
    replay.begin(plan(sampling="production"), is_warm=True)
    drawn = []
    for _ in range(12):
        replay.simulated(chunk(50), "train")
        drawn.append(replay.due())
        for _ in range(drawn[-1]):
            replay.batch()
    assert drawn == [20] * 10 + [0, 0]
    replay.begin(plan(sampling="production", strategy="increase_exploration"), is_warm=False)
    replay.simulated(chunk(50), "train")
    assert replay.due() == 20, "a round that starts from other weights knows nothing of it"


def test_what_began_before_the_change_is_drawn_no_more(replay: Replay) -> None:
    old = [production(f"old{n}", 200, started_at=10.0) for n in range(3)]
    new = Episode(**{f: getattr(production("n", 200, started_at=20.0), f) for f in Episode.__slots__} | NINES)
    replay.produced([*old, new])
    replay.begin(plan(sampling="production"), is_warm=True)
    assert seen(replay) == {7.0, 9.0}
    replay.changed(15.0)
    replay.simulated(chunk(1000), "train")
    assert replay.due() == 2 * 200 // 10 and seen(replay) == {9.0}
    replay.changed(5.0)
    replay.produced(old)  # as late rewards bring them
    assert seen(replay) == {9.0}
    replay.begin(plan(sampling="uniform"), is_warm=True)
    replay.simulated(chunk(1000), "train")
    replay.due()
    assert seen(replay) == {1.0, 9.0}, "nor in quiet times later"


NINES = {"observations": np.full((201, 4), 9, np.float32)}
CORRECTED = Correction(actions=(1, 0))


def test_nothing_more_is_drawn_of_what_was_simulated_in_other_worlds(replay: Replay) -> None:
    narrow, wide, far = ((("length", low, high),) for low, high in ((0.5, 0.5), (0.4, 0.9), (1.9, 2.1)))
    replay.begin(plan(), is_warm=True, worlds=narrow)
    replay.simulated(chunk(200), "train")
    replay.begin(plan(), is_warm=True, worlds=wide)
    replay.simulated(chunk(200, value=2.0), "train")
    assert seen(replay) == {1.0, 2.0}, "worlds that overlap stay"
    replay.begin(plan(), is_warm=True, worlds=far)
    replay.simulated(chunk(200, value=3.0), "train")
    assert seen(replay) == {3.0}
    replay.begin(plan(sampling="production", correction=CORRECTED), is_warm=True, worlds=far)
    replay.produced([production("p", 200)])
    replay.simulated(chunk(200, value=4.0), "train")
    replay.due()
    assert seen(replay) == {4.0, 7.0}, "a corrected simulator does what production does"


def test_priorities_are_kept_until_the_world_changes(replay: Replay) -> None:
    config = dataclasses.replace(CONFIG, replay=dataclasses.replace(CONFIG.replay, alpha=0.6))
    made = Replay(Table(SPEC, capacity=5000), config, seed=1)
    made.begin(plan(sampling="uniform"), is_warm=False)
    assert made.rule.alpha == 0.6
    made.changed(15.0)
    assert made.rule.alpha == 0.0 and made.rule.since == 15.0
