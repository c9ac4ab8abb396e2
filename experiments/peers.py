"""Peers whose pins differ from ours: an environment of their own each, made when it isn't there, and a process in it.

    peer = Peer("sb3", "sb3_ppo.py")     # experiments/sb3_ppo.py, run by the interpreter of .peers/sb3
    peer.ask(do="train", seed=7)         # one JSON line in, one JSON line out (experiments/answering.py)

Environments lie beside the repository's .venv, in .peers (FLYWHEEL_PEERS names another directory), and stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
HOME = Path(os.environ.get("FLYWHEEL_PEERS") or HERE.parent / ".peers")
NEEDS = {
    "sb3": ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0", "numpy==2.4.6", "box2d==2.3.10",
            "pygame==2.6.1"),
}  # fmt: skip
"""What each peer's environment holds; torch is named exactly, or pip may bring gigabytes of CUDA."""


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, which is made now if it isn't there (a minute, 1 GB).

    Raises SystemExit with one sentence when pip can't install it.
    """
    home, wanted = HOME / peer, "\n".join(NEEDS[peer])
    python, mark = home / "bin" / "python", home / "installed"
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"Installing {NEEDS[peer][0]} into {home} …", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", *NEEDS[peer]],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason was given"]
            raise SystemExit(
                f"{NEEDS[peer][0]} could not be installed into {home} ({why[0]}): run this with a network."
            )
    mark.write_text(wanted)
    return python


class Peer:
    """A script of experiments/ that runs in a peer's environment and answers one request after another."""

    def __init__(self, peer: str, script: str, *arguments: str) -> None:
        """Start it with one thread; it imports its libraries meanwhile, and the first answer waits for that."""
        outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        self._script = script
        self._process = subprocess.Popen(
            [str(python_of(peer)), "-W", "ignore", str(HERE / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**outside, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return its answer; raise RuntimeError when it ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._script} ended with {self._process.wait()} instead of an answer to {request}.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it: its input ends, and it is waited for."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
