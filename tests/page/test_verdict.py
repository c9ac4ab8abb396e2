"""A verdict's page in Chromium: as a file, and as the run's page serves it; nothing leaves, nothing is wide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from flywheel.report import verdict_file
from flywheel.report.verdict import policy
from tests.page.conftest import Opened
from tests.report.verdicts import context, verdict

KINDS = ("pass", "fail", "inconclusive")


@contextmanager
def shown(browser: Browser, path: Path, width: int, theme: str = "light") -> Iterator[Page]:
    """Open a file at a width; it may ask for nothing else, and nothing may go wrong in it."""
    opened = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if theme == "dark" else "light"
    )
    page, asked, errors = opened.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda line: errors.append(line.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    yield page
    opened.close()
    assert asked == [path.as_uri()] and errors == []


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A verdict's page as a file."""
    return verdict_file.write(tmp_path, verdict(request.param), context())[1]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_file_is_never_wider_than_the_window_and_asks_for_nothing(browser: Browser, path: Path, width: int) -> None:
    with shown(browser, path, width) as page:
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        small = page.evaluate(
            "[...document.querySelectorAll('p, td, th, code, h1, h2, h3, summary')].filter((each) => "
            "each.checkVisibility() && parseFloat(getComputedStyle(each).fontSize) < 11).map((each) => each.outerHTML)"
        )
        assert small == []


def test_it_is_dark_where_its_reader_is_and_light_on_paper(browser: Browser, path: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with shown(browser, path, 1280) as page:
        light = page.evaluate(ground)
    with shown(browser, path, 1280, "dark") as page:
        assert page.evaluate(ground) != light
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 36, 48)"


def test_a_trial_opens_into_the_command_that_plays_it_again(browser: Browser, tmp_path: Path) -> None:
    file = verdict_file.write(tmp_path, verdict("fail"), context())[1]
    first = next(trial for trial in verdict("fail").trials if trial.failed)
    with shown(browser, file, 360) as page:
        page.get_by_text("The 50 that differ most").click()
        one = page.get_by_role("region", name="Pairs that differ").locator("summary").first
        one.focus()
        page.keyboard.press("Enter")
        expect(page.locator("code.command:visible").first).to_contain_text("flywheel gate --policy good.onnx")
        assert first.episode[:12] in page.content()


def test_the_runs_page_leads_to_it_under_a_strict_policy(opened: Opened, url: str, api: httpx.Client) -> None:
    page = opened.page
    page.goto(f"{url}#/policies")
    page.locator("table.policies tbody tr").nth(1).click()
    link = page.get_by_role("link", name="as a page to keep")
    expect(link).to_have_attribute("target", "_blank")
    address = link.evaluate("each => each.href")
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Refused")
    expect(page.get_by_text("Signed and recorded. It allows nothing.")).to_be_visible()
    answer = httpx.get(address)
    assert answer.headers["content-security-policy"] == f"{policy()}; frame-ancestors 'none'"
    assert answer.headers["content-type"].startswith("text/html")
    digest = httpx.URL(address).params["digest"]
    missing = api.get("verdict", params={"digest": digest, "number": 7})
    assert missing.status_code == 404 and "there is no 7" in missing.json()["error"]
    unknown = api.get("verdict", params={"digest": "0" * 64})
    assert unknown.status_code == 404 and "0 verdicts" in unknown.json()["error"]


def test_it_takes_a_token_where_the_page_does(own: Path) -> None:
    from tests.page.conftest import served

    with served(own, host="0.0.0.0") as address:
        local = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{local}api/v1/verdict", params={"digest": "0" * 64}).status_code == 401
