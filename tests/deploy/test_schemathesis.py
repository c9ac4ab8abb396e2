"""Schemathesis against the OpenAPI document: whatever it makes up, no answer is a server's error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings

from flywheel.deploy.door import Door
from flywheel.deploy.routes import ROUTES, Route
from flywheel.deploy.service import Service
from flywheel.deploy.wire import MSGPACK
from flywheel.tokens import SCOPES
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.listening import listening
from tests.deploy.test_desk import DOOR

ROUNDS = settings(max_examples=6, phases=[Phase.generate], derandomize=True, suppress_health_check=list(HealthCheck))
"""The same requests each time; a failure is told as it is, for making one smaller takes minutes."""


@schemathesis.serializer(MSGPACK)  # type: ignore[untyped-decorator]
def packed(_: Any, value: Any) -> bytes:
    """Return a body that Schemathesis made up as msgpack."""
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:  # msgpack has no such integer, so that nobody can send it
        reject()


def modes(route: Route) -> list[schemathesis.GenerationMode]:
    """Return how requests are made: as the document describes them, and such that break it, where it asks anything."""
    asks = route.takes is not None or route.query or route.scopes
    return list(schemathesis.GenerationMode) if asks else [schemathesis.GenerationMode.POSITIVE]


@pytest.fixture
def served(world: World, links: Links) -> Iterator[tuple[str, str]]:
    """The address of a door with two policies, so that one can be rolled back to, and a token that opens all of it."""
    world.served(1.0)
    world.served(2.0, NOW + 1)
    secret = world.registry.add_token("tester", SCOPES, NOW, quota=1e6)
    with listening(Door(Service(DOOR, links, links, lambda: NOW))) as url:
        yield url, secret


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_nothing_it_sends_is_a_servers_error(served: tuple[str, str], route: Route) -> None:
    url, secret = served
    document = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    operation, statuses = document[route.path][route.method], set[int]()

    for mode in modes(route):

        @ROUNDS
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            response = case.call(headers={"Authorization": f"Bearer {secret}"})
            assert response.status_code < 500, (case, response.text)
            statuses.add(response.status_code)

        send()
    assert statuses - {401, 405}, "it got past the door"
