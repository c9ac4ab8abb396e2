"""What was read of a challenger's episodes and the champion's, as bets. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from flywheel.challenge import Pair
from flywheel.deploy import evidence
from flywheel.outcomes import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was read of both arms so far, and what the bets made of it, as logs."""

    num: Pair = (0, 0)
    """Outcomes that are known."""
    num_failed: Pair = (0, 0)
    num_lost: Pair = (0, 0)
    """Episodes of which nobody knows how they would have ended."""
    worse: tuple[float, ...] = (0.0,) * len(evidence.RATIOS)
    good: tuple[float, ...] = (0.0,) * len(evidence.GOOD)
    lost: tuple[float, ...] = (0.0,) * len(evidence.APART)
    split: tuple[float, ...] = (0.0,) * len(evidence.APART)

    @property
    def is_worse(self) -> float:
        """Evidence that the challenger fails oftener than the champion, as a log."""
        return float(evidence.total(self.worse, evidence.WORSE))

    @property
    def is_good(self) -> float:
        """Evidence that it doesn't fail oftener by the margin, as a log."""
        return float(evidence.total(self.good, evidence.GOOD))

    @property
    def is_uneven(self) -> float:
        """Evidence that one arm's episodes are lost oftener than the other's, as a log."""
        return float(evidence.total(self.lost, evidence.LOST))

    @property
    def is_skewed(self) -> float:
        """Evidence that the challenger's share of episodes isn't the one that it was given, as a log."""
        return float(evidence.total(self.split, evidence.LOST))

    def read(self, outcome: Outcome, is_challengers: bool, share: float, margin: float) -> Comparison:
        """Return the test after one more outcome, which was the challenger's with probability `share`."""
        gain = evidence.whose(is_challengers, share, evidence.APART)
        split = _sum(self.split, gain)
        if not outcome.is_known:
            lost = _sum(self.lost, gain)
            return dataclasses.replace(self, num_lost=_plus(self.num_lost, is_challengers), lost=lost, split=split)
        worse = evidence.worse(outcome.failed, is_challengers, share)
        good = evidence.good(outcome.failed, is_challengers, share, margin, self.num, self.num_failed)
        return dataclasses.replace(
            self,
            num=_plus(self.num, is_challengers),
            num_failed=_plus(self.num_failed, is_challengers) if outcome.failed else self.num_failed,
            worse=_sum(self.worse, worse),
            good=_sum(self.good, good),
            split=split,
        )


def _plus(pair: Pair, is_challengers: bool) -> Pair:
    return (pair[0] + (not is_challengers), pair[1] + is_challengers)


def _sum(capital: tuple[float, ...], gain: evidence.Array) -> tuple[float, ...]:
    return tuple((np.array(capital) + gain).tolist())
