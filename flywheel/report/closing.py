"""The closing table, for a terminal and for a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def table(summary: Mapping[str, Any]) -> Group:
    """Return the closing table: a line a turn, then production before the change, after it, and on the new policy.

    Prints legibly at 80 columns, in a terminal and in a file.
    """
    turns = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    turns.add_column("turn", justify="right")
    turns.add_column("strategy", no_wrap=True)
    turns.add_column("policy", no_wrap=True)
    turns.add_column("verdict", no_wrap=True)
    turns.add_column("sims", justify="right")
    turns.add_column("released", no_wrap=True)
    colors = {"pass": "green", "fail": "red"}
    for turn in summary["turns"]:
        outcome = turn["verdict"] or "-"
        turns.add_row(
            str(turn["number"]),
            turn["strategy"],
            (turn["digest"] or "-")[:8],
            Text(outcome, colors.get(outcome, "")),
            f"{turn['sims']:,}" if turn["sims"] else "-",
            "yes" if turn["released"] else "no",
        )
    return Group("", turns, "", Padding(_production_table(summary), (0, 0, 1, 0)))


def counted(num: int | None) -> str:
    """Return "1 episode" or "4 episodes"."""
    return f"{num} episode{'' if num == 1 else 's'}"


def _against(now: float, before: float) -> str:
    """Return how a return compares with the one before: a share has no meaning for costs."""
    return f"{now / before:.1%} of before" if before > 0 else f"{now - before:+.1f} against before"


def _production_table(summary: Mapping[str, Any]) -> Table:
    lines = Table(box=None, show_header=False, pad_edge=False)
    lines.add_column(no_wrap=True)
    lines.add_column(justify="right", no_wrap=True)
    lines.add_column()
    production, detected = summary["production"], summary["detected_after_episodes"]

    def value(name: str) -> str:
        return "-" if production[name] is None else f"{production[name]:.1f}"

    found = "" if detected is None else f"noticed after {counted(detected)}"
    before, recovered = production["before"], production["recovered"]
    share = "" if before is None or recovered is None else _against(recovered, before)
    lines.add_row("return in production before the change", value("before"), "")
    lines.add_row("after it, on the old policy", value("after_shift"), found)
    where, note = {
        "rolled back": ("the policy put back", ""),
        "unrelated": ("a later policy", "not trained for it"),
    }.get(summary["answer"], ("the new policy", ""))
    told = ", ".join(each for each in (share, note) if each)
    lines.add_row(f"after it, on {where}", value("recovered"), told)
    requests, episodes = summary["requests"], summary["episodes"]
    lines.add_row("requests", f"{requests['total']:,}", f"{requests['errors']:,} errors")
    lines.add_row("episodes acknowledged", f"{episodes['acknowledged']:,}", f"{episodes['stored']:,} in the store")
    if episodes["broke_off"]:
        lines.add_row("episodes broken off", f"{episodes['broke_off']:,}", "the environment misbehaved")
    return lines
