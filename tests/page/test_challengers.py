"""A challenger on the page: how it fares, what became of it, and what an operator may decide."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from flywheel import archive
from flywheel.config import DeployConfig
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.registry import Registry
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from tests.deploy.test_canary import outcome
from tests.page.conftest import Opened, operate_token, served
from tests.page.run_dirs import challenge
from tests.page.test_api import got
from tests.page.test_browser import sign_in

RAMP = Ramp(DeployConfig(approve="person", settle_s=0.0, split_error=1e-300))


@pytest.fixture
def registry(own: Path) -> Iterator[Registry]:
    """The registry of a run that a test may change, whose challengers wait for a person's approval."""
    config = (own / archive.CONFIG).read_text()
    assert '"approve": ""' in config
    (own / archive.CONFIG).write_text(config.replace('"approve": ""', '"approve": "person"'))
    with closing(Registry(own, task_digest(cartpole))) as found:
        yield found


def keep(registry: Registry, canary: Canary) -> Canary:
    """Keep a canary as it is now."""
    registry.keep_canary(canary)
    return canary


def first_share(canary: Canary) -> Canary:
    """Return it out of the shadow."""
    return RAMP.shadowed(canary, 256, 251, canary.begun_at + 20)


def half_way(canary: Canary) -> Canary:
    """Return it with 10 % of new episodes and some outcomes of both arms."""
    canary = first_share(canary)
    arms = (canary.champion, canary.challenger)
    rows = [outcome(canary.changed_at + 1 + t, arms[t % 10 == 0], failed=t % 60 == 1) for t in range(400)]
    canary = RAMP.hear(canary, rows, canary.begun_at + 400)
    assert canary.share == 0.1 and canary.test.num == (360, 40) and canary.test.num_failed[0] == 7
    return canary


def proven(canary: Canary) -> Canary:
    """Return it as good as it has to be."""
    canary = first_share(canary)
    arms = (canary.champion, canary.challenger)
    canary = RAMP.hear(canary, [outcome(canary.changed_at + 1 + t, arms[t % 2]) for t in range(600)], time.time())
    assert canary.is_proven and not canary.is_over
    return canary


def test_one_on_its_way_is_told_with_its_share_and_both_arms(registry: Registry, own: Path) -> None:
    begun = time.time() - 900
    canary = challenge(registry, 1.5, begun, RAMP)
    with served(own) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        told = got(api, "now")["challenger"]
        assert (told["state"], told["challenger"], told["champion"]) == ("shadow", canary.challenger, canary.champion)
        assert told["spans"] == [{"begin": begun, "end": None, "stage": "shadow", "share": 0.0}]
        new, old = got(api, "policies")["policies"][:2]
        assert (new["state"], new["served"], new["place"]) == ("challenger", [], None)
        assert [(span["stage"], span["to"]) for span in new["shadowed"]] == [("shadow", None)]
        assert (old["state"], [span["share"] for span in old["served"]]) == ("in service", [1.0])
        canary = keep(registry, half_way(canary))
    with served(own) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        told = got(api, "now")["challenger"]
        assert (told["share"], told["num"], told["num_failed"]) == (0.1, [360, 40], [7, 0])
        assert [each["acts_at"] for each in told["evidence"]] == pytest.approx([20, 200, 100])
        row = got(api, "policies")["policies"][0]
        assert [span["share"] for span in row["served"]] == [0.01, 0.1] and row["place"] == 2
        assert row["served"][0]["to"] == row["served"][1]["from"] and row["served"][1]["to"] is None
        assert got(api, "now")["service"]["served"][-1]["share"] == 1.0
        marks = [mark for mark in got(api, "production")["marks"] if mark["kind"] == "challenge"]
        assert [(mark["text"], mark["digest"]) for mark in marks] == [("v4 is tried", canary.challenger)]


def test_what_became_of_each_is_told_with_its_reason(registry: Registry, own: Path) -> None:
    at = time.time() - 900
    keep(registry, RAMP.broke(challenge(registry, 1.5, at, RAMP), "it crashed", at + 1))
    keep(registry, RAMP.tick(challenge(registry, 1.6, at + 2, RAMP), at + 1e6))
    keep(registry, RAMP.approve(proven(challenge(registry, 1.7, at + 3, RAMP)), False, at + 4))
    challenge(registry, 1.8, at + 5, RAMP)
    challenge(registry, 1.9, at + 6, RAMP)
    registry.decide("freeze", "it hums", at + 7)
    with served(own) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        found = got(api, "policies")
        assert [row["state"] for row in found["policies"]] == [
            "frozen", "replaced", "stopped", "timed out", "rolled back", "in service", "candidate", "former",
        ]  # fmt: skip
        assert [each["reason"].split(":")[0] for each in found["challenges"]] == [
            "it hums", f"policy {found['policies'][0]['digest'][:12]} took its place", "it was not approved",
            "nothing was certain after 999,998 s", "it crashed",
        ]  # fmt: skip
        assert got(api, "now")["challenger"]["state"] == "frozen"
        crashed = got(api, "policy", digest=found["policies"][4]["digest"])
        assert [each["reason"] for each in crashed["challenges"]] == ["it crashed"]
        assert crashed["condemned"]["reason"] == "it crashed"
        marks = [mark["text"] for mark in got(api, "production")["marks"] if mark["kind"] == "challenge"]
        assert {"v4 rolled back", "v5 timed out", "v6 stopped", "v7 replaced", "v8 is tried"} <= set(marks)


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"word": "drop", "reason": "it hums", "digest": "0" * 64}, 409, "is on its way by now, and not 000000000000"),
        ({"word": "approve", "reason": "it is fine"}, 409, "can't be approved before its outcomes have proven it"),
        ({"word": "release", "reason": "it is fine"}, 400, "$.word"),
        ({"word": "drop", "reason": "  "}, 400, "$.reason"),
        ({"word": "drop", "reason": "a\nb"}, 400, "$.reason"),
        ({"word": "drop"}, 400, "reason"),
    ],
)
def test_what_cant_be_decided_is_one_sentence(
    asked: dict[str, Any], status: int, said: str, registry: Registry, own: Path
) -> None:
    canary = challenge(registry, 1.5, time.time() - 900, RAMP)
    registry.close()  # a command takes its lock
    with served(own) as url:
        headers = {"authorization": f"Bearer {operate_token(own)}"}
        body = {"digest": canary.challenger, **asked}
        response = httpx.post(f"{url}api/v1/canary", json=body, headers=headers, timeout=60.0, trust_env=False)
    assert response.status_code == status and said in response.json()["error"]


def card(page: Page) -> Locator:
    """Return the card of the challenger on its way."""
    return page.locator(".card").filter(has=page.get_by_role("heading", name="Challenger", exact=True))


def test_a_challenger_is_followed_from_the_shadow_to_its_end_without_a_reload(
    opened: Opened, registry: Registry, own: Path
) -> None:
    page = opened.page
    with opened.at(own) as url:
        page.goto(url)
        expect(page.locator(".champion").first).to_contain_text("v3")
        expect(card(page)).to_be_hidden()
        canary = challenge(registry, 1.5, time.time() - 900, RAMP)
        expect(card(page)).to_contain_text("in the shadow")
        expect(card(page)).to_contain_text("1% of new episodes after 256 decisions in the shadow")
        canary = keep(registry, half_way(canary))
        expect(card(page).locator(".ramp [aria-current]")).to_have_text("10 %")
        expect(card(page)).to_contain_text("256 decisions in the shadow, 251 of them the champion's")
        expect(card(page).get_by_role("row", name="v4 challenger 0 of 40 0.0 % 0")).to_be_visible()
        expect(card(page).get_by_role("row", name="v3 champion 7 of 360 1.9 % 0")).to_be_visible()
        meter = card(page).get_by_role("meter", name="it fails less than 2 points oftener")
        expect(meter).to_have_attribute("aria-valuetext", re.compile(r"^[\d.]+ of 200$"))
        expect(card(page)).to_contain_text("At 20 it is rolled back")
        expect(page.locator("dd", has_text="90 % of new episodes, the rest v4")).to_be_visible()
        expect(card(page).get_by_role("button")).to_have_count(0)  # nobody may operate yet
        keep(registry, RAMP.broke(canary, "it crashed", time.time()))
        expect(card(page)).to_be_hidden()
        expect(page.locator(".rows")).to_contain_text("v4 rolled back")


def test_the_policies_view_shows_shares_in_time_and_what_became_of_challengers(
    opened: Opened, registry: Registry, own: Path
) -> None:
    at = time.time() - 900
    keep(registry, RAMP.broke(first_share(challenge(registry, 1.5, at, RAMP)), "it crashed", at + 60))
    keep(registry, half_way(challenge(registry, 1.6, at + 100, RAMP)))
    page = opened.page
    with opened.at(own) as url:
        page.goto(f"{url}#/policies")
        rows = page.locator("table.challengers tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("10 % of new episodes")
        expect(rows.last).to_contain_text("rolled back")
        expect(rows.last).to_contain_text("it crashed")
        expect(page.locator(".lane .shadow")).to_have_count(2)
        expect(page.locator(".lane .canary")).to_have_count(3)
        expect(page.locator(".lane .canary").last).to_have_attribute("title", "challenger, 10 % of new episodes")
        heights = page.locator(".lane .canary").evaluate_all("all => all.map(each => each.clientHeight)")
        assert min(heights) >= 2 and max(heights) < page.locator(".lane .span").first.evaluate("e => e.clientHeight")
        states = page.locator("table.policies tbody tr td:nth-child(2)")
        expect(states).to_have_text(["challenger", "rolled back", "in service", "candidate", "former"])
        page.locator("table.policies tbody tr").nth(1).click()
        expect(page.get_by_role("heading", name="Policy v4")).to_be_visible()
        expect(page.get_by_role("heading", name="As a challenger")).to_be_visible()
        expect(page.locator(".trying")).to_contain_text("it crashed")


def test_freezing_and_dropping_take_the_operate_token_and_a_reason(
    opened: Opened, registry: Registry, own: Path
) -> None:
    canary = keep(registry, half_way(challenge(registry, 1.5, time.time() - 900, RAMP)))
    registry.close()  # a command takes its lock
    page = opened.page
    with opened.at(own) as url:
        page.goto(url)
        sign_in(page, operate_token(own))
        expect(card(page).get_by_role("button", name="Approve")).to_have_count(0)
        card(page).get_by_role("button", name="Freeze v4 …").click()
        dialog = page.get_by_role("dialog")
        line = f"flywheel canary freeze {canary.challenger[:8]} --reason REASON --run-dir {own}"
        expect(dialog).to_contain_text(line)
        dialog.get_by_role("button", name="Freeze").click()
        expect(dialog).to_be_visible()  # not without a reason
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        card(page).get_by_role("button", name="Freeze v4 …").click()
        dialog.get_by_label("Reason, which is kept").fill("it doesn't sound right")
        expect(dialog).to_contain_text("--reason 'it doesn'\\''t sound right' --run-dir")
        dialog.get_by_role("button", name="Freeze").click()
        expect(card(page)).to_contain_text("it doesn't sound right")
        expect(card(page).get_by_role("button")).to_have_text(["Drop v4 …"])
        page.goto(f"{url}#/policies")
        page.get_by_role("button", name="Drop v4 …").click()
        dialog.get_by_label("Reason, which is kept").fill("still not right")
        dialog.get_by_role("button", name="Drop").click()
        expect(page.locator("table.challengers tbody tr")).to_contain_text("still not right")
        expect(page.locator("table.policies").get_by_text("rolled back")).to_be_visible()
        expect(page.get_by_role("button", name="Drop v4 …")).to_have_count(0)
    with closing(Registry(own, task_digest(cartpole))) as after:
        assert after.reasons()[canary.challenger][0] == "still not right"


def test_a_proven_challenger_is_approved_by_an_operator(opened: Opened, registry: Registry, own: Path) -> None:
    keep(registry, proven(challenge(registry, 1.5, time.time() - 900, RAMP)))
    registry.close()
    page = opened.page
    with opened.at(own) as url:
        page.goto(url)
        sign_in(page, operate_token(own))
        expect(card(page)).to_contain_text("waits for approval")
        card(page).get_by_role("button", name="Approve v4 …").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason, which is kept").fill("all is calm")
        dialog.get_by_role("button", name="Approve").click()
        expect(card(page)).to_be_hidden()
        expect(page.locator(".champion:visible")).to_contain_text("v4")


def heard(registry: Registry, canary: Canary) -> Canary:
    """Let one more of the challenger's episodes come out well."""
    return keep(registry, RAMP.hear(canary, [outcome(time.time() - 10, canary.challenger)], time.time()))


def test_a_button_stays_under_a_finger_while_numbers_change(opened: Opened, registry: Registry, own: Path) -> None:
    canary = keep(registry, half_way(challenge(registry, 1.5, time.time() - 900, RAMP)))
    page = opened.page
    with opened.at(own) as url:
        page.goto(url)
        sign_in(page, operate_token(own))
        expect(card(page)).to_contain_text("0 of 40")
        expect(page.get_by_text("The shift began to show")).to_be_visible()  # the last to come, and it moves the cards
        page.get_by_role("button", name="Drop v4 …").hover()
        page.mouse.down()
        canary = heard(registry, canary)
        expect(card(page)).to_contain_text("0 of 41")
        page.mouse.up()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        page.goto(f"{url}#/policies")
        expect(page.locator("table.challengers")).to_contain_text("0 of 41")
        page.get_by_role("button", name="Drop v4 …").hover()
        page.mouse.down()
        with page.expect_response(re.compile("/api/v1/scenarios")):
            heard(registry, canary)
        page.mouse.up()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("table.challengers")).to_contain_text("0 of 42")


@pytest.mark.parametrize("width", [390, 1920])
def test_a_challenger_fits_on_a_phone_and_on_a_wide_screen(
    browser: Browser, registry: Registry, own: Path, width: int
) -> None:
    at = time.time() - 900
    broken = keep(registry, RAMP.broke(first_share(challenge(registry, 1.5, at, RAMP)), "it crashed", at + 60))
    keep(registry, half_way(challenge(registry, 1.6, at + 100, RAMP)))
    context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    with served(own) as url:
        for view in ("#/now", "#/policies", f"#/policies/{broken.challenger}"):
            page.goto("about:blank")
            page.goto(url + view)
            page.locator(".trying, table.challengers").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            cut = page.locator(".trying, .scroll:has(table.stacked)").evaluate_all(
                "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
            )
            assert width != 390 or cut == 0, f"something of {view} has to be rolled sideways on a phone"
        page.goto("about:blank")
    context.close()
