"""What is shown of a challenger is what moves it: evidence where it acts, spans without gaps, and what comes next."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import DeployConfig
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.shown import shown
from flywheel.outcomes import Outcome
from tests.deploy.test_canary import NEW, NOW, OLD, SOON, heard, outcome, streams


@given(streams(), st.booleans())
def test_evidence_is_enough_exactly_where_it_was_acted_on(stream: list[Outcome], urgent: bool) -> None:
    canary = heard(stream, urgent=urgent)
    each = shown(canary, SOON)
    worse, good, uneven = each.evidence
    assert (canary.state == "rolled_back") == (worse.value >= worse.acts_at)
    if canary.state == "promoted":
        assert good.value >= good.acts_at
    if canary.state == "canary":
        assert uneven.value < uneven.acts_at and (each.next != "") and each.ends_at == SOON.canary_timeout_s
    assert (each.num, each.num_failed, each.num_lost) == (
        canary.test.num, canary.test.num_failed, canary.test.num_lost,
    )  # fmt: skip


@given(streams(), st.integers(0, 1), st.sampled_from(["", "freeze", "drop", "both"]))
def test_spans_follow_each_other_and_end_when_it_gets_no_more_episodes(
    stream: list[Outcome], shadow: int, how: str
) -> None:
    ramp = Ramp(dataclasses.replace(SOON, shadow_decisions=shadow))
    canary = ramp.begin(NEW, OLD, 0.0)
    for i, one in enumerate(stream):
        canary = ramp.shadowed(ramp.hear(canary, [one], i + 1.0), 1, 1, i + 1.0)
    on_its_way = canary.state in ("shadow", "canary")
    canary = ramp.freeze(canary, "wait", 500.0) if how in ("freeze", "both") else canary
    canary = ramp.drop(canary, "no", 900.0) if how in ("drop", "both") else canary
    spans = shown(canary, ramp.config).spans
    assert spans[0].begin == 0.0 and [span.share for span in spans if span.share] == [s for _, s in canary.shares]
    assert [span.stage for span in spans] == ["shadow"] * shadow + ["canary"] * len(canary.shares)
    assert all(one.end == other.begin for one, other in itertools.pairwise(spans))
    if on_its_way:
        assert spans[-1].end == {"": None, "freeze": 500.0, "both": 500.0, "drop": 900.0}[how]
    else:
        assert spans[-1].end == canary.changed_at


def at(rung: int, **more: Any) -> Canary:
    shares = tuple((float(i), share) for i, share in enumerate(DeployConfig().ramp[: rung + 1]))
    return Canary(
        challenger=NEW, champion=OLD, state="canary", begun_at=0.0, shares=shares, rung=rung, **more
    )  # fmt: skip


@pytest.mark.parametrize(
    ("canary", "config", "said"),
    [
        (Ramp().begin(NEW, OLD, 0.0), {}, "1% of new episodes after 256 decisions in the shadow"),
        (at(0), {}, "10% of new episodes after 20 of its episodes"),
        (at(1), {}, "50% of new episodes when the evidence that it is as good reaches 86"),
        (at(2), {}, "all episodes when the evidence that it is as good reaches 200"),
        (at(2, is_urgent=True), {}, "all episodes when the evidence that it is as good reaches 20"),
        (at(2), {"approve": "person"}, "a person may approve it when the evidence that it is as good reaches 200"),
        (at(2, is_proven=True), {"approve": "person"}, "a person's approval promotes it"),
        (Ramp().freeze(at(1), "wait", 9.0), {}, "it gets no episodes until a person drops it"),
        (Ramp().drop(at(1), "no", 9.0), {}, ""),
    ],
)
def test_what_comes_next_is_said(canary: Canary, config: dict[str, Any], said: str) -> None:
    each = shown(canary, DeployConfig(**config))
    assert each.next.startswith(said) and bool(each.next) == bool(said)


def test_what_is_shown_is_the_course_that_it_began_by() -> None:
    ramp = Ramp(DeployConfig(shadow_decisions=0, ramp=(0.1, 0.5), promote_error=0.01))
    canary = ramp.begin(NEW, OLD, 0.0)
    for config in (ramp.config, DeployConfig(ramp=(0.3,)), DeployConfig()):
        each = shown(canary, config)
        assert each.ramp == (0.1, 0.5) and each.next.startswith("50% of new episodes after 20 of its")
        assert [round(e.acts_at) for e in each.evidence] == [20, 100, 100]


def test_one_from_before_courses_were_kept_is_shown_whatever_is_configured() -> None:
    for rung in (0, 1, 2):
        each = shown(at(rung), DeployConfig(ramp=(0.5,)))
        assert each.ramp == (0.5,) and each.next == "all episodes when the evidence that it is as good reaches 200"


def test_what_follows_from_evidence_is_as_configured() -> None:
    said = [[e.then for e in shown(at(2), DeployConfig(**how)).evidence] for how in ({}, {"on_fail": "freeze"})]  # type: ignore[arg-type]
    assert said == [
        ["it is rolled back", "it is promoted", "it is stopped"],
        ["it is frozen", "it is promoted", "it is stopped"],
    ]
    margins = [shown(at(2, is_urgent=urgent), DeployConfig()).evidence[1].claim for urgent in (False, True)]
    assert margins == ["it fails less than 2 points oftener", "it fails less than 10 points oftener"]


def test_the_share_at_which_it_says_the_next_one_comes_is_where_it_comes() -> None:
    config = dataclasses.replace(DeployConfig(), shadow_decisions=0, settle_s=0.0, split_error=1e-300)
    ramp = Ramp(config)
    canary, t = ramp.begin(NEW, OLD, 0.0), 0.0
    while canary.rung < 2:
        t += 1.0
        before = canary
        canary = ramp.hear(canary, [outcome(t, OLD if t % 3 else NEW)], NOW)
    (enough,) = [int(word) for word in shown(before, config).next.split() if word.isdigit() and int(word) > 50]
    good = [shown(each, config).evidence[1].value for each in (before, canary)]
    assert good[0] < enough + 0.5 and good[1] > enough - 0.5
