"""The small pictures of a verdict's page, as inline SVG that fits any width: an axis, a strip of trials, a budget.

Places are shares of the width, so that lines grow with the page and texts don't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flywheel.records import Check, Trial
from flywheel.report.markup import Markup, Value, join, tag

SIDE = 2.0
"""Per cent of the width that a picture leaves free on each side."""
MOST_POINTS = 2_000
"""Marks of each kind that a strip shows: of more trials every second, or third, one."""
_APART = 38.0  # per cent of a narrow page's width that the limit's words and a number beside them need
_EDGE = 26.0  # per cent of the width nearer to an end than which words begin, or end, at their place
LIMITS = {
    "failure_rate": "at most {}",
    "regression": "at most {}",
    "safety": "not surely more than {}",
    "stress": "not surely more than {}",
    "edge_cases": "at least {}",
    "scenarios": "at least {}",
    "interval": "not surely more than {}",
    "coverage": "at least {}",
    "search": "",
    "cost": "at most {}",
}
"""What a check's limit is, in words; what a search finds refuses nobody."""
TIMES = ("cost",)
"""Checks whose numbers are seconds; those of the other ones in LIMITS are shares."""
MEANS = ("failure_rate", "regression", "safety", "stress", "interval")
"""Checks of a mean: without an interval nothing was compared."""


def amount(check: str, value: float) -> str:
    """Return a check's number as people read it."""
    if not math.isfinite(value):
        return "–"
    if check in TIMES:
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{100 * value:.3g} %".replace("-", "−") if check in LIMITS else number(value)


def number(value: float) -> str:
    """Return a number with at most four digits, or with all of its whole ones."""
    if not math.isfinite(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def axis(check: Check) -> Markup | None:
    """Return a check's value, interval and limit on one axis; None where it has no numbers to show."""
    name, (low, high) = check.name, check.interval
    limit = LIMITS.get(name, "limit {}").format(amount(name, check.bound))
    given = [check.value, low, high, *([check.bound] if limit else [])]
    nothing = (name in MEANS and low == high) or (name == "search" and check.value >= 1.0)
    if nothing or not all(map(math.isfinite, given)):
        return None
    begin, end = min(0.0, *given), max(_end(check), *given)
    place = _places(begin, end)
    told = [place(check.bound)] if limit else []
    ends = [at for at in (begin, end) if all(abs(place(at) - other) > _APART for other in told)]
    spoken = f"{amount(name, check.value)}, between {amount(name, low)} and {amount(name, high)}; {limit or 'no limit'}"
    return _svg(
        64, spoken,
        _line(place(begin), place(end), 34, "line"),
        _line(place(low), max(place(high), place(low) + 0.4), 34, "interval"),
        *(tag("line", {"x1": f"{x:.2f}%", "x2": f"{x:.2f}%", "y1": 20, "y2": 48, "class": "limit"}) for x in told),
        tag("circle", {"cx": f"{place(check.value):.2f}%", "cy": 34, "r": 5.5, "class": f"value {answer(check)[1]}"}),
        _word(place(check.value), 14, amount(name, check.value), "ink"),
        *(_word(x, 60, limit, "") for x in told), *(_word(place(at), 60, amount(name, at), "") for at in ends),
    )  # fmt: skip


def answer(check: Check) -> tuple[str, str]:
    """Return a check's answer: its words, and the class of their colour."""
    return {True: ("✓ passed", "good"), False: ("✗ failed", "bad"), None: ("? open", "open")}[check.passed]


def strip(trials: Sequence[Trial], limit: float | None) -> tuple[Markup, float, float]:
    """Return trials in their order as marks at their margin (or return), and the lowest and highest of those.

    `limit` is the margin at which a trial fails, None where the marks stand at returns.
    """
    values = [trial.total if limit is None else trial.margin for trial in trials]
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - 1.0, high + 1.0

    def across(i: int) -> float:
        return round(SIDE + (100 - 2 * SIDE) * (i + 0.5) / len(trials), 2)

    def down(value: float) -> float:
        return round(92 - 84 * (value - low) / (high - low), 1)

    def marks(failed: bool) -> list[str]:
        mine = [i for i, trial in enumerate(trials) if trial.failed is failed and math.isfinite(values[i])]
        return [f"M{across(i)} {down(values[i])}h0" for i in mine[:: max(1, math.ceil(len(mine) / MOST_POINTS))]]

    zero = [] if limit is None or not low < limit < high else [_path([f"M0 {down(limit)}H100"], "limit")]
    picture = tag(
        "svg", {"class": "strip", "viewBox": "0 0 100 100", "preserveAspectRatio": "none", "role": "img",
                "aria-label": f"{len(trials):,} trials, {sum(t.failed for t in trials):,} failed"},
        *zero, _path(marks(False), "fine"), _path(marks(True), "failed"),
    )  # fmt: skip
    return picture, min(known), max(known)


def shares(parts: Sequence[tuple[str, float]], spoken: str) -> Markup:
    """Return parts of a whole side by side: (class, share)."""
    boxes, at = [], 0.0
    for kind, share in parts:
        boxes.append(tag("rect", {"x": f"{100 * at:.2f}%", "y": 0, "width": f"{100 * share:.2f}%", "height": 14,
                                  "class": kind}))  # fmt: skip
        at += share
    return _svg(14, spoken, *boxes)


def _end(check: Check) -> float:
    """Return where the axis of a check ends at least: with room behind the limit, and at no impossible share."""
    if check.name in LIMITS and check.name not in (*MEANS, *TIMES):
        return 1.0
    end = max(2.0 * check.bound, 1.05 * check.value, 1.05 * check.interval[1], 1e-9)
    return min(end, 1.0) if check.name in MEANS else end


def _places(begin: float, end: float) -> Callable[[float], float]:
    """Return where a value stands, in per cent of the width."""
    return lambda value: SIDE + (100.0 - 2 * SIDE) * (value - begin) / (end - begin)


def _svg(height: int, spoken: str, *children: Markup) -> Markup:
    return tag("svg", {"width": "100%", "height": height, "role": "img", "aria-label": spoken}, join(*children))


def _line(x1: float, x2: float, y: int, kind: str) -> Markup:
    return tag("line", {"x1": f"{x1:.2f}%", "x2": f"{x2:.2f}%", "y1": y, "y2": y, "class": kind})


def _word(x: float, y: int, text: str, kind: str) -> Markup:
    anchor = "start" if x < _EDGE else "end" if x > 100 - _EDGE else "middle"
    return tag("text", {"x": f"{x:.2f}%", "y": y, "text-anchor": anchor, "class": kind}, text)


def _path(steps: Sequence[str], kind: str) -> Markup | None:
    attributes: dict[str, Value] = {"d": "".join(steps), "class": kind, "vector-effect": "non-scaling-stroke"}
    return tag("path", attributes) if steps else None
