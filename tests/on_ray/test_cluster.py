"""Two wheels on a cluster of a head and two workers: apart from each other, and serving goes on without their loops."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel import archive
from flywheel.client import Client, RejectedError
from flywheel.config import GateConfig
from flywheel.deploy.environment import free_ports
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.gate import SafetyGate
from flywheel.testing import load_linear
from tests.on_ray.test_wheel import intake_count
from tests.uneven import BACK, UNEVEN

ROOT = Path(__file__).parent.parent.parent


class JobError(Exception):
    """`ray job` ended with an error; its message is what was printed."""


class Cluster:
    """The three nodes, and the jobs that are submitted to them as a user does it."""

    def __init__(self) -> None:
        self.dashboard = free_ports(1)[0]
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        for name in [name for name in self.environment if name.startswith("RAY_SERVE_")]:
            del self.environment[name]  # those of this session's other Ray
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.on_ray.three_nodes", "up", str(self.dashboard)],
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert ":" in line, f"the cluster did not start: {line}"
        self.address = line

    def job(self, *words: str) -> str:
        """Return what `ray job …` prints."""
        address = ["--address", f"http://127.0.0.1:{self.dashboard}"]
        command = [str(Path(sys.executable).parent / "ray"), "job", words[0], *address, *words[1:]]
        done = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise JobError(done.stdout + done.stderr)
        return done.stdout

    def look(self, name: str, what: str = "") -> dict[str, Any]:
        """Return what the dashboard says of a job; `ray job` says the same after seconds of a whole CPU."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        url = f"http://127.0.0.1:{self.dashboard}/api/jobs/{name}{what}"
        answer = httpx.get(url, headers=headers, trust_env=False, timeout=60.0)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def logs(self, name: str) -> str:
        """Return what a job has printed so far."""
        return str(self.look(name, "/logs")["logs"])

    def submit(self, name: str, run_dir: Path, *arguments: str) -> None:
        """Submit a loop as a Ray job."""
        run = [sys.executable, "-m", "flywheel.run", "--address", "auto", "--run-dir", str(run_dir)]
        quiet = ["--no-drift", "--deploy.port", "0", "--deploy.num-replicas", "2"]
        deadline = time.monotonic() + 120.0
        while True:
            try:
                self.job("submit", "--no-wait", "--submission-id", name, "--", *run, *quiet, *arguments)
            except JobError as error:  # Ray's job agent comes up some seconds after its node
                assert time.monotonic() < deadline, str(error)
                time.sleep(2.0)
            else:
                return

    def ask(self, word: str, *what: Path | str) -> Any:
        """Look into the cluster, judge on it, start owners, or end a wheel, from another process."""
        command = [sys.executable, "-m", "tests.on_ray.three_nodes", word, *map(str, what)]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if word != "end" else None

    def wait_for(self, name: str, come: Callable[[], bool], timeout_s: float = 300.0) -> None:
        """Return when something has come true; fail with the job's log when that takes too long or the job failed."""
        deadline = time.monotonic() + timeout_s
        while not come():
            ended = self.process.poll() is not None or self.look(name)["status"] == "FAILED"
            assert not ended and time.monotonic() < deadline, self.logs(name)
            time.sleep(1.0)

    def stop(self) -> None:
        """End all three nodes."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.stop()


def token(run_dir: Path) -> str:
    """Return a wheel's client token."""
    return token_file(run_dir, CLIENT).read_text().strip()


def check_places(found: dict[str, Any], other: dict[str, Any]) -> None:
    """Fail unless both wheels' processes are where they belong, apart from each other."""
    assert found["url"].endswith("/first") and other["url"].endswith("/other")
    assert found["url"].rpartition("/")[0] == other["url"].rpartition("/")[0]
    where: dict[str, set[str]] = {}
    spaces: dict[str, set[str]] = {}
    for name, space, node in found["actors"]:
        where.setdefault(name, set()).add(node)
        spaces.setdefault(name, set()).add(space)
    for simulates in ("TrainerActor", "GateActor", "WorldsRunner"):
        assert where[simulates] <= set(found["sim"]), simulates
    for owns in ("RegistryActor", "StoreActor", "ObserverActor"):
        assert len(where[owns]) == 1 and not where[owns] & set(found["sim"]), owns
        assert spaces[owns] == {"flywheel-first", "flywheel-other"}
    assert len({replica["node"] for replica in found["replicas"]}) == 2, "replicas on two nodes"
    assert not {r["digest"] for r in found["replicas"]} & {r["digest"] for r in other["replicas"]}


class Player(threading.Thread):
    """A client that plays short episodes until it is stopped, and keeps who answered."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__()
        self.url, self.key, self.over = url, key, threading.Event()
        self.served: list[str] = []
        self.failures: list[BaseException] = []

    def run(self) -> None:
        try:
            with Client(self.url, self.key) as client:
                while not self.over.is_set():
                    with client.episode() as episode:
                        episode.act(np.zeros(4))
                        episode.end(np.zeros(4), truncated=True)
                        self.served.append(client.policy()["digest"])
                assert client.counters.not_2xx == client.counters.not_answered == 0
        except Exception as error:
            self.failures.append(error)


def test_two_wheels_turn_apart_and_serve_without_their_loops(cluster: Cluster, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    long = ["--forever", "--loop.observe-episodes", "100000"]
    cluster.submit("first", first, *long)
    cluster.submit("second", second, *long, "--task", "tests.on_ray.short_cartpole:task", "--name", "other")
    for name, run_dir in (("first", first), ("second", second)):
        cluster.wait_for(name, lambda run_dir=run_dir: intake_count(run_dir) >= 5)  # type: ignore[misc]
    found, other = cluster.ask("look", first), cluster.ask("look", second)

    check_places(found, other)

    # a token opens one wheel only
    with Client(found["url"], token(second)) as stranger, pytest.raises(RejectedError, match="token"):
        stranger.policy()

    # serving goes on while the loop is ended and started again
    player = Player(found["url"], token(first))
    player.start()
    try:
        cluster.job("stop", "first")
        without = len(player.served)
        cluster.wait_for("second", lambda: len(player.served) > without + 20)
        *_, turn = archive.read_turns(first)  # a gate on a busy machine may have refused an earlier one for its latency
        assert turn.release is not None and turn.evidence["stopped"]
        cluster.submit("first-again", first, *long, "--observe.wait-s", "0.05", "--deploy.max-batch", "512")
        cluster.wait_for("first-again", lambda: f"turn {turn.number + 1} is " in cluster.logs("first-again"))
        cluster.wait_for("first-again", lambda: "flywheel down" in cluster.logs("first-again"))
        told = " ".join(cluster.logs("first-again").split())
        assert "keeps its settings: observe.wait_s 0.2 (not 0.05), deploy.max_batch 1024 (not 512);" in told
    finally:
        player.over.set()
        player.join(60)
    assert not player.failures, player.failures
    assert set(player.served) == {turn.release.digest}

    # one wheel ends, the other one serves on
    cluster.job("stop", "first-again")
    cluster.ask("end", first)
    assert archive.read_living(first) is None
    assert httpx.get(f"{found['url']}/v1/health").status_code == 404
    assert httpx.get(f"{other['url']}/v1/health").status_code == 200


def test_the_gate_s_worlds_go_over_all_nodes_and_its_verdict_stays_the_same(cluster: Cluster) -> None:
    found = cluster.ask("judge", cluster.address)
    work: Counter[int] = Counter()
    for _, length, process in found["trials"]:
        work[process] += length
    assert len(work) == 4 and max(work.values()) < 1.5 * min(work.values())
    nodes = [found["nodes"][str(process)] for process in work]
    assert set(nodes) == set(found["sim"]) and len(found["sim"]) == 2
    alone = SafetyGate(UNEVEN, GateConfig(num_sims=200)).judge(load_linear(UNEVEN, BACK), seed=7)
    assert [trial[0] for trial in found["trials"]] == [trial.chain for trial in alone.trials]
