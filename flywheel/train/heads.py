"""What actions are drawn from, in NumPy: draws, log probabilities, entropies, and their slopes in a network's outputs.

The same numbers as RLlib's distributions for the same outputs, float32 throughout.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array, Spec
from flywheel.train.nets import Floats

_HALF_LOG_TAU = np.float32(0.5 * math.log(2.0 * math.pi))


class Spread(Protocol):
    """A distribution for each row of outputs."""

    def draw(self, rng: np.random.Generator) -> tuple[Array, Floats]:
        """Return drawn actions [N, *a] and their log probabilities float32[N]."""

    def logps(self, actions: Array) -> Floats:
        """Return log probabilities float32[N] of actions [N, *a]."""

    def entropies(self) -> Floats:
        """Return entropies float32[N]."""

    def slopes(self, actions: Array, of_logps: Floats, of_entropies: float) -> Floats:
        """Return a loss's gradient in the outputs float32[N, D].

        `of_logps` float32[N] is the one in these actions' log probabilities, `of_entropies` that in every entropy.
        """


class Choice:
    """One of a few actions: softmax of the logits."""

    def __init__(self, logits: Floats) -> None:
        """Take logits float32[N, A]."""
        columns = np.ascontiguousarray(logits.T)  # sums over a short last axis are slow
        columns -= np.maximum.reduce(columns)
        powers = np.exp(columns)
        total = np.add.reduce(powers)
        self._chances: Floats = powers / total
        self._logs: Floats = columns - np.log(total)
        self._rows = np.arange(len(logits))

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        """Return drawn actions int64[N] and their log probabilities float32[N]."""
        reached = np.add.accumulate(self._chances)
        actions = np.add.reduce(reached[:-1] <= rng.random(len(self._rows), np.float32), 0, dtype=np.int64)
        return actions, self._logs[actions, self._rows]

    def logps(self, actions: Array) -> Floats:
        """Return log probabilities float32[N] of actions int[N]."""
        found: Floats = self._logs[actions, self._rows]
        return found

    def entropies(self) -> Floats:
        """Return entropies float32[N], in nats."""
        found: Floats = -np.add.reduce(self._chances * self._logs)
        return found

    def slopes(self, actions: Array, of_logps: Floats, of_entropies: float) -> Floats:
        """Return a loss's gradient in the logits float32[N, A].

        That of log p_a is 1_a - p, that of the entropy H is -p (log p + H).
        """
        found = self._chances * -of_logps
        found[actions, self._rows] += of_logps
        if of_entropies:
            found -= np.float32(of_entropies) * self._chances * (self._logs + self.entropies())
        return found.T


class Choices:
    """One of a few actions in each of several parts."""

    def __init__(self, logits: Floats, nvec: tuple[int, ...]) -> None:
        """Take logits float32[N, sum of nvec]."""
        self._parts = [Choice(part) for part in np.split(logits, np.cumsum(nvec)[:-1], axis=1)]

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
        """Return drawn actions int64[N, K] and their log probabilities float32[N]."""
        drawn = [part.draw(rng) for part in self._parts]
        return np.stack([actions for actions, _ in drawn], axis=1), np.add.reduce([logps for _, logps in drawn])

    def logps(self, actions: Array) -> Floats:
        """Return log probabilities float32[N] of actions int[N, K]."""
        found: Floats = np.add.reduce([part.logps(actions[:, k]) for k, part in enumerate(self._parts)])
        return found

    def entropies(self) -> Floats:
        """Return entropies float32[N], in nats."""
        found: Floats = np.add.reduce([part.entropies() for part in self._parts])
        return found

    def slopes(self, actions: Array, of_logps: Floats, of_entropies: float) -> Floats:
        """Return a loss's gradient in the logits float32[N, sum of nvec]."""
        parts = [part.slopes(actions[:, k], of_logps, of_entropies) for k, part in enumerate(self._parts)]
        return np.concatenate(parts, axis=1)


class Bell:
    """Independent Gaussians: outputs are means, then the logarithms of deviations."""

    def __init__(self, outputs: Floats, widest: float = np.inf) -> None:
        """Take outputs float32[N, 2 A]; logarithms are clipped to -widest and widest, where their slope is 0."""
        half = outputs.shape[1] // 2
        self._means, logs = outputs[:, :half], outputs[:, half:]
        self._logs: Floats = np.clip(logs, np.float32(-widest), np.float32(widest))
        self._is_inside = np.abs(logs) <= widest
        self._deviations: Floats = np.exp(self._logs)

    def draw(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return drawn actions float32[N, A] and their log probabilities float32[N]."""
        actions: Floats = self._means + self._deviations * rng.standard_normal(self._means.shape, np.float32)
        return actions, self.logps(actions)

    def logps(self, actions: Array) -> Floats:
        """Return log probabilities float32[N] of actions float32[N, A]."""
        away = (actions - self._means) / self._deviations
        found: Floats = np.add.reduce(np.float32(-0.5) * away * away - self._logs - _HALF_LOG_TAU, 1)
        return found

    def entropies(self) -> Floats:
        """Return entropies float32[N], in nats."""
        found: Floats = np.add.reduce(self._logs + (np.float32(0.5) + _HALF_LOG_TAU), 1)
        return found

    def slopes(self, actions: Array, of_logps: Floats, of_entropies: float) -> Floats:
        """Return a loss's gradient in the outputs float32[N, 2 A]: of a distance d, d / s in mean, d² - 1 in log s."""
        away, each = (actions - self._means) / self._deviations, of_logps[:, None]
        in_logs = each * (away * away - np.float32(1.0)) + np.float32(of_entropies)
        return np.concatenate([each * away / self._deviations, in_logs * self._is_inside], axis=1)


def spread(spec: Spec, outputs: Floats, widest: float = np.inf) -> Spread:
    """Return what actions of this spec are drawn from in training, from outputs float32[N, D]."""
    if spec.action_kind == "discrete":
        return Choice(outputs)
    if spec.action_kind == "multi_discrete":
        return Choices(outputs, spec.action_nvec)
    return Bell(outputs, widest)
