"""A run that is elsewhere, opened by the address of its page: what is simulated is simulated there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import Refused, UsageError
from flywheel.records import Episode, Parameters, Signal
from flywheel.remote.http import API, TRAVEL, Page
from flywheel.tapes import Difference, Scenario, chain
from flywheel.trace.carry import Replayed, Stand
from flywheel.trace.contract import Forked, Row, TimeTravel, checked_id, whole
from flywheel.trace.result import Result
from flywheel.trace.shift import Shift
from flywheel.trace.spans import Span, Tracer

TIMEOUT_S = 150.0
"""Seconds that an answer may take: more than the 120 that the page gives a command, such as saving a scenario."""


class ElsewhereError(UsageError, AttributeError):
    """What was asked for is only where the run directory is: `hasattr` says that it isn't here."""


class _Elsewhere:
    """What only a run directory that is here can offer: ElsewhereError says what to do instead."""

    def __init__(self, instead: str) -> None:
        self._instead = instead

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, remote: object | None, _: type) -> Any:
        if remote is None:
            return self
        raise ElsewhereError(f"A run that is elsewhere has no {self._name} here: {self._instead}.")


_THERE = "open the run directory where it is, with flywheel.connect(run_dir)"


class Remote(TimeTravel):
    """One run elsewhere: its episodes, and what can be done with them, as `Connection` has it."""

    run_dir = _Elsewhere(_THERE)
    registry = _Elsewhere(f"parameters_of(digest) and the page tell of its policies; for the rest {_THERE}")
    policies = _Elsewhere(f"edit_parameter('policy', digest) lets one act in a fork; for the rest {_THERE}")
    task = _Elsewhere(f"episodes, forks and their numbers come ready-made; for the rest {_THERE}")
    config = _Elsewhere(_THERE)

    def __init__(self, url: str, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """Ask the page at an address whether it offers what this version asks for.

        Raises UsageError for a wrong address or a page of another version, Refused for a token that opens nothing,
        FlywheelError where nothing answers.
        """
        self._page = Page(url, token, timeout_s)
        try:
            self._greeting = self._page.greeting()
        except BaseException:
            self._page.close()
            raise

    def __repr__(self) -> str:
        return f"Remote({self._page.url!r}, run={self._greeting.run!r}, may={self._greeting.role!r})"

    def close(self) -> None:
        """Hand over spans that wait, and close the connections; both are opened again when they are asked for."""
        tracer: Tracer | None = self.__dict__.pop("_tracer", None)
        if tracer is not None:
            tracer.close()
        self._page.close()

    def __enter__(self) -> Self:
        """Return this connection, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # What there is

    @property
    def parameters(self) -> Parameters:
        """As Connection.parameters."""
        found: Parameters = self._page.get(f"{TRAVEL}/parameters", dict[str, float])
        return found

    def parameters_of(self, digest: str) -> Parameters:
        """As Connection.parameters_of."""
        found: Parameters = self._page.get(f"{TRAVEL}/parameters", dict[str, float], digest=digest)
        return found

    def episodes(self, where: str = "", *, limit: int | None = 50) -> list[Row]:
        """As Connection.episodes."""
        most = None if limit is None else whole("limit", limit, least=0)
        found: list[Row] = self._page.get(f"{TRAVEL}/episodes", list[Row], where=where, limit=most)
        return found

    def episode(self, id_: str) -> Episode:
        """As Connection.episode."""
        found: Episode = self._page.get(f"{TRAVEL}/episode", Episode, id=id_)
        return found

    def values(self, episode: Episode) -> NDArray[np.float64] | None:
        """As Connection.values, of an episode that the page knows: a stored one, a trial, or one of its last forks.

        Raises UsageError where it is not to the last bit what the page has under its id.
        """
        return self._of_steps("values", episode)

    def residuals(self, episode: Episode) -> NDArray[np.float64] | None:
        """As Connection.residuals, of an episode that the page knows, as `values`."""
        return self._of_steps("residuals", episode)

    def _of_steps(self, what: str, episode: Episode) -> NDArray[np.float64] | None:
        asked = {"id": episode.id, "chain": chain(episode)}
        found: NDArray[np.float64] | None = self._page.get(f"{TRAVEL}/{what}", NDArray[np.float64] | None, **asked)
        return found

    # What can be done

    @cached_property
    def _tracer(self) -> Tracer:
        return Tracer.to_url(self._page.url, self._page.token, path=f"{TRAVEL}/spans")

    def trace(self, name: str, /, **attributes: Any) -> Span:
        """As Connection.trace: the page keeps it beside the run, for whoever has the operate token.

        Raises Refused without that token.
        """
        if self._greeting.role != "operate":
            raise Refused(
                f"The page at {self._page.url} keeps spans for whoever has the operate token: give connect(url, "
                "token=…) what is in keys/operate.token of its run directory; a client's token does for "
                "flywheel.trace.spans.Tracer.to_url, with the address at which the policy is served."
            )
        return self._tracer.span(name, **attributes)

    def fork_episode(self, id_: str, at: int = 0) -> RemoteFork:
        """As Connection.fork_episode."""
        at = whole("at", at)
        stand: Stand = self._page.get(f"{TRAVEL}/fork", Stand, id=checked_id(id_), at=at)
        return RemoteFork(self._page, stand, at)

    def diverge(
        self, one: str, other: str = "", *, policy: str = "", beyond: float | None = None, exact: bool = False
    ) -> Difference | None:
        """As Connection.diverge."""
        found: Difference | None = self._page.get(
            f"{TRAVEL}/diverge", Difference | None, one=one, other=other, policy=policy, beyond=beyond, exact=exact
        )
        return found

    def signals(self) -> list[Signal]:
        """As Connection.signals."""
        found: list[Signal] = self._page.get(f"{TRAVEL}/signals", list[Signal])
        return found

    def shift(self) -> Shift | None:
        """As Connection.shift; its link forks the episode from here."""
        found: Shift | None = self._page.get(f"{TRAVEL}/shift", Shift | None)
        if found is None or found.step is None:
            return found
        link = f"flywheel.connect({self._page.url!r}).fork_episode({found.episode!r}, at={found.step})"
        return dataclasses.replace(found, link=link)

    # The gate's suite

    def scenarios(self) -> tuple[Scenario, ...]:
        """As Connection.scenarios."""
        found: tuple[Scenario, ...] = self._page.get(f"{TRAVEL}/scenarios", tuple[Scenario, ...])
        return found

    def save_scenario(self, of: Forked | Result, name: str) -> Scenario:
        """As Connection.save_scenario, of a fork made through this page; Refused without the operate token."""
        asked = of.scenario if isinstance(of, Result) else of.asked if isinstance(of, RemoteFork) else None
        if not isinstance(asked, Asked) or asked.page.url != self._page.url:
            raise UsageError("This fork was not made through this connection: save it by the one that made it.")
        self._page.do("POST", f"{API}/scenarios", {**asked.body, "edits": dict(asked.edits), "name": name})
        return next(scenario for scenario in self.scenarios() if scenario.name == name)

    def drop_scenario(self, name: str) -> None:
        """As Connection.drop_scenario; Refused without the operate token."""
        self._page.do("DELETE", f"{API}/scenarios", {"name": name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A fork as a page is told it. Called, it returns the scenario of it, as a Result wants."""

    page: Page
    id: str
    at: int
    edits: tuple[tuple[str, str], ...] = ()
    told: tuple[str, ...] = field(default=(), compare=False)
    """The edits in words."""

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"id": self.id, "at": self.at, "edits": self.edits}

    def __call__(self) -> Scenario:
        """Return the scenario; UsageError where the episode is over by then."""
        found: Scenario = self.page.post(f"{TRAVEL}/scenario", Scenario, self.body)
        return found


class RemoteFork(Forked):
    """An episode that stands at a step, on a page elsewhere."""

    task = _Elsewhere(_THERE)

    def __init__(self, page: Page, stand: Stand, at: int) -> None:
        """Stand where the page said."""
        self.episode, self.at, self._page, self._parameters = stand.episode, at, page, stand.parameters
        self.asked = Asked(page=page, id=stand.episode.id, at=at)

    @property
    def parameters(self) -> Parameters:
        """As Fork.parameters."""
        return self._parameters

    @property
    def edits(self) -> tuple[str, ...]:
        """As Fork.edits."""
        return self.asked.told

    def edit_parameter(self, name: str, value: Any) -> Self:
        """As Fork.edit_parameter, but for `reward`: a function doesn't travel, and UsageError says what to do."""
        if name == "reward":
            raise UsageError(
                f"A reward's function can't be sent to a page: edit reward_scale or reward_offset, or {_THERE}."
            )
        asked = dataclasses.replace(self.asked, edits=(*self.asked.edits, (name, _text(value))))
        told = self._page.post(f"{TRAVEL}/edits", tuple[str, ...], asked.body)
        self.asked = dataclasses.replace(asked, told=told)
        return self

    def replay(self, times: int = 1, seed: int = 0) -> Result:
        """As Fork.replay; a page runs at most 200 pairs at once."""
        body = {**self.asked.body, "times": whole("times", times), "seed": whole("seed", seed)}
        found: Replayed = self._page.post(f"{TRAVEL}/replay", Replayed, body)
        return Result(
            task=found.task,
            original=self.episode,
            unedited=found.unedited or self.episode,
            fork=found.fork,
            at=found.at,
            edits=found.edits,
            world=found.world,
            rewarded=found.rewarded,
            difference=found.difference,
            effect=found.effect,
            scenario=self.asked,
        )

    def scenario(self) -> Scenario:
        """As Fork.scenario."""
        return self.asked()

    def close(self) -> None:
        """Nothing is held here: the page lets go of its worlds after each answer."""


def _text(value: Any) -> str:
    """Return an edit's value as text that keeps all of its digits."""
    given = value.tolist() if hasattr(value, "tolist") else value
    return f"[{','.join(_parts(given))}]" if isinstance(given, list | tuple) else str(given)


def _parts(given: Any) -> list[str]:
    return [part for each in given for part in _parts(each)] if isinstance(given, list | tuple) else [str(given)]
