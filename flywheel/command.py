"""Runs a command of `flywheel` for a page as a person would: in a process of its own, so that this one loads no Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flywheel.errors import FlywheelError, UsageError

COMMAND_S = 120.0
"""Seconds after which a command that has not answered is given up on."""


def run(run_dir: Path, words: Sequence[str]) -> str:
    """Return what a command of a run directory printed.

    Raises FlywheelError with its sentence where it failed or doesn't answer, UsageError where it was called wrongly.
    """
    command = [sys.executable, "-m", "flywheel.cli", *words, f"--run-dir={run_dir}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired as error:
        raise FlywheelError(f"`flywheel {words[0]}` has not answered for {COMMAND_S:.0f} s: is it well?") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["the command said nothing"])[-1]
        kind = UsageError if done.returncode == 2 else FlywheelError
        raise kind(last.removeprefix("flywheel: "))
    return done.stdout.strip()
