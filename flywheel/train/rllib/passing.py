"""`train.rllib`: settings that go through to RLlib's own configuration, and why some don't.

What Flywheel sets itself is refused with the name of its own setting, what would have no effect is refused as well.
`python -m flywheel.train.rllib.passing` answers that before Ray is started: for a TrainConfig in JSON on standard input
it prints what is wrong with it, and exits with 2 then. The process that asks needn't import RLlib for it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.utils.from_config import NotProvided

from flywheel.config import TrainConfig
from flywheel.errors import UsageError, unknown
from flywheel.train.rllib.appo import LeanAPPOLearner
from flywheel.train.rllib.dqn import LeanDQNLearner
from flywheel.train.rllib.learner import LeanPPOLearner
from flywheel.train.rllib.named import meant
from flywheel.train.rllib.sac import LeanSACLearner
from flywheel.train.running import HOOKS, is_own

_LEARNERS: Mapping[str, tuple[type[AlgorithmConfig], type]] = {
    "ppo": (PPOConfig, LeanPPOLearner),
    "appo": (PPOConfig, LeanAPPOLearner),
    "dqn": (DQNConfig, LeanDQNLearner),
    "sac": (SACConfig, LeanSACLearner),
}
_LEARNER = "the learner is the trainer's own process, on the CPU"
_NETWORK = "what is served is the network alone, so let the environment do it"
_SPACES = "the task says what is observed and done"
OURS: Mapping[str, str] = {
    "lr": "set train.lr, lr_warm and lr_end",
    "actor_lr": "set train.lr",
    "critic_lr": "set train.lr",
    "alpha_lr": "set train.lr",
    "gamma": "set train.gamma",
    "lambda_": "set train.lambda_",
    "entropy_coeff": "set train.entropy, which a Plan may multiply",
    "num_epochs": "set train.num_epochs",
    "minibatch_size": "set train.minibatch_size",
    "train_batch_size": "set train.num_runners, worlds_per_runner and steps_per_world",
    "train_batch_size_per_learner": "set train.num_runners, worlds_per_runner and steps_per_world",
    "num_env_runners": "set train.num_runners",
    "num_envs_per_env_runner": "set train.worlds_per_runner",
    "rollout_fragment_length": "set train.steps_per_world",
    "model": "set train.hidden and train.activation",
    "vf_share_layers": "policy and critic share no layers, so that a policy is exported without its critic",
    "n_step": "set train.replay.num_steps",
    "tau": "set train.replay.target_rate or target_every",
    "target_network_update_freq": "set train.replay.target_every",
    "replay_buffer_config": "set train.replay",
    "num_steps_sampled_before_learning_starts": "set train.replay.begin_at",
    "training_intensity": "set train.replay.samples_per_insert",
    "epsilon": "set train.replay.epsilon",
    "seed": "set seed",
    "num_cpus_per_env_runner": "each claims half a CPU, which the preflight check counts on",
    "custom_resources_per_env_runner": "set sim_resource",
    "restart_failed_env_runners": "a runner that died comes back, whatever else",
    "ignore_env_runner_failures": "a runner that died comes back, whatever else",
    "num_consecutive_env_runner_failures_tolerance": "three iterations without a step end a round",
    "restart_failed_sub_environments": "a world that fails is made anew, whatever else",
    "min_train_timesteps_per_iteration": "Flywheel's learners don't count those steps; set train.probe_every",
    "keep_per_episode_custom_metrics": "only RLlib's old stack reads it",
    "metrics_episode_collection_timeout_s": "only RLlib's old stack reads it",
    "log_gradients": "Flywheel keeps of RLlib's metrics the loss's parts alone",
    "custom_stats_cls_lookup": "Flywheel keeps of RLlib's metrics the loss's parts alone",
    "env_runner_cls": "set train.runner",
    "env_to_module_connector": f"{_NETWORK} (gymnasium.ObservationWrapper)",
    "module_to_env_connector": f"{_NETWORK} (gymnasium.ActionWrapper)",
    "observation_filter": f"RLlib's new stack reads none, and {_NETWORK} (gymnasium.ObservationWrapper)",
    "explore": "a Plan says how much is explored",
    "merge_env_runner_states": "runners have no connectors with states",
    "broadcast_env_runner_states": "runners have no connectors with states",
    "use_env_runner_state_server": "only RLlib's IMPALA has one",
    "env_runner_state_server_max_concurrency": "only RLlib's IMPALA has one",
    "num_gpus_per_env_runner": "policies act on the CPU",
    "delay_between_env_runner_restarts_s": "a runner comes back after a second",
    "metrics_num_episodes_for_smoothing": "the return is of the last 50 training episodes that no edge case began",
    "twin_q": "SAC has two critics here",
}
"""Settings of RLlib's that Flywheel gives itself, and what to do instead."""
_REASONS = {
    "environment": _SPACES,
    "env_runners": "only connectors and RLlib's own buffers read it, and Flywheel has none of them",
    "learners": _LEARNER,
    "rl_module": "DQN's and SAC's networks are Flywheel's: set train.hidden and train.activation",
    "evaluation": "the gate tries policies",
    "offline_data": "the store holds production's episodes",
    "multi_agent": _SPACES,
    "callbacks": "it would never be called: the gate tries policies, and artifacts are kept instead of checkpoints",
    "resources": _LEARNER,
    "framework": _LEARNER,
    "debugging": "Flywheel has its own log",
    "checkpointing": "a policy is kept as an artifact",
    "experimental": "RLlib's experiments are not tried here",
    "api_stack": "Flywheel is written for RLlib's new one",
    "python_environment": "Ray's runtime_env says it",
    "exploration": "a Plan says how much is explored",
}
"""RLlib's methods that take settings, and why Flywheel passes nothing to them but what is in _OPEN."""
_OPEN: Mapping[str, frozenset[str]] = {
    "fault_tolerance": frozenset({
        "max_num_env_runner_restarts", "env_runner_health_probe_timeout_s", "env_runner_restore_timeout_s",
    }),
    "reporting": frozenset({"min_time_s_per_iteration", "min_sample_timesteps_per_iteration"}),
    "env_runners": frozenset({
        "sample_timeout_s", "validate_env_runners_after_construction", "batch_mode", "gym_env_vectorize_mode",
    }),
    "callbacks": frozenset({
        *HOOKS, "callbacks_class", "on_algorithm_init", "on_train_result", "on_env_runners_recreated",
    }),
}  # fmt: skip
"""Settings that go through whatever the learner, by method."""
_OTHERS = {
    "max_requests_in_flight_per_env_runner": "only APPO asks its runners ahead",
    "learner_connector": "only PPO's learner has RLlib's connectors",
}
"""Settings that go through to one algorithm, and why not to the others."""
_NETWORKS = frozenset({"rl_module_spec", "model_config"})
_RLLIBS_PPO = frozenset({"use_kl_loss", "kl_coeff", "kl_target", "vf_clip_param", "grad_clip_by"})
"""What RLlib's own PPO learner reads."""
_BUILT_WITH = {"sac": frozenset({"initial_alpha"})}
"""What RLlib itself reads for the learner that ours is made of."""


def passed(ready: AlgorithmConfig, config: TrainConfig) -> AlgorithmConfig:
    """Return RLlib's configuration with `train.rllib` over it.

    Raises UsageError, which names the setting, for one that RLlib doesn't have (with the nearest), that Flywheel sets
    itself, that would have no effect, whose value is of another kind, or that asks for what `train.runner` rules out.
    """
    is_own(config)
    methods, free = _methods(ready), _open(ready, config.algorithm)
    for name, value in config.rllib.items():
        method = methods.get(name)
        if method is None:
            raise unknown(f"setting of RLlib's {config.algorithm}:", name, free)
        if name not in free:
            raise UsageError(f"train.rllib can't set RLlib's {name}: {_why(name, method, config.algorithm)}.")
        _check_kind(name, value, getattr(ready, name, None))
        try:
            getattr(ready, method)(**{name: meant(ready, name, value)})
        except UsageError:
            raise
        except Exception as error:  # RLlib's own word on a value, or on a setting that it only remembers the name of
            raise UsageError(f"RLlib refuses {name} = {value!r} of train.rllib: {error}") from error
    return ready


def plain(config: TrainConfig) -> AlgorithmConfig:
    """Return RLlib's configuration of the algorithm with our learner, before anything is known of a task."""
    kind, learner = _LEARNERS[config.algorithm]
    return kind().learners(learner_class=learner)


def _open(ready: AlgorithmConfig, algorithm: str) -> set[str]:
    """Return the names of the settings that have an effect and are nobody else's."""
    methods, read = _methods(ready), _read(ready) | _BUILT_WITH.get(algorithm, frozenset())
    others: frozenset[str] = frozenset()
    if algorithm == "ppo":
        read, others = read | _RLLIBS_PPO, _NETWORKS | {"learner_connector"}
    elif algorithm == "appo":  # its loss is the clipped surrogate alone
        read -= _RLLIBS_PPO | {"use_critic", "shuffle_batch_per_epoch"}
        others = _NETWORKS | {"max_requests_in_flight_per_env_runner"}
    found = set()
    for name, method in methods.items():
        free = _OPEN.get(method, frozenset()) | others
        if name not in OURS and ((method == "training" and name in read) or name in free):
            found.add(name)
    return found


def _why(name: str, method: str, algorithm: str) -> str:
    if (known := {**OURS, **_OTHERS}.get(name)) is not None:
        return known
    return _REASONS.get(method, f"Flywheel's learner of {algorithm} doesn't read it, so it would have no effect")


def _read(ready: AlgorithmConfig) -> set[str]:
    """Return what a learner reads of its configuration: it says `config.NAME` where it does."""
    source = "".join(
        inspect.getsource(sys.modules[kind.__module__])
        for kind in ready.learner_class.__mro__
        if kind.__module__.startswith("flywheel.")
    )
    return set(re.findall(r"\bconfig\.(\w+)", source))


def _methods(ready: AlgorithmConfig) -> dict[str, str]:
    """Return by the name of each of RLlib's settings the method that takes it."""
    named = {name: method for method in ("training", *_REASONS, *_OPEN) for name in _parameters(ready, method)}
    return {**named, "callbacks_class": "callbacks"}


def _parameters(ready: AlgorithmConfig, method: str) -> Iterator[str]:
    """Yield the names that a method takes, those of the classes that it passes others on to among them."""
    for kind in type(ready).__mro__:
        if method in vars(kind):
            for parameter in inspect.signature(vars(kind)[method]).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is NotProvided:  # else deprecated
                    yield parameter.name


def _check_kind(name: str, value: Any, usual: Any) -> None:
    """Raise UsageError for a value that is no number where one is usual, or no bool where that is."""
    if value is None or not isinstance(usual, bool | int | float):
        return
    if isinstance(value, bool) != isinstance(usual, bool) or not isinstance(value, bool | int | float):
        raise UsageError(f"train.rllib gives RLlib's {name} the value {value!r}, where it is usually {usual!r}.")


def main() -> int:
    """Print what is wrong with the TrainConfig on standard input, and return 2, or 0 where all goes through."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainConfig)
    try:
        passed(plain(config), config)
    except UsageError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
