"""What a round of training says of itself while it goes on; part of `records`, which everybody imports it from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One iteration of training, and the policy as it is after it."""

    iteration: int
    num_steps: int
    """Iterations, and environment steps, of this round."""
    num_steps_total: int
    """Environment steps since the trainer was built."""
    mean_return: float
    """Mean over the last training episodes that ended, NaN before the first one."""
    seconds: float
    network: bytes
    """ONNX, with the present weights."""
    note: str = ""
    """What worlds of this iteration did that they may not, and was put right: "" if nothing."""
    steps_per_s: float = 0.0
    """Environment steps a second of this iteration, sampling and learning together; 0 where not known."""
    left_s: float | None = None
    """Seconds until the round gives up, at its present speed and with its probes: at most. None where not known."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """What the learner says of its last update, by name: losses, entropy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A quick look of the gate at a candidate in training; it allows nothing."""

    num_failed: int
    num_episodes: int
    """Fresh nominal episodes, fewer than were asked for where it was broken off; edge cases come on top."""
    mean_return: float
    edge_failed: tuple[str, ...]
    """Names of edge cases in which more episodes failed than may; "interval" stands for the worlds that are open."""
    note: str = ""
    """Why it broke off, where a simulator or the policy did: then every episode counts as failed. Or how many failed of
    the worlds that calibration leaves open."""
