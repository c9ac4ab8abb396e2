"""RLlib's observation filter, frozen as it is when a policy is exported, and a part of its network from then on.

What is served is the network alone: whatever RLlib does to observations before them has to be in it, or be refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.common.add_observations_from_episodes_to_batch import AddObservationsFromEpisodesToBatch
from ray.rllib.connectors.common.add_states_from_episodes_to_batch import AddStatesFromEpisodesToBatch
from ray.rllib.connectors.common.add_time_dim_to_batch_and_zero_pad import AddTimeDimToBatchAndZeroPad
from ray.rllib.connectors.common.batch_individual_items import BatchIndividualItems
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.utils.numpy import SMALL_NUMBER

from flywheel.errors import Refused
from flywheel.records import Array

_CARRY = (
    AddObservationsFromEpisodesToBatch, AddTimeDimToBatchAndZeroPad, AddStatesFromEpisodesToBatch,
    BatchIndividualItems, NumpyToTensor,
)  # fmt: skip
"""Connectors that leave the numbers of an observation as they are, for a policy without memory."""


class Filter(torch.nn.Module):
    """What an algorithm does to observations before its module sees them; it learns nothing any more."""

    def __init__(self, pipeline: Any) -> None:
        """Freeze an algorithm's env-to-module pipeline; raise Refused naming a connector that can't be."""
        super().__init__()
        filters = [connector for connector in pipeline.connectors if isinstance(connector, MeanStdFilter)]
        others = {type(connector).__name__ for connector in pipeline.connectors if connector not in filters}
        if strange := sorted(others - {connector.__name__ for connector in _CARRY}):
            raise Refused(
                f"Observations go through {', '.join(strange)} before this policy sees them, which no export holds: do "
                "the same in the environment, and train without it."
            )
        self.name = "+".join(type(connector).__name__ for connector in filters)
        self._own = [_own(connector) for connector in filters]
        for i, own in enumerate(self._own):
            mean, deviation = np.zeros(own.shape), np.ones(own.shape)
            if own.demean:
                mean = own.running_stats.mean
            if own.destd:
                deviation = own.running_stats.std + SMALL_NUMBER
            for kind, values in (("mean", mean), ("deviation", deviation)):
                self.register_buffer(f"{kind}{i}", torch.as_tensor(np.ravel(values), dtype=torch.float64))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return filtered observations float32[N, o]; computed in float64 in between, as RLlib does."""
        for i, own in enumerate(self._own):
            wide = (observations.double() - getattr(self, f"mean{i}")) / getattr(self, f"deviation{i}")
            observations = (wide.clamp(-own.clip, own.clip) if own.clip else wide).float()
        return observations

    def filtered(self, rows: Array) -> Array:
        """Return what RLlib's own filters make of observations [N, *o], which they learn nothing from."""
        rows = np.asarray(rows, dtype=np.float32)
        for own in self._own:
            rows = np.stack([own(row, update=False) for row in rows])
        return rows


def _own(connector: Any) -> Any:
    """Return RLlib's own filter of a connector; raise Refused where it has several, for nested observations."""
    connector.get_state()  # makes it, where it has seen nothing yet
    (own,) = connector._filters.values()
    if not isinstance(own.shape, np.ndarray):
        raise Refused(
            f"{type(connector).__name__} filters nested observations part by part, which no export holds: let the "
            "environment flatten them (gymnasium.wrappers.FlattenObservation), and train on those."
        )
    return own
