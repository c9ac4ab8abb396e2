"""Simulations wait for their turn, and keep nobody from the page."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request

from flywheel.config import PageConfig
from flywheel.connection import Connection
from flywheel.errors import UsageError
from flywheel.page.app import build
from flywheel.page.forks import MOST_STEPS, MOST_TIMES, check_times, most_times
from flywheel.page.turnstile import AT_ONCE, Turnstile
from flywheel.simulate import make_worlds
from flywheel.simulate.stop import Stopped
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander
from flywheel.watch import access_to
from flywheel.window import Window
from tests.page.conftest import operate_token, served
from tests.rooms import room

EPISODE = {"id": "x"}
SIMULATING: dict[str, dict[str, Any]] = {
    "episode": EPISODE,
    "frames": EPISODE,
    "diverges": EPISODE,
    "expected": EPISODE,
    "fork": EPISODE,
    "shift": {},
    "travel/episode": EPISODE,
    "travel/values": EPISODE | {"chain": "x"},
    "travel/residuals": EPISODE | {"chain": "x"},
    "travel/diverge": {"one": "x"},
    "travel/fork": EPISODE,
    "travel/shift": {},
}
MANY = 45
"""More than the server has threads."""


def page(run_dir: Path) -> httpx.AsyncClient:
    """Return a client of a run directory's page in this process."""
    app = build(Window(run_dir), access_to(run_dir, "127.0.0.1"), PageConfig())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1/api/v1/")


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread of its own: the browser of other tests keeps a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result(timeout=60.0)


@pytest.mark.parametrize("path", SIMULATING)
def test_what_simulates_leaves_the_page_to_everybody_else(
    path: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, began = threading.Event(), threading.Event()

    def held(*_: Any) -> None:
        began.set()
        let_go.wait()
        raise UsageError("It was let go.")

    monkeypatch.setattr(Connection, "_opened", held)
    monkeypatch.setattr(Connection, "shift", held)

    async def ask() -> None:
        async with page(finished) as client:
            asked = [asyncio.create_task(client.get(path, params=SIMULATING[path])) for _ in range(MANY)]
            try:
                assert await asyncio.to_thread(began.wait, 20)
                now = await client.get("now")
            finally:
                let_go.set()
            assert now.status_code == 200
            assert {response.json()["error"] for response in await asyncio.gather(*asked)} == {"It was let go."}

    run(ask())


def test_a_fork_that_is_saved_waits_as_one_that_is_looked_at(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, saving = threading.Event(), list[int]()

    def held(*_: Any) -> str:
        saving.append(1)
        let_go.wait()
        return "saved"

    monkeypatch.setattr(Window, "save", held)
    access = access_to(finished, "127.0.0.1")
    headers = {"authorization": f"Bearer {operate_token(finished)}"}

    async def ask() -> None:
        app = build(Window(finished), access, PageConfig())
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1/api/v1/", headers=headers
        )
        async with client:
            body = {"id": "x", "at": 0, "name": "one"}
            asked = [asyncio.create_task(client.post("scenarios", json=body)) for _ in range(MANY)]
            now = await client.get("now")
            let_go.set()
            assert now.status_code == 200 and len(saving) <= AT_ONCE
            assert {response.json()["done"] for response in await asyncio.gather(*asked)} == {"saved"}

    run(ask())


@pytest.mark.parametrize("task", [cartpole, lunarlander], ids=lambda task: task.name)
def test_a_run_that_was_walked_away_from_gives_its_place_back(
    task: Task, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: queue.Queue[None] = queue.Queue()

    def endless(*_: Any) -> Any:
        with closing(make_worlds(task, 2)) as worlds:
            began.put(None)
            while True:
                worlds.reset([1, 2], [{}, {}])
                worlds.step(np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.bool_))

    with served(finished) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        with monkeypatch.context() as patched:
            patched.setattr(Window, "fork", endless)
            for _ in range(AT_ONCE):
                with closing(HTTPConnection(api.base_url.host, api.base_url.port)) as client:
                    client.request("POST", "/api/v1/fork", '{"id": "x", "at": 0}', {"content-type": "application/json"})
                    began.get(timeout=30.0)
        assert "There is no episode" in api.post("fork", json={"id": "x", "at": 0}).json()["error"]


def test_one_that_left_while_it_waited_is_not_run() -> None:
    async def ask() -> None:
        turnstile, ran = Turnstile(), list[str]()
        let_go = threading.Event()
        first = [asyncio.create_task(turnstile.run(_request(leaves=False), let_go.wait)) for _ in range(AT_ONCE)]
        second = asyncio.create_task(turnstile.run(_request(leaves=True), lambda: ran.append("it ran")))
        await asyncio.sleep(0)  # all three ask for a place before it is given back
        let_go.set()
        assert await asyncio.gather(*first) == [True] * AT_ONCE
        with pytest.raises(Stopped, match="Nobody waits"):
            await second
        assert not ran

    run(ask())


def _request(leaves: bool) -> Request:
    """Return a request without a body, whose client leaves right after it, or never."""
    messages = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}][: 1 + leaves]

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    return Request({"type": "http", "method": "GET", "headers": []}, receive)


def test_pairs_and_steps_together_are_bounded() -> None:
    assert most_times(cartpole, 0) == MOST_TIMES
    assert most_times(lunarlander, 0) == MOST_STEPS // lunarlander.max_steps < MOST_TIMES
    assert most_times(lunarlander, 900) == MOST_TIMES
    check_times(lunarlander, 0, 100)
    check_times(room, 10**9, 1)
    with pytest.raises(UsageError, match=r"100 times at most, not 101: .*1,000 steps.*connect\(run_dir\)"):
        check_times(lunarlander, 0, 101)
