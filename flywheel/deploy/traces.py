"""A replica's spans: one for each step of an episode that is traced, and for a request that a traced program made.

They begin when the request is at the door and end when it is answered, and are made after that. `flywheel.queue_s` is
what it waited behind the door, `flywheel.work_s` what was worked on it: checks, draws and network of all its rows, or
the observer's and the store's acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flywheel.deploy.wire import ActAnswer, ActRequest, ActRow, Decision, EndAnswer, EndRequest, EndRow
from flywheel.trace.context import DIGEST, EPISODE, STEP, asked, bar_of, is_sampled, parse, root_of, trace_of
from flywheel.trace.outlet import Counts, Outlet
from flywheel.trace.row import MAX_ATTRIBUTES, Row, TellAnswer, TellRequest, Value, fresh_id, told

log = logging.getLogger(__name__)
Above = tuple[str, str]
"""Trace and id of the span that a request was made in."""
Step = Decision | ActRow[Any] | EndRow[Any]


@dataclass(slots=True)
class Call:
    """One request on its way through a replica: when what happened to it, epoch seconds."""

    came_at: float
    """It was at the door."""
    path: str = ""
    """"" until it has shown the token, and where there is nothing to trace."""
    traceparent: str = ""
    """As the client sent it, "" where it didn't."""
    decided_from: float = 0.0
    """It was whole, and its policies were loaded."""
    decided_at: float = 0.0
    """Its decisions were made, or its ends were durable."""
    answered_at: float = 0.0
    request: Any = None
    answer: Any = None
    error: str = ""


GATHER_S = 0.02
"""Seconds over which requests are gathered: spans made one after another take a third of the time."""
MOST = 1024
"""Requests that wait for their spans at most."""
TOLD = 2048
"""Spans of programs that a replica holds at most."""


class Traces:
    """Makes the spans of requests that were answered, and takes those that programs tell."""

    def __init__(self, share: float, outlet: Outlet[Row], told: Outlet[Row]) -> None:
        """Trace a share of all episodes.

        Programs' spans have an outlet of their own, so that a flood of them costs no span of a request.
        """
        self._share, self._bar, self._outlet, self._told = share, bar_of(share), outlet, told
        self._calls: list[Call] = []

    @property
    def counts(self) -> Counts:
        """What became of all spans."""
        own, theirs = self._outlet.counts(), self._told.counts()
        return Counts(
            own.made + theirs.made, own.sent + theirs.sent, own.lost + theirs.lost, own.waiting + theirs.waiting
        )

    def tell(self, request: TellRequest) -> TellAnswer:
        """Take a program's spans, as far as there is room."""
        taken = self._told.put(told(request))
        return TellAnswer(taken, len(request.spans) - taken)

    def answered(self, call: Call) -> None:
        """Note a request that was answered; called on an event loop, which makes its spans some moments later."""
        if self._share == 0 and not call.traceparent:
            return
        if not self._calls:
            asyncio.get_running_loop().call_later(GATHER_S, self.make)
        self._calls.append(call)
        if len(self._calls) >= MOST:
            self.make()

    def make(self) -> None:
        """Put the spans of all requests that were answered on their way. Nothing is raised."""
        calls, self._calls = self._calls, []
        try:
            if rows := [row for call in calls for row in self._rows(call)]:
                self._outlet.put(rows)
        except Exception:  # a span is never worth a replica
            log.exception("%d requests were not traced.", len(calls))

    def _rows(self, call: Call) -> list[Row]:
        steps, bar = _steps(call), self._bar
        traces = [(step, trace_of(step.episode)) for step in steps]
        program = asked(call.traceparent)
        mine = [(step, trace) for step, trace in traces if is_sampled(trace, bar) or trace == program]
        if not mine and not program:
            return []
        above, shared = parse(call.traceparent), _shared(call, len(steps))
        rows = [_row(call, step, trace, above, shared) for step, trace in mine]
        if above is not None and program and all(trace != program for _, trace in traces):
            rows.append(_request(call, above, rows, shared))
        return rows

    def flush(self, timeout_s: float) -> None:
        """Hand over what was made, as far as time allows."""
        self._outlet.flush(timeout_s)
        self._told.flush(timeout_s)


def _steps(call: Call) -> Sequence[Step]:
    """Return what a request was about, by episode: its answers, or what was asked where it got none."""
    if isinstance(call.answer, ActAnswer):
        return call.answer.decisions
    if isinstance(call.request, ActRequest):
        return call.request.steps
    return call.request.episodes if isinstance(call.request, EndRequest) else ()


def _shared(call: Call, num_rows: int) -> dict[str, Value]:
    """Return what all rows of a request have in common: how many they are, and how long it waited and was worked on."""
    if not call.decided_at:
        return {"flywheel.num_rows": num_rows}
    return {
        "flywheel.num_rows": num_rows,
        "flywheel.queue_s": call.decided_from - call.came_at,
        "flywheel.work_s": call.decided_at - call.decided_from,
    }


def _row(call: Call, step: Step, trace: str, above: Above | None, shared: dict[str, Value]) -> Row:
    is_under = above is not None and above[0] == trace
    return Row(
        trace=trace,
        id=fresh_id(),
        parent=above[1] if above is not None and is_under else root_of(trace),
        name=call.path.rpartition("/")[2],
        source="replica",
        started_at=call.came_at,
        ended_at=call.answered_at,
        attributes={EPISODE: step.episode, STEP: step.t, **_known(call, step), **shared},
        links=(above,) if above is not None and not is_under else (),
        error=call.error,
    )


def _known(call: Call, step: Step) -> dict[str, Any]:
    """Return what is known of one step."""
    if isinstance(step, Decision):
        action = step.raw_action[:MAX_ATTRIBUTES] if isinstance(step.raw_action, list) else step.raw_action
        return {DIGEST: step.digest, "flywheel.action": action, "flywheel.logp": step.logp}
    if isinstance(call.answer, EndAnswer):
        return {DIGEST: step.digest, "flywheel.acknowledged": step.episode in call.answer.acknowledged}
    return {} if step.digest is None else {DIGEST: step.digest}


def _request(call: Call, above: Above, rows: Sequence[Row], shared: dict[str, Value]) -> Row:
    """Return the span of a whole request, under the span of a program that isn't about one of its episodes alone."""
    return Row(
        trace=above[0],
        id=fresh_id(),
        parent=above[1],
        name=f"POST {call.path}",
        source="replica",
        started_at=call.came_at,
        ended_at=call.answered_at,
        attributes=shared,
        links=tuple((row.trace, row.id) for row in rows[:MAX_ATTRIBUTES]),
        error=call.error,
    )
