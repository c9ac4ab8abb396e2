"""PPO's update in NumPy: advantages of what was played, and steps of Adam down the clipped surrogate. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array
from flywheel.train.heads import Spread
from flywheel.train.nets import Activation, Adam, Floats, answers, layers_in, run, shorten, trace_back
from flywheel.train.tape import Played


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is descended, and how."""

    clip: float
    value_weight: float
    entropy: float
    longest: float | None
    """Norm of the longest gradient; None is any."""
    lr: float
    num_epochs: int
    minibatch_size: int


def advantages(
    played: Played, values: Floats, gamma: float, lambda_: float, ratios: Floats | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each step's advantage and the critic's target, float64[S], from its values float32[S + R] of every row.

    Generalized advantage estimation (Schulman et al. 2016, equation 16); a run that goes on has the critic's value
    after its last step. `ratios` float32[S] say how much likelier another policy makes each action than the one that
    chose it: then it is that one's, by V-trace, where each error counts by its truncated ratio, and so does what comes
    after it (Espeholt et al. 2018, equation 1, with lambda as in its remark 2): v_t - V(x_t).
    """
    last, before = played.last, played.before
    after = values[before + 1].astype(np.float64)
    after[last[played.terminated]] = 0.0
    errors = played.rewards + gamma * after - values[before]
    keeps = np.full(len(errors), gamma * lambda_)
    keeps[last] = 0.0
    if ratios is not None:
        weights = np.minimum(1.0, ratios.astype(np.float64))
        errors, keeps = weights * errors, weights * keeps
    found, ahead = np.empty_like(errors), 0.0
    for t, (error, keep) in enumerate(zip(errors[::-1].tolist(), keeps[::-1].tolist(), strict=True)):
        found[t] = ahead = error + keep * ahead
    found = found[::-1]
    return found, found + values[before]


def rows_of(
    played: Played, values: Floats, gamma: float, lambda_: float, logps: Floats | None = None
) -> dict[str, Array]:
    """Return what the surrogate reads of each step, by name; advantages are standardized over all of them.

    `values` float32[S + R] are the critic's of every row. `logps` float32[S] are the log probabilities that another
    policy than the one that acted gives the actions: then the surrogate is about that one.
    """
    ratios = None if logps is None else np.exp(logps - played.logps)
    gains, targets = advantages(played, values, gamma, lambda_, ratios)
    return {
        "observations": played.observations[played.before],
        "actions": played.actions,
        "logps": played.logps if logps is None else logps,
        "advantages": ((gains - gains.mean()) / max(1e-4, gains.std())).astype(np.float32),
        "targets": targets.astype(np.float32),
    }


class Surrogate:
    """A policy and a critic without common layers, as one vector of weights."""

    def __init__(
        self, vector: Floats, policy: tuple[int, ...], critic: tuple[int, ...], activation: Activation, adam: Adam,
        spread: Callable[[Floats], Spread],
    ) -> None:  # fmt: skip
        """Take weights float32[P], changed in place: the policy's layers of these sizes, then the critic's."""
        self.vector, self.gradient = vector, np.zeros_like(vector)
        self._activation: Activation = activation
        self._adam, self._spread = adam, spread
        self.policy, middle = layers_in(vector, policy)
        self.critic, _ = layers_in(vector, critic, middle)
        self._of_policy, _ = layers_in(self.gradient, policy)
        self._of_critic, _ = layers_in(self.gradient, critic, middle)

    def descend(self, rows: Mapping[str, Array], terms: Terms, rng: np.random.Generator) -> None:
        """Pass over the rows several times, each in a new order, with a step of Adam after each minibatch.

        A last minibatch of a few rows is left out: it would be a step in a random direction.
        """
        num_rows, size = len(rows["logps"]), terms.minibatch_size
        for _ in range(terms.num_epochs):
            order = rng.permutation(num_rows)
            mixed = {name: column[order] for name, column in rows.items()}
            for begin in range(0, max(num_rows // size, 1) * size, size):
                self.slope({name: column[begin : begin + size] for name, column in mixed.items()}, terms)
                shorten(self.gradient, terms.longest)
                self._adam.step(self.vector, self.gradient, terms.lr)

    def slope(self, rows: Mapping[str, Array], terms: Terms) -> None:
        """Write the gradient of these rows' loss: the critic's error, less the gain, less the entropy bonus."""
        num = np.float32(len(rows["logps"]))
        passed = run(self.policy, self._activation, rows["observations"])
        chances = self._spread(passed[-1])
        reached, kept, _ = _gains(chances, rows, terms.clip)
        moves = np.where(reached == kept, reached, np.float32(0.0))  # a clipped gain has no slope
        moves /= -num
        slopes = chances.slopes(rows["actions"], moves, -terms.entropy / float(num))
        trace_back(self.policy, self._of_policy, self._activation, passed, slopes)
        passed = run(self.critic, self._activation, rows["observations"])
        misses = passed[-1] - rows["targets"][:, None]
        misses *= np.float32(2.0 * terms.value_weight) / num
        trace_back(self.critic, self._of_critic, self._activation, passed, misses)

    def measured(self, rows: Mapping[str, Array], clip: float) -> dict[str, float]:
        """Return the parts of the loss on these rows as the weights are now, and how far the policy moved (in nats)."""
        chances = self._spread(answers(self.policy, self._activation, rows["observations"]))
        _, kept, ratios = _gains(chances, rows, clip)
        values = answers(self.critic, self._activation, rows["observations"])[:, 0]
        return {
            "policy_loss": -float(kept.mean()),
            "vf_loss": float(np.square(values - rows["targets"]).mean()),
            "entropy": float(chances.entropies().mean()),
            "mean_kl_loss": float((ratios - 1.0 - np.log(ratios)).mean()),
        }


def _gains(chances: Spread, rows: Mapping[str, Array], clip: float) -> tuple[Floats, Floats, Floats]:
    """Return the gain of each row, what is kept of it (Schulman et al. 2017, equation 7), and the ratio of chances."""
    gains, (low, high) = rows["advantages"], (np.float32(1.0 - clip), np.float32(1.0 + clip))
    ratios = np.exp(chances.logps(rows["actions"]) - rows["logps"])
    reached = gains * ratios
    return reached, np.minimum(reached, gains * np.minimum(np.maximum(ratios, low), high)), ratios
