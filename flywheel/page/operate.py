"""What can be done: each route hands the request to whoever owns the run directory, as the command line does."""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from flywheel.challenge import Word
from flywheel.errors import Refused, UsageError
from flywheel.page.access import Access, role_of
from flywheel.page.routes import answer
from flywheel.page.source import Source
from flywheel.page.turnstile import Turnstile

Body = TypeVar("Body")
Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""What a scenario may be called from here: a word that a command line takes as it is."""


class Handed(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /session."""

    token: str


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /scenarios."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    at: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    name: Name
    edits: Annotated[dict[str, float | bool | str | list[float]], msgspec.Meta(max_length=32)] = {}


class Dropped(msgspec.Struct, forbid_unknown_fields=True):
    """Body of DELETE /scenarios."""

    name: Name


class Decided(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /canary."""

    word: Word
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """Of the challenger that is meant."""
    reason: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$", max_length=200)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that says all by its path."""


async def body_of(request: Request, kind: type[Body]) -> Body:
    """Return a request's body; UsageError names the field that is wrong."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"The request can't be read: {error}.") from error


def check_may_operate(request: Request) -> None:
    """Raise Refused unless the request came with a token that may operate."""
    if request.state.role != "operate":
        raise Refused("This needs a token with the scope operate: the run directory has one in keys/operate.token.")


def operating(source: Source, access: Access) -> APIRouter:
    """Return the routes that change something, and the one that a token is handed in by."""
    router = APIRouter(prefix="/api/v1")

    @router.post("/session")
    async def session(request: Request) -> Response:
        """Take a token and give a cookie for it, which scripts can't read."""
        handed = await body_of(request, Handed)
        token = access.token(handed.token.strip())
        if token is None or not (role := role_of(token.scopes)):
            raise Refused(
                "This token opens nothing here: it takes one with the scope read or operate, such as those in "
                "keys/page.token and keys/operate.token of the run directory."
            )
        response = answer({"role": role})
        response.set_cookie(
            access.name,
            access.cookie(token),
            path=request.scope.get("root_path", "") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    @router.delete("/session")
    async def leave(request: Request) -> Response:
        """Take the cookie back."""
        response = answer({"role": ""})
        response.delete_cookie(access.name, path=request.scope.get("root_path", "") or "/", samesite="strict")
        return response

    @router.post("/rollback")
    async def rollback(request: Request) -> Response:
        """Put the policy before the present one back into service."""
        check_may_operate(request)
        await body_of(request, Nothing)
        return answer({"done": await asyncio.to_thread(source.rollback)})

    @router.post("/canary")
    async def canary(request: Request) -> Response:
        """Drop, approve or freeze the challenger on its way."""
        check_may_operate(request)
        asked = await body_of(request, Decided)
        return answer({"done": await asyncio.to_thread(source.decide, asked.word, asked.digest, asked.reason)})

    return router


def keeping(source: Source, turnstile: Turnstile) -> APIRouter:
    """Return the routes that change the gate's suite of scenarios; a fork that is to be one is run first."""
    router = APIRouter(prefix="/api/v1")

    @router.post("/scenarios")
    async def save(request: Request) -> Response:
        """Make a fork a scenario of the gate's suite."""
        check_may_operate(request)
        asked = await body_of(request, Saved)

        def done() -> str:
            return source.save(asked.id, asked.at, asked.edits, asked.name)

        return answer({"done": await turnstile.run(request, done)})

    @router.delete("/scenarios")
    async def drop(request: Request) -> Response:
        """Take a scenario out of the gate's suite."""
        check_may_operate(request)
        asked = await body_of(request, Dropped)
        return answer({"done": await asyncio.to_thread(source.drop, asked.name)})

    return router
