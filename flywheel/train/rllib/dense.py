"""RLlib's default networks as plain layers, where they are no more than that; and played steps as RLlib's episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.models.torch.encoder import TorchActorCriticEncoder, TorchMLPEncoder
from ray.rllib.core.models.torch.heads import TorchMLPHead
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from flywheel.train.nets import Activation, Floats, Layers
from flywheel.train.tape import Played

_NAMES: dict[type, Activation] = {torch.nn.Tanh: "tanh", torch.nn.ReLU: "relu"}


@dataclass(frozen=True, slots=True)
class Dense:
    """One network: an encoder and a head."""

    parameters: tuple[torch.nn.Parameter, ...]
    """Weights and biases of one layer after another."""
    sizes: tuple[int, ...]
    """Numbers that each layer reads, and last what the network answers."""
    activation: Activation
    widest: float
    """Where the head clips the logarithms of deviations."""

    @property
    def layers(self) -> Layers:
        """Views of the weights: they are the module's, also after these were set anew."""
        arrays: list[Floats] = [parameter.detach().numpy() for parameter in self.parameters]
        return list(zip(arrays[::2], arrays[1::2], strict=True))


def actor_of(module: Any) -> Dense | None:
    """Return the layers of PPO's policy; None where it is something else, or more than layers."""
    return _dense(module, "actor_encoder", "pi")


def critic_of(module: Any) -> Dense | None:
    """Return the layers of PPO's critic; None where it shares some with the policy, or is more than layers."""
    return _dense(module, "critic_encoder", "vf")


def _dense(module: Any, encoder: str, head: str) -> Dense | None:
    if type(module) is not DefaultPPOTorchRLModule or type(module.encoder) is not TorchActorCriticEncoder:
        return None
    parts: tuple[Any, Any] = getattr(module.encoder, encoder, None), getattr(module, head)
    if (type(parts[0]), type(parts[1])) != (TorchMLPEncoder, TorchMLPHead):
        return None
    steps = [step for part in parts for step in part.net.mlp]
    linear, between = steps[::2], steps[1::2]
    kinds = {type(step) for step in between}
    plain = all(type(step) is torch.nn.Linear and step.bias is not None for step in linear)
    if not plain or len(kinds) != 1 or not kinds <= set(_NAMES) or len(linear) != len(between) + 1:
        return None
    parameters = tuple(parameter for step in linear for parameter in (step.weight, step.bias))
    if any(parameter.device.type != "cpu" or parameter.dtype != torch.float32 for parameter in parameters):
        return None
    widest = float(parts[1].log_std_clip_param) if parts[1].clip_log_std else np.inf
    sizes = (*(step.in_features for step in linear), linear[-1].out_features)
    return Dense(parameters, sizes, _NAMES[kinds.pop()], widest)


def episodes_of(
    played: Played, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]
) -> list[SingleAgentEpisode]:
    """Return each run as RLlib's episode (or a chunk of one) of T + 1 observations."""
    stops = np.cumsum(played.lengths)
    chunks = []
    for run, (begin, end) in enumerate(pairwise([0, *stops.tolist()])):
        steps = slice(begin, end)
        chunk = SingleAgentEpisode(
            observations=played.observations[begin + run : end + run + 1],
            actions=played.actions[steps],
            rewards=played.rewards[steps],
            infos=[{}] * (end - begin + 1),
            terminated=bool(played.terminated[run]),
            truncated=bool(played.truncated[run]),
            extra_model_outputs={"action_dist_inputs": played.outputs[steps], "action_logp": played.logps[steps]},
            observation_space=observation_space,
            action_space=action_space,
            len_lookback_buffer=0,
        )
        chunks.append(chunk.to_numpy())
    return chunks


def played_of(chunks: Sequence[SingleAgentEpisode]) -> Played:
    """Return RLlib's episodes, or chunks of them, as columns, one run each."""
    columns = {
        "observations": [np.asarray(chunk.get_observations(), np.float32) for chunk in chunks],
        "actions": [chunk.get_actions() for chunk in chunks],
        "outputs": [chunk.get_extra_model_outputs("action_dist_inputs") for chunk in chunks],
        "logps": [chunk.get_extra_model_outputs("action_logp") for chunk in chunks],
        "rewards": [np.asarray(chunk.get_rewards(), np.float64) for chunk in chunks],
    }
    return Played(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        lengths=np.array([len(chunk) for chunk in chunks]),
        terminated=np.array([chunk.is_terminated for chunk in chunks]),
        truncated=np.array([chunk.is_truncated for chunk in chunks]),
    )
