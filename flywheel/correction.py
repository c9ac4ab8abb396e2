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

    def __str__(self) -> str:
        """Return in words what production does: "production acts as if actions 0 and 1 were swapped"."""
        acts = [*_exchanged(self.actions), *_turned(self.gain, self.offset)]
        if self.delay:
            acts.append(f"arrived {self.delay} step{'s' * (self.delay > 1)} late")
        parts = []
        if acts:
            first = acts[0] if acts[0].startswith(("action", "number", "the ")) else f"actions {acts[0]}"
            parts.append(f"production acts as if {' and '.join([first, *acts[1:]])}")
        if self.state is not None:
            parts.append("its steps add to the simulator's what was learnt of state and action")
        if self.reward is not None:
            parts.append("its rewards are other ones, learnt of state and action")
        return "; ".join(parts) or "production does what the simulator does"


def _exchanged(actions: tuple[int, ...]) -> list[str]:
    """Return what became of discrete actions, each pair that was swapped first."""
    pairs = [(i, made) for i, made in enumerate(actions) if i < made and actions[made] == i]
    swapped = {i for pair in pairs for i in pair}
    found = [f"actions {one} and {other} were swapped" for one, other in pairs]
    rest = [(i, made) for i, made in enumerate(actions) if made != i and i not in swapped]
    return found + [f"action {i} were action {made}" for i, made in rest]


def _turned(gain: tuple[tuple[float, ...], ...], offset: tuple[float, ...]) -> list[str]:
    """Return what became of the numbers of a box action."""
    size = len(gain) or len(offset)
    found = []
    for i in range(size):
        row = gain[i] if gain else tuple(float(j == i) for j in range(size))
        more = offset[i] if offset else 0.0
        if row == tuple(float(j == i) for j in range(size)) and not more:
            continue
        of = [f"{'' if weight == 1.0 else f'{weight:.3g} times '}number {j}" for j, weight in enumerate(row) if weight]
        what = " plus ".join([*of, *([f"{more:.3g}"] if more else [])]) or "0"
        found.append(f"number {i} of the action were {what}" if size > 1 else _alone(row[0], more))
    return found


def _alone(gain: float, more: float) -> str:
    if gain == -1.0 and not more:
        return "the action's sign were flipped"
    if gain == 1.0:
        return f"the action had {more:+.3g} added"
    return f"the action were {gain:.3g} times itself{f' plus {more:.3g}' if more else ''}"


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
