"""The picture of a run: production's return over its episodes, and what happened when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from flywheel.records import Turn
from flywheel.report.closing import counted
from flywheel.report.summary import Answer, Phases, Played, answer, detection, in_order, mean, phases

INK, MUTED, PAPER, TINT = "#1f2430", "#6b7280", "#ffffff", "#fdf3e3"
POLICIES = ("#3b6fb6", "#1b8a6b", "#7a5bb5", "#b5651d", "#3a8fa3")
"""Colours of the policies in the order of their release, told apart without red and green side by side."""
EVENTS = {"change": "#b45309", "signal": "#c0262d", "verdict": "#5b4b8a", "release": INK}
ROLLING = 15
"""Episodes of the rolling mean: half of the 30 within which a change is to be noticed."""
HEAD, ROW, PLOT, FOOT = 0.95, 0.25, 3.6, 0.6
"""Inches of the picture's title, of one row of labels, of the plot, and of what is below it; it is 12 wide."""
WIDTH = 0.975
"""Share of the picture's width that its title may take: a longer one is written smaller."""
LEFT, RIGHT = 0.075, 0.985
"""The plot's sides as shares of the width: left of it there is room for -2,000 and the axis' name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at an episode, and what it says."""

    x: float
    kind: str
    text: str


def marks(turns: Sequence[Turn], played: Sequence[Played], change: str) -> list[Mark]:
    """Return change, signal, verdicts and releases at their places among the episodes 1, 2, ... in order of start."""
    ordered = in_order(played)
    starts = [e.started_at for e in ordered]

    def place(at: float) -> float:
        return 0.5 + float(np.searchsorted(starts, at))

    found = []
    first_changed = next((e for e in ordered if e.changed), None)
    if first_changed is not None:
        text = f"world changes: {change}" if change else "world changes"
        found.append(Mark(x=place(first_changed.started_at), kind="change", text=text))
    signal, num_read = detection(turns, played)
    if signal is not None:
        x = next((i + 1.0 for i, e in enumerate(ordered) if e.id == signal.at_episode), place(signal.at))
        found.append(Mark(x=x, kind="signal", text=f"{signal.kind.replace('_', ' ')} after {counted(num_read)}"))
    names = _names(turns)
    for turn in turns:
        if turn.verdict is not None:
            word = {"pass": "passes", "fail": "refuses"}.get(turn.verdict.outcome, "can't decide on")
            who = names.get(turn.verdict.digest, "a candidate")
            text = f"gate {word} {who} ({turn.verdict.num_simulations:,} simulations)"
            found.append(Mark(x=place(turn.verdict.judged_at), kind="verdict", text=text))
        if turn.release is not None:
            text = f"{names[turn.release.digest]} in service"
            found.append(Mark(x=place(turn.release.released_at), kind="release", text=text))
    return sorted(found, key=lambda m: (m.x, list(EVENTS).index(m.kind)))


def _names(turns: Sequence[Turn]) -> dict[str, str]:
    digests = dict.fromkeys(turn.release.digest for turn in turns if turn.release is not None)
    return {digest: f"policy {number}" for number, digest in enumerate(digests, 1)}


def rows(xs: Sequence[float], widths: Sequence[float], right: float) -> list[tuple[int, bool]]:
    """Return for each label its row (0 is nearest to the picture) and whether it stands left of its line.

    A label stands right of its line, unless that leaves the picture (or it is over the line of one that does). It is
    above every label whose line it covers, so no line crosses a text and no two texts meet.
    """
    num = len(xs)
    flipped = [False] * num
    for i in reversed(range(num)):
        flipped[i] = xs[i] + widths[i] > right or any(
            flipped[j] and xs[i] + widths[i] > xs[j] for j in range(i + 1, num)
        )
    placed = [0] * num
    for i in reversed(range(num)):
        if not flipped[i]:
            placed[i] = max((placed[j] + 1 for j in range(i + 1, num) if xs[j] < xs[i] + widths[i]), default=0)
    for i in range(num):
        if flipped[i]:
            ends = [xs[j] + (0 if flipped[j] else widths[j]) for j in range(i)]
            placed[i] = max((placed[j] + 1 for j, end in enumerate(ends) if end > xs[i] - widths[i]), default=0)
    return list(zip(placed, flipped, strict=True))


def draw(path: Path, turns: Sequence[Turn], played: Sequence[Played], *, task: str, change: str = "") -> None:
    """Write the picture of one run: each production episode's return, a rolling mean, and what happened when.

    `change` says what changed in the world ("length 0.5 → 2").
    """
    ordered = in_order(played)
    parts = phases(turns, played)
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=(12, 6), dpi=200, facecolor=PAPER)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((LEFT, 0.1, RIGHT - LEFT, 0.6))
        _episodes(axes, ordered, list(_names(turns)))
        _means(figure, axes, ordered, parts)
        space = ROW * _label(figure, axes, marks(turns, played, change))
        height = FOOT + PLOT + space + HEAD
        figure.set_size_inches(12, height)
        axes.set_position((LEFT, FOOT / height, RIGHT - LEFT, PLOT / height))
        found = _finding(task, parts, answer(turns, played)[1])
        title = figure.text(0.013, 1 - 0.3 / height, found, fontsize=15, fontweight="bold", va="center")
        title.set_fontsize(15 * min(1.0, WIDTH * figure.bbox.width / title.get_window_extent().width))
        told = (
            "A dot is one production episode, in the colour of the policy it began on; "
            f"the line is the mean of the last {ROLLING}."
        )
        figure.text(0.013, 1 - 0.62 / height, told, color=MUTED, va="center")
        figure.savefig(path, format="png", facecolor=PAPER, metadata={"Software": "Flywheel"})


def _finding(task: str, parts: Phases, kind: Answer | None) -> str:
    before, worse, again = (mean(p) for p in (parts.before, parts.after_shift, parts.recovered))
    if before is None:
        return f"{task}: production has not begun"
    if worse is None:
        return f"{task}: a return of {before:.0f} in a world that did not change"
    if worse >= before:
        return f"{task}: the world changed, and the return of {before:.0f} held"
    if again is None:
        return f"{task}: the world changed, and the return fell from {before:.0f} to {worse:.0f}"
    verb = "brought back" if again > worse else "got"
    who = {
        "rolled back": f"the earlier policy {verb}",
        "unrelated": "a policy not trained for it got",
    }.get(str(kind), f"a new policy {verb}")
    return f"{task}: the world changed, {before:.0f} became {worse:.0f}; {who} {again:.0f}"


def _episodes(axes: Any, ordered: Sequence[Played], released: Sequence[str]) -> None:
    totals = np.array([e.total for e in ordered])
    numbers = np.arange(1, len(ordered) + 1)
    for number, digest in enumerate(dict.fromkeys([*released, *(e.digest for e in ordered)])):
        mine = np.array([e.digest == digest for e in ordered], dtype=bool)
        color = POLICIES[number % len(POLICIES)]
        axes.scatter(numbers[mine], totals[mine], s=16, color=color, alpha=0.5, linewidths=0, zorder=3)
    changed = [number for number, e in zip(numbers, ordered, strict=True) if e.changed]
    if changed:
        axes.axvspan(changed[0] - 0.5, len(ordered) + 1, color=TINT, linewidth=0, zorder=0)
    if len(totals) >= ROLLING:
        axes.plot(numbers[ROLLING - 1 :], _rolling(totals), color=INK, linewidth=1.5, zorder=4)
    low, high = (min(0.0, float(totals.min())), float(totals.max())) if len(totals) else (0.0, 1.0)
    axes.set_ylim(low - 0.04 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(0, len(ordered) + 1)
    axes.set_xlabel("production episode, in order of start", color=MUTED)
    axes.set_ylabel("return", color=MUTED)
    axes.tick_params(color=MUTED, labelcolor=MUTED, length=3)
    axes.yaxis.grid(True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _rolling(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(totals, np.ones(ROLLING) / ROLLING, mode="valid")


def _means(figure: Any, axes: Any, ordered: Sequence[Played], parts: Phases) -> None:
    """Write a phase's mean where the picture is empty near its episodes, from their outer edge on if they are few."""
    place = {e.id: number for number, e in enumerate(ordered, 1)}
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    unit = (right - left) / axes.get_window_extent().width
    for field in dataclasses.fields(Phases):
        phase: tuple[Played, ...] = getattr(parts, field.name)
        level = mean(phase)
        if level is None:
            continue
        first, last = place[phase[0].id] + ROLLING, place[phase[-1].id]
        up = level < (low + high) / 2
        style: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "va": "bottom" if up else "top", "zorder": 5}
        totals = np.array([e.total for e in phase])
        line = _rolling(totals) if len(totals) >= ROLLING else np.array([level])
        y = (line.max() + 0.03 * (high - low)) if up else (line.min() - 0.03 * (high - low))
        text = axes.text((first + last) / 2, y, f" mean {level:.0f} ", ha="center", **style)
        is_last = last == len(ordered)  # the line comes to it from where others' episodes lie between
        if is_last or text.get_window_extent(figure.canvas.get_renderer()).width * unit > last - first:
            edge = (right, "right") if first > (left + right) / 2 else (first - ROLLING, "left")
            text.set(x=edge[0], ha=edge[1])
        text.set_path_effects([withStroke(linewidth=4, foreground=TINT if phase[0].changed else PAPER)])


def _label(figure: Any, axes: Any, found: Sequence[Mark]) -> int:
    """Draw each mark's line with its text above the picture and return how many rows of text that took."""
    renderer, box_ = figure.canvas.get_renderer(), axes.get_window_extent()
    left, right = axes.get_xlim()
    unit = (right - left) / box_.width
    texts = [axes.text(0, 0, f" {m.text} ", fontsize=11) for m in found]
    widths = [text.get_window_extent(renderer).width * unit for text in texts]
    places = rows([m.x for m in found], widths, right)
    transform = blended_transform_factory(axes.transData, axes.transAxes)
    for mark, text, (row, is_left) in zip(found, texts, places, strict=True):
        color = EVENTS[mark.kind]
        if mark.kind == "release":
            number = int(mark.text.split()[1]) - 1
            color = POLICIES[number % len(POLICIES)]
        top = 1 + (0.15 + row) * ROW / PLOT
        style = "dashed" if mark.kind == "verdict" else "solid"
        axes.plot(
            [mark.x, mark.x],
            [0, top + 0.7 * ROW / PLOT],
            transform=transform,
            color=color,
            linewidth=1.2,
            linestyle=style,
            clip_on=False,
            zorder=2,
        )
        text.set(
            transform=transform, position=(mark.x, top), color=color, ha="right" if is_left else "left", va="bottom"
        )
    return max((row + 1 for row, _ in places), default=0)
