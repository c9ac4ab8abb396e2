"""Shards on Ray: drawn from as one table, noticed when one was lost, and a trainer learns from them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from flywheel.config import TrainConfig
from flywheel.errors import FlywheelError
from flywheel.records import Plan
from flywheel.replaying import ReplayConfig
from flywheel.sampling import Sampling
from flywheel.store import on_ray
from flywheel.store.on_ray import ShardActor, make_table, shards_of, table_of
from flywheel.store.shard import Told
from flywheel.store.shards import Shards, deal
from flywheel.store.table import Table
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.train.on_ray import TrainerActor
from tests.store.test_table import episode
from tests.train.test_replay import production

SPEC = spec_of(cartpole)
CONFIG = TrainConfig(
    algorithm="dqn",
    num_runners=1,
    worlds_per_runner=8,
    steps_per_world=32,
    replay=ReplayConfig(begin_at=256, capacity=20_000, samples_per_insert=8.0, shards=2),
)


def worker(ray: Any, started: list[Any]) -> Any:
    """Return what cluster.Place.worker is, with a note of what was started."""

    class Started:
        def __init__(self, body: type, name: str, num_cpus: float, **where: Any) -> None:
            self._kind = ray.remote(body).options(
                name=name, num_cpus=num_cpus, max_restarts=-1, max_task_retries=3, **where
            )

        def remote(self, *arguments: Any) -> Any:
            started.append(self._kind.remote(*arguments))
            return started[-1]

    return Started


def test_one_process_holds_what_needs_no_more(ray_cluster: Any) -> None:
    started = list[Any]()
    for config in (
        dataclasses.replace(CONFIG, algorithm="ppo"),
        dataclasses.replace(CONFIG, replay=dataclasses.replace(CONFIG.replay, shards=1)),
    ):
        assert isinstance(make_table(SPEC, config, worker(ray_cluster, started))(), Table) and not started


def test_each_holds_its_part_of_the_capacity_mapped_where_asked(tmp_path: Path) -> None:
    replay = dataclasses.replace(CONFIG.replay, capacity=21, shards=2, directory=str(tmp_path / "mapped"))
    held = table_of(SPEC, dataclasses.replace(CONFIG, replay=replay))
    assert held.capacity == 11 and (tmp_path / "mapped").is_dir()
    held.add(episode(0, 5))
    assert held.drawable() == 5 and not list((tmp_path / "mapped").iterdir()), "the file has no name"


def test_a_lost_shard_is_noticed_and_filled_again_and_others_may_read(ray_cluster: Any) -> None:
    started = list[Any]()
    front = make_table(SPEC, CONFIG, worker(ray_cluster, started))()
    assert isinstance(front, Shards) and len(started) == 2
    told = [episode(number, 5, digest="ab"[number % 2]) for number in range(40)]
    assert sum(front.add(each) for each in told) == 200 == front.drawable()
    front.exclude("policy", "b", "it was rolled back")
    rng = np.random.default_rng(0)
    assert set(front.sample(rng, 500).observations[:, 0].astype(int)) == set(range(0, 40, 2))
    assert not front.lacks()
    ray_cluster.kill(started[0], no_restart=False)
    assert any(front.lacks() for _ in range(1000)), "a process that is killed may still answer once or twice"
    assert not front.lacks()
    kept = {n for n in range(0, 40, 2) if deal(f"e{n}", 2) == 1}
    assert set(front.sample(rng, 500).observations[:, 0].astype(int)) == kept
    for each in told:
        front.add(each)
    assert front.drawable() == 100 and front.num_transitions == 200
    handles = [ray_cluster.get_actor(f"shard-{k}") for k in range(2)]
    reader = shards_of(handles, CONFIG, is_new=False)
    assert set(reader.sample(rng, 500).observations[:, 0].astype(int)) == set(range(0, 40, 2))
    rule = Sampling(alpha=0.6)
    batch = reader.sample(rng, 64, rule)
    reader.prioritize(batch, np.ones(64))
    assert reader.sample(rng, 64, rule).weights.max() == pytest.approx(1.0)
    for handle in started:
        ray_cluster.kill(handle)


def test_shards_that_have_no_node_are_named_in_a_sentence(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "WAIT_S", 1.0)
    nowhere = ray_cluster.remote(ShardActor).options(num_cpus=0, resources={"no node has this": 1})
    handle = nowhere.remote(lambda: table_of(SPEC, CONFIG))
    with pytest.raises(FlywheelError, match=r"No answer came from shard-0 for 1 s: no node .*[.]$"):
        shards_of([handle], CONFIG)
    ray_cluster.kill(handle)


def test_an_answer_that_was_lost_with_its_node_is_asked_for_again(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = ray_cluster.remote(ShardActor).options(num_cpus=0).remote(lambda: table_of(SPEC, CONFIG))
    front, get, lost = shards_of([handle], CONFIG), ray_cluster.get, [True]

    def losing(*arguments: Any, **named: Any) -> Any:
        if lost and lost.pop():
            raise ray_cluster.exceptions.ObjectLostError("0" * 40, None, "")
        return get(*arguments, **named)

    monkeypatch.setattr(ray_cluster, "get", losing)
    front.add(episode(0, 5))
    assert front.drawable() == 5 == front.num_transitions and not lost
    lost += [True] * 5
    with pytest.raises(FlywheelError, match=r"lost 5 times in a row, each time with its node: .*[.]$"):
        front.sample(np.random.default_rng(0), 8)
    ray_cluster.kill(handle)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_are_on_two_nodes_and_outlive_one_of_them() -> None:
    command = [sys.executable, "-m", "tests.on_ray.nodes_of_shards"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["at first"]) == set(found["sim"]) and len(found["sim"]) == 2
    sizes = 1 + np.arange(40) % 7
    for stage in ("all", "filled", "filled again"):
        for counts in found[stage].values():
            assert chisquare(counts, 4000 * sizes / sizes.sum()).pvalue > 1e-4, stage
    # the batches that were drawn before it died are as they are; what is drawn later is the other shard's
    assert chisquare(found["one died"]["transitions"], 4000 * sizes / sizes.sum()).pvalue > 1e-4
    held = np.array([deal(f"e{n}", 2) == 1 for n in range(40)])
    for word in ("sequences", "whole"):
        counts = np.array(found["one died"][word])
        assert not counts[~held].any()
        assert chisquare(counts[held], 4000 * sizes[held] / sizes[held].sum()).pvalue > 1e-4
    assert found["lacks"] == [True, False] and len(set(found["then"])) == 1 and found["then"][0] in found["sim"]
    assert found["both died"].startswith("FlywheelError: No answer came from shard-0, shard-1 for 20 s: no node")
    assert found["one came"].startswith("LostError: ") and found["lost"]
    assert set(found["at last"]) == {found["new"]}


def test_a_trainer_learns_from_shards_and_asks_for_production_again_when_one_was_lost(ray_cluster: Any) -> None:
    ray, started = ray_cluster, list[Any]()
    make = make_table(SPEC, CONFIG, worker(ray, started))
    actor = ray.remote(num_cpus=0.5)(TrainerActor).remote(cartpole, SPEC, CONFIG, 1, "", "wheel", make)
    try:
        plan = Plan(strategy="continue_training", reasons=(), sampling="uniform")
        ray.get(actor.begin.remote(plan, None), timeout=400)
        told = [production(f"p{n}", 40) for n in range(20)]
        assert ray.get(actor.learn_from.remote(told, {}, "p19"), timeout=300) == 800
        assert ray.get(actor.learnt_to.remote(), timeout=300) == "p19"
        for _ in range(3):
            progress = ray.get(actor.advance.remote(), timeout=300)
        assert progress.num_steps >= 3 * 256
        shards = shards_of(started, CONFIG, is_new=False)
        assert shards.drawable() == progress.num_steps + 800
        ray.kill(started[1], no_restart=False)
        assert "" in (ray.get(actor.learnt_to.remote(), timeout=300) for _ in range(1000))
        assert ray.get(actor.learn_from.remote(told, {}, "p19"), timeout=300) == 800
        assert ray.get(actor.learnt_to.remote(), timeout=300) == "p19"
        ray.get(actor.advance.remote(), timeout=300)
        masses = ray.get([handle.standing.remote(Told(), Sampling()) for handle in started], timeout=300)
        assert sum(each.masses["production"][2] for each in masses) == 800
    finally:
        ray.get(actor.stop.remote(), timeout=300)
        for handle in (actor, *started):
            ray.kill(handle)
