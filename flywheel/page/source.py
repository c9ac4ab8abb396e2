"""What the page reads, and what it can ask for: a run directory, finished or alive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flywheel.arms import Control
from flywheel.challenge import Challenge, Word
from flywheel.records import Artifact, End, Episode, Origin, Parameters, Release, Signal, Told, Turn, Verdict
from flywheel.tapes import Difference, Scenario, Standing
from flywheel.task import Task
from flywheel.trace.contract import TimeTravel
from flywheel.trace.result import Result
from flywheel.trace.row import Row
from flywheel.trace.shift import Shift
from flywheel.trace.snapshots import Opening
from flywheel.trace.spanstore import Stored

By = Literal["started_at", "total", "num_steps"]
How = Literal["", "failed", "fine", "lost"]


class Listed(Protocol):
    """An episode as a list shows it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def origin(self) -> Origin:
        """Where it was made."""

    @property
    def started_at(self) -> float:
        """When it began."""

    @property
    def ended_at(self) -> float:
        """When it ended."""

    @property
    def digest(self) -> str:
        """Policy that gave its first action."""

    @property
    def end(self) -> End | None:
        """How it ended; None for a trial of the gate, of which it isn't kept."""

    @property
    def failed(self) -> bool:
        """Whether it failed."""

    @property
    def total(self) -> float:
        """Its return."""

    @property
    def num_steps(self) -> int:
        """Number of its actions."""


def page_of(
    rows: Iterable[Listed], *, digest: str = "", how: How = "", begins: str = "", since: float | None = None,
    until: float | None = None, by: By = "started_at", descending: bool = True,
    after: tuple[float, str] | None = None, limit: int = 100,
) -> list[Listed]:  # fmt: skip
    """Return a page of a list of trials, as the store does of its episodes."""

    def place(row: Listed) -> tuple[float, str]:
        return getattr(row, by), row.id

    found = [
        row
        for row in rows
        if row.id.startswith(begins)
        and digest in ("", row.digest)
        and how in ("", "failed" if row.failed else "fine")
        and (since is None or row.started_at >= since)
        and (until is None or row.started_at < until)
        and (after is None or (place(row) < after if descending else place(row) > after))
    ]
    return sorted(found, key=place, reverse=descending)[:limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Whose run this is."""

    task: str
    reference: str
    """What `flywheel.tasks.load` takes."""
    run: str
    """Name of the run directory."""
    run_dir: str
    """As a command line takes it."""
    living: bool
    """Whether a process turns the wheel, or serves, now."""
    return_range: tuple[float, float] | None
    forks_production: bool = False
    """Whether an episode of production can be gone on with: the task puts its simulator into what was observed."""
    obstacle: str = ""
    """Why the task can't be loaded here, "" if it can: without it nothing is played again or drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """All that the registry knows."""

    artifacts: Sequence[Artifact] = ()
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    """By digest, oldest first."""
    releases: Sequence[Release] = ()
    challenges: Sequence[Challenge] = ()
    """Oldest first; only the last one can still be on its way."""
    controls: Sequence[Control] = ()
    """Oldest first; only the last one can still run."""
    condemned: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """By digest: why and when."""
    previous: str | None = None
    """What a rollback would put into service."""
    tries: int = 0
    """Candidates that were judged since the gate's error budget was filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What simulated production's clients say of their world; a real one's says nothing."""

    text: str = ""
    """Such as "length 0.5 → 2"."""
    first: str = ""
    """Episode with which it began."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What was expected of an episode's steps."""

    values: NDArray[np.float64] | None = None
    """float64[T + 1]: the critic's, in the rewards of training; None where there is no critic."""
    residuals: NDArray[np.float64] | None = None
    """float64[T]: length of what the world did minus what the simulator does; None where that can't be said."""


class Source(Protocol):
    """A run directory as the page reads it. Every method may be called from any thread, and says what is true now."""

    def about(self) -> About:
        """Return whose run this is."""

    def marks(self) -> Mapping[str, int]:
        """Return numbers for `production`, `policies`, `turns`, `living` and `story`, which change when those do."""

    def told(self, begin: int) -> Sequence[tuple[int, Told]]:
        """Return the story's sentences from a byte on, each with the byte where a reader goes on."""

    def turns(self) -> Sequence[Turn]:
        """Return the turns that are over."""

    def draft(self) -> Turn | None:
        """Return the turn that is under way, as far as it got."""

    def policies(self) -> Policies:
        """Return all that the registry knows."""

    def verdict_page(self, digest: str, number: int) -> tuple[str, str]:
        """Return a recorded verdict as a page of its own, and the Content-Security-Policy that is enough for it.

        `number` counts the policy's verdicts, the oldest being 0; UsageError where there is none.
        """

    def signals(self) -> Sequence[Signal]:
        """Return every alarm, oldest first."""

    def changes(self) -> Changes:
        """Return what simulated production's clients say of their world."""

    def tally(self) -> Mapping[str, Mapping[str, float]]:
        """Return by digest production's numbers of `episodes`, `failed`, `lost`, and the sum `total` of returns."""

    def early(self) -> str | None:
        """Return what open episodes will probably come to, as a sentence that says it is an estimate; None: unknown."""

    def outcomes(self, last: int) -> Sequence[Listed]:
        """Return the last so many production episodes in order of start."""

    def listed(self, **wanted: Any) -> Sequence[Listed]:
        """Return a page of a list of episodes; the arguments are the fields of the store's Wanted."""

    def episode(self, id_: str) -> Episode:
        """Return a stored episode, or one of the gate's, played again; UsageError where there is none."""

    def opening(self, id_: str) -> Opening:
        """Return how the world of an episode began; a fork's began as its original's."""

    def task(self) -> Task:
        """Return the task; raises UsageError with the reason where it can't be loaded here."""

    def world(self, id_: str, at: int) -> Parameters:
        """Return the parameters of the world in which a fork would go on; raises FlywheelError where it can't."""

    def diverges(self, id_: str) -> Difference | None:
        """Return the first step where an episode isn't what it should have been, by its policy and the simulator.

        Raises FlywheelError, with what is known all the same, where that can't be said.
        """

    def expected(self, id_: str) -> Expected:
        """Return what the critic and the simulator expected of an episode."""

    def shift(self) -> Shift | None:
        """Return where the last shift of the world began to show, None where none was seen."""

    def spans_of_episode(self, id_: str) -> Sequence[Stored]:
        """Return the spans of an episode, and those that were linked to it; none where none were kept."""

    def spans_of_turn(self, number: int) -> Sequence[Stored]:
        """Return the spans of a turn."""

    def scenarios(self) -> Sequence[Scenario]:
        """Return the gate's suite: what every candidate must master."""

    def standings(self) -> Mapping[str, Standing]:
        """Return by name how those scenarios stand."""

    def fork(self, id_: str, at: int, edits: Sequence[tuple[str, Any]], times: int, seed: int) -> Result:
        """Run an episode's rest again from a step on, with edits made in their order.

        Raises FlywheelError where that can't be.
        """

    def travel(self) -> TimeTravel:
        """Return the run as time travel has it; raises UsageError where its task can't be loaded here."""

    def tell(self, rows: Sequence[Row]) -> int:
        """Keep a program's spans; return how many were taken."""

    def rollback(self) -> str:
        """Put the policy before the present one back into service; return what was done. Raises FlywheelError."""

    def decide(self, word: Word, digest: str, reason: str) -> str:
        """Do what a person says to the challenger on its way, if its digest begins so; return what was done.

        Raises FlywheelError.
        """

    def save(self, id_: str, at: int, edits: Mapping[str, Any], name: str) -> str:
        """Make a fork a scenario of the gate's suite; return what was done. Raises FlywheelError."""

    def drop(self, name: str) -> str:
        """Take a scenario out of the gate's suite; return what was done. Raises FlywheelError."""
