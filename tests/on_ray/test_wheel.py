"""The whole wheel as a user turns it: the command, its report, its end by Ctrl-C, and going on afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel import archive
from flywheel.store import intake


class Run:
    """`python -m flywheel.run` in a process group of its own, as a terminal starts it."""

    def __init__(self, run_dir: Path, *arguments: str) -> None:
        self.run_dir, self.log = run_dir, run_dir.parent / f"{run_dir.name}.log"
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flywheel.run", "--run-dir", str(run_dir), "--deploy.port", "0", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def wait_for(self, said: Callable[[str], bool], timeout_s: float = 240.0) -> None:
        """Return when it has printed what is waited for; fail when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not said(self.text):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def interrupt(self) -> float:
        """Press Ctrl-C, and return the seconds until it has ended."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)
        return time.monotonic() - began

    def summary(self) -> dict[str, Any]:
        """Return summary.json."""
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found


def test_the_wheel_turns_from_shift_to_recovery(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "--seed", "11")
    assert run.process.wait(420) == 0, run.text
    summary = run.summary()
    production = summary["production"]
    assert summary["detected_after_episodes"] <= 30, run.text
    assert production["recovered"] >= 0.95 * production["before"], run.text
    assert summary["requests"]["errors"] == 0
    assert summary["requests"]["total"] > 0
    assert summary["episodes"]["acknowledged"] == summary["episodes"]["stored"] > 0
    strategies = [turn["strategy"] for turn in summary["turns"]]
    assert strategies[0] == "continue_training"
    assert "retrain_prioritize_recent" in strategies
    assert summary["turns"][-1]["released"]
    assert (run.run_dir / "report.png").stat().st_size > 10_000
    assert "Traceback" not in run.text


def test_ctrl_c_ends_it_cleanly_and_the_same_directory_goes_on(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", "--seed", "12", "--no-drift", "--turns", "1")
    first.wait_for(lambda text: "answers at" in text)
    first.wait_for(lambda _: intake_count(first.run_dir) >= 20)
    seconds = first.interrupt()
    assert first.process.returncode == 130, first.text
    assert "Traceback" not in first.text
    assert seconds < 30, "it must take 10 s; a loaded test machine gets three times that"
    summary = first.summary()
    assert summary["episodes"]["acknowledged"] == summary["episodes"]["stored"] > 0
    assert [turn.number for turn in archive.read_turns(first.run_dir)] == [1]

    second = Run(tmp_path / "run", "--seed", "12", "--no-drift", "--turns", "1", "--loop.observe-episodes", "30")
    assert second.process.wait(300) == 0, second.text
    turns = archive.read_turns(second.run_dir)
    assert [turn.number for turn in turns] == [1, 2]
    assert not {turn.plan.strategy for turn in turns} & {"rollback_and_retrain", "retrain_prioritize_recent"}
    assert second.summary()["episodes"]["stored"] > summary["episodes"]["stored"]


@pytest.mark.parametrize(
    ("said", "number"),
    [("start    Ray", signal.SIGINT), ("probe:", signal.SIGINT), ("probe:", signal.SIGTERM)],
    ids=["while Ray starts", "while Serve starts", "by SIGTERM"],
)
def test_it_ends_cleanly_at_awkward_moments(tmp_path: Path, said: str, number: signal.Signals) -> None:
    run = Run(tmp_path / "run", "--seed", "13")
    run.wait_for(lambda text: said in text)
    began = time.monotonic()
    os.killpg(run.process.pid, number) if number == signal.SIGINT else run.process.send_signal(number)
    assert run.process.wait(60) == 130, run.text
    assert time.monotonic() - began < 30, "it must take 10 s; a loaded test machine gets three times that"
    assert "Traceback" not in run.text
    assert "no turn was finished" in run.text
    assert run.summary()["turns"] == []


def intake_count(run_dir: Path) -> int:
    """Return how many episodes the run's store holds now."""
    if not (run_dir / intake.FILE).exists():
        return 0
    store = intake.open_readonly(run_dir / intake.FILE)
    try:
        return store.count(origin="production")
    finally:
        store.close()
