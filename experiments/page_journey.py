"""How long is it from opening the page to a fork's result, on a run with 10,000 episodes?

    python -m experiments.time_travel --only T4             # twenty journeys
    python -m experiments.time_travel --only T4 --quick     # three

A script drives headless Chromium, with an empty cache each time, as a person goes: open the page, look at production,
go to the failed episodes, open the newest, stand at a step, fork, change a parameter, run 30 pairs, see the result and
both pictures. The page is a process of its own, `flywheel page`; requests that go elsewhere than to it are counted.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.page.chromium import HINT, find
from tests.page.run_dirs import write_large

GOAL_S = 5.0
EPISODES = 10_000
JOURNEYS = 20


def journeys(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of T4: the slowest journey's seconds, and the requests that left the machine."""
    num = 3 if quick else JOURNEYS
    path = find()
    if path is None:
        raise SystemExit(HINT)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        run_dir = write_large(Path(directory) / "run", EPISODES)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with paged(run_dir) as url:
            seconds, left = zip(*(journey(browser, url) for _ in range(num)), strict=True)
        browser.close()
    shared = {"runs": num, "seed": seed}
    ordered = sorted(seconds)
    yield {
        "id": "T4", "case": f"page to fork's result, {EPISODES:,} episodes, slowest of {num}, s",
        "value": round(ordered[-1], 3), "interval": [round(ordered[0], 3), round(ordered[-1], 3)],
        "goal": f"<= {GOAL_S:g}", "passed": ordered[-1] <= GOAL_S, **shared,
    }  # fmt: skip
    yield {
        "id": "T4", "case": "requests that left the machine", "value": sum(left), "interval": [min(left), max(left)],
        "goal": "<= 0", "passed": sum(left) == 0, **shared,
    }  # fmt: skip


@contextmanager
def paged(run_dir: Path) -> Iterator[str]:
    """Run `flywheel page` and yield its address."""
    command = [sys.executable, "-m", "flywheel.cli", "page", "--run-dir", str(run_dir), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found is not None, "the page did not start"
        yield found.group()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def journey(browser: Browser, url: str) -> tuple[float, int]:
    """Return the seconds of one journey, and how many requests left the machine."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    began = time.monotonic()
    go(page, url)
    seconds = time.monotonic() - began
    context.close()
    return seconds, sum(not each.startswith(url) for each in asked)


def go(page: Page, url: str) -> None:
    """Go from the page's first view to what became of a fork."""
    page.goto(url)
    page.get_by_role("img", name=re.compile("Return of production")).wait_for()
    page.get_by_role("link", name=re.compile("failed episodes")).click()
    page.locator("table.episodes tbody tr").first.get_by_role("link").first.click()
    page.get_by_label("Step", exact=True).fill("20")
    page.get_by_role("link", name="Fork here").click()
    page.get_by_role("textbox", name="length").fill("0.5")
    page.get_by_label("Runs").select_option("30")
    page.get_by_role("button", name="Run again with 1 edit").click()
    page.locator(".results").get_by_text("mean of 30 pairs").wait_for()
    page.locator(".results canvas.film[data-step]").nth(1).wait_for()
