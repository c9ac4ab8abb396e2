"""A canary as people are shown it: how far it is, what speaks for each of its ends, and what comes next. Pure."""

from __future__ import annotations

import math

from flywheel.challenge import Challenge, Evidence, Span
from flywheel.config import DeployConfig
from flywheel.deploy.canary import Canary, Ramp

_MOST = 600.0
"""Logs of factors that are told; beyond it a float has no word for them."""


def shown(canary: Canary, config: DeployConfig) -> Challenge:
    """Return a canary as it is shown, by the configuration that it is driven by."""
    ramp, test = Ramp(config), canary.test
    return Challenge(
        challenger=canary.challenger,
        champion=canary.champion,
        state=canary.state,
        is_over=canary.is_over,
        is_urgent=canary.is_urgent,
        is_proven=canary.is_proven,
        begun_at=canary.begun_at,
        changed_at=canary.changed_at,
        ends_at=canary.begun_at + config.canary_timeout_s if canary.state in ("shadow", "canary") else None,
        share=canary.share,
        ramp=ramp.course(canary).ramp,
        spans=_spans(canary),
        num_shadowed=canary.num_shadowed,
        num_same=canary.num_same,
        num=test.num,
        num_failed=test.num_failed,
        num_lost=test.num_lost,
        evidence=_evidence(canary, ramp),
        next="" if canary.is_over else _next(canary, ramp),
        reason=canary.reason,
        frozen=canary.frozen,
    )


def _spans(canary: Canary) -> tuple[Span, ...]:
    begun = [(canary.begun_at, 0.0), *canary.shares]
    ends = [*(at for at, _ in canary.shares), canary.answered_until]
    return tuple(
        Span(begin=at, end=end, stage="canary" if share else "shadow", share=share)
        for (at, share), end in zip(begun, ends, strict=True)
        if end != at or share  # without a shadow its span is empty
    )


def _evidence(canary: Canary, ramp: Ramp) -> tuple[Evidence, ...]:
    config, course, test = ramp.config, ramp.course(canary), canary.test
    margin, error = ramp.promotes_at(canary)
    return (
        Evidence(
            claim="it fails oftener than the champion",
            value=_factor(test.is_worse),
            acts_at=1 / course.rollback_error,
            then="it is rolled back" if config.on_fail == "rollback" else "it is frozen",
        ),
        Evidence(
            claim=f"it fails less than {100 * margin:g} points oftener",
            value=_factor(test.is_good),
            acts_at=1 / error,
            then="it may be approved" if config.approve else "it is promoted",
        ),
        Evidence(
            claim="one arm's episodes are lost oftener than the other's",
            value=_factor(test.is_uneven),
            acts_at=1 / course.lost_error,
            then="it is stopped",
        ),
    )


def _factor(log: float) -> float:
    return math.exp(min(log, _MOST))


def _next(canary: Canary, ramp: Ramp) -> str:
    config, course, (_, error) = ramp.config, ramp.course(canary), ramp.promotes_at(canary)
    if canary.state == "frozen":
        return "it gets no episodes until a person drops it, or another challenger takes its place"
    if canary.state == "shadow":
        return f"{_percent(course.ramp[0])} of new episodes after {config.shadow_decisions:,} decisions in the shadow"
    if canary.is_proven:
        return "a person's approval promotes it"
    if ramp.is_last(canary):
        enough = f"when the evidence that it is as good reaches {1 / error:,.0f}"
        return f"a person may approve it {enough}" if config.approve else f"all episodes {enough}"
    share = f"{_percent(course.ramp[canary.rung + 1])} of new episodes"
    if canary.rung == 0:
        return f"{share} after {course.ramp_first:,} of its episodes"
    return f"{share} when the evidence that it is as good reaches {math.exp(ramp.climbs_at(canary)):,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
