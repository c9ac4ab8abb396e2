"""The picture of a fork: both courses, what they show and do and gain, and where they part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flywheel.records import Episode
from flywheel.tapes import short
from flywheel.trace.result import Result, how

INK, MUTED, PAPER = "#1f2430", "#6b7280", "#ffffff"
ONE, OTHER = "#3b6fb6", "#b5651d"
"""Colours of the unedited course and the fork, told apart without red and green side by side."""
MOST = 3
"""Numbers of the observation that are drawn: those in which the courses differ most."""
HEAD, PANEL, FOOT = 1.15, 1.5, 0.55
"""Inches of the title, of each panel, and of what is below them; the picture is 10 wide."""


def draw(result: Result, path: Path | None) -> Figure:
    """Return the picture, written as a PNG file where a path is given."""
    numbers = _most_apart(result)
    names = [f"observation[{i}]" for i in numbers] + ["action", "return so far"]
    height = HEAD + PANEL * len(names) + FOOT
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = Figure(figsize=(10, height), dpi=150, facecolor=PAPER)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(left=0.1, right=0.98, top=1 - HEAD / height, bottom=FOOT / height, hspace=0.18)
        for episode, color, label, order in (
            (result.unedited, ONE, _label(result), 2),
            (result.fork, OTHER, f"fork: {how(result.fork)}", 3),
        ):
            style = {"color": color, "linewidth": 1.4, "zorder": order, "alpha": 0.9}
            for panel, i in zip(axes, numbers, strict=False):
                panel.plot(_flat(episode.observations)[:, i], label=label, **style)
            _actions(axes[-2], episode, 0.05 * (2 * order - 5), style)
            axes[-1].plot(np.concatenate([[0.0], np.nancumsum(episode.rewards)]), label=label, **style)
        for panel, name in zip(axes, names, strict=True):
            _furnish(panel, name, result)
        axes[-1].set_xlabel("step", color=MUTED)
        figure.text(0.012, 1 - 0.25 / height, _title(result), fontsize=13, fontweight="bold", va="center")
        figure.text(0.012, 1 - 0.53 / height, "; ".join(result.edits) or "no edits", color=MUTED, va="center")
        figure.legend(
            *axes[-1].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.004, 1 - 0.62 / height), ncols=2,
            frameon=False, fontsize=10,
        )  # fmt: skip
        if path is not None:
            figure.savefig(path, format="png", facecolor=PAPER, metadata={"Software": "Flywheel"})
    return figure


def _actions(panel: Any, episode: Episode, aside: float, style: dict[str, Any]) -> None:
    """Draw the first number of each action: a line, or dots (moved a little, so that none hides another)."""
    steps, acted = np.arange(episode.num_steps), _flat(episode.raw_actions)[:, 0]
    if episode.raw_actions.dtype.kind == "f":
        panel.step(steps, acted, where="post", **style)
    else:
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.plot(steps, acted + aside, **{**style, "linewidth": 0}, marker=".", markersize=2.5)


def _title(result: Result) -> str:
    parts = "never parts" if result.difference is None else f"parts at step {result.difference.step}"
    return f"{result.task}: episode {short(result.original.id)} forked at step {result.at} {parts}"


def _label(result: Result) -> str:
    return f"{'original' if result.exact else 'unedited, in the simulator'}: {how(result.unedited)}"


def _flat(array: Any) -> NDArray[np.float64]:
    return np.asarray(array, dtype=np.float64).reshape(len(array), -1)


def _most_apart(result: Result) -> list[int]:
    """Return the numbers of the observation that are drawn, in their own order."""
    one, other = (_flat(e.observations) for e in (result.unedited, result.fork))
    num = min(len(one), len(other))
    spread = np.concatenate([one, other]).std(axis=0)
    each = np.abs(one[:num] - other[:num]) / np.where(spread > 0, spread, np.inf)
    apart = each.mean(axis=0)
    if result.difference is not None and result.difference.kind == "observation":
        apart[each[result.difference.step].argmax()] = np.inf  # where they part is always among them
    return sorted(np.argsort(-apart, kind="stable")[:MOST].tolist())


def _furnish(panel: Any, name: str, result: Result) -> None:
    panel.axvline(result.at, color=MUTED, linewidth=1, linestyle="dotted", zorder=1)
    if result.difference is not None:
        panel.axvline(result.difference.step, color="#c0262d", linewidth=1, zorder=1)
    panel.set_ylabel(name, color=MUTED, fontsize=9)
    panel.tick_params(color=MUTED, labelcolor=MUTED, length=3, labelsize=9)
    panel.yaxis.grid(True, color="#e5e7eb", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(MUTED)
    episodes: tuple[Episode, ...] = (result.unedited, result.fork)
    panel.set_xlim(0, max(e.num_steps for e in episodes))
