"""Forks in Chromium: what can be entered, what is said of it, what becomes of it, and what is saved for the gate."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from flywheel import archive
from flywheel.connection import connect
from tests.page.conftest import Opened, operate_token
from tests.page.test_browser import drawn, sign_in, to_a_failed_episode


def test_the_whole_journey_to_a_fork(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_label("Step", exact=True).fill("20")
    page.get_by_role("link", name="Fork here").click()
    expect(page.get_by_role("heading", name="Fork", exact=True)).to_be_visible()
    page.get_by_role("textbox", name="length").fill("0.5")
    page.get_by_label("Runs").select_option("30")
    lines = page.locator(".forking .command code")
    expect(lines.first).to_contain_text("--at 20 --set length=0.5 --times 30")
    expect(lines.nth(1)).to_contain_text('.edit_parameter("length", 0.5).replay(times=30)')
    page.get_by_role("button", name="Run again with 1 edit").click()
    results = page.locator(".results")
    expect(results.get_by_text("mean of 30 pairs")).to_be_visible()
    world = results.get_by_text("went on in the simulator from what was observed at step 20")
    expect(world).to_contain_text("length 2, ")  # the one of this world, not the task's own
    expect(results.get_by_text("at step 21, by observation")).to_be_visible()
    expect(drawn(page)).to_have_count(3)
    assert results.locator("xpath=ancestor-or-self::*[@aria-live]").count() == results.locator("output").count() == 0
    said = page.locator(".forking [role=status]").filter(has_text="as it was")
    expect(said).to_have_text(re.compile(r"^Return \d+ as it was, \d+ with the edits; .+ in the mean of 30 pairs\.$"))
    results.get_by_role("button", name="Go there").click()
    expect(results.locator("canvas.film").nth(1)).to_have_attribute("data-step", "21")
    expect(results.locator(".strip")).to_have_count(7)
    expect(results.get_by_role("button", name="Save for the gate")).to_have_count(0)


def test_the_forks_form_is_of_the_step_that_is_stood_at_and_keeps_what_was_entered(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    length = page.get_by_role("textbox", name="length")
    length.fill("0.5")
    as_it_was = page.locator("select[name=action] option").first
    action = page.locator(".step dt", has_text="action").locator("+ dd")
    seen = set()
    for step in range(12):
        page.get_by_label("Step", exact=True).fill(str(step))
        expect(page.locator(".scrubber .place")).to_contain_text(f"step {step} of")
        seen.add(action.inner_text())
        expect(as_it_was).to_have_text(f"as it was ({action.inner_text()})")
    assert seen == {"0", "1"}
    expect(length).to_have_value("0.5")
    expect(page.get_by_role("button", name="Run again with 1 edit")).to_be_enabled()


def test_what_is_said_beside_a_fork_does_the_same(opened: Opened, url: str, finished: Path) -> None:
    """The Python line that the page shows gives the result that the page shows."""
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    page.get_by_label("policy").select_option(index=2)
    page.get_by_role("button", name="Run again with 1 edit").click()
    shown = page.locator(".results .figure").nth(1).locator("b").inner_text()
    line = page.locator(".forking .command code").nth(1).inner_text()
    import flywheel

    assert flywheel.connect is connect
    result = eval(line, {"flywheel": flywheel})
    assert f"{result.fork.total:g}" == shown


def test_a_failed_trial_of_the_gate_is_offered_and_forked(opened: Opened, url: str) -> None:
    page = opened.page
    page.goto(f"{url}#/fork")
    page.get_by_role("link", name="all failed trials").click()
    expect(page.get_by_label("From")).to_have_value("gate")
    rows = page.locator("table.episodes tbody tr")
    expect(rows.first).to_contain_text("failed")
    rows.first.get_by_role("link", name="fork").click()
    page.get_by_role("button", name="Run again as it was").click()
    expect(page.locator(".results").get_by_text("every observation equal to the last bit")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_no_name_of_a_field_is_cut(opened: Opened, url: str, width: int) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    names = page.locator("label.edit > span")
    names.first.evaluate("each => { each.textContent = 'turbulence power of_an_even_longer_name'; }")
    cut = "all => all.filter(e => e.scrollWidth > e.clientWidth || getComputedStyle(e).overflow !== 'visible').length"
    assert names.evaluate_all(cut) == 0 and page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_cant_be_forked_says_why(opened: Opened, own: Path) -> None:
    config = json.loads((own / archive.CONFIG).read_text())
    (own / archive.CONFIG).write_text(json.dumps({**config, "task_digest": "0" * 64}))
    page = opened.page
    with opened.at(own) as url:
        to_a_failed_episode(page, url)
        expect(page.get_by_text("It can't be forked: Task")).to_contain_text("is not what it was")
        link = page.get_by_text("Fork here")
        expect(link).to_be_disabled()
        expect(link).not_to_have_attribute("href", re.compile(""))
        address = page.url.replace("#/episode/", "#/fork/")
        page.goto(address)
        expect(page.get_by_role("alert").get_by_role("heading")).to_have_text("Not reproducible")
    opened.expects(409)


@pytest.mark.parametrize("text", ["0,5", "abc", "1e999"])
def test_what_is_no_number_is_said_beside_its_field(opened: Opened, url: str, text: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    length = page.get_by_role("textbox", name="length")
    length.fill(text)
    expect(length).to_have_attribute("aria-invalid", "true")
    expect(length).to_have_accessible_description(f"“{text}” is no number: write it as 0.5.")
    expect(page.get_by_role("button", name="Run again")).to_be_disabled()
    expect(page.locator(".forking")).not_to_contain_text("NaN")
    page.get_by_label("Step", exact=True).fill("3")
    expect(page.locator(".edits:not([aria-busy])")).to_be_visible()
    expect(length).to_have_value(text)
    expect(length).to_have_attribute("aria-invalid", "true")
    length.fill("-0.5")
    expect(length).to_have_accessible_description("It takes 0.1 to 4, not -0.5.")
    expect(page.get_by_role("button", name="Run again")).to_be_disabled()
    length.fill("")
    offset = page.get_by_role("textbox", name="reward offset")
    offset.fill("−0.5")  # with the sign that the page itself shows
    expect(offset).to_have_attribute("aria-invalid", "false")
    expect(page.locator(".forking .command code").first).to_contain_text("--set reward_offset=-0.5")
    expect(page.get_by_role("button", name="Run again with 1 edit")).to_be_enabled()


def test_an_edit_that_cant_be_is_one_sentence(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    page.get_by_role("textbox", name="temperature").fill("0")
    page.get_by_role("button", name="Run again with 1 edit").click()
    expect(page.get_by_role("alert")).to_contain_text("temperature is more than 0")
    opened.expects(400)


def test_a_fork_is_saved_as_a_scenario_of_the_gate_and_dropped_again(opened: Opened, own: Path) -> None:
    page = opened.page
    with opened.at(own) as url:
        page.goto(url)
        sign_in(page, operate_token(own))
        to_a_failed_episode(page, url)
        page.get_by_role("link", name="Fork here").click()
        page.get_by_role("textbox", name="length").fill("1.2")
        page.get_by_role("button", name="Run again with 1 edit").click()
        page.get_by_label("Scenario of the gate").fill("longer-pole")
        page.get_by_role("textbox", name="length").fill("3")  # of the next fork, not of this one
        expect(page.locator(".forking .command").first).to_contain_text("--set length=3")
        page.get_by_label("Scenario of the gate").fill("longer-pole")
        expect(page.locator(".save-form .command")).to_contain_text("--set length=1.2 --save longer-pole")
        page.get_by_role("button", name="Save for the gate").click()
        expect(page.locator(".save-form [role=status]")).to_contain_text("longer-pole")
        assert [scenario.name for scenario in connect(own).scenarios()] == ["longer-pole"]
        page.get_by_role("link", name="Policies").click()
        expect(page.get_by_role("rowheader", name="longer-pole")).to_be_visible()
        page.get_by_role("button", name="Drop …").click()
        page.get_by_role("button", name="Drop", exact=True).click()
        expect(page.get_by_text("There is none yet")).to_be_visible()
        assert connect(own).scenarios() == ()


def test_a_task_without_a_state_to_be_put_into_offers_forks_of_what_has_a_seed(opened: Opened, own: Path) -> None:
    config = json.loads((own / archive.CONFIG).read_text())
    (own / archive.CONFIG).write_text(json.dumps({**config, "config": {**config["config"], "task": "lunarlander"}}))
    page = opened.page
    with opened.at(own) as url:
        page.goto(f"{url}#/fork")
        expect(page.get_by_text("Episodes of production can't be gone on with here")).to_be_visible()
        expect(page.locator(".trio h2")).to_have_text(["Tried at the gate last", "Failed at the gate last"])
        page.goto(f"{url}#/episodes")
        rows = page.locator("table.episodes tbody tr")
        expect(rows.first).to_be_visible()
        expect(rows.get_by_role("link", name="fork")).to_have_count(0)
        page.get_by_label("From").select_option("gate")
        expect(rows.first.get_by_role("link", name="fork")).to_be_visible()


def test_no_more_pairs_are_offered_than_are_run(opened: Opened, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.page.forks.MOST_STEPS", 25_000)
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_label("Step", exact=True).fill("0")
    page.get_by_role("link", name="Fork here").click()
    runs = page.get_by_label("Runs")
    expect(runs.locator("option")).to_have_text(["once", *(f"{num} pairs, with an interval" for num in (30, 50))])
    runs.select_option("50")
    page.get_by_label("Step", exact=True).fill("20")
    expect(runs.locator("option").last).to_have_text("52 pairs, with an interval")
    expect(runs).to_have_value("52")
    page.get_by_role("button", name="Run again as it was").click()
    expect(page.locator(".results").get_by_text("mean of 52 pairs")).to_be_visible()


def test_a_result_is_marked_when_the_form_says_something_else(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_role("link", name="Fork here").click()
    length = page.get_by_role("textbox", name="length")
    length.fill("0.5")
    length.press("Enter")
    results = page.locator(".results")
    expect(results.get_by_text("length 2 → 0.5")).to_be_visible()
    stale = page.get_by_text("The form above says something else by now")
    expect(stale).to_be_hidden()
    length.fill("1")
    expect(stale).to_be_visible()
    length.fill("0.5")
    expect(stale).to_be_hidden()
    page.get_by_label("Step", exact=True).first.fill("7")
    expect(stale).to_be_visible()


def test_a_token_that_is_handed_in_leaves_the_fork_as_it_is(opened: Opened, own: Path) -> None:
    page = opened.page
    with opened.at(own) as url:
        to_a_failed_episode(page, url)
        page.get_by_role("link", name="Fork here").click()
        page.get_by_role("textbox", name="length").fill("0.5")
        page.get_by_role("button", name="Run again with 1 edit").click()
        page.get_by_role("button", name="Enter a token to save it for the gate").click()
        page.get_by_label("Token", exact=True).fill(operate_token(own))
        page.get_by_role("button", name="Enter", exact=True).click()
        expect(page.get_by_role("button", name="Save for the gate")).to_be_visible()
        expect(page.locator(".results").get_by_text("length 2 → 0.5")).to_be_visible()
        expect(page.get_by_role("textbox", name="length")).to_have_value("0.5")


def test_an_episodes_address_is_of_the_step_that_is_shown(opened: Opened, url: str) -> None:
    page = opened.page
    to_a_failed_episode(page, url)
    page.get_by_label("Step", exact=True).fill("5")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(r"#/episode/[^?]+\?t=6$"))
    page.reload()
    expect(page.get_by_label("Step", exact=True)).to_have_value("6")
