"""Steps of MARWIL on production's episodes between PPO's iterations, on the network that PPO learns on.

Wang et al. 2018, "Exponentially Weighted Imitation Learning for Batched Historical Data": actions are imitated, the
more the better they came out. The loss is -exp(beta A / c) log pi(a | s), with the advantage A of the return over the
critic's value, and c the root of a running mean of A squared. It takes no simulator and no log probabilities, so that
any policy's episodes serve; those of the last few policies are the nearest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from flywheel.config import TrainConfig
from flywheel.records import Array, Episode

BETA, ROWS, MOST_WEIGHT = 1.0, 128, 20.0
"""What advantages are multiplied by, rows of a minibatch, and the largest weight of one (RLlib's, too)."""
LR_SHARE = 0.1
"""Share of PPO's learning rate. A factor on the loss would do nothing: Adam divides by the gradient's size."""
POLICIES = 3
"""Policies that are learnt from, the last ones."""
MOST = 200
"""Episodes of each, the last ones."""
_FORGOTTEN = 0.05  # of the running mean of squares, with each minibatch


class Season:
    """Episodes of production's last policies, and the steps on them."""

    def __init__(self, module: Any, config: TrainConfig, seed: int) -> None:
        """Hold no episode yet, and make an Adam of the actor's own parameters."""
        self._module, self._config = module, config
        self._rng = np.random.default_rng(seed)
        self._episodes: dict[str, dict[str, Episode]] = {}
        self._scale = 0.0
        actor = [value for name, value in module.named_parameters() if name.startswith(("pi.", "encoder.actor"))]
        self._optimizer = torch.optim.Adam(actor, lr=LR_SHARE * config.lr)

    def hold(self, episodes: Sequence[Episode], barred: Collection[str] = ()) -> int:
        """Hold what is known whole of production's episodes, but of barred policies nothing; return the transitions.

        Of an episode that was held before the new one counts.
        """
        num = 0
        for each in episodes:
            digest = each.digests[0] if each.digests else ""
            if digest in barred or set(each.digests) != {digest} or np.isnan(each.rewards).any():
                continue
            its = self._episodes.pop(digest, {})  # the last policy stands last
            its.pop(each.id, None)
            self._episodes[digest] = dict([*its.items(), (each.id, each)][-MOST:])
            num += each.num_steps
        left = [name for name in self._episodes if name not in barred][-POLICIES:]
        self._episodes = {name: self._episodes[name] for name in left}
        return num

    def learn(self, num_steps: int) -> None:
        """Take so many steps, each on rows drawn from all that is held; none where nothing is."""
        held = [each for some in self._episodes.values() for each in some.values()]
        if not held or not num_steps:
            return
        seen = torch.as_tensor(np.concatenate([_rows(each.observations[:-1]) for each in held]))
        acted = torch.as_tensor(np.concatenate([each.raw_actions for each in held]))
        returns = torch.as_tensor(np.concatenate([self._returns(each) for each in held]))
        for _ in range(num_steps):
            some = torch.as_tensor(self._rng.integers(len(seen), size=ROWS))
            self._step(seen[some], acted[some], returns[some])

    def _step(self, seen: Any, acted: Any, returns: Any) -> None:
        with torch.no_grad():
            gained = returns - self._module.compute_values({"obs": seen})
            size = float((gained**2).mean())
            self._scale = self._scale + _FORGOTTEN * (size - self._scale) if self._scale else size
            weights = torch.exp(BETA * gained / (self._scale**0.5 + 1e-8)).clamp(max=MOST_WEIGHT)
        outputs = self._module._forward_train({"obs": seen})["action_dist_inputs"]
        chances = self._module.get_train_action_dist_cls().from_logits(outputs)
        self._optimizer.zero_grad()
        (-(weights * chances.logp(acted)).mean()).backward()
        self._optimizer.step()

    def _returns(self, episode: Episode) -> Array:
        """Return float32[T]: discounted rewards to come in the learner's own units, the critic's value at a cut."""
        ahead = 0.0
        if episode.end != "terminated":
            with torch.no_grad():
                last = torch.as_tensor(_rows(episode.observations[-1:]))
                ahead = float(self._module.compute_values({"obs": last})[0])
        rewards = self._config.reward_scale * (episode.rewards - self._config.step_cost)
        found = np.empty(episode.num_steps, np.float32)
        for t in reversed(range(episode.num_steps)):
            found[t] = ahead = rewards[t] + self._config.gamma * ahead
        return found


def _rows(observations: Array) -> Array:
    """Return observations as the networks read them, float32[N, D]."""
    return np.asarray(observations, np.float32).reshape(len(observations), -1)
