"""Requests of the API go from Serve's server straight to the door; everything else goes Serve's way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from flywheel.config import DeployConfig
from flywheel.deploy import shortcut
from flywheel.deploy.door import Door, Receive, Scope, Send
from flywheel.deploy.environment import serve_environment


class Place:
    """An ASGI app that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append((scope.get("root_path", ""), scope.get("path", "")))


async def ask(app: Any, type_: str, path: str) -> None:
    await app({"type": type_, "path": path, "root_path": ""}, cast(Any, None), cast(Any, None))


def wrapped(app: Place) -> Any:
    (middleware,) = shortcut.middlewares()
    return middleware.cls(app, *middleware.args, **middleware.kwargs)


@pytest.fixture(autouse=True)
def no_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "_doors", {})


@pytest.mark.parametrize("root", ["", "/wheel", "/v1"])
async def test_the_api_goes_to_the_door_under_its_own_route_and_nothing_else_does(root: str) -> None:
    serve, door = Place(), Place()
    app, opened = wrapped(serve), shortcut.open_to(cast(Door, door))
    await ask(app, "http", f"{root}/v1/act")
    assert (serve.asked.pop(), door.asked) == (("", f"{root}/v1/act"), []), "nobody knows the route yet"
    await opened({"type": "http", "path": f"{root}/v1/act", "root_path": root}, cast(Any, None), cast(Any, None))
    assert door.asked.pop() == (root, f"{root}/v1/act"), "Serve knows it"
    elsewhere = [("http", "/-/healthz"), ("http", "/foo/v1/rollback"), ("websocket", f"{root}/v1/act")]
    for type_, path in [("http", f"{root}/v1/act"), ("http", f"{root}/v1/policies/@champion"), *elsewhere]:
        await ask(app, type_, path)
    assert door.asked == [(root, f"{root}/v1/act"), (root, f"{root}/v1/policies/@champion")]
    assert serve.asked == [("", path) for _, path in elsewhere]


async def test_without_a_door_everything_goes_serves_way() -> None:
    serve = Place()
    await ask(wrapped(serve), "http", "/v1/act")
    assert serve.asked == [("", "/v1/act")]


async def test_a_door_of_another_loop_is_left_alone() -> None:
    serve, door = Place(), Place()

    async def open_there() -> None:
        shortcut.open_to(cast(Door, door))

    await asyncio.to_thread(asyncio.run, open_there())
    await ask(wrapped(serve), "http", "/v1/act")
    assert (serve.asked, door.asked) == ([("", "/v1/act")], [])


def test_serve_finds_it_by_its_name() -> None:
    module, _, name = serve_environment(DeployConfig())["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert (module, getattr(shortcut, name)) == (shortcut.__name__, shortcut.middlewares)
