"""Report: the end of a run, told by the run directory alone.

In: the journal, the clients' logs, the store. Out: summary.json, report.png, the closing table.
Never: asks a living process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flywheel import archive
from flywheel.report.closing import table
from flywheel.report.summary import Played, summarize
from flywheel.store import intake
from flywheel.tasks.traffic import Log, read_log

__all__ = ["PICTURE", "SUMMARY", "table", "write"]

SUMMARY = "summary.json"
PICTURE = "report.png"


def write(run_dir: Path) -> dict[str, Any]:
    """Write summary.json and report.png into the run directory and return the summary."""
    turns = archive.read_turns(run_dir)
    logs = [read_log(path) for path in sorted((run_dir / archive.TRAFFIC).glob("*.jsonl"))]
    acknowledged = [e["id"] for log in logs for e in log.episodes if e["acknowledged"]]
    played, stored = _production(run_dir, logs, acknowledged)
    summary = summarize(
        turns,
        played,
        requests={"total": sum(log.requests for log in logs), "errors": sum(log.errors for log in logs)},
        episodes={
            "acknowledged": len(acknowledged),
            "stored": stored,
            "broke_off": sum(log.raised for log in logs),
        },
    )
    temporary = run_dir / f".{SUMMARY}.new"
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, run_dir / SUMMARY)
    from flywheel.report.picture import draw  # matplotlib takes a second to load

    change = next((log.change for log in logs if log.change), "")
    draw(run_dir / PICTURE, turns, played, task=archive.read_config(run_dir)["task"], change=change)
    return summary


def _production(run_dir: Path, logs: Sequence[Log], acknowledged: Sequence[str]) -> tuple[list[Played], int]:
    """Return production's whole episodes in order of start, and how many of the acknowledged ids the store holds."""
    if not (run_dir / intake.FILE).exists():
        return [], 0
    changed = {e["id"] for log in logs for e in log.episodes if e["changed"]}
    store = intake.open_readonly(run_dir / intake.FILE)
    try:
        played = [
            Played(id=e.id, started_at=e.started_at, digest=e.digest, total=e.total, changed=e.id in changed)
            for e in store.outcomes("production")
            if e.end != "lost"
        ]
        return played, len(store.whole(acknowledged))
    finally:
        store.close()
