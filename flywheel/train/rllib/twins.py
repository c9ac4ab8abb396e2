"""SAC's networks: an actor, and two critics that are computed as one.

RLlib's critics encode observation and action apart and join them in three layers of 256 units, each critic by itself;
four forward and three backward passes of these took most of an update. Here both critics are one stack of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

LOG_DEVIATIONS = (-5.0, 2.0)
"""Between which RLlib holds the log of a deviation; the exported network holds it there, too."""
_ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class Twins(torch.nn.Module):
    """Two networks of the same layers and different weights, as one: each layer is a product of stacked matrices."""

    def __init__(self, sizes: Sequence[int], activation: str) -> None:
        """Draw weights as torch does for one linear layer: uniform within 1 / sqrt(inputs)."""
        super().__init__()
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for num_in, num_out in pairwise(sizes):
            bound = 1.0 / math.sqrt(num_in)
            self.weights.append(torch.nn.Parameter(torch.empty(2, num_in, num_out).uniform_(-bound, bound)))
            self.biases.append(torch.nn.Parameter(torch.empty(2, 1, num_out).uniform_(-bound, bound)))
        self._between = _ACTIVATIONS[activation]()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return both values of each row, float32[2, N], for rows float32[N, D]."""
        values = rows.expand(2, *rows.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, self._between(values) if i else values, weight)
        return values.squeeze(-1)


class PiModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, QNetAPI):  # type: ignore[misc]
    """A squashed Gaussian actor `pi`, and critics `qf` with their slow copies `target_qf`, for flat observations."""

    framework = "torch"
    noise = 0.0
    """What runners add to the logarithm of each deviation."""

    def setup(self) -> None:
        """Draw fresh weights; runners have the actor alone."""
        (num_seen,), (num_acts,) = self.observation_space.shape, self.action_space.shape
        hidden, activation = self.model_config["fcnet_hiddens"], self.model_config["fcnet_activation"]
        layers: list[torch.nn.Module] = []
        for num_in, num_out in pairwise([num_seen, *hidden]):
            layers += [torch.nn.Linear(num_in, num_out), _ACTIVATIONS[activation]()]
        self.pi = torch.nn.Sequential(*layers, torch.nn.Linear([num_seen, *hidden][-1], 2 * num_acts))
        if not self.inference_only:
            self.qf = Twins([num_seen + num_acts, *hidden, 1], activation)

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log deviation float32[N, a] of what is squashed into an action."""
        mean, log_deviation = self.pi(observations).chunk(2, dim=-1)
        return mean, log_deviation.clamp(*LOG_DEVIATIONS)

    def drawn(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return actions float32[N, a] within -1 and 1, and their log probabilities float32[N], both with gradients.

        The density of tanh(u) is u's over 1 - tanh(u)^2 = 4 / (e^u + e^-u)^2 (Haarnoja et al. 2018, appendix C).
        """
        mean, log_deviation = self.outputs(observations)
        noise = torch.randn_like(mean)
        raw = mean + log_deviation.exp() * noise
        log_slopes = 2.0 * (math.log(2.0) - raw - torch.nn.functional.softplus(-2.0 * raw))
        logps = -0.5 * noise**2 - log_deviation - 0.5 * math.log(2.0 * math.pi) - log_slopes
        return torch.tanh(raw), logps.sum(dim=-1)

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: torch.cat(self.outputs(batch[Columns.OBS]), dim=-1)}

    _forward = _forward_train = _forward_inference

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        mean, log_deviation = self.outputs(batch[Columns.OBS])
        wider = (log_deviation + self.noise).clamp(*LOG_DEVIATIONS)
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mean, wider], dim=-1)}

    def compute_q_values(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the lower one of both critics' values, float32[N]."""
        values: torch.Tensor = self.qf(torch.cat([batch[Columns.OBS], batch[Columns.ACTIONS]], dim=-1)).amin(dim=0)
        return values

    def forward_target(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the lower one of both slow copies' values, float32[N]."""
        rows = torch.cat([batch[Columns.OBS], batch[Columns.ACTIONS]], dim=-1)
        values: torch.Tensor = self.target_qf(rows).amin(dim=0)
        return values

    def make_target_networks(self) -> None:
        """Begin the slow copies as the critics are."""
        self.target_qf = make_target_network(self.qf)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """Return the critics beside their slow copies."""
        return [(self.qf, self.target_qf)]

    def get_non_inference_attributes(self) -> list[str]:
        """Return what runners don't need."""
        return ["qf", "target_qf"]
