"""Curves of a wheel for the tools that people look at curves with: TensorBoard, MLflow, Weights & Biases.

In: records of rounds and turns, which scalars.py makes numbers of. Out: files under the run directory, or calls of an
installed tracker. Never: a decision; a tracker that fails is left out with a sentence, and the wheel turns on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flywheel.console import Say
from flywheel.records import Probe, Progress, Turn
from flywheel.trackers import scalars
from flywheel.trackers.behind import Behind
from flywheel.trackers.services import MLflow, WandB
from flywheel.trackers.tensorboard import TensorBoard

POINTS = 100
"""Most points of a curve in one round: more don't show on a screen, and these take some 60 KB."""


class Tracker(Protocol):
    """Takes numbers by name; each of its methods may raise anything."""

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """Take a point of a turn's round: its environment steps, and those since this process began."""

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """Take what became of a whole turn."""

    def close(self) -> None:
        """Have everything written."""


class Trackers:
    """All trackers of one run; one writer."""

    def __init__(self, trackers: Mapping[str, Tracker], say: Say) -> None:
        """Write to these, by name, and say when one of them fails."""
        self._trackers, self._say = dict(trackers), say
        self._turn = self._limit = self._before = self._steps = self._next = 0

    def begin(self, turn: int, limit: int) -> None:
        """Begin a turn's round of training, which has at most `limit` environment steps."""
        self._turn, self._limit = turn, limit
        self._before, self._steps, self._next = self._before + self._steps, 0, 0

    def round(self, progress: Progress, probe: Probe) -> None:
        """Write a point of the round's curves, unless the last one was a moment ago."""
        if progress.num_steps <= self._steps:  # the trainer was lost, and the round began again
            self._before, self._next = self._before + self._steps, 0
        is_first, self._steps = self._next == 0, progress.num_steps
        if self._steps < self._next:
            return
        self._next = self._steps + max(1, self._limit // POINTS)
        numbers, total = scalars.of_round(progress, probe), self._before + self._steps
        self._each(lambda t: t.round(self._turn, progress.num_steps, total, numbers, is_first=is_first))

    def turn(self, turn: Turn) -> None:
        """Write what became of a turn that is in the journal."""
        numbers = scalars.of_turn(turn)
        self._each(lambda t: t.turn(turn.number, numbers))

    def close(self) -> None:
        """Have everything written, as far as that can be done within seconds."""
        self._each(lambda t: t.close())
        self._trackers = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a full disk, a service that is away: no curve is worth a wheel that stands
                del self._trackers[name]
                self._say("start", f"{name} gets no more curves ({type(error).__name__}: {error})")


def opened(names: Sequence[str], run_dir: Path, wheel: str, settings: Mapping[str, Any], say: Say) -> Trackers:
    """Return the trackers of these names for a run, of which `settings` are plain values to be shown beside its curves.

    Whether they are installed is `preflight.check`'s affair; one that can't be begun is left out with a sentence.
    """
    made: dict[str, Tracker] = {}
    for name in names:
        try:
            if name == "tensorboard":
                made[name] = TensorBoard(run_dir / name)
            else:
                service = MLflow if name == "mlflow" else WandB
                made[name] = Behind(service(run_dir, wheel, settings))
        except Exception as error:  # no login, no server: anything that a service may say
            say("start", f"{name} gets no curves ({type(error).__name__}: {error})")
    return Trackers(made, say)
