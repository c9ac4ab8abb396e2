"""The only source of randomness in acting: uniform draws that are a function of (draw key, t).

Every decision ever made can be computed again from its episode's key: no generator has a state.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flywheel.records import Rule

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_ALL = 2**64 - 1
CONTROL = b"control"
"""Salt of the `bucket` that says which episodes stay on the control."""


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _mix_one(z: int) -> int:
    """Return `_mix` of one number: in Python's own integers it takes a tenth of the time."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _ALL
    return z ^ (z >> 31)


def draws(keys: ArrayLike, t: ArrayLike, num_draws: int) -> NDArray[np.float64]:
    """Return float64[N, K] uniform on (0, 1), a function of keys uint64[N], t int[N] and the column alone.

    Counter-based: SplitMix64's finalizer (Steele, Lea and Flood 2014) over the key, the step and the
    column, twice, so that neighbouring keys and steps share nothing. Rows don't depend on each other.
    """
    key, step = np.atleast_1d(np.asarray(keys, dtype=np.uint64)), np.atleast_1d(np.asarray(t, dtype=np.uint64))
    if key.size == step.size == 1:
        return np.array([draws_of(key.item(), step.item(), num_draws)])
    with np.errstate(over="ignore"):
        row = _mix(_mix(key + _GOLDEN) ^ _mix((step + np.uint64(1)) * _GOLDEN))
        column = np.arange(1, num_draws + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(row[:, None] + column[None, :])
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * _TO_UNIT


def draws_of(key: int, step: int, num_draws: int) -> list[float]:
    """Return the K draws of one step, those of `draws`."""
    golden = int(_GOLDEN)
    row = _mix_one(_mix_one(key + golden & _ALL) ^ _mix_one((step + 1) * golden & _ALL))
    return [((_mix_one(row + k * golden & _ALL) >> 11) + 0.5) * _TO_UNIT for k in range(1, num_draws + 1)]


def bucket(run_key: bytes, episode: str, salt: bytes = b"canary") -> float:
    """Return where in [0, 1) a production episode lies: the challenger is given those below its share.

    So is the control, by a salt of its own. Both are others than that of `draw_key`, so that whose an episode is says
    nothing of what is drawn in it.
    """
    mark = hmac.digest(run_key, salt + b"\x00" + episode.encode(), hashlib.sha256)
    return (int.from_bytes(mark[:8], "big") >> 11) * _TO_UNIT


@lru_cache(maxsize=2_048)  # it is asked for at each step, and takes longer than that step's draws
def draw_key(run_key: bytes, episode: str) -> int:
    """Return the 64-bit draw key of a production episode: a keyed hash, so that no client can foresee draws."""
    return int.from_bytes(hmac.digest(run_key, episode.encode(), hashlib.sha256)[:8], "big")


def squash(drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return numbers float32[...] in (-1, 1) for a Gaussian's draws: their tanh, in double precision."""
    return np.tanh(drawn.astype(np.float64)).astype(np.float32)


def log_slope(drawn: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log of tanh's slope float64[...], which is what squashing takes from a log density.

    log(1 - tanh(x)^2) = 2 (log 2 - x - log(1 + exp(-2 x))), which is exact where 1 - tanh(x)^2 would round to 0
    (Haarnoja et al. 2018, equation 21).
    """
    exact = drawn.astype(np.float64)
    return np.asarray(2.0 * (np.log(2.0) - exact - np.logaddexp(0.0, -2.0 * exact)))


def chances_of(logits: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    """Return the chances float64[A, N] with which a rule draws each of A actions, for logits float64[N, A]."""
    by_action = np.ascontiguousarray(logits.T)  # few actions, many rows: whatever is done to one is one call for all
    if rule.greedy:
        chances = np.zeros_like(by_action)
        chances[by_action.argmax(axis=0), np.arange(len(logits))] = 1.0
    else:
        scaled = by_action if rule.temperature == 1.0 else by_action / rule.temperature
        chances = np.exp(scaled - np.maximum.reduce(scaled))
        chances /= np.add.accumulate(chances)[-1]  # one after another, at any number of rows
    if rule.exploration_rate:
        chances = (1.0 - rule.exploration_rate) * chances + rule.exploration_rate / len(by_action)
    return chances
