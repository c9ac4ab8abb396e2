"""A control group on the page: which policy some episodes stay on, for which share, and until when; and strata."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from flywheel.deploy.registry import Registry
from flywheel.observe.observer import SIGNALS
from flywheel.store.intake import Intake
from tests.page.conftest import served
from tests.page.run_dirs import challenge
from tests.page.test_api import got
from tests.page.test_challengers import RAMP, proven, registry

__all__ = ["registry"]


def released(registry: Registry) -> tuple[str, str, float]:
    """Release a challenger quietly; return the policy before it, its own, and when."""
    begun = time.time() - 900
    canary = challenge(registry, 1.5, begun, RAMP)
    quiet = RAMP.alarmed(proven(canary), (), begun + 500)
    release = registry.keep_canary(RAMP.approve(quiet, True, time.time()))
    assert release is not None and release.previous == canary.champion
    return canary.champion, canary.challenger, release.released_at


def test_it_is_told_with_its_share_and_until_when(registry: Registry, own: Path) -> None:
    old, new, at = released(registry)
    with served(own) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        now = got(api, "now")
        assert (now["service"]["digest"], now["control"]["policy"], now["control"]["share"]) == (new, old, 0.1)
        rows = {row["digest"]: row for row in got(api, "policies")["policies"]}
        assert rows[old]["state"] == "control"
        assert rows[old]["served"][-1] == {"from": at, "to": None, "stage": "full", "share": 0.1}
        assert rows[new]["served"][-1] == {"from": at, "to": None, "stage": "full", "share": 0.9}
    registry.end_control("enough", at + 60)
    with served(own) as url, httpx.Client(base_url=f"{url}api/v1/", timeout=30.0) as api:
        assert got(api, "now")["control"] is None
        rows = {row["digest"]: row for row in got(api, "policies")["policies"]}
        assert (rows[old]["state"], rows[old]["served"][-1]["to"]) == ("former", at + 60)
        assert [(span["from"], span["to"], span["share"]) for span in rows[new]["served"][-2:]] == [
            (at, at + 60, pytest.approx(0.9)), (at + 60, None, 1.0),
        ]  # fmt: skip


def test_a_person_sees_who_has_which_share(registry: Registry, own: Path, browser: Browser) -> None:
    released(registry)
    with served(own) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_text("90 % of new episodes, the rest stays on")).to_be_visible()
        page.close()


def test_an_alarm_says_among_which_kind_of_episodes_it_shows_most(own: Path, browser: Browser) -> None:
    with Intake(own) as store:
        first, *others = json.loads(store.noted(SIGNALS) or "[]")
        first["evidence"]["stratum"] = "<b>night</b>"
        store.note(SIGNALS, json.dumps([first, *others]))
    with served(own) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_text("most among “<b>night</b>”")).to_have_count(1)
        page.close()
