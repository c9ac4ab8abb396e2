"""One release under watch: its monitors, and what they say."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from flywheel.observe.monitors.outcome import OutcomeMonitor
from flywheel.observe.monitors.world import WorldMonitor
from flywheel.outcomes import Outcome
from flywheel.records import Release, Signal, SignalKind

RECENT = 1000
"""Outcomes that `window` and `heard` can look back on."""


@dataclass(slots=True)
class Arm:
    """The monitors of one release."""

    release: Release
    failed: OutcomeMonitor
    loss: OutcomeMonitor | None
    world: WorldMonitor
    num_read: int = 0
    heard: deque[Outcome] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def monitors(self) -> dict[str, tuple[SignalKind, OutcomeMonitor | WorldMonitor]]:
        """The monitors by name, each with the kind of Signal that it raises."""
        loss: dict[str, tuple[SignalKind, OutcomeMonitor | WorldMonitor]] = (
            {} if self.loss is None else {"loss": ("degradation", self.loss)}
        )
        return {"failed": ("degradation", self.failed), **loss, "world": ("shift_detected", self.world)}

    def signal(self, name: str, outcome: Outcome, threshold: float, now: float) -> Signal:
        """Return what a monitor says that alarmed when it had read an outcome."""
        kind, monitor = self.monitors[name]
        limit = {"limit": monitor.limit} if isinstance(monitor, OutcomeMonitor) else {}
        return Signal(
            kind=kind,
            monitor=name,
            digest=outcome.digest,
            value=monitor.evidence,
            threshold=threshold,
            since_episode=monitor.onset,
            at_episode=outcome.id,
            evidence={
                "released_at": self.release.released_at,
                "num_read": self.num_read,
                "num_since": monitor.num_since,
                **limit,
            },
            at=now,
        )


def loss_of(outcome: Outcome, return_range: tuple[float, float]) -> float:
    """Return the loss as the gate counts it: 1 for a failed episode, else the shortfall of its return."""
    low, high = return_range
    shortfall = 1.0 - (outcome.total - low) / (high - low)
    return 1.0 if outcome.failed else min(max(shortfall, 0.0), 1.0)
