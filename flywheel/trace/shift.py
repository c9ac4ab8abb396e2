"""Where a shift of the world began to show: the first episode, and the step in it, that the simulator doesn't make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.records import Episode, Parameters, Signal
from flywheel.tapes import Difference
from flywheel.task import Task
from flywheel.trace.residuals import against_simulator, noise_of
from flywheel.trace.snapshots import NotReproducible


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Where a signal's change began."""

    signal: Signal
    episode: str
    """The first episode in which it shows; what the signal's monitor took it for, where no transition tells."""
    step: int | None
    """The action after which the world did otherwise; None where no transition tells."""
    difference: Difference | None
    why: str
    """In words: what the world did there, or why no step can be named."""
    link: str = ""
    """The command that forks the episode there."""

    def __str__(self) -> str:
        where = f"step {self.step} of episode {self.episode}" if self.step is not None else f"episode {self.episode}"
        head = f"{self.signal.kind} by the {self.signal.monitor} monitor began to show at {where}: {self.why}"
        return f"{head}\n  {self.link}" if self.link else head


def find(
    task: Task, signal: Signal, before: Sequence[Episode], since: Sequence[Episode], parameters: Parameters
) -> Shift:
    """Return where the change that a signal is about began to show.

    `before` are episodes of the same release before the signal's evidence begins, newest last, and `since` those after,
    both in order of start; `parameters` are the simulator's while the release was judged. Where the first of `since`
    leaves the simulator already, the change is looked for further back.
    """
    none = Shift(signal=signal, episode=signal.since_episode, step=None, difference=None, why="")
    try:
        noise = noise_of(task, before, parameters)
        found: tuple[Episode, Difference] | None = None
        for episode in since:
            difference = against_simulator(task, episode, parameters, noise=noise)
            if difference is not None:
                found = episode, difference
                break
        if found is not None and found[0] is since[0]:
            for episode in reversed(before):
                difference = against_simulator(task, episode, parameters, noise=noise)
                if difference is None:
                    break
                found = episode, difference
    except NotReproducible as error:
        return _told(none, str(error))
    if found is None:
        values = ", ".join(f"{name} {value:g}" for name, value in parameters.items())
        return _told(
            none,
            f"each transition of the {len(since)} episodes since then is one that the simulator makes ({values}), "
            "within noise; what changed is where episodes begin, or what is rewarded or called failed",
        )
    episode, difference = found
    return Shift(
        signal=signal, episode=episode.id, step=difference.step - 1, difference=difference, why=difference.note
    )


def _told(shift: Shift, why: str) -> Shift:
    return Shift(signal=shift.signal, episode=shift.episode, step=None, difference=None, why=why)
