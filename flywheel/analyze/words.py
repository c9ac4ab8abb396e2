"""A diagnosis in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from flywheel.analyze.exhibits import Change, Exhibits, offsets
from flywheel.analyze.rivals import factor
from flywheel.causes import CauseKind
from flywheel.tapes import short


def sentences(change: Change, shown: Exhibits, *, is_alone: bool) -> tuple[str, ...]:
    """Return what changed since when, and what speaks for it; `is_alone`: no earlier policy runs beside this one."""
    if change.kind == "nothing":
        return (f"nothing changed in the last {len(change.episodes):,} episodes beyond what chance does",)
    since = f"since episode {short(change.episodes[change.onset].id)}"
    tell = _TOLD[change.kind]
    first, *more = tell(change, shown, is_alone)
    num = int(change.after.sum())
    counted = f"{since} ({num:,} episode{'s' * (num != 1)} so far, {int(change.before.sum()):,} before them)"
    return (f"{first}, {counted}", *more)


Words = list[str]


def _logging(change: Change, shown: Exhibits, _: bool) -> Words:
    what = "; ".join(f"{row.measure}: {row.before:.1%} before, {row.after:.1%} since" for row in shown.moved)
    return [
        f"the logging changed ({what})",
        "what is missing says nothing of policy or world; returns since then are not what was earned",
    ]


def _reward(change: Change, shown: Exhibits, _: bool) -> Words:
    found = factor(change.known, change.onset)
    if found is None or found[2] < 0.5:
        how = "are other ones for the same states and actions"
    else:
        offset = f" and {found[1]:+.3g}" if abs(found[1]) > 1e-3 * (1 + abs(found[0])) else ""
        how = f"are {found[0]:.3g} times{offset} what they were for the same states and actions"
    return [f"rewards {how}", "so returns before and since can't be compared; states and actions say what happened"]


def _sensors(change: Change, shown: Exhibits, _: bool) -> Words:
    shifts = offsets(change)
    if shifts:
        what = " and ".join(f"{name} by {shift:+.3g}" for name, shift in shifts.items())
        return [
            f"a sensor is off: {what}",
            "with that taken away, episodes begin where they did and the world answers as it did",
        ]
    names = ", ".join(dict.fromkeys(row.what for row in shown.moved)) or "an observation"
    if change.family is not None and change.family.name == "sensors":
        return [f"a sensor stands still, or moves, in more steps than it did: {names}"]
    return [
        f"a sensor is noisier: {names}",
        "each step takes back what the step before it showed too much, as noise of a sensor does and a world doesn't",
    ]


def _initial(change: Change, shown: Exhibits, _: bool) -> Words:
    what = " and ".join(
        f"{row.what} ({row.measure} {row.before:.3g} before, {row.after:.3g} since)" for row in shown.moved[:3]
    )
    return [
        f"episodes begin elsewhere: {what}",
        "from there on the world answers as it did; a sensor's offset that the world's laws don't notice would look "
        "the same",
    ]


def _dynamics(change: Change, shown: Exhibits, _: bool) -> Words:
    what = ", ".join(dict.fromkeys(row.what for row in shown.moved[:3]))
    return [
        f"the world answers otherwise than it did, most in {what}",
        "it shows in transitions of one and the same policy's episodes, so no release explains it",
    ]


def _policy(change: Change, shown: Exhibits, is_alone: bool) -> Words:
    failed = np.array([e.failed for e in change.episodes])
    its, others = (f"{int((failed & some).sum()):,} of {int(some.sum()):,}" for some in (change.after, change.before))
    totals = np.array([e.total for e in change.episodes])
    means = [float(totals[some].mean()) for some in (change.after, change.before)]
    compared = "before it" if is_alone else "beside it"
    more = "within each policy's episodes the world stayed as it was"
    if is_alone:
        more += "; no earlier policy runs beside it, so a world that changed in that very moment would look the same"
    return [
        f"policy {change.champion[:8]} is worse than the one {compared}: {its} episodes failed against {others}, "
        f"return {means[0]:.4g} against {means[1]:.4g}",
        more,
    ]


def _unknown(change: Change, shown: Exhibits, _: bool) -> Words:
    if change.family is None:
        return [
            "an alarm says that something changed, but nothing that is looked at moved beyond chance",
            "logging, rewards, sensors, first states, transitions, and the release were compared; more episodes may "
            "tell (`flywheel why --now`)",
        ]
    what = "; ".join(f"{row.measure}: {row.before:.3g} before, {row.after:.3g} since" for row in shown.moved)
    return [
        f"episodes come out otherwise ({what})",
        "but logging, rewards, sensors, first states and transitions are as they were, and it began with no release",
    ]


_TOLD: Mapping[CauseKind, Callable[[Change, Exhibits, bool], Words]] = {
    "logging": _logging,
    "reward": _reward,
    "sensors": _sensors,
    "initial_states": _initial,
    "dynamics": _dynamics,
    "policy": _policy,
    "unknown": _unknown,
}
