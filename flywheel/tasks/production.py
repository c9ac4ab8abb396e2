"""Starts and stops the client processes of simulated production; they know the URL and nothing else of us."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from flywheel.config import Config
from flywheel.errors import FlywheelError
from flywheel.task import Task

PATIENCE_S = 6.0
"""Seconds that clients get to finish and acknowledge what they have begun."""


class Production:
    """Client processes that play episodes over HTTP, each with a log of its own in one directory."""

    def __init__(self, logs: Path, config: Config, task: Task) -> None:
        """Keep what to start."""
        self._logs, self._config, self._task, self._seed = logs, config.traffic, config.task, config.seed
        self._change = change(task, config) if config.drift else []
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def is_running(self) -> bool:
        """Whether clients were started and not stopped."""
        return bool(self._processes)

    def start(self, url: str, token_file: Path) -> None:
        """Start every client; a change of the world counts the episodes of earlier starts of the same run, too."""
        self._logs.mkdir(parents=True, exist_ok=True)
        begun = sum(1 for row in rows(self._logs) if "id" in row)
        start = len(list(self._logs.glob("client-*.jsonl")))
        share = max(0, self._config.change_after - begun) // max(1, self._config.num_clients)
        for number in range(start, start + self._config.num_clients):
            command = [
                sys.executable, "-m", "flywheel.tasks.traffic",
                "--url", url, "--token-file", str(token_file), "--task", self._task,
                "--log", str(self._logs / f"client-{number}.jsonl"),
                "--at-once", str(self._config.at_once), "--starts-per-s", str(self._config.starts_per_s),
                "--seed", str(self._seed + number),
            ]  # fmt: skip
            if self._change:
                command += ["--change-after", str(share), *self._change]
            with open(self._logs / f"client-{number}.err", "wb") as errors:
                # a session of its own: Ctrl-C is for us, and we end the clients in order
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # its end, when we are killed, ends the client
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            self._processes.append(process)

    def check(self) -> None:
        """Raise FlywheelError with a client's last words if one of them has died."""
        for process in self._processes:
            if process.poll() is not None:
                words = self._last_words()
                raise FlywheelError(
                    f"A production client ended with code {process.returncode}: {words or 'no message'}."
                )

    def stop(self) -> None:
        """End every client: none begins another episode, those under way are finished and acknowledged."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        for process in self._processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def _last_words(self) -> str:
        texts = [path.read_text(errors="replace").strip() for path in sorted(self._logs.glob("client-*.err"))]
        return " / ".join(text.splitlines()[-1] for text in texts if text)


def change(task: Task, config: Config) -> list[str]:
    """Return what clients are told of the change of their world: a fault, or the task's own drift; [] of none."""
    if config.traffic.fault:
        return ["--fault", config.traffic.fault, "--fault-steps", str(config.traffic.fault_steps)]
    drift = ",".join(f"{name}={value:g}" for name, value in task.drift.items())
    return ["--changed", drift] if drift else []


def rows(logs: Path) -> Iterable[dict[str, object]]:
    """Yield every line of every client's log; a line that a crash cut off is left out."""
    for path in sorted(logs.glob("client-*.jsonl")):
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        yield from (json.loads(line) for line in lines)
