"""The file that every experiment leaves behind, and where."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def report(name: str, began: float, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what results/NAME.json says of an experiment that began at the monotonic time `began`."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "experiment": name,
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": round(time.monotonic() - began, 1),
        "results": list(results),
    }


def write(found: dict[str, Any]) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{found['experiment']}.json").write_text(json.dumps(found, indent=1) + "\n")
