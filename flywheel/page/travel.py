"""Time travel for programs elsewhere, which `flywheel.connect(url)` asks for: the answers are exact records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from flywheel import __version__
from flywheel.errors import UsageError
from flywheel.page.forks import check_times
from flywheel.page.operate import body_of, check_may_operate
from flywheel.page.routes import EpisodeId, answer
from flywheel.page.source import Source
from flywheel.page.turnstile import Turnstile
from flywheel.records import Episode
from flywheel.tapes import Scenario, chain, short
from flywheel.trace.carry import FORM, MEDIA_TYPE, Stand, packed, replayed
from flywheel.trace.contract import Forked
from flywheel.trace.row import MAX_SPAN, TellAnswer, TellRequest, is_heavy, told

T = TypeVar("T")
Edit = tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=128)], Annotated[str, msgspec.Meta(max_length=2**15)]]
"""Name and value; a value is text, as the command line has it, so that each number keeps all of its digits."""
Part = Annotated[str, Query(max_length=128)]
"""An id, a digest, or what one begins with."""


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /travel/edits and /travel/scenario: a fork with its edits in their order."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    at: int
    edits: Annotated[list[Edit], msgspec.Meta(max_length=64)] = []


class Again(Asked):
    """Body of POST /travel/replay."""

    times: int = 1
    seed: int = 0


def travelling(source: Source, turnstile: Turnstile) -> APIRouter:
    """Return the routes that `flywheel.connect(url)` asks; those that simulate wait at the turnstile."""
    router = APIRouter(prefix="/api/v1/travel")
    _greeting(router, source)
    _looking(router, source, turnstile)
    _comparing(router, source, turnstile)
    _forking(router, source, turnstile)
    return router


def record(value: Any) -> Response:
    """Return a record to the last bit."""
    return Response(packed(value), media_type=MEDIA_TYPE)


def _greeting(router: APIRouter, source: Source) -> None:
    @router.get("")
    def greeting(request: Request) -> Response:
        """Return what a program has to know before it asks for more."""
        source.travel()  # raises where the task can't be loaded here
        role = request.state.role
        return answer({"form": FORM, "version": __version__, "run": source.about().run, "role": role})

    @router.post("/spans")
    async def spans(request: Request) -> Response:
        """Keep a program's spans beside the run, as the policy's door does."""
        check_may_operate(request)
        asked = await body_of(request, TellRequest)
        if is_heavy(len(await request.body()), len(asked.spans)):
            raise UsageError(f"These spans take more than {MAX_SPAN} bytes each in the mean: log less in one.")
        taken = await asyncio.to_thread(source.tell, told(asked))
        return answer(TellAnswer(taken, len(asked.spans) - taken))


def _looking(router: APIRouter, source: Source, turnstile: Turnstile) -> None:
    @router.get("/parameters")
    def parameters(digest: Part | None = None) -> Response:
        """Return the simulator's parameters as production showed them last, or those that a policy was judged for."""
        travel = source.travel()
        return record(travel.parameters if digest is None else travel.parameters_of(digest))

    @router.get("/episodes")
    def episodes(where: Annotated[str, Query(max_length=1024)] = "", limit: int | None = None) -> Response:
        """Return episodes as rows, newest first, all of them without a limit."""
        return record(source.travel().episodes(where, limit=limit))

    @router.get("/episode")
    async def episode(request: Request, id: EpisodeId) -> Response:
        """Return an episode."""
        return await turnstile.run(request, lambda: record(source.travel().episode(id)))

    @router.get("/signals")
    def signals() -> Response:
        """Return every alarm."""
        return record(source.travel().signals())

    @router.get("/shift")
    async def shift(request: Request) -> Response:
        """Return where the last shift began to show."""
        return record(await turnstile.run(request, source.shift))

    @router.get("/scenarios")
    def scenarios() -> Response:
        """Return the gate's suite."""
        return record(source.travel().scenarios())


def _comparing(router: APIRouter, source: Source, turnstile: Turnstile) -> None:
    def insisted(id_: str, proof: str) -> Episode:
        episode = source.episode(id_)
        if chain(episode) != proof:
            raise UsageError(f"Episode {short(id_)} is another one here than yours: ask for it again, and leave it so.")
        return episode

    @router.get("/values")
    async def values(request: Request, id: EpisodeId, chain: Part) -> Response:
        """Return what the critics expected of an episode."""
        return await turnstile.run(request, lambda: record(source.travel().values(insisted(id, chain))))

    @router.get("/residuals")
    async def residuals(request: Request, id: EpisodeId, chain: Part) -> Response:
        """Return what the world of an episode did otherwise than the simulator."""
        return await turnstile.run(request, lambda: record(source.travel().residuals(insisted(id, chain))))

    @router.get("/diverge")
    async def diverge(
        request: Request,
        one: EpisodeId,
        other: Part = "",
        policy: Part = "",
        beyond: float | None = None,
        exact: bool = False,
    ) -> Response:
        """Return where two episodes part, or where one isn't what it should have been."""

        def found() -> Response:
            return record(source.travel().diverge(one, other, policy=policy, beyond=beyond, exact=exact))

        return await turnstile.run(request, found)


def _forking(router: APIRouter, source: Source, turnstile: Turnstile) -> None:
    @router.get("/fork")
    async def fork(request: Request, id: EpisodeId, at: int = 0) -> Response:
        """Return an episode, and the world in which a fork of it goes on."""
        return await turnstile.run(request, lambda: record(_forked(source, Asked(id, at), _stand)))

    @router.post("/edits")
    async def edits(request: Request) -> Response:
        """Return a fork's edits in words."""
        asked = await body_of(request, Asked)
        return await turnstile.run(request, lambda: record(_forked(source, asked, lambda fork: fork.edits)))

    @router.post("/scenario")
    async def scenario(request: Request) -> Response:
        """Return what the gate could try every candidate in."""
        asked = await body_of(request, Asked)
        return await turnstile.run(request, lambda: record(_forked(source, asked, _scenario)))

    @router.post("/replay")
    async def replay(request: Request) -> Response:
        """Run an episode's rest again."""
        asked = await body_of(request, Again)

        def found() -> Response:
            check_times(source.task(), asked.at, asked.times)
            return record(replayed(source.fork(asked.id, asked.at, asked.edits, asked.times, asked.seed)))

        return await turnstile.run(request, found)


def _stand(fork: Forked) -> Stand:
    return Stand(episode=fork.episode, parameters=fork.parameters)


def _scenario(fork: Forked) -> Scenario:
    return fork.scenario()


def _forked(source: Source, asked: Asked, use: Callable[[Forked], T]) -> T:
    """Return what is made of a fork with its edits."""
    with closing(source.travel().fork_episode(asked.id, asked.at)) as fork:
        for name, value in asked.edits:
            fork.edit_parameter(name, value)
        return use(fork)
