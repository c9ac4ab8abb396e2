"""Time travel: what can be edited at a step of an episode, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from flywheel.errors import UsageError
from flywheel.page import shapes
from flywheel.page.operate import body_of
from flywheel.page.routes import EpisodeId, answer
from flywheel.page.source import Source
from flywheel.page.turnstile import Turnstile
from flywheel.records import Leaf
from flywheel.task import Task, spec_of

MOST_TIMES = 200
"""Most pairs of runs of one request: some seconds on CartPole."""
MOST_STEPS = 100_000
"""Most steps that all pairs of one request may take, each of its two runs: so many as those of CartPole."""
Value = float | bool | str | list[float]


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /fork."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    at: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    edits: Annotated[dict[str, Value], msgspec.Meta(max_length=32)] = {}
    times: Annotated[int, msgspec.Meta(ge=1, le=MOST_TIMES)] = 1
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0


def forking(source: Source, turnstile: Turnstile) -> APIRouter:
    """Return the routes of forks; they change nothing, need no more than reading does, and wait at the turnstile."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/fork")
    async def editable(request: Request, id: EpisodeId, at: Annotated[int, Query(ge=0)] = 0) -> Response:
        """Return what a fork of an episode at a step can change."""
        return await turnstile.run(request, lambda: _editable(source, id, at))

    @router.post("/fork")
    async def fork(request: Request) -> Response:
        """Run an episode's rest again from a step on, with edits."""
        asked = await body_of(request, Asked)
        return await turnstile.run(request, lambda: _forked(source, asked))

    @router.get("/scenarios")
    def scenarios() -> Response:
        """Return the gate's suite."""
        standings = source.standings()
        return answer({"scenarios": [shapes.scenario(each, standings.get(each.name)) for each in source.scenarios()]})

    return router


def finding(source: Source, turnstile: Turnstile) -> APIRouter:
    """Return the routes that say where and why courses part; those that simulate wait at the turnstile."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/diverges")
    async def diverges(request: Request, id: EpisodeId) -> Response:
        """Return the first step where an episode isn't what it should have been, null where there is none."""
        found = await turnstile.run(request, lambda: source.diverges(id))
        return answer({"difference": shapes.difference(found)})

    @router.get("/expected")
    async def expected(request: Request, id: EpisodeId) -> Response:
        """Return what the critic and the simulator expected of an episode's steps, null where they can't say."""
        return await turnstile.run(request, lambda: _expected(source, id))

    @router.get("/spans")
    def spans(
        id: Annotated[str, Query(max_length=128)] = "", turn: Annotated[int | None, Query(ge=1, lt=2**31)] = None
    ) -> Response:
        """Return the spans of an episode, or of a turn."""
        return answer(shapes.spans(source.spans_of_episode(id) if turn is None else source.spans_of_turn(turn)))

    @router.get("/shift")
    async def shift(request: Request) -> Response:
        """Return where the last shift of the world began to show, null where none was seen."""
        found = await turnstile.run(request, source.shift)
        return answer(None if found is None else {"episode": found.episode, "step": found.step, "why": found.why})

    return router


def _editable(source: Source, id_: str, at: int) -> Response:
    task, episode = source.task(), source.episode(id_)
    if at >= episode.num_steps:
        raise UsageError(f"Episode {id_} has the steps 0 to {episode.num_steps - 1}: there is no step {at}.")
    edits = shapes.editable(task, episode, at, source.policies(), source.world(id_, at))
    return answer({"id": id_, "at": at, "edits": edits, "most_times": most_times(task, at)})


def _expected(source: Source, id_: str) -> Response:
    found = source.expected(id_)
    return answer(
        {
            "values": None if found.values is None else shapes.column(found.values),
            "residuals": None if found.residuals is None else shapes.column(found.residuals),
        }
    )


def most_times(task: Task, at: int) -> int:
    """Return how many pairs of runs from a step on one request may ask for."""
    return max(1, min(MOST_TIMES, MOST_STEPS // _rest(task, at)))


def check_times(task: Task, at: int, times: int) -> None:
    """Raise UsageError where so many pairs of runs from a step on are more work than one request may ask for."""
    most = most_times(task, at) if times > 1 else 1
    if times > most:
        raise UsageError(
            f"A page runs an episode's rest again {most} times at most, not {times}: from step {at} on each pair of "
            f"runs may go on for {_rest(task, at):,} steps, and the machine may be the one that serves. Ask for fewer, "
            "or do it where the run directory is, with flywheel.connect(run_dir)."
        )


def _rest(task: Task, at: int) -> int:
    """Return how many steps an episode can have from a step on, at least 1."""
    with closing(task.make_env()) as env:
        limit = None if env.spec is None else env.spec.max_episode_steps
    return max(1, min(task.max_steps, limit or task.max_steps) - max(at, 0))


def _forked(source: Source, asked: Asked) -> Response:
    check_times(source.task(), asked.at, asked.times)
    result = source.fork(asked.id, asked.at, [*asked.edits.items()], asked.times, asked.seed)
    return answer(shapes.forked(result, leaves_of(source)))


def leaves_of(source: Source) -> Sequence[Leaf]:
    """Return the parts of the task's observations."""
    return spec_of(source.task()).observation_leaves
