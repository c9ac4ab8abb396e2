"""Run directories, servers and a browser for the page's tests."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from flywheel.config import PageConfig
from flywheel.deploy.keys import OPERATE, token_file
from flywheel.watch import Server, app_of, listening
from flywheel.window import Window
from tests.page.chromium import HINT, find
from tests.page.run_dirs import write_run

expect.set_options(timeout=20_000)  # the machine may be busy


@contextmanager
def served(run_dir: Path, **knobs: Any) -> Iterator[str]:
    """Serve a run directory's page as `flywheel page` does; yield its address."""
    config = PageConfig(port=0, look_s=0.05, **knobs)
    window, door = Window(run_dir), listening(config)
    server = Server(app_of(window, config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        door.close()
        window.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    return write_run(tmp_path_factory.mktemp("page") / "finished", at=time.time() - 3000)


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


@pytest.fixture(scope="session")
def url(finished: Path) -> Iterator[str]:
    """The address of the finished run's page."""
    with served(finished) as address:
        yield address


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    """A client of the finished run's API."""
    with httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as client:
        yield client


def operate_token(run_dir: Path) -> str:
    """Return the token that lets operate."""
    return token_file(run_dir, OPERATE).read_text()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, once for all tests of a process."""
    path = find()
    assert path, HINT
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A browser's page that writes down what nobody may see: errors, and requests that leave the machine."""

    def __init__(self, context: BrowserContext) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))

    @contextmanager
    def at(self, run_dir: Path) -> Iterator[str]:
        """Serve a run directory for this page, which leaves before the server ends; yield the address."""
        with served(run_dir) as address:
            yield address
            self.page.goto("about:blank")

    def expects(self, *statuses: int) -> None:
        """Leave out what Chromium itself notes of answers that a test asked for."""
        self.errors = [line for line in self.errors if not any(f"status of {each}" in line for each in statuses)]

    def left(self) -> list[str]:
        """Return the requests that went elsewhere than to this machine."""
        return [url for url in self.asked if not url.startswith(("http://127.0.0.1:", "about:blank"))]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """A fresh browser context's page; nothing may go wrong in it, and nothing may leave the machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    found = Opened(context)
    yield found
    context.close()
    assert found.errors == [] and found.left() == []
