"""The OpenAPI document: it is made of the routing table, and what is sent and answered is what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.deploy.door import Door
from flywheel.deploy.openapi import document
from flywheel.deploy.routes import ROUTES
from flywheel.deploy.service import Service
from flywheel.records import Spec
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.test_desk import DOOR, operating, uploadable
from tests.deploy.test_door import FIRST, after, opened
from tests.rooms import room

SPEC = spec_of(cartpole)


def operations(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def check(told: dict[str, Any], schema: Any, value: Any) -> None:
    """Raise unless a value is as a schema of the document says."""
    jsonschema.validate(value, {**schema, "components": told["components"]}, jsonschema.Draft202012Validator)


def schema_of(holder: dict[str, Any]) -> Any:
    return holder["content"]["application/json"]["schema"]


def test_its_routes_are_the_routing_tables_and_a_door_has_no_others(service: Service) -> None:
    told = document(ROUTES, SPEC)
    assert {(path, method) for path, method, _ in operations(told)} == {(r.path, r.method) for r in ROUTES}
    assert Door(service)._routes.keys() == {route.path for route in ROUTES}
    for path, _, operation in operations(told):
        (route,) = [route for route in ROUTES if route.path == path]
        assert [scope for need in operation["security"] for scope in need["token"]] == list(route.scopes)
        assert {int(status) for status in operation["responses"]} >= {200, *route.fails}
        assert ("requestBody" in operation) == (route.takes is not None)


@pytest.mark.parametrize("spec", [None, SPEC, spec_of(room)], ids=["none", "flat", "nested"])
def test_it_is_whole_plain_json(spec: Spec | None) -> None:
    told = document(ROUTES, spec, "/pendulum")
    assert told["openapi"].startswith("3.1") and told["servers"] == [{"url": "/pendulum"}]
    text = json.dumps(told, allow_nan=False)
    refs = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert refs <= told["components"]["schemas"].keys() and {"ActRow", "EpisodeRow"} <= refs
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_it_says_what_the_policy_in_service_observes() -> None:
    flat, nested = (document(ROUTES, spec)["components"]["schemas"] for spec in (SPEC, spec_of(room)))
    assert flat["ActRow"]["properties"]["observation"] == {
        "type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
    }  # fmt: skip
    told = document(ROUTES, spec_of(room))
    seen = nested["EpisodeRow"]["properties"]["observations"]["items"]
    check(told, seen, {"position": [0.5, 1.0], "mode": 2})
    for wrong in ({"position": [0.5], "mode": 2}, {"position": [0.5, 1.0], "mode": 4}, {"position": [0.5, 1.0]}):
        with pytest.raises(jsonschema.ValidationError):
            check(told, seen, wrong)


async def test_what_is_sent_and_answered_is_what_it_says(world: World, service: Service) -> None:
    world.served(1.0)
    world.served(2.0, NOW + 1)
    async with opened(service) as http:
        told = (await http.get("/v1/openapi.json", headers={"authorization": ""})).json()
        assert told == document(ROUTES, SPEC)

        async def checked(path: str, body: Any = None, headers: Any = None, **given: str) -> Any:
            method = "GET" if body is None else "POST"
            operation = told["paths"][path][method.lower()]
            if body is not None:
                check(told, schema_of(operation["requestBody"]), body)
            url = path.format(**given)
            response = await http.request(method, url, json=body, headers=headers)
            answer = response.json()
            check(told, schema_of(operation["responses"][str(response.status_code)]), answer)
            assert response.status_code == 200, answer
            return answer

        (decision,) = (await checked("/v1/act", {"steps": [FIRST]}))["decisions"]
        await checked("/v1/rewards", {"rewards": [{"episode": "e", "t": 0, "reward": 1.0}]})
        end = after(decision, reward=None, terminated=True, truncated=False)
        await checked("/v1/end", {"episodes": [end]})
        await checked("/v1/leases", {"num": 2})
        await checked("/v1/episodes", {"episodes": await uploadable(http, world)})
        for path in ("/v1/policy", "/v1/key", "/v1/health"):
            await checked(path)
        await checked("/v1/policies/{digest}", digest="@champion")
        operate = operating(world)
        await checked("/v1/served", headers=operate)
        await checked("/v1/rollback", {"reason": "it fell over"}, headers=operate)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
RIGHT = {
    "episode": "e", "t": 0, "observation": [0.0] * 4, "reward": 1.0, "digest": "0" * 64, "action": 0,
    "terminated": True, "truncated": False, "num": 1, "reason": "x", "seal": "0" * 64, "given_at": 1.0,
    "started_at": 1.0, "ended_at": 1.0, "observations": [[0.0] * 4] * 2, "raw_actions": [0],
    "age_s": 0.0,
}  # fmt: skip


def near(schemas: dict[str, Any], name: str) -> st.SearchStrategy[Any]:
    """Return objects that are nearly what a component describes: anything may stand in a field, or it may be away."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field, schema in schemas[name]["properties"].items():
        rows = schema.get("items", {})
        if isinstance(rows, dict) and "$ref" in rows:
            fields[field] = st.lists(near(schemas, rows["$ref"].rpartition("/")[2]), max_size=2)
        else:
            fields[field] = st.just(RIGHT.get(field)) | VALUES
    return st.fixed_dictionaries({}, optional=fields)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_whatever_is_sent_is_answered_by_a_status_that_it_lists(
    world: World, links: Links, data: st.DataObject
) -> None:
    if world.registry.champion() is None:
        world.served()
    told = document(ROUTES, SPEC)
    path, method, operation = data.draw(st.sampled_from(list(operations(told))))
    body: st.SearchStrategy[Any] = VALUES
    if "requestBody" in operation:
        name = schema_of(operation["requestBody"])["$ref"].rpartition("/")[2]
        body |= near(told["components"]["schemas"], name)
    text = json.dumps(data.draw(body))
    digest = data.draw(st.sampled_from(["@champion", "@previous", "0" * 64]) | st.text("ab/%", min_size=1, max_size=9))

    shown = {} if {"token": ["act"]} in operation["security"] else operating(world)

    async def ask() -> int:
        async with opened(Service(DOOR, links, links, lambda: NOW)) as http:
            answer = await http.request(method, path.replace("{digest}", digest), content=text, headers=shown)
            return answer.status_code

    assert str(asyncio.run(ask())) in operation["responses"]
