"""Spans of the wheel's turns: one for each stage, and under that of training one for each iteration. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flywheel.records import Probe, Progress, Turn
from flywheel.trace.context import DIGEST, RELEASE, TURN, VERDICT, root_of, trace_named
from flywheel.trace.row import Row, attributes, fresh_id, metric
from flywheel.trace.tail import trace_of_signal


@dataclass(slots=True)
class _Stage:
    name: str
    began: float
    ended: float
    id: str = field(default_factory=fresh_id)
    about: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class TurnSpans:
    """Follows the loop through its stages; each method returns the spans that are over by then."""

    def __init__(self, run_dir: str) -> None:
        """Begin before the first turn; a turn that is gone on with keeps its trace."""
        self._run_dir = run_dir
        self._number = 0
        self._began = 0.0
        self._stage: _Stage | None = None

    def enter(self, number: int, stage: str, now: float) -> list[Row]:
        """Go on with a stage of a turn, or begin it, which ends the one before."""
        if self._number != number:
            self._number, self._began, self._stage = number, now, None
        if self._stage is not None and self._stage.name == stage:
            return []
        rows = self._over()
        self._stage = _Stage(stage, now, now)
        return rows

    def leave(self, now: float, error: BaseException | None = None) -> list[Row]:
        """Note that the stage's work is done for now (it may be gone on with), or that it went wrong."""
        if self._stage is None:
            return []
        self._stage.ended = now
        if error is None:
            return []
        self._stage.error = f"{type(error).__name__}: {error}"
        return self._over()

    def tell(self, about: Mapping[str, Any]) -> None:
        """Give the present stage attributes that are known by now, by their whole names."""
        if self._stage is not None:
            self._stage.about.update(about)

    def trained(self, progress: Progress, probe: Probe, began: float, now: float) -> list[Row]:
        """Return the span of an iteration of training, and of the probe of what it made."""
        trace, parent = self._trace, "" if self._stage is None else self._stage.id
        known = {
            "steps": progress.num_steps,
            "mean_return": progress.mean_return,
            "probe_failed": probe.num_failed,
            "probe_episodes": probe.num_episodes,
            "probe_return": probe.mean_return,
        }
        return [
            Row(
                trace=trace,
                id=fresh_id(),
                parent=parent or root_of(trace),
                name="iteration",
                source="loop",
                started_at=began,
                ended_at=now,
                attributes=attributes({TURN: self._number, "flywheel.iteration": progress.iteration}),
                metrics=tuple(metric(name, value, now) for name, value in known.items()),
            )
        ]

    def end(self, turn: Turn, now: float) -> list[Row]:
        """Return the spans of a turn that is in the journal: its last stage, and its own."""
        trace, release = self._trace, turn.release
        digest = turn.artifact.digest if turn.artifact else release.digest if release else None
        about = {
            TURN: turn.number,
            DIGEST: digest,
            VERDICT: turn.verdict.outcome if turn.verdict else None,
            RELEASE: release.released_at if release else None,
            "flywheel.strategy": turn.plan.strategy,
        }
        signals = [trace_of_signal(signal) for signal in turn.plan.signals]
        rows = [
            *self._over(),
            Row(
                trace=trace,
                id=root_of(trace),
                parent="",
                name="turn",
                source="loop",
                started_at=self._began or now,
                ended_at=now,
                attributes=attributes(about),
                links=tuple((signal, root_of(signal)) for signal in signals),
                why="turn",
            ),
        ]
        self._number = 0
        return rows

    @property
    def _trace(self) -> str:
        return trace_named("turn", self._run_dir, self._number)

    def _over(self) -> list[Row]:
        """Return the span of the present stage, which is over."""
        stage, self._stage = self._stage, None
        if stage is None:
            return []
        trace = self._trace
        return [
            Row(
                trace=trace,
                id=stage.id,
                parent=root_of(trace),
                name=stage.name,
                source="loop",
                started_at=stage.began,
                ended_at=stage.ended,
                attributes=attributes({TURN: self._number, **stage.about}),
                error=stage.error,
                why="turn",
            )
        ]
