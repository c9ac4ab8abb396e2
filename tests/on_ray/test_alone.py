"""Serving alone: a policy that was trained elsewhere is added in another terminal and answers within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import gymnasium
import httpx
import psutil
import pytest

from flywheel import archive
from flywheel.client import Client
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.registry import open_readonly
from flywheel.store.intake import open_readonly as open_store

ROOT = Path(__file__).parents[2]
SB3 = ROOT / "tests" / "data" / "sb3_cartpole.onnx"
TASK = "tests.test_owner:TASK"
"""CartPole that may be slow: no verdict in these tests may depend on how busy the machine is."""


def flywheel(*words: str) -> list[str]:
    return [sys.executable, "-m", "flywheel.cli", *words]


WIDE = {"gcs_server": 1, "raylet": 2, "ray::DashboardAgent": 3, "ray::ServeReplica": 2, "ray::": 1, "python": 1}
"""Doors of Ray's that other machines reach, at most so many a process of a name that begins so: GCS's and the raylet's,
an agent's metrics and addresses, a replica's for other deployments, and one of every Python process, for its tasks."""


def doors(root: int) -> dict[tuple[int, str], list[tuple[str, int]]]:
    """Return by process and its name the TCP doors of a process and all that it started, as host and port."""
    found = {}
    for each in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            listening = [c.laddr for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            found[each.pid, each.name()] = [(door.ip, door.port) for door in listening]
    return found


def check_doors(root: int, port: int) -> None:
    """Fail when another machine reaches any other door than Ray's own."""
    found = doors(root)
    assert ("127.0.0.1", port) in {door for each in found.values() for door in each}
    for (_, name), each in found.items():
        most = next((number for begins, number in WIDE.items() if name.startswith(begins)), 0)
        assert len([host for host, _ in each if host != "127.0.0.1"]) <= most, (name, found)


class Serving:
    """`flywheel serve` in a process group of its own."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.log = run_dir, run_dir.parent / "serve.log"
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                flywheel("serve", "--task", TASK, "--run-dir", str(run_dir), "--deploy.port", "0"),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
            )

    def wait_for(self, said: Callable[[str], bool], timeout_s: float = 240.0) -> str:
        """Return what it has printed once that is what is waited for."""
        deadline = time.monotonic() + timeout_s
        while not said(text := self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.1)
        return text


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path / "run")
    yield serving
    if serving.process.poll() is None:
        os.killpg(serving.process.pid, signal.SIGKILL)
    serving.process.wait(30)


def add(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Call `flywheel policies add` as another terminal does."""
    spec = run_dir.parent / "greedy.json"
    spec.write_text('{"rule": {"greedy": true}}')
    words = ["policies", "add", str(SB3), "--task", TASK, "--run-dir", str(run_dir), "--spec", str(spec)]
    words += ["--seed", "1"]  # it does not master strong gravity from every start
    return subprocess.run(flywheel(*words), capture_output=True, text=True, cwd=ROOT, timeout=240)


def test_a_policy_of_stable_baselines_is_added_served_observed_and_forked(serving: Serving) -> None:
    text = serving.wait_for(lambda text: "no policy is in service yet" in text)
    url = text.split("Serve is up at ")[1].split(" ")[0]
    token = token_file(serving.run_dir, CLIENT).read_text()
    env = gymnasium.make("CartPole-v1")
    with Client(url, token) as client:
        assert httpx.get(f"{url}/v1/health").status_code == 503, "nobody answers yet"
        done = add(serving.run_dir)
        assert done.returncode == 0, done.stdout + done.stderr
        serving.wait_for(lambda text: "answers at" in text)
        check_doors(serving.process.pid, int(url.rpartition(":")[2]))

        total = 0.0
        with client.episode() as episode:
            observation, _ = env.reset(seed=1)
            terminated = truncated = False
            while not (terminated or truncated):
                observation, reward, terminated, truncated, _ = env.step(episode.act(observation))
                episode.reward(float(reward))
                total += float(reward)
            episode.end(observation, terminated=terminated, truncated=truncated)
    assert total == 500.0, "the network that SB3 trained is the one that answered"

    with closing(open_readonly(serving.run_dir)) as registry:
        champion = registry.champion()
    with open_store(serving.run_dir) as store:
        (stored,) = store.recent(1)
    assert set(stored.digests) == {champion} and stored.total == 500.0 and not stored.failed

    words = ["fork", stored.id, "--at", "100", "--save", "leant", "--run-dir", str(serving.run_dir)]
    saved = subprocess.run(flywheel(*words), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert "leant" in saved.stdout and "Ray" not in saved.stderr
    with closing(open_readonly(serving.run_dir)) as registry:
        assert [scenario.name for scenario in registry.scenarios()] == ["leant"], "its living owner took it"

    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == 130, serving.log.read_text()
    assert "Traceback" not in serving.log.read_text()
    assert archive.read_living(serving.run_dir) is None
