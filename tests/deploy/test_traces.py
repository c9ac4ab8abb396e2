"""A replica's spans: of exactly the requests whose episodes are sampled, or whose program is traced itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from flywheel.config import DeployConfig
from flywheel.deploy.door import Door
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.service import Service
from flywheel.deploy.traces import Traces
from flywheel.trace.context import DIGEST, EPISODE, STEP, bar_of, is_sampled, root_of, trace_of
from flywheel.trace.outlet import Outlet
from flywheel.trace.row import Row
from tests.deploy.conftest import Links, World
from tests.deploy.test_door import FIRST, act, after

PROGRAM = ("a" * 32, "b" * 16)
TRACED = {"traceparent": f"00-{PROGRAM[0]}-{PROGRAM[1]}-01"}


class Clock:
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Kept:
    """A replica with what it traced."""

    def __init__(self, links: Links, share: float, max_waiting: int = 1000) -> None:
        self.rows: list[Row] = []
        self._token = token_file(links.registry.run_dir, CLIENT).read_text()
        self.own, self.told = (Outlet(self._keep, max_waiting=n, flush_s=60.0) for n in (1000, max_waiting))
        self.traces = Traces(share, self.own, self.told)
        self.service = Service(DeployConfig(flush_s=0.001, poll_s=10.0), links, links, Clock(), self.traces)

    def _keep(self, rows: Any) -> int:
        self.rows += rows
        return len(rows)

    def found(self) -> list[Row]:
        """Return the spans since the last time, in order of their making."""
        self.traces.make()
        assert self.own.flush(30) and self.told.flush(30)
        found, self.rows = self.rows, []
        return found

    @asynccontextmanager
    async def door(self) -> AsyncIterator[httpx.AsyncClient]:
        await self.service.start()
        headers = {"Authorization": f"Bearer {self._token}"}
        transport = httpx.ASGITransport(Door(self.service))
        async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as http:
            yield http
        await self.service.stop()
        self.own.close(0.0)
        self.told.close(0.0)


def first(id_: str) -> dict[str, Any]:
    return FIRST | {"episode": id_}


async def test_an_episodes_requests_are_spans_under_its_first_one(world: World, links: Links) -> None:
    artifact, kept = world.served(), Kept(links, 1.0)
    async with kept.door() as http:
        (one,) = await act(http, first("e"))
        (two,) = await act(http, after(one))
        end = after(two, terminated=True, truncated=False)
        assert (await http.post("/v1/end", json={"episodes": [end]})).json()["acknowledged"] == ["e"]
        rows = kept.found()
    assert [(row.name, row.attributes[STEP]) for row in rows] == [("act", 0), ("act", 1), ("end", 2)]
    assert {(row.trace, row.parent) for row in rows} == {(trace_of("e"), root_of(trace_of("e")))}
    assert len({row.id for row in rows}) == 3 and {row.source for row in rows} == {"replica"}
    assert rows[1].attributes == {
        EPISODE: "e", STEP: 1, DIGEST: artifact.digest, "flywheel.action": two["raw_action"],
        "flywheel.logp": two["logp"], "flywheel.num_rows": 1, "flywheel.queue_s": 1.0, "flywheel.work_s": 1.0,
    }  # fmt: skip
    assert rows[1].ended_at - rows[1].started_at == 3.0
    assert rows[2].attributes["flywheel.acknowledged"] is True


async def test_of_many_episodes_those_that_have_luck_are_traced(world: World, links: Links) -> None:
    world.served()
    kept = Kept(links, 0.3)
    ids = [f"e{i}" for i in range(60)]
    lucky = [id_ for id_ in ids if is_sampled(trace_of(id_), bar_of(0.3))]
    async with kept.door() as http:
        await act(http, *map(first, ids))
        rows = kept.found()
    assert [row.attributes[EPISODE] for row in rows] == lucky and 0 < len(lucky) < 60
    assert rows[0].attributes["flywheel.num_rows"] == 60


async def test_a_program_that_is_traced_itself_finds_its_requests(world: World, links: Links) -> None:
    world.served()
    kept = Kept(links, 0.0)
    mine = {"traceparent": f"00-{trace_of('e')}-{'c' * 16}-01"}
    async with kept.door() as http:
        await http.post("/v1/act", json={"steps": [first("e")]}, headers=mine)
        (row,) = kept.found()
        assert (row.trace, row.parent, row.links) == (trace_of("e"), "c" * 16, ())

        await http.post("/v1/act", json={"steps": [first("f"), first("g")]}, headers=TRACED)
        (row,) = kept.found()
        assert (row.name, row.trace, row.parent) == ("POST /v1/act", *PROGRAM)

        silent = {"traceparent": TRACED["traceparent"][:-1] + "0"}
        await http.post("/v1/act", json={"steps": [first("h")]}, headers=silent)
        assert kept.found() == [], "it is not traced, and nor is its episode"


async def test_a_traced_programs_request_is_tied_to_the_episodes_in_it(world: World, links: Links) -> None:
    world.served()
    kept = Kept(links, 1.0)
    async with kept.door() as http:
        await http.post("/v1/act", json={"steps": [first("f"), first("g")]}, headers=TRACED)
        f, g, request = kept.found()
    assert f.links == g.links == (PROGRAM,) and f.parent == root_of(trace_of("f"))
    assert request.links == ((f.trace, f.id), (g.trace, g.id))


async def test_a_refused_request_says_why_and_a_strangers_is_not_traced(world: World, links: Links) -> None:
    world.served()
    kept = Kept(links, 1.0)
    async with kept.door() as http:
        wrong = first("e") | {"observation": [0.0] * 3}
        assert (await http.post("/v1/act", json={"steps": [wrong]}, headers=TRACED)).status_code == 422
        row, request = kept.found()
        assert row.trace == trace_of("e") and "Expected 4 numbers" in row.error and request.error == row.error
        stranger = {"Authorization": "Bearer wrong", **TRACED}
        for path in ("/v1/act", "/v1/spans"):
            assert (await http.post(path, json={"steps": [first("e")]}, headers=stranger)).status_code == 401
        assert (await http.get("/v1/policy", headers=TRACED)).status_code == 200
        assert kept.found() == []


async def test_a_span_that_cannot_be_made_fails_no_request(
    world: World, links: Links, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.served()
    kept = Kept(links, 1.0)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    async with kept.door() as http:
        monkeypatch.setattr(kept.own, "put", fail)
        await act(http, first("e"))
        assert kept.found() == [] and "were not traced" in caplog.text
        monkeypatch.undo()
        await act(http, first("f"))
        assert [row.attributes[EPISODE] for row in kept.found()] == ["f"]


async def test_spans_are_made_some_moments_after_the_answer(world: World, links: Links) -> None:
    world.served()
    kept = Kept(links, 1.0)
    async with kept.door() as http:
        await act(http, first("e"))
        while not kept.traces.counts.made:
            await asyncio.sleep(0)
        assert kept.traces.counts.made == 1


SPAN = {"trace": "1" * 32, "id": "2" * 16, "name": "n", "started_at": 1.0, "ended_at": 2.0}


async def test_programs_tell_their_spans_and_hear_how_many_there_was_room_for(world: World, links: Links) -> None:
    kept = Kept(links, 0.0, max_waiting=3)
    async with kept.door() as http:
        spans = [SPAN | {"id": f"{i + 1:016x}"} for i in range(5)]
        answer = await http.post("/v1/spans", json={"spans": spans})
        assert (answer.status_code, answer.json()) == (200, {"taken": 3, "lost": 2})
        assert (kept.traces.counts.made, kept.traces.counts.lost) == (5, 2)
        assert [row.source for row in kept.found()] == ["client"] * 3


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (json.dumps({"spans": [SPAN, SPAN | {"trace": "no"}]}), 422, "spans[1].trace"),
        (json.dumps({"spans": [SPAN | {"started_at": float("nan")}]}), 400, ""),
        (json.dumps({"spans": [SPAN] * 513}), 422, "spans"),
        (json.dumps({"spans": [SPAN | {"attributes": {str(i): ["x" * 1000] * 64 for i in range(2)}}]}), 413, "spans"),
        ('{"spans": [' + " " * 2**20 + "]}", 413, ""),
        ("[" * 100_000, 422, ""),
    ],
)
async def test_wrong_spans_are_named_and_none_is_taken(
    world: World, links: Links, body: str, code: int, field: str
) -> None:
    kept = Kept(links, 0.0)
    async with kept.door() as http:
        answer = await http.post("/v1/spans", content=body)
        assert (answer.status_code, answer.json()["field"]) == (code, field), answer.text
        assert kept.found() == []


async def test_where_nothing_is_traced_spans_are_not_taken(world: World, links: Links, service: Service) -> None:
    await service.start()
    headers = {"Authorization": f"Bearer {world.token}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(Door(service)), base_url="http://door", headers=headers
    ) as http:
        assert (await http.post("/v1/spans", json={"spans": []})).status_code == 404
    await service.stop()
