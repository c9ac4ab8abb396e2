"""When a turn's look at production is over, and what it found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from flywheel.config import LoopConfig
from flywheel.records import End, Signal


class Ended(Protocol):
    """What is looked at of an episode: a record of the whole one, or of its outcome."""

    @property
    def end(self) -> End:
        """How it ended."""

    @property
    def total(self) -> float:
        """Its return."""


def conclude(
    episodes: Sequence[Ended],
    num_new: int,
    signals: Sequence[Signal],
    before: float | None,
    config: LoopConfig,
    span: float | None = None,
) -> dict[str, Any] | None:
    """Return what production showed of a release, or None while it has to be watched on.

    Args:
        episodes: the newest of the episodes that the monitors have read since the look began, in order of start.
        num_new: how many they have read since then.
        signals: alarms about the release that nobody has answered yet.
        before: mean return before a change that isn't cured yet, None in quiet times.
        config: how many episodes decide.
        span: width of the range that a return can have; None takes the size of `before`.

    `recovered` is True when the release has brought the return back to what it was before the change, less a share of
    the span: a return of -150 that becomes -200 is no loss where a return may be -2000.
    """
    returns = [episode.total for episode in episodes if episode.end != "lost"]
    mean = float(np.mean(returns)) if returns else None
    found = {"episodes": num_new, "mean_return": mean, "before": before, "recovered": False}
    if signals:
        return found | {"signals": [dataclasses.asdict(signal) for signal in signals]}
    if before is None:
        return found if num_new >= config.observe_episodes else None
    if mean is None or num_new < config.recovered_episodes:
        return None
    needed = before - (1 - config.recovered_share) * (abs(before) if span is None else span)
    recovered = mean >= needed
    return found | {"recovered": recovered, "before": None if recovered else before, "needed": needed}


def span_shown(episodes: Sequence[Ended], before: float) -> float:
    """Return the width of the range of returns that production has shown, at least the size of `before`.

    It stands for the range of a task that gives none: a return of -1.4 that fell to -9 is good again at -1.7.
    """
    returns = [episode.total for episode in episodes if episode.end != "lost"]
    return max(abs(before), max(returns, default=0.0) - min(returns, default=0.0))


def mean_before(good: Sequence[Ended], known: float | None) -> float | None:
    """Return the mean return of the episodes before an alarm's onset; of an older change's, if that isn't cured yet."""
    returns = [episode.total for episode in good if episode.end != "lost"]
    return known if known is not None or not returns else float(np.mean(returns))
