"""Parity: a PPO of RLlib with an observation filter and continuous actions acts over HTTP as it did in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from flywheel.config import DeployConfig, GateConfig
from flywheel.deploy.registry import Registry
from flywheel.deploy.service import Service
from flywheel.draws import draw_key, draws
from flywheel.errors import Refused
from flywheel.gate import SafetyGate
from flywheel.policy import pack
from flywheel.records import Array
from flywheel.task import spec_of, task_digest
from flywheel.tasks.pendulum import pendulum
from tests.deploy.conftest import NOW, Links, verdict_on
from tests.deploy.test_door import opened

SPEC = spec_of(pendulum)


@pytest.fixture(scope="module")
def algorithm(ray_cluster: Any) -> Iterator[Any]:
    """A stock PPO whose filter has seen a thousand steps, and whose module has learnt from them."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    config = (
        PPOConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0, env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
        .training(train_batch_size_per_learner=1000, minibatch_size=250, num_epochs=2)
        .rl_module(model_config={"fcnet_hiddens": [32, 32], "vf_share_layers": False})
        .debugging(seed=1, log_level="ERROR")
    )
    algorithm = config.build_algo()
    algorithm.train()
    yield algorithm
    algorithm.stop()
    with contextlib.suppress(OSError):
        Path(algorithm.logdir).rmdir()


def recorded(num: int) -> Array:
    """Return observations of the environment itself, as production shows them: nothing filtered them."""
    env, rng, rows = pendulum.make_env(), np.random.default_rng(3), list[Array]()
    while len(rows) < num:
        observation, _ = env.reset(seed=len(rows))
        for _ in range(50):
            rows.append(np.asarray(observation, np.float32))
            observation, *_ = env.step(rng.uniform(-2.0, 2.0, 1).astype(np.float32))
    env.close()  # type: ignore[no-untyped-call]
    return np.stack(rows[:num])


def in_training(algorithm: Any, rows: Array) -> Array:
    """Return the distribution's inputs for observations, by RLlib's whole pipeline and module as they sample."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    pipeline, module = algorithm.env_runner._env_to_module, algorithm.env_runner.module
    (connector,) = [c for c in pipeline.connectors if type(c).__name__ == "MeanStdFilter"]
    connector._update_stats = False
    episodes = [
        SingleAgentEpisode(
            observations=[row],
            observation_space=algorithm.env_runner.env.single_observation_space,
            action_space=algorithm.env_runner.env.single_action_space,
        )
        for row in rows
    ]
    batch = pipeline(rl_module=module, batch={}, episodes=episodes, explore=True, shared_data={})
    with torch.no_grad():
        found: Array = module.forward_exploration(batch)["action_dist_inputs"].numpy()
    return found


def files_of(algorithm: Any) -> Any:
    from flywheel.train.rllib.export import exported

    return exported(algorithm, SPEC, version=1, made_at=0.0, ranges={})


async def test_1000_observations_over_http_have_the_distribution_of_training(algorithm: Any, tmp_path: Path) -> None:
    rows = recorded(1000)
    with contextlib.closing(Registry(tmp_path, task_digest(pendulum))) as registry:
        artifact = registry.write(*files_of(algorithm))
        registry.record(verdict_on(artifact, task=registry.task))
        registry.promote(artifact.digest, NOW)
        links = Links(registry)
        async with opened(Service(DeployConfig(), links, links, lambda: NOW)) as http:
            steps = [{"episode": f"e{i}", "t": 0, "observation": row} for i, row in enumerate(rows.tolist())]
            answer = await http.post("/v1/act", json={"steps": steps})
        assert answer.status_code == 200, answer.text
        given = answer.json()["decisions"]
        uniform = draws([draw_key(registry.keys.run, row["episode"]) for row in given], [0] * len(given), 1)
    assert {decision["digest"] for decision in given} == {artifact.digest}
    # what was drawn, and how likely it was, fix mean and deviation
    normal, raw = ndtri(uniform[:, 0]), np.array([decision["raw_action"][0] for decision in given])
    log_deviations = -np.array([row["logp"] for row in given]) - 0.5 * normal**2 - 0.5 * np.log(2 * np.pi)
    expected = in_training(algorithm, rows)
    np.testing.assert_allclose(raw - np.exp(log_deviations) * normal, expected[:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_deviations, expected[:, 1], rtol=0, atol=1e-5)


async def test_an_export_that_lost_its_filter_is_released_by_nobody(algorithm: Any, tmp_path: Path) -> None:
    from flywheel.train.rllib.export import Exporter, answered, golden
    from flywheel.train.rllib.filtering import Filter

    module, filter = algorithm.get_module(), Filter(algorithm.env_runner._env_to_module)
    seen = filter.filtered(golden(module, SPEC)[0])
    weights = {name: np.array(value) for name, value in module.get_state(inference_only=False).items()}
    lost = pack(
        network=Exporter(module, SPEC).network(weights), weights={}, spec=SPEC,
        golden=(golden(module, SPEC)[0], answered(module, seen)), filtered=(filter.name, seen), version=2, parent=None,
        trained_on={}, made_at=0.0,
    )  # fmt: skip
    said = "has lost its observation filter MeanStdFilter"
    with contextlib.closing(Registry(tmp_path, task_digest(pendulum))) as registry:
        good, wrong = registry.write(*files_of(algorithm)), registry.write(*lost)
        verdict = SafetyGate(pendulum, GateConfig(workers=1)).judge(registry.bundle(wrong.digest), seed=1, now=NOW)
        assert verdict.outcome == "inconclusive" and said in verdict.checks[0].note
        registry.record(verdict)
        with pytest.raises(Refused, match="only a policy that passed is"):
            registry.promote(wrong.digest, NOW)

        registry.record(verdict_on(good, task=registry.task))
        registry.promote(good.digest, NOW)
        links = Links(registry)
        service = Service(DeployConfig(poll_s=60.0), links, links, lambda: NOW)
        async with opened(service):
            registry.record(verdict_on(wrong, task=registry.task, baseline=good.digest))  # as no gate would give it
            registry.promote(wrong.digest, NOW)
            status = await service.reload()
        assert status["digest"] == good.digest and said in status["trouble"]


def test_what_an_export_can_not_hold_is_named(algorithm: Any) -> None:
    from ray.rllib.connectors.env_to_module import FlattenObservations

    from flywheel.train.rllib.filtering import Filter

    pipeline = algorithm.env_runner._env_to_module
    flattening = FlattenObservations()
    pipeline.connectors.insert(0, flattening)
    try:
        with pytest.raises(Refused, match="through FlattenObservations"):
            Filter(pipeline)
    finally:
        pipeline.connectors.remove(flattening)
