"""What production's steps show of the simulator: its parameters, and what none of them explains.

A Correction says what production does otherwise than the simulator: which action arrives there, and when; what is added
to the state and to the reward of a step. It is plain numbers, and goes with a Plan to whoever simulates
(`simulate.corrected`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Numbers that are a quadratic function of the state, and for discrete actions one for each of them.

    z holds the state's numbers (of an angle its cosine and its sine), and after them those of a box action. Beyond what
    was seen of z the function stays as it is at that edge.
    """

    low: tuple[float, ...]
    """Least of each number of z in the steps that it was fitted to."""
    high: tuple[float, ...]
    """Greatest of each."""
    centre: tuple[float, ...]
    """What is taken from each number of z,"""
    scale: tuple[float, ...]
    """and what it is divided by then."""
    weights: tuple[tuple[tuple[float, ...], ...], ...]
    """[G, F, D]: for each discrete action (one for a box), each of 1, z and the products of z's numbers (the upper
    triangle, row by row), the weight in each of the D numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What production's steps do that the simulator's don't, and how much of that it explains.

    The world gets the action that was given `delay` steps ago, as `actions`, or `gain` and `offset`, make it; then
    `state` is added to where it went and `reward` to what it gave. As it is made, it corrects nothing.
    """

    actions: tuple[int, ...] = ()
    """Which discrete action arrives for each given one, both counted from 0; () as given."""
    gain: tuple[tuple[float, ...], ...] = ()
    """[A, A]: of a (flattened) box action arrives gain · action + offset, clipped to its bounds; () as given."""
    offset: tuple[float, ...] = ()
    """[A], in the environment's units; () for none."""
    delay: int = 0
    """Steps by which actions arrive late."""
    waiting: tuple[float, ...] = ()
    """What the world gets before the first action arrives, as the environment takes it (already as `actions` or `gain`
    make it); (): the first action itself, at once."""
    state: Surface | None = None
    """What is added to the state that follows, as a function of the state before and the action that arrived."""
    reward: Surface | None = None
    """What is added to the reward, as a function of the same."""
    explained: float = 0.0
    """Share in [0, 1] of what the simulator's steps miss that it removes, in episodes that it was not fitted to: the
    worse of states and rewards, where it corrects both."""
    num_transitions: int = 0
    """Steps of production that it was fitted to."""

    @property
    def is_none(self) -> bool:
        """Whether it corrects nothing."""
        acts = self.actions or self.gain or self.offset or self.delay
        return not acts and self.state is None and self.reward is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The simulator's parameters as production shows them."""

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    explained: float
    """Share in [0, 1] of the one-step errors beyond noise at nominal parameters that the fit removed (`episodes`: of
    the distance between the statistics of production's and of simulated episodes, less chance); 0 on a range's edge."""
    residual: float
    """Root mean square of the one-step residual after the fit, in units of each observation's deviation (`episodes`:
    of the distance that is left, in units of what separates groups of one world; 1 is chance)."""
    num_transitions: int
    not_identified: tuple[str, ...] = ()
    """Parameters that these data can't tell apart; they keep their nominal values."""
    method: Literal["transitions", "episodes"] = "transitions"
    """What was fitted: one-step transitions, or the statistics of whole episodes."""
