"""The page in Chromium: every view, the journey to a fork, the keyboard, what may be done with a token."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from flywheel import archive
from flywheel.deploy.registry import Registry, open_readonly
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.page.conftest import Opened, operate_token
from tests.page.run_dirs import Writer, write_swapped

VIEWS = ["#/now", "#/turns", "#/turns/2", "#/policies", "#/episodes", "#/episodes?how=failed", "#/fork"]


def drawn(page: Page) -> Locator:
    """Return the pictures of which a step was drawn."""
    return page.locator("canvas.film[data-step]")


def to_a_failed_episode(page: Page, url: str) -> None:
    """Go from the first view to the newest failed episode, by what can be clicked."""
    page.goto(url)
    page.get_by_role("link", name="80 failed episodes").click()
    page.locator("table.episodes tbody tr").first.get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Episode", level=1)).to_be_visible()


def test_now_shows_the_wheel_who_serves_and_what_happened(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(url)
    expect(page.get_by_role("img", name="The wheel stands still after turn 3")).to_be_visible()
    expect(page.locator(".champion")).to_contain_text("v3")
    expect(page.get_by_role("img", name=re.compile("Return of production's 380 last episodes"))).to_be_visible()
    expect(page.locator(".alarms li")).to_have_count(4)
    expect(page.locator(".began")).to_contain_text("The shift began to show at step")
    expect(page.locator(".story li").first).to_contain_text("the process ended in order")
    page.get_by_role("button", name="200").click()
    expect(page.get_by_role("img", name=re.compile("Return of production's 200 last episodes"))).to_be_visible()


def test_a_point_of_the_chart_is_read_and_opened_by_keyboard(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(url)
    chart = page.get_by_role("img", name=re.compile("Return of production"))
    chart.focus()
    page.keyboard.press("Home")
    expect(page.locator(".readout").first).to_contain_text("episode 1")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".readout").first).to_contain_text("episode 4")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Episode", level=1)).to_be_focused()


def test_a_turn_leads_to_a_failing_trial_and_its_replay(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(f"{url}#/turns")
    expect(page.locator("dt", has_text="instead of")).to_be_visible()
    page.get_by_role("link", name=re.compile("Turn 2")).click()
    expect(page.get_by_role("img", name=re.compile("Training of turn 2"))).to_be_visible()
    expect(page.get_by_text("simulations failed; each one can be played again")).to_be_visible()
    page.get_by_role("button", name=re.compile("Show all")).click()
    page.locator("table").filter(has_text="Scenario").locator("tbody tr").first.get_by_role("link").click()
    expect(page.get_by_text("the gate, scenario")).to_be_visible()
    expect(drawn(page)).to_be_visible()
    expect(page.get_by_text("as it should have been")).to_be_visible()
    expect(page.get_by_role("heading", name="Spans")).to_have_count(0)  # none were kept of it


def test_a_turn_and_a_verdict_say_what_their_worlds_corrected(opened: Opened, own: Path) -> None:
    page, words = opened.page, "production acts as if actions 0 and 1 were swapped"
    turn = write_swapped(own)
    assert turn.artifact is not None
    with opened.at(own) as address:
        page.goto(f"{address}#/turns/4")
        expect(page.locator("dd", has_text=f"corrected: {words}")).to_be_visible()
        expect(page.locator("dt", has_text="learns from")).to_be_visible()
        expect(page.get_by_text(f"Judged in corrected worlds: {words}.")).to_be_visible()
        page.goto(f"{address}#/policies/{turn.artifact.digest}")
        expect(page.locator("dd", has_text=f"corrected: {words}")).to_be_visible()
        expect(page.get_by_text(f"Judged in corrected worlds: {words}.")).to_be_visible()


def test_policies_show_their_lineage_and_lead_to_their_verdicts(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(f"{url}#/policies")
    rows = page.locator("table.policies tbody tr")
    expect(rows).to_have_count(3)
    expect(page.locator(".lane .span")).to_have_count(2)
    expect(page.get_by_role("button", name=re.compile("Roll back"))).to_have_count(0)
    rows.nth(1).click()
    expect(page.get_by_role("heading", name="Policy v2")).to_be_visible()
    expect(page.get_by_text("not mastered")).to_be_visible()


def test_episodes_are_filtered_sorted_and_kept_in_the_address(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(f"{url}#/episodes")
    rows = page.locator("table.episodes tbody tr")
    expect(rows).to_have_count(100)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(200)
    page.get_by_label("Outcome").select_option("failed")
    expect(rows).to_have_count(80)
    returns = page.locator("table.episodes tbody td:nth-child(5)")
    found = returns.all_inner_texts()
    page.get_by_role("button", name="Return").click()
    expect(returns).to_have_text(sorted(found, key=float, reverse=True))
    expect(page.get_by_role("columnheader", name=re.compile("Return"))).to_have_attribute("aria-sort", "descending")
    assert page.url.endswith("#/episodes?how=failed&by=total")
    page.get_by_role("searchbox", name="Id").fill("0300")
    expect(rows).to_have_count(20)
    page.get_by_role("searchbox", name="Id").fill("no such")
    expect(page.get_by_role("heading", name="No such episode")).to_be_visible()


def test_an_episode_is_stepped_through_with_its_pictures(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    film = drawn(page)
    expect(film).to_have_attribute("data-step", "0")
    before = film.evaluate("canvas => canvas.toDataURL()")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(film).to_have_attribute("data-step", "11")
    assert film.evaluate("canvas => canvas.toDataURL()") != before
    expect(page.locator(".scrubber .place")).to_have_text(re.compile("step 11 of"))
    expect(page.locator(".strip figcaption", has_text="residual")).to_be_visible()
    page.locator(".strip .u-over").first.click()
    expect(film).not_to_have_attribute("data-step", "11")
    page.get_by_label("Step", exact=True).fill("30")
    expect(film).to_have_attribute("data-step", "30")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # it comes to the end by itself
    spans = page.locator("details.span")
    expect(spans).to_have_count(13)
    spans.nth(3).locator("summary").click()
    expect(spans.nth(3)).to_contain_text("flywheel.step")
    page.get_by_text("Steps as a table").click()
    expect(page.locator("tr[aria-current=step]")).to_have_count(1)


def test_numbers_have_the_digits_that_were_asked_for_and_one_kind_of_minus(opened: Opened, url: str) -> None:
    opened.page.goto(url)
    asked = [[0.00012345678, 4], [-0.00012345678, 2], [0.0001, 4], [-20000, 4], [-3, 4], [-1.23456, 3], [0, 4]]
    found = opened.page.evaluate(
        """async asked => {
            const { number } = await import(new URL("static/js/format.js", document.baseURI));
            return asked.map(each => number(...each));
        }""",
        asked,
    )
    assert found == ["1.235e−4", "−1.2e−4", "1e−4", "−20,000", "−3", "−1.23", "0"]


def test_an_address_that_cant_be_read_is_said_and_a_step_that_isnt_there_is_the_nearest(
    opened: Opened, url: str
) -> None:
    page = opened.page
    page.goto(f"{url}#/episode/100%")
    expect(page.get_by_role("alert")).to_contain_text("This address can't be read")
    to_a_failed_episode(page, url)
    address = page.url.partition("?")[0].replace("#/episode/", "#/fork/")
    for asked, step in (("-5", "0"), ("2.5", "3"), ("abc", "0"), ("9999", r"[1-9]\d*")):
        page.goto("about:blank")
        page.goto(f"{address}?t={asked}")
        expect(page.locator(".scrubber .place")).to_have_text(re.compile(rf"^step {step} of"))
    expect(page.get_by_role("button", name="Run again as it was")).to_be_enabled()


def test_nothing_is_there_yet_and_that_is_said(opened: Opened, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "new")
    page = opened.page
    with opened.at(tmp_path / "new") as url:
        for view, said in [
            ("#/now", "No policy is in service"),
            ("#/turns", "No turn yet"),
            ("#/policies", "No policy yet"),
            ("#/episodes", "No episode yet"),
            ("#/fork", "There is none"),
        ]:
            page.goto(url + view)
            expect(page.get_by_text(said).first).to_be_visible()
        page.goto(f"{url}#/episode/none")
        expect(page.get_by_role("alert")).to_contain_text("There is no")
        page.get_by_role("link", name="Go to Now").click()
        expect(page.get_by_text("Ray is up").first).to_be_visible()
    opened.expects(404)
    writer.close()


def test_a_living_wheel_is_followed_without_a_reload(opened: Opened, tmp_path: Path) -> None:
    from tests.page.run_dirs import FIRST, SHORT_POLE

    writer = Writer(tmp_path / "run")
    page = opened.page
    with opened.at(tmp_path / "run") as url:
        page.goto(url)
        expect(page.get_by_text("No policy is in service")).to_be_visible()
        writer.turn(FIRST, SHORT_POLE)
        expect(page.locator(".champion")).to_contain_text("v1")
        expect(page.locator(".story li").first).to_contain_text("answers at")
        writer.produce(20, {}, 1)
        expect(page.get_by_role("img", name=re.compile("Return of production's 20 last episodes"))).to_be_visible()
        expect(page.get_by_role("link", name="20 episodes")).to_be_visible()
    writer.close()


def hide(page: Page, hidden: bool) -> None:
    """Let a page be behind another tab, or in front again."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_any_number_of_tabs_may_be_open_and_one_that_comes_to_the_front_is_up_to_date(
    opened: Opened, tmp_path: Path
) -> None:
    from tests.page.run_dirs import FIRST, SHORT_POLE

    writer = Writer(tmp_path / "run")
    first = opened.page
    with opened.at(tmp_path / "run") as url:
        tabs = [first, *(first.context.new_page() for _ in range(6))]
        for page in tabs:
            page.goto(url)
            expect(page.get_by_text("No policy is in service")).to_be_visible()
            hide(page, True)
        writer.turn(FIRST, SHORT_POLE)
        last = tabs[-1]
        hide(last, False)
        expect(last.locator(".champion")).to_contain_text("v1")
        expect(first.get_by_text("No policy is in service")).to_be_visible()
        hide(first, False)
        expect(first.locator(".champion")).to_contain_text("v1")
        expect(first.locator(".story li").first).to_contain_text("answers at")
        for page in tabs[1:]:
            page.close()
    writer.close()


@pytest.mark.parametrize("view", ["#/now", "#/episodes"])
def test_the_badge_says_whether_a_process_is_up_without_a_reload(opened: Opened, own: Path, view: str) -> None:
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 800})
    badge = page.locator("#live")
    with opened.at(own) as url:
        page.goto(url + view)
        expect(badge).to_have_text("not running")
        archive.write_living(own, "ray://x", "wheel", "/")
        expect(badge).to_have_text("live")
        archive.forget_living(own)
        expect(badge).to_have_text("not running")
        assert "not running" in badge.aria_snapshot()


def sign_in(page: Page, token: str) -> None:
    """Hand in a token."""
    page.get_by_role("button", name="Enter a token to operate").click()
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Enter", exact=True).click()
    expect(page.get_by_role("button", name="Stop operating")).to_be_visible()


def test_rolling_back_takes_the_operate_token_and_a_second_word(opened: Opened, own: Path) -> None:
    page = opened.page
    with opened.at(own) as url:
        page.goto(f"{url}#/policies")
        page.get_by_role("button", name="Enter a token to operate").click()
        page.get_by_label("Token", exact=True).fill("wrong")
        page.get_by_role("button", name="Enter", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("opens nothing here")
        page.get_by_role("button", name="Cancel").click()
        sign_in(page, operate_token(own))
        page.get_by_role("button", name="Roll back to v1 …").click()
        expect(page.get_by_role("dialog")).to_contain_text(f"flywheel rollback --run-dir {own}")
        page.get_by_role("button", name="Cancel").click()
        with open_readonly_closed(own) as registry:
            assert len(registry.releases()) == 2
        page.get_by_role("button", name="Roll back to v1 …").click()
        page.get_by_role("button", name="Roll back", exact=True).click()
        expect(page.locator("table.policies").get_by_text("condemned")).to_be_visible()
        expect(page.locator("table.policies tbody tr").last).to_contain_text("in service")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Stop operating").click()
        expect(page.get_by_role("button", name="Enter a token to operate")).to_be_visible()
    with open_readonly_closed(own) as registry:
        assert [release.digest for release in registry.releases()][-1] == registry.artifacts()[0].digest
    opened.expects(403)


def open_readonly_closed(run_dir: Path) -> Any:
    """Return a registry that is closed at the end of a `with`."""
    import contextlib

    return contextlib.closing(open_readonly(run_dir))


def test_a_page_that_is_reached_over_a_network_shows_nothing_without_a_token(
    opened: Opened, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.watch.is_loopback", lambda host: False)
    page = opened.page
    with opened.at(finished) as url:
        page.goto(url)
        expect(page.get_by_role("heading", name="This page needs a token")).to_be_visible()
        page.get_by_role("button", name="Enter a token").click()
        page.get_by_label("Token", exact=True).fill((finished / "keys" / "page.token").read_text())
        page.get_by_role("button", name="Enter", exact=True).click()
        expect(page.locator(".champion")).to_contain_text("v3")
    opened.expects(401)


def test_markup_from_outside_is_only_ever_text(opened: Opened, own: Path) -> None:
    from flywheel.store.intake import Intake
    from tests.page.run_dirs import as_production

    evil = "<img src=x onerror=alert(1)>'\";--"
    with Intake(own) as store:
        (episode,) = store.recent(1)
        store.append([as_production(episode, evil, episode.started_at + 60)])
    page = opened.page
    page.on("dialog", lambda dialog: opened.errors.append(f"dialog: {dialog.message}"))
    with opened.at(own) as url:
        page.goto(f"{url}#/episodes")
        page.locator("table.episodes tbody tr").first.get_by_role("link").first.click()
        expect(page.locator(".head code", has_text="…")).to_be_visible()
        expect(page.locator(".command code", has_text="<img src")).to_have_count(3)
        assert page.locator("main img").count() == 0


def test_the_keyboard_leads_everywhere(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(url)
    expect(page.locator(".champion")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for key, heading in (("2", "Turns"), ("3", "Policies"), ("4", "Episodes"), ("5", "Fork")):
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name=heading, level=1)).to_be_focused()
        expect(page.get_by_role("link", name=heading, exact=True).first).to_have_attribute("aria-current", "page")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    before = page.locator("html").get_attribute("data-theme")
    page.keyboard.press("t")
    expect(page.locator("html")).not_to_have_attribute("data-theme", before or "")
    page.reload()
    expect(page.locator("html")).not_to_have_attribute("data-theme", before or "")


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_no_view_is_wider_than_its_screen_and_everything_has_a_name(browser: Browser, url: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark", reduced_motion="reduce"
    )
    page = context.new_page()
    for view in VIEWS:
        page.goto("about:blank")  # a change of what is behind the # alone would load nothing
        page.goto(url + view)
        page.locator("main h1").first.wait_for(state="attached")
        assert page.locator("html").get_attribute("data-theme") == "dark"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        nameless = page.locator("button, a, input, select").evaluate_all(
            "all => all.filter(e => !(e.innerText || e.ariaLabel || e.labels?.length || e.title)).map(e => e.outerHTML)"
        )
        assert nameless == [], view
        assert page.locator("h1").count() == 1, view
        rolled = page.locator(".scroll:has(table.stacked)").evaluate_all(
            "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert width != 390 or rolled == 0, f"a table of {view} has to be rolled sideways on a phone"
    context.close()


def test_the_gates_error_budget_is_shown(opened: Opened, own: Path) -> None:
    page = opened.page
    with opened.at(own) as url:
        page.goto(f"{url}#/policies")
        budget = page.locator(".card").filter(has=page.get_by_role("heading", name="The gate's error budget"))
        expect(budget).to_contain_text("It is whole")
        with closing(Registry(own, task_digest(cartpole))) as registry:
            for _ in range(2):
                registry.spend(registry.artifacts()[0].digest, 0.0)
        expect(budget).to_contain_text("2 candidates since it was filled")
        expect(budget).to_contain_text("needs more simulations than the last one did")
