"""What a policy's critic expected: computed from the weights beside it, which serving never loads. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array

Values = Callable[[Array], NDArray[np.float64]]
"""observations [N, *o] -> the critic's estimate of the discounted return from there, in the rewards of training."""

_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {"tanh": np.tanh, "relu": lambda rows: np.maximum(rows, 0.0)}
_ENCODER, _HEAD = "encoder.critic_encoder.net.mlp.", "vf.net.mlp."


def critic(weights: Mapping[str, Array], activation: str = "tanh") -> Values | None:
    """Return the value estimate of a policy's weights; None where they hold no critic that is known here.

    Known is RLlib's default one: its own encoder of dense layers with tanh or relu, and a linear head.
    """
    between = _ACTIVATIONS[activation]
    layers = [*_layers(weights, _ENCODER), *_layers(weights, _HEAD)]
    used = {name for name in weights if name.startswith((_ENCODER, _HEAD))}
    if len(used) != 2 * len(layers) or len(layers) < 2 or layers[-1][0].shape[0] != 1:
        return None

    def values(observations: Array) -> NDArray[np.float64]:
        rows = np.asarray(observations, dtype=np.float64).reshape(len(observations), -1)
        for matrix, bias in layers[:-1]:
            rows = between(rows @ matrix.T + bias)
        matrix, bias = layers[-1]
        return np.asarray(rows @ matrix.T + bias)[:, 0]

    return values


def _layers(weights: Mapping[str, Array], prefix: str) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    numbers = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix)})
    names = [(f"{prefix}{number}.weight", f"{prefix}{number}.bias") for number in numbers]
    return [
        (np.asarray(weights[matrix], np.float64), np.asarray(weights[bias], np.float64))
        for matrix, bias in names
        if matrix in weights and bias in weights
    ]
