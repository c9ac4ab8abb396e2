"""The HTTP door over a service, without Ray: what is let in, what is answered, what is kept."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from flywheel.deploy import links as links_module
from flywheel.deploy.door import Door
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.service import Service
from flywheel.records import Steps
from tests.deploy.conftest import NOW, Links, World, verdict_on

FIRST = {"episode": "e", "t": 0, "observation": [0.01, 0.02, 0.03, 0.04]}


@asynccontextmanager
async def opened(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Start the service and speak to its door."""
    await service.start()
    links: Any = service._registry
    headers = {"Authorization": f"Bearer {token_file(links.registry.run_dir, CLIENT).read_text()}"}
    transport = httpx.ASGITransport(Door(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as http:
        yield http
    await service.stop()


async def act(http: httpx.AsyncClient, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    response = await http.post("/v1/act", json={"steps": rows})
    assert response.status_code == 200, response.text
    decisions: list[dict[str, Any]] = response.json()["decisions"]
    return decisions


def after(decision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return FIRST | {
        "episode": decision["episode"], "t": decision["t"] + 1, "reward": 1.0,
        "digest": decision["digest"], "action": decision["raw_action"],
    } | more  # fmt: skip


async def test_an_episode_from_its_first_step_to_its_acknowledged_end(
    world: World, links: Links, service: Service
) -> None:
    artifact = world.served()
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
        assert decision["digest"] == artifact.digest
        (second,) = await act(http, after(decision))
        end = after(second, terminated=True, truncated=False)
        response = await http.post("/v1/end", json={"episodes": [end]})
        assert response.json() == {"acknowledged": ["e"], "missing": {}}
        assert links.rows() == {("e", 0), ("e", 1)}
        assert links.ends[0].ends == ("terminated",)


async def test_missing_steps_are_named_and_sent_again(world: World, links: Links, service: Service) -> None:
    world.served()
    links.lost = {("e", 0)}
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
        end = after(decision, terminated=False, truncated=True)
        assert (await http.post("/v1/end", json={"episodes": [end]})).json() == {
            "acknowledged": [], "missing": {"e": [0]},
        }  # fmt: skip
        again = FIRST | {"digest": decision["digest"], "action": decision["raw_action"]}
        response = await http.post("/v1/end", json={"episodes": [end], "resend": [again]})
        assert response.json() == {"acknowledged": ["e"], "missing": {}}
        first, second = [steps for steps in links.steps if steps.episodes == ("e",)]
        assert first.logps.tolist() == second.logps.tolist()


async def test_an_end_waits_for_no_step_that_is_logged_after_it(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.served()
    append, others = links.append, itertools.count()
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)

        async def under_load(steps: Steps) -> None:
            await append(steps)
            await act(http, FIRST | {"episode": f"other-{next(others)}"})

        monkeypatch.setattr(links, "append", under_load)
        async with asyncio.timeout(10):
            response = await http.post(
                "/v1/end", json={"episodes": [after(decision, terminated=True, truncated=False)]}
            )
        assert response.json()["acknowledged"] == ["e"]
        monkeypatch.setattr(links, "append", append)


async def test_an_end_is_refused_while_the_observer_is_away(
    world: World, links: Links, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.served()
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
        end = {"episodes": [after(decision, terminated=True, truncated=False)]}
        links.away = True
        assert (await http.post("/v1/end", json=end)).status_code == 503
        assert len(await act(http, FIRST | {"episode": "f"})) == 1, "deciding goes on"
        links.away, links.hangs = False, True
        monkeypatch.setattr(links_module, "AWAY_S", 0.02)
        assert (await http.post("/v1/end", json=end)).status_code == 503
        links.hangs = False
        assert (await http.post("/v1/end", json=end)).json()["acknowledged"] == ["e"]
        assert links.rows() == {("e", 0), ("f", 0)}, "what was logged meanwhile arrived"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"steps": [{"episode": "e", "t": 0, "observation": [NaN, 0, 0, 0]}]}', "steps[0].observation[0]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, Infinity, 0, 0]}]}', "steps[0].observation[1]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, -1e999, 0, 0]}]}', "steps[0].observation[1]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, 0, true, 0]}]}', "steps[0].observation[2]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, 0, "1", 0]}]}', "steps[0].observation[2]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, 0, null, 0]}]}', "steps[0].observation[2]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [[0, 0, 0, 0]]}]}', "steps[0].observation[0]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": 0}]}', "steps[0].observation"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, 0, 0]}]}', "steps[0].observation"),
        ('{"steps": [{"episode": "e", "t": true, "observation": [0, 0, 0, 0]}]}', "steps[0].t"),
        ('{"steps": [{"episode": "e", "t": -1, "observation": [0, 0, 0, 0]}]}', "steps[0].t"),
        ('{"steps": [{"episode": "", "t": 0, "observation": [0, 0, 0, 0]}]}', "steps[0].episode"),
        ('{"steps": [{"t": 0, "observation": [0, 0, 0, 0]}]}', "steps[0]"),
        ('{"steps": [{"episode": "e", "t": 0, "observation": [0, 0, 0, 0], "x": 1}]}', "steps[0]"),
        ('{"steps": 1}', "steps"),
        ("[]", ""),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_kept(
    world: World, links: Links, service: Service, body: str, field: str
) -> None:
    world.served()
    async with opened(service) as http:
        response = await http.post("/v1/act", content=body)
        assert (response.status_code, response.json()["field"]) == (422, field)
        assert response.json()["error"].startswith(field)
        await act(http, FIRST | {"episode": "after"})
    assert links.rows() == {("after", 0)}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"terminated": 1}, "episodes[0].terminated"),
        ({"terminated": False}, "episodes[0].terminated"),
        ({"reward": True}, "episodes[0].reward"),
        ({"t": 0}, "episodes[0].t"),
        ({"digest": "abc"}, "episodes[0].digest"),
        ({"action": 7}, "episodes[0].action"),
        ({"observation": [0.0, 0.0]}, "episodes[0].observation"),
    ],
)
async def test_a_wrong_end_is_named_and_not_passed_on(
    world: World, links: Links, service: Service, change: dict[str, Any], field: str
) -> None:
    world.served()
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
        row = after(decision, terminated=True, truncated=False) | change
        response = await http.post("/v1/end", json={"episodes": [row]})
        assert (response.status_code, response.json()["field"]) == (422, field)
    assert links.ends == []


async def test_what_is_not_json_is_refused(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        for body, status in ((b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 100_000, 422)):
            assert (await http.post("/v1/act", content=body)).status_code == status


async def test_only_the_token_opens_the_door(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        for token in ("", "Bearer ", "Bearer wrong", "Basic " + http.headers["authorization"][7:]):
            for method, path in (("POST", "/v1/act"), ("POST", "/v1/end"), ("GET", "/v1/policy")):
                response = await http.request(method, path, headers={"Authorization": token})
                assert response.status_code == 401
        assert (await http.get("/v1/health", headers={"Authorization": ""})).status_code == 200


async def test_a_body_that_is_too_long_is_not_read(world: World, service: Service) -> None:
    world.served()
    limit = service.config.max_body

    async def endless() -> AsyncIterator[bytes]:
        sent = 0
        while True:
            sent += 2**20
            assert sent < limit + 3 * 2**20, "it went on reading"
            yield b" " * 2**20

    async with opened(service) as http:
        assert (await http.post("/v1/act", content=b" " * (limit + 1))).status_code == 413
        assert (await http.post("/v1/act", content=endless())).status_code == 413


async def test_other_paths_and_methods_are_named(world: World, service: Service) -> None:
    async with opened(service) as http:
        assert (await http.get("/v1/nothing")).status_code == 404
        assert "/v1/act" in (await http.get("/")).json()["error"]
        assert (await http.get("/v1/act")).status_code == 405


async def test_without_a_policy_everything_waits(world: World, service: Service) -> None:
    async with opened(service) as http:
        assert (await http.post("/v1/act", json={"steps": [FIRST]})).status_code == 503
        assert (await http.get("/v1/health")).status_code == 503
        artifact = world.served()
        assert (await service.reload())["digest"] == artifact.digest
        assert (await http.get("/v1/health")).json() == {"status": "ok", "digest": artifact.digest}


async def test_a_replica_follows_the_registry_by_itself(world: World, service: Service) -> None:
    world.served(1.0)
    async with opened(service) as http:
        new = world.served(2.0, NOW + 1)
        async with asyncio.timeout(5):
            while (await http.get("/v1/policy")).json()["digest"] != new.digest:
                await asyncio.sleep(0.005)
        assert service.status()["digest"] == new.digest


@pytest.mark.parametrize("damage", ["network", "verdict"])
async def test_a_policy_that_can_not_be_proven_changes_nothing(world: World, service: Service, damage: str) -> None:
    old = world.served(1.0)
    async with opened(service) as http:
        new = world.judged(2.0)
        world.registry.promote(new.digest, NOW)
        if damage == "network":
            (world.run_dir / "policies" / new.digest / "policy.onnx").write_bytes(b"x")
        else:
            world.registry.record(verdict_on(new, "fail"))
        status = await service.reload()
        assert status["digest"] == old.digest
        assert status["trouble"]
        assert (await act(http, FIRST))[0]["digest"] == old.digest


async def test_an_old_episode_has_its_policy_loaded_again(world: World, links: Links, service: Service) -> None:
    old = world.served(1.0)
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
    world.served(2.0, NOW + 1)
    fresh = Service(service.config, links, links, lambda: NOW)
    async with opened(fresh) as http:
        (second,) = await act(http, after(decision))
        assert second["digest"] == old.digest


async def test_a_replica_that_missed_a_release_asks_before_it_says_no(
    world: World, links: Links, service: Service
) -> None:
    world.served(1.0)
    slow = Service(type(service.config)(poll_s=3600), links, links, lambda: NOW)
    async with opened(slow) as http:
        new = world.served(2.0, NOW + 1)
        (decision,) = await act(http, FIRST | {"t": 3, "digest": new.digest, "action": 0})
        assert decision["digest"] == new.digest
        response = await http.post(
            "/v1/act", json={"steps": [FIRST | {"episode": "f", "t": 3, "digest": "0" * 64, "action": 0}]}
        )
        assert response.status_code == 409


async def test_steps_wait_while_the_observer_is_away_and_are_counted_when_they_can_not(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    small = Service(type(service.config)(flush_s=0.001, poll_s=0.01, max_queue=3), links, links, lambda: NOW)
    async with opened(small) as http:
        links.away = True
        for i in range(5):
            await act(http, FIRST | {"episode": str(i)})
        await asyncio.sleep(0.02)
        assert (small.status()["waiting"], small.status()["dropped"]) == (3, 2)
        links.away = False
        async with asyncio.timeout(5):
            while small.status()["waiting"]:
                await asyncio.sleep(0.005)
    assert links.rows() == {("2", 0), ("3", 0), ("4", 0)}


async def test_numbers_survive_the_way_exactly(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        (decision,) = await act(http, FIRST)
        assert json.loads(json.dumps(decision)) == decision
        assert isinstance(decision["action"], int)
