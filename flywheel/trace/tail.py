"""Spans of episodes that are over: of all a first one, and of those worth it one for each step, from the record. Pure.

What an episode comes to is known at its end. Which requests are traced while it runs is chosen by chance; of a failed
or lost one, or one around a signal, that had no luck, the observer's record tells every step.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flywheel.config import TraceConfig
from flywheel.records import Episode, Release, Signal
from flywheel.trace.context import DIGEST, EPISODE, RELEASE, STEP, bar_of, is_sampled, root_of, trace_named, trace_of
from flywheel.trace.row import Row, Why, attributes, fresh_id

REMEMBERED = 256
"""Episodes that are over and that a signal can still come back to."""
STEPS = 2000
"""Steps of one episode that the record is asked for: its last ones."""


@dataclasses.dataclass(slots=True)
class _Trail:
    """What is kept of an episode until no signal can come back to it; its observations are not."""

    episode: Episode
    seen_at: NDArray[np.float64]
    stored: tuple[float, float]
    release: Release | None
    why: Why = ""
    has_root: bool = False
    has_steps: bool = False


class Tail:
    """Decides which closed episodes have spans, and makes them."""

    def __init__(self, config: TraceConfig) -> None:
        """Remember nothing yet."""
        self._bar, self._around = bar_of(config.sample_share), config.around
        self._trails: OrderedDict[str, _Trail] = OrderedDict()
        self._following = 0

    def closed(
        self,
        episode: Episode,
        seen_at: NDArray[np.float64],
        stored: tuple[float, float],
        release: Release | None = None,
    ) -> list[Row]:
        """Return the spans of an episode that is durable now.

        Args:
            episode: it.
            seen_at: float64[T + 1], when its steps and its end were seen first.
            stored: when the store was asked to keep it, and when it had.
            release: the one that its first action belongs to, where that is known.
        """
        bare = dataclasses.replace(episode, observations=np.zeros((0, 0)))
        is_kept = is_sampled(trace_of(episode.id), self._bar)
        trail = _Trail(bare, seen_at, stored, release, has_steps=is_kept)
        self._trails[episode.id] = trail
        if len(self._trails) > REMEMBERED:
            self._trails.popitem(last=False)
        why: Why = "failed" if episode.failed or episode.end == "lost" else ""
        if self._following > 0:
            self._following, why = self._following - 1, "signal"
        return self._rows(trail, why) if why or is_kept else []

    def raised(self, signal: Signal) -> list[Row]:
        """Return the span of a signal, and those of the episodes around it that have none yet; further ones follow."""
        order = list(self._trails)
        near = set[str]()
        for id_ in (signal.since_episode, signal.at_episode):
            if id_ in self._trails:
                at = order.index(id_)
                near.update(order[max(0, at - self._around) : at + self._around + 1])
        self._following = self._around
        rows = [row for id_ in order if id_ in near for row in self._rows(self._trails[id_], "signal")]
        return [*rows, row_of_signal(signal)]

    def _rows(self, trail: _Trail, why: Why) -> list[Row]:
        """Return what isn't told yet of an episode; the first span again where there is a better reason to keep it."""
        rows: list[Row] = []
        if not trail.has_root or why != trail.why:
            rows.append(_root(trail, why))
        if not trail.has_root:
            rows.append(_storing(trail))
        if not trail.has_steps:
            rows += _steps(trail)
        trail.has_root, trail.has_steps, trail.why = True, True, why
        return rows


def trace_of_signal(signal: Signal) -> str:
    """Return the trace of a signal."""
    return trace_named("signal", signal.monitor, signal.digest, signal.at_episode)


def row_of_signal(signal: Signal) -> Row:
    """Return the span of a signal, tied to the episode that raised it and to the one where its evidence begins."""
    trace = trace_of_signal(signal)
    episodes = dict.fromkeys(id_ for id_ in (signal.since_episode, signal.at_episode) if id_)
    return Row(
        trace=trace,
        id=root_of(trace),
        parent="",
        name="signal",
        source="observer",
        started_at=signal.at,
        ended_at=signal.at,
        attributes=attributes(
            {
                DIGEST: signal.digest,
                RELEASE: signal.evidence.get("released_at"),
                "flywheel.signal.kind": signal.kind,
                "flywheel.signal.monitor": signal.monitor,
                "flywheel.signal.value": signal.value,
                "flywheel.signal.threshold": signal.threshold,
                "flywheel.signal.since_episode": signal.since_episode,
                "flywheel.signal.at_episode": signal.at_episode,
            }
        ),
        links=tuple((trace_of(id_), root_of(trace_of(id_))) for id_ in episodes),
        why="signal",
    )


def _root(trail: _Trail, why: Why) -> Row:
    episode, trace = trail.episode, trace_of(trail.episode.id)
    return Row(
        trace=trace,
        id=root_of(trace),
        parent="",
        name="episode",
        source="observer",
        started_at=float(trail.seen_at[0]),
        ended_at=max(float(trail.seen_at[-1]), trail.stored[1]),
        attributes=attributes(
            {
                EPISODE: episode.id,
                DIGEST: episode.digests[0] if episode.digests else None,
                RELEASE: None if trail.release is None else trail.release.released_at,
                "flywheel.num_steps": episode.num_steps,
                "flywheel.return": episode.total,
                "flywheel.end": episode.end,
                "flywheel.failed": bool(episode.failed),
            }
        ),
        error="the task counts it as failed" if episode.failed else "",
        why=why,
    )


def _storing(trail: _Trail) -> Row:
    began, ended = trail.stored
    return _under(trail, "store", began, ended, {})


def _steps(trail: _Trail) -> Iterator[Row]:
    episode = trail.episode
    seen_at, logps, rewards = trail.seen_at.tolist(), episode.logps.tolist(), episode.rewards.tolist()
    actions = episode.raw_actions.tolist()
    for t in range(max(0, episode.num_steps - STEPS), episode.num_steps):
        about = {
            STEP: t,
            DIGEST: episode.digests[t],
            "flywheel.action": actions[t],
            "flywheel.logp": logps[t],
            "flywheel.reward": None if math.isnan(rewards[t]) else rewards[t],
        }
        yield _under(trail, "act", seen_at[t], seen_at[t], about)


def _under(trail: _Trail, name: str, began: float, ended: float, about: dict[str, object]) -> Row:
    trace = trace_of(trail.episode.id)
    return Row(
        trace=trace,
        id=fresh_id(),
        parent=root_of(trace),
        name=name,
        source="observer",
        started_at=began,
        ended_at=ended,
        attributes=attributes({EPISODE: trail.episode.id, **about}),
    )
