"""What can be read: each route returns records of the Source as plain JSON."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from flywheel.errors import UsageError
from flywheel.page import shapes
from flywheel.page.events import Streams
from flywheel.page.frames import ROW, SHEET, Frames
from flywheel.page.production import series
from flywheel.page.source import By, How, Source
from flywheel.page.turns import listed_turn, whole_turn
from flywheel.page.turnstile import Turnstile
from flywheel.records import Origin, Parameters
from flywheel.task import spec_of

EpisodeId = Annotated[str, Query(min_length=1, max_length=128)]
Digest = Annotated[str, Query(pattern="^[0-9a-f]{64}$")]
ANY_DIGEST = Query("", pattern="^([0-9a-f]{64})?$")
MOST_SHOWN = 20_000
"""Most episodes that one chart reads."""
TOLD = 200
"""Sentences of the story that a page begins with."""


def answer(value: Any, status: int = 200) -> Response:
    """Return JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def reading(source: Source, streams: Streams, frames: Frames, turnstile: Turnstile) -> APIRouter:
    """Return the routes that read; those that simulate wait at the turnstile."""
    router = APIRouter(prefix="/api/v1")
    _now(router, source)
    _turns_and_policies(router, source)
    _episodes(router, source, turnstile)
    _pictures(router, source, frames, turnstile)

    @router.get("/events")
    async def events(request: Request, begin: Annotated[int, Query(ge=0)] = 0) -> Response:
        """Stream what happens from now on, or from where an earlier stream was cut off."""
        if streams.is_full:
            refusal = answer({"error": "Too many pages follow this run: try again in some seconds."}, 503)
            refusal.headers["retry-after"] = "10"
            return refusal
        last = request.headers.get("last-event-id", "")
        stream = streams.stream(int(last) if re.fullmatch("[0-9]{1,18}", last) else begin)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return router


def _now(router: APIRouter, source: Source) -> None:
    @router.get("/now")
    def now(request: Request) -> Response:
        """Return whose run this is, what turns, who serves or is tried, the alarms, and the last sentences."""
        about, told, known, tally = source.about(), source.told(0), source.policies(), source.tally()
        rows = shapes.policies(known, tally)
        whole = sum(row["episodes"] - row["lost"] for row in tally.values())
        turns = source.turns()
        return answer(
            {
                "about": shapes.plain(about),
                "role": request.state.role,
                "wheel": shapes.wheel(about, told, source.draft()),
                "last": listed_turn(turns[-1], True) if turns else None,
                "service": next((row for row in rows if row["state"] == "in service"), None),
                "previous": known.previous,
                "challenger": next((shapes.challenge(c) for c in known.challenges[-1:] if not c.is_over), None),
                "control": next((shapes.control(c) for c in known.controls[-1:] if c.ended_at is None), None),
                "signals": [shapes.signal(each) for each in source.signals()],
                "production": {
                    "episodes": int(sum(row["episodes"] for row in tally.values())),
                    "failed": int(sum(row["failed"] for row in tally.values())),
                    "lost": int(sum(row["lost"] for row in tally.values())),
                    "mean_return": sum(row["total"] for row in tally.values()) / whole if whole else None,
                    "estimated": source.early(),
                },
                "story": [shapes.story_line(end, line) for end, line in told[-TOLD:]],
                "offset": told[-1][0] if told else 0,
            }
        )

    @router.get("/production")
    def production(last: Annotated[int, Query(ge=1, le=MOST_SHOWN)] = MOST_SHOWN) -> Response:
        """Return the columns of a chart over the last so many production episodes, and what happened when."""
        total = int(sum(row["episodes"] for row in source.tally().values()))  # first: one more may end at any time
        episodes = source.outcomes(last)
        first = max(total, len(episodes)) - len(episodes) + 1
        return answer(series(episodes, first, source.policies(), source.signals(), source.changes()))


def _turns_and_policies(router: APIRouter, source: Source) -> None:
    @router.get("/turns")
    def turns() -> Response:
        """Return every turn, newest first, the one that is under way among them."""
        found = [listed_turn(each, True) for each in source.turns()]
        draft = source.draft()
        if draft is not None:
            found.append(listed_turn(draft, False))
        return answer({"turns": found[::-1]})

    @router.get("/turn")
    def turn(number: Annotated[int, Query(ge=1)]) -> Response:
        """Return one turn."""
        draft = source.draft()
        for each in source.turns():
            if each.number == number:
                return answer(whole_turn(each, True, source.told(0)))
        if draft is not None and draft.number == number:
            return answer(whole_turn(draft, False, source.told(0)))
        raise UsageError(f"This run has no turn {number}.")

    @router.get("/policies")
    def policies() -> Response:
        """Return every policy, and every challenger, newest first."""
        known = source.policies()
        rows = shapes.policies(known, source.tally())
        challenges = [shapes.challenge(each) for each in known.challenges]
        about = {"previous": known.previous, "tries": known.tries}
        return answer({"policies": rows, "challenges": challenges[::-1], **about})

    @router.get("/policy")
    def policy(digest: Digest) -> Response:
        """Return one policy with all its verdicts, and each time that it was tried, newest first."""
        known = source.policies()
        row = next((row for row in shapes.policies(known, source.tally()) if row["digest"] == digest), None)
        if row is None:
            raise UsageError(f"The registry knows no policy {digest[:12]}.")
        verdicts = [shapes.verdict(each) for each in known.verdicts.get(digest, ())]
        tried = [shapes.challenge(each) for each in known.challenges if each.challenger == digest]
        return answer({**row, "verdicts": verdicts[::-1], "challenges": tried[::-1]})

    @router.get("/verdict")
    def verdict(digest: Digest, number: Annotated[int, Query(ge=0)] = 0) -> Response:
        """Return one verdict on a policy, the oldest being number 0, as a page that can be kept and sent on."""
        page, allowed = source.verdict_page(digest, number)
        headers = {"content-security-policy": f"{allowed}; frame-ancestors 'none'"}
        return Response(page, media_type="text/html", headers=headers)


def _episodes(router: APIRouter, source: Source, turnstile: Turnstile) -> None:
    @router.get("/episodes")
    def episodes(
        origin: Origin = "production",
        digest: str = ANY_DIGEST,
        how: How = "",
        begins: Annotated[str, Query(max_length=128)] = "",
        since: float | None = None,
        until: float | None = None,
        by: By = "started_at",
        descending: bool = True,
        after: float | None = None,
        after_id: Annotated[str, Query(max_length=128)] = "",
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> Response:
        """Return a page of the list of episodes; `next` is what to ask for the page after it with."""
        rows = source.listed(
            origin=origin, digest=digest, how=how, begins=begins, since=since, until=until, by=by,
            descending=descending, after=None if after is None else (after, after_id), limit=limit + 1,
        )  # fmt: skip
        shown = rows[:limit]
        more = {"after": getattr(shown[-1], by), "after_id": shown[-1].id} if len(rows) > limit else None
        return answer({"episodes": [shapes.listed(each) for each in shown], "next": more})

    @router.get("/episode")
    async def episode(request: Request, id: EpisodeId) -> Response:
        """Return one episode, step by step."""
        return await turnstile.run(request, lambda: _told(source, id))


def _told(source: Source, id_: str) -> Response:
    try:
        leaves = spec_of(source.task()).observation_leaves
    except UsageError:  # it can be looked at all the same
        leaves = ()
    return answer(shapes.episode(source.episode(id_), leaves))


def _pictures(router: APIRouter, source: Source, frames: Frames, turnstile: Turnstile) -> None:
    def drawn(id_: str, sheet: int) -> bytes:
        episode = source.episode(id_)
        root, at = episode.parent or (id_, 0)
        if episode.seed is None and source.about().forks_production:  # in the world that production showed
            before: Parameters | None = source.world(root, at)
        else:
            before = source.episode(root).parameters if episode.parent else None
        return frames.sheet(source.task(), episode, sheet, before, source.opening(id_))

    @router.get("/frames")
    async def pictures(request: Request, id: EpisodeId, sheet: Annotated[int, Query(ge=0)] = 0) -> Response:
        """Return a PNG with the pictures of neighbouring steps of an episode."""
        body = await turnstile.run(request, lambda: drawn(id, sheet))
        headers = {"x-flywheel-row": str(ROW), "x-flywheel-sheet": str(SHEET), "cache-control": "private, max-age=600"}
        return Response(body, media_type="image/png", headers=headers)
