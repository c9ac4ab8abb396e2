"""The picture of a diagnosis: what moved, episode by episode in order of start, and where it began."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flywheel.analyze.series import series
from flywheel.analyze.summaries import Summaries, summarize
from flywheel.causes import NAMES, Cause, Moved
from flywheel.records import Episode, Spec
from flywheel.tapes import short

INK, MUTED, PAPER, CHANGED = "#1f2430", "#6b7280", "#ffffff", "#c0262d"
POLICIES = ("#3b6fb6", "#b5651d", "#7a5ea8", "#4f8a5b", "#8c8c8c")
"""Colours of policies, in the order in which they began to serve."""
PANELS = 3
"""Most numbers that are drawn, beside the return."""
HEAD, PANEL, FOOT = 1.3, 1.55, 0.6
"""Inches of the title, of each panel, and of what is below them."""
COLUMNS = 4
"""Entries of the legend side by side."""
SMOOTH = 15
"""Episodes over which the line averages."""

Floats = NDArray[np.float64]


def draw(cause: Cause, episodes: Sequence[Episode], spec: Spec, path: Path | None, width: float = 10.0) -> Figure:
    """Return the picture of a cause over these episodes in order of start, `width` inches wide, written as a PNG."""
    at = next((i for i, e in enumerate(episodes) if e.id == cause.since_episode), len(episodes))
    panels = [
        ("return", np.array([e.total for e in episodes])),
        *_moved(cause, summarize(episodes, spec), episodes, at),
    ]
    handles, labels = _legend(episodes)
    head = HEAD + 0.2 * ((len(labels) - 1) // COLUMNS)
    height = head + PANEL * len(panels) + FOOT
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(width, height), dpi=150, facecolor=PAPER)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(
            left=0.85 / width, right=1 - 0.2 / width, top=1 - head / height, bottom=FOOT / height, hspace=0.42
        )
        for axis, (name, values) in zip(axes, panels, strict=True):
            _panel(axis, name, values, episodes, at, cause)
        axes[-1].set_xlabel("production's episodes in order of start", color=MUTED)
        columns = int(width * 11)
        title = textwrap.shorten(_title(cause), int(width * 8.2), placeholder="…")
        figure.text(0.12 / width, 1 - 0.25 / height, title, fontsize=13, fontweight="bold", va="center")
        text = "\n".join(textwrap.wrap(cause.sentences[0], columns, max_lines=2, placeholder=" …"))
        figure.text(0.12 / width, 1 - 0.45 / height, text, color=MUTED, va="top", linespacing=1.3)
        style: dict[str, Any] = {"handletextpad": 0.5, "columnspacing": 1.2, "borderaxespad": 0.0, "fontsize": 8.5}
        place = (1 - 0.1 / width, 1 - (head - 0.12) / height)
        figure.legend(handles, labels, loc="lower right", bbox_to_anchor=place, ncols=COLUMNS, frameon=False, **style)
        if path is not None:
            figure.savefig(path, format="png", facecolor=PAPER, metadata={"Software": "Flywheel"})
    return figure


def _title(cause: Cause) -> str:
    if cause.kind == "nothing":
        return "Nothing changed"
    what = "Something" if cause.kind == "unknown" else NAMES[cause.kind][0].upper() + NAMES[cause.kind][1:]
    return f"{what} changed since episode {short(cause.since_episode)}"


def _moved(cause: Cause, known: Summaries, episodes: Sequence[Episode], at: int) -> list[tuple[str, Floats]]:
    """Return the numbers to draw, by name."""
    before = np.arange(len(episodes)) < at
    rows = [row for row in cause.moved if row.measure != "return"] or [
        Moved(what="episode", measure="share that fails", before=0, after=0, p_value=1)
    ]
    found = [(f"{row.what}: {row.measure}", series(known, before, row.what, row.measure)) for row in rows]
    return [(name, values) for name, values in found if values is not None][:PANELS]


def _panel(axis: Any, name: str, values: Floats, episodes: Sequence[Episode], at: int, cause: Cause) -> None:
    place = np.arange(len(values))
    colors = _colors(episodes)
    failed = np.array([e.failed for e in episodes])
    axis.scatter(place[~failed], values[~failed], s=7, c=[colors[i] for i in place[~failed]], linewidths=0, alpha=0.75)
    axis.scatter(
        place[failed], values[failed], s=16, c=[colors[i] for i in place[failed]], marker="x", linewidths=0.9, zorder=3
    )
    for low, high in ((0, at), (at, len(values))) if at < len(values) else ((0, at),):
        axis.plot(place[low:high], _smooth(values[low:high]), color=INK, linewidth=1.3, zorder=4)
    if cause.kind != "nothing" and at < len(values):
        axis.axvline(at - 0.5, color=CHANGED, linewidth=1.2, zorder=2)
        axis.axvspan(at - 0.5, len(values), color=CHANGED, alpha=0.05, linewidth=0, zorder=0)
    axis.set_title(name, loc="left", fontsize=9.5, color=INK, pad=4)
    axis.set_xlim(-1, len(values))
    known = values[np.isfinite(values)]
    if len(known):
        bottom, top = float(np.min(known)), float(np.max(known))
        room = 0.08 * (top - bottom) or max(abs(top), 1.0) * 0.05
        axis.set_ylim(bottom - room, top + room)
    axis.locator_params(axis="y", nbins=4)
    axis.tick_params(color=MUTED, labelcolor=MUTED, length=3, labelsize=9)
    axis.yaxis.grid(True, color="#e5e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(MUTED)


def _smooth(values: Floats) -> Floats:
    """Return the mean over the episodes around each."""
    known = np.isfinite(values)
    if not known.any():
        return values
    window = np.ones(min(SMOOTH, len(values)))
    total = np.convolve(np.where(known, values, 0.0), window, "same")
    return np.asarray(total / np.maximum(np.convolve(known.astype(np.float64), window, "same"), 1e-9))


def _policies(episodes: Sequence[Episode]) -> list[str]:
    return list(dict.fromkeys(e.digests[0] for e in episodes))


def _colors(episodes: Sequence[Episode]) -> list[str]:
    places = {digest: i for i, digest in enumerate(_policies(episodes))}
    return [POLICIES[min(places[e.digests[0]], len(POLICIES) - 1)] for e in episodes]


def _legend(episodes: Sequence[Episode]) -> tuple[list[Any], list[str]]:
    """Return what dots, crosses and lines are."""
    line = mpl.lines.Line2D
    names = _policies(episodes)[: len(POLICIES)]
    handles = [line([], [], marker="o", linestyle="", markersize=4, color=c) for c in POLICIES[: len(names)]]
    handles += [line([], [], marker="x", linestyle="", markersize=5, color=MUTED), line([], [], color=INK)]
    return handles, [*(f"policy {name[:8]}" for name in names), "failed", f"mean of {SMOOTH}"]
