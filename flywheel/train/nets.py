"""Small fully connected networks in NumPy: what they answer, and the gradient of a loss in their weights. No torch.

For two layers of 64 and some hundred rows a framework spends most of its time on deciding what to call: here a whole
step down a loss takes a tenth of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import FlywheelError

Floats = NDArray[np.float32]
Layers = Sequence[tuple[Floats, Floats]]
"""(weights float32[out, in], biases float32[out]) of each layer, as torch has them."""
Activation = Literal["tanh", "relu"]
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's usual ones, and torch's


def layers_in(vector: Floats, sizes: Sequence[int], begin: int = 0) -> tuple[Layers, int]:
    """Return the layers between these sizes as views of a vector float32[P] from `begin` on, and where they end."""
    layers = []
    for num_in, num_out in pairwise(sizes):
        middle = begin + num_in * num_out
        layers.append((vector[begin:middle].reshape(num_out, num_in), vector[middle : middle + num_out]))
        begin = middle + num_out
    return layers, begin


def run(layers: Layers, activation: Activation, rows: Floats) -> list[Floats]:
    """Return what each layer reads of rows float32[N, D], and last what the network answers, float32[N, out]."""
    passed = [rows]
    for weights, biases in layers[:-1]:
        hidden = passed[-1] @ weights.T
        hidden += biases
        if activation == "tanh":
            np.tanh(hidden, out=hidden)
        else:
            np.maximum(hidden, np.float32(0.0), out=hidden)
        passed.append(hidden)
    weights, biases = layers[-1]
    answer = passed[-1] @ weights.T
    answer += biases
    passed.append(answer)
    return passed


def answers(layers: Layers, activation: Activation, rows: Floats) -> Floats:
    """Return what a network answers to rows float32[N, D]: float32[N, out]."""
    return run(layers, activation, rows)[-1]


def trace_back(
    layers: Layers, gradients: Layers, activation: Activation, passed: Sequence[Floats], slopes: Floats
) -> None:
    """Write a loss's gradient into `gradients`, where `slopes` float32[N, out] is the one in the answers of `run`."""
    for k in range(len(layers) - 1, -1, -1):
        seen, (of_weights, of_biases) = passed[k], gradients[k]
        np.matmul(slopes.T, seen, out=of_weights)
        np.add.reduce(slopes, 0, out=of_biases)
        if not k:
            return
        slopes = slopes @ layers[k][0]
        if activation == "tanh":
            flat = seen * seen
            np.subtract(np.float32(1.0), flat, out=flat)
            slopes *= flat
        else:
            slopes *= seen > 0.0


class Adam:
    """Adam over one vector (Kingma and Ba 2015, algorithm 1), the numbers those of torch.optim.Adam."""

    def __init__(self, first: Floats, second: Floats, num_steps: int) -> None:
        """Go on with moments float32[P], which are changed in place, after `num_steps` steps."""
        self.first, self.second, self.num_steps = first, second, num_steps
        self._spare: Floats = np.empty_like(first)

    def step(self, vector: Floats, gradient: Floats, lr: float) -> None:
        """Move a vector float32[P] in place against its gradient."""
        self.num_steps += 1
        spare, (slow, slower) = self._spare, _BETAS
        for moment, beta in ((self.first, slow), (self.second, slower)):
            moment *= np.float32(beta)
            np.multiply(gradient, np.float32(1.0 - beta), out=spare)
            if moment is self.second:
                spare *= gradient
            moment += spare
        np.sqrt(self.second, out=spare)
        spare *= np.float32((1.0 - slower**self.num_steps) ** -0.5)
        spare += np.float32(_EPSILON)
        np.divide(self.first, spare, out=spare)
        spare *= np.float32(lr / (1.0 - slow**self.num_steps))
        vector -= spare


def shorten(gradient: Floats, longest: float | None) -> None:
    """Scale a gradient in place so that its norm is `longest` at most, as torch's clip_grad_norm_ does.

    Raises FlywheelError when it is not finite.
    """
    norm = float(np.dot(gradient, gradient)) ** 0.5
    if not np.isfinite(norm):
        raise FlywheelError(
            "Training broke down: its gradient is no longer finite. Rewards or observations are too large for the "
            "network: set train.reward_scale, or a smaller train.lr."
        )
    if longest is not None and norm + 1e-6 > longest:
        gradient *= np.float32(longest / (norm + 1e-6))
