"""Simulations wait for their turn, and keep nobody from the page."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel.config import PageConfig
from flywheel.connection import Connection
from flywheel.errors import UsageError
from flywheel.page.app import build
from flywheel.watch import access_to
from flywheel.window import Window

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


@pytest.mark.parametrize("path", SIMULATING)
async def test_what_simulates_leaves_the_page_to_everybody_else(
    path: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, began, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def held(*_: Any) -> None:
        loop.call_soon_threadsafe(began.set)
        let_go.wait()
        raise UsageError("It was let go.")

    monkeypatch.setattr(Connection, "_opened", held)
    monkeypatch.setattr(Connection, "shift", held)
    async with page(finished) as client:
        asked = [asyncio.create_task(client.get(path, params=SIMULATING[path])) for _ in range(MANY)]
        try:
            async with asyncio.timeout(20):
                await began.wait()
                now = await client.get("now")
        finally:
            let_go.set()
        assert now.status_code == 200
        assert {response.json()["error"] for response in await asyncio.gather(*asked)} == {"It was let go."}
