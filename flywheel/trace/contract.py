"""What time travel offers, whether the run directory is here or behind a page: both are held to it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import UsageError
from flywheel.records import End, Episode, Origin, Parameters, Signal, Trial, Verdict
from flywheel.tapes import Difference, Scenario

if TYPE_CHECKING:
    from flywheel.trace.result import Result
    from flywheel.trace.shift import Shift
    from flywheel.trace.spans import Span


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number, of at least `least`; UsageError, with the name, for anything else, as 2.0 or True."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        begins = "" if least is None else f" from {least} on"
        raise UsageError(f"{name} takes a whole number{begins}, not {value!r}.")
    return found


def checked_id(id_: Any) -> str:
    """Return the id of an episode; UsageError for anything else, such as the episode of a fork."""
    if not isinstance(id_, str):
        raise UsageError(
            f"An episode is asked for by its id, not by {type(id_).__name__}. A fork is kept nowhere: make all edits "
            "in one fork of the original."
        )
    return id_


def check_question(other: str, policy: str, beyond: float | None, exact: bool) -> None:
    """Raise UsageError where what `diverge` is asked has no answer that heeds all of it."""
    if other and policy:
        raise UsageError(
            "policy asks where it would have acted otherwise in one episode: name no other one, or no policy."
        )
    if beyond is not None and not other:
        raise UsageError("beyond compares what the critic expects of two episodes: name the other one, or no beyond.")
    if exact and (other or policy):
        raise UsageError(
            "exact is of one episode alone, whose own decisions are made again: name no other one and no policy, or "
            "leave it away."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An episode of a list: how it came out, without its steps."""

    id: str
    origin: Origin
    """`production`, or `gate` for a trial of a verdict."""
    digest: str
    """Policy that gave its first action."""
    scenario: str
    """"" in production."""
    total: float
    num_steps: int
    failed: bool
    end: End | None
    """None for a trial, of which it isn't kept."""
    started_at: float
    """When the episode began, or the verdict was given."""
    ended_at: float
    """When the episode ended, or the verdict was given."""


def trial_row(verdict: Verdict, trial: Trial) -> Row:
    """Return a trial of a verdict as a row."""
    return Row(
        id=trial.episode, origin="gate", digest=verdict.digest, scenario=trial.scenario, total=trial.total,
        num_steps=trial.length, failed=trial.failed, end=None, started_at=verdict.judged_at,
        ended_at=verdict.judged_at,
    )  # fmt: skip


class Forked(Protocol):
    """An episode that stands at a step."""

    episode: Episode
    """As it was recorded."""
    at: int
    """The step: the action before which it stands."""

    @property
    def parameters(self) -> Parameters:
        """The world's parameters from this step on, as they are without edits."""

    @property
    def edits(self) -> tuple[str, ...]:
        """What is changed, in words."""

    def edit_parameter(self, name: str, value: Any) -> Self:
        """Change one thing more from this step on, and return the fork; UsageError for what can't be."""

    def replay(self, times: int = 1, seed: int = 0) -> Result:
        """Run the rest of the episode again, `times` times with and without the edits, and return both courses."""

    def scenario(self) -> Scenario:
        """Return what the gate can try every candidate in, still without a name."""

    def close(self) -> None:
        """Release what is kept for the next replay."""


class TimeTravel(Protocol):
    """A run: its episodes, and what can be done with them. Close it, or use it in a `with`."""

    @property
    def parameters(self) -> Parameters:
        """The simulator's parameters as production showed them last."""

    def parameters_of(self, digest: str) -> Parameters:
        """Return the parameters of the worlds that a policy was trained and judged for."""

    def episodes(self, where: str = "", *, limit: int | None = 50) -> list[Row]:
        """Return the last episodes of production and of the gate's trials that fit, newest first."""

    def episode(self, id_: str) -> Episode:
        """Return the episode that an id, or what it begins with, names."""

    def values(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what the critics expected at each observation, float64[T + 1]; None where there is no critic."""

    def residuals(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what the world did in each step minus what the simulator does, float64[T, S]; None where unknown."""

    def trace(self, name: str, /, **attributes: Any) -> Span:
        """Return a span for a `with`, kept beside the run."""

    def fork_episode(self, id_: str, at: int = 0) -> Forked:
        """Return an episode as a fork that stands before its action `at`."""

    def diverge(
        self, one: str, other: str = "", *, policy: str = "", beyond: float | None = None, exact: bool = False
    ) -> Difference | None:
        """Return the first step where two episodes part, or where one is not what it should have been."""

    def signals(self) -> list[Signal]:
        """Return every signal that was raised, oldest first."""

    def shift(self) -> Shift | None:
        """Return where the last shift of the world began to show; None where none was seen."""

    def scenarios(self) -> tuple[Scenario, ...]:
        """Return the scenarios that every candidate must master, oldest first."""

    def save_scenario(self, of: Forked | Result, name: str) -> Scenario:
        """Make a fork a scenario of the gate's suite."""

    def drop_scenario(self, name: str) -> None:
        """Take a scenario out of the gate's suite."""

    def close(self) -> None:
        """Let go of what is held open; it is opened again when it is asked for."""

    def __enter__(self) -> Self:
        """Return this connection, which is closed at the end of the block."""

    def __exit__(self, *_: object) -> None:
        """Close it."""
