"""How fast a decision is over HTTP, beside a bare FastAPI app and stock Ray Serve, and what is lost with the observer.

    python -m experiments.bench_serve             # some ten minutes
    python -m experiments.bench_serve --quick     # a rough answer, and nothing is written

S3  one decision a request over keep-alive connections, 1, 8 and 32 of them: Flywheel's own application behind Serve's
    HAProxy ingress, with a registry, a judged policy and steps that go to the observer; FastAPI under uvicorn with the
    same network, body and answer, and a token (experiments/serve_peers.py); and the same in Ray Serve as it comes
S4  batches of 256 decisions, on one replica
S6  the observer is killed: requests are answered, and the steps that were not logged are counted, to the last one

The servers take turns block by block, so that noise meets all of them; a ratio's interval is of pairs of blocks. Every
block's episodes are ended after its time was taken, and have to be acknowledged: each step that was answered is in the
store, or it counts as missing. The load generator is a process of its own (experiments/serve_load.py). All of it is on
this machine's loopback, and ends by itself.
Prints a table, writes results/bench_serve.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.stats import t as student

from experiments.bench_gate import INFO, SEED, number, ratio
from experiments.hand_policies import cartpole_policy
from experiments.report import tell
from experiments.serve_load import Block, Ended, Played
from flywheel.cluster import STORE, Rooms, ask, start
from flywheel.config import Config, DeployConfig
from flywheel.console import silent
from flywheel.deploy.environment import free_ports
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.on_ray import OBSERVER
from flywheel.gate import SafetyGate
from flywheel.gate.judge import terms
from flywheel.observe.on_ray import ObserverActor
from flywheel.policy import pack
from flywheel.tasks.cartpole import cartpole

CONNECTIONS = 1, 8, 32
ROWS = 256
"""Decisions in one request of S4."""
QUEUE = 50_000
"""Steps that a replica keeps while the observer is away, so few that S6 goes beyond."""
CONFIG = Config(deploy=DeployConfig(port=0, quota=1e6, max_queue=QUEUE))
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """One that is measured."""

    name: str
    url: str
    token: str
    roots: tuple[psutil.Process, ...]
    """Its processes are these, and those below them."""
    ends: bool = False
    """Whether it takes the ends of episodes."""

    def cpu_s(self) -> Counter[str]:
        """Return the CPU seconds that its processes took so far, by what they are."""
        found: Counter[str] = Counter()
        for process in {p for root in self.roots for p in (root, *root.children(recursive=True))}:
            with suppress(psutil.NoSuchProcess):
                times, words = process.cpu_times(), process.cmdline()
                name = words[0].rpartition("/")[2].removeprefix("ray::").partition(":")[0] if words else process.name()
                found[name] += times.user + times.system
        return found


@dataclass(slots=True)
class Wheel:
    """Flywheel's own, and what only it has."""

    server: Server
    rooms: Rooms
    digest: str
    observer: Any = None
    """Of the one that was started in another's place: it ends when nobody holds it."""

    def status(self) -> dict[str, Any]:
        """Return the one replica's."""
        statuses: list[dict[str, Any]] = self.rooms.serving.deployment.status()
        return statuses[0]

    def settled(self) -> dict[str, Any]:
        """Return it once every step is logged or lost; raise RuntimeError when that takes too long."""
        until = time.monotonic() + 60.0
        while (status := self.status())["waiting"]:
            if time.monotonic() > until:
                raise RuntimeError(f"The replica's steps don't get to the observer: {status}.")
        return status

    def lose_observer(self) -> None:
        """Kill it, so that Ray brings it back no more."""
        import ray

        ray.kill(self.rooms.serving.observer, no_restart=True)

    def another_observer(self) -> None:
        """Start one in its place, as a cluster would."""
        place = self.rooms.place
        actor = place.owner(ObserverActor, OBSERVER, max_task_retries=-1)
        self.observer = actor.remote(cartpole, CONFIG.observe, STORE, place.name, place.namespace, CONFIG.trace)
        ask(self.observer.settings)


class Load:
    """The load generator's process."""

    def __init__(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "experiments.serve_load"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._number = 0
        self.cpu_shares: list[float] = []

    def play(self, server: Server, connections: int, seconds: float, **more: Any) -> Played:
        """Return what came of a block; raise RuntimeError where the server refused, and nothing was measured."""
        self._number += 1
        parts = urlsplit(server.url)
        assert parts.hostname == "127.0.0.1" and parts.port
        block = Block(
            host=parts.hostname, port=parts.port, token=server.token, name=f"{os.getpid()}-{self._number}",
            connections=connections, seconds=seconds, ends=server.ends, **more,
        )  # fmt: skip
        played = msgspec.json.decode(self._ask(block), type=Played)
        self.cpu_shares.append(played.cpu_share)
        return played

    def end(self) -> Ended:
        """Tell the servers that the episodes of all blocks since the last end are over; return what they said."""
        return msgspec.json.decode(self._ask("end"), type=Ended)

    def _ask(self, what: Any) -> bytes:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(msgspec.json.encode(what) + b"\n")
        self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return line
        raise RuntimeError("The load generator ended: see above.")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def wheel(directory: Path) -> Iterator[Wheel]:
    """Yield a wheel that serves a policy which its gate let pass."""
    with start(cartpole, CONFIG, directory, silent) as rooms:
        policy, registry = cartpole_policy(cartpole), rooms.registry
        golden = (np.zeros((16, 4), np.float32), policy.outputs(np.zeros((16, 4))))
        digest, files = pack(
            network=policy.network, weights={}, spec=policy.spec, golden=golden, version=1, parent=None, trained_on={},
            made_at=0.0,
        )  # fmt: skip
        ask(registry.write, digest, files)
        ask(registry.set_terms, *terms(cartpole, CONFIG.gate, cartpole.nominal))
        verdict = SafetyGate(cartpole, CONFIG.gate).judge(ask(registry.bundle, digest), seed=SEED)
        ask(registry.record, verdict)
        serving = rooms.serving
        release = ask(registry.promote, digest)
        ask(serving.observer.release, release, cartpole.limits.max_failure_rate)
        assert [status["digest"] for status in serving.deployment.reload()] == [digest]
        token = token_file(directory, CLIENT).read_text()
        roots = [child for child in psutil.Process().children() if child.name() in ("raylet", "gcs_server")]
        yield Wheel(Server("Flywheel", serving.deployment.url, token, tuple(roots), ends=True), rooms, digest)


@contextmanager
def peer(kind: str, wheel: Wheel, directory: Path) -> Iterator[Server]:
    """Yield one of the peers, with the wheel's policy and token."""
    network, (port,) = directory / "network.onnx", free_ports(1)
    network.write_bytes(cartpole_policy(cartpole).network)
    code = "from experiments.serve_peers import main; main()"
    command = [sys.executable, "-c", code, kind, str(port), wheel.digest, str(network)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin
        process.stdin.write(f"{wheel.server.token}\n".encode())
        process.stdin.flush()
        try:
            _wait_for(process, port)
            name = {"bare": "FastAPI", "stock": "Ray Serve"}[kind]
            yield Server(name, f"http://127.0.0.1:{port}", wheel.server.token, (psutil.Process(process.pid),))
        finally:
            process.stdin.close()
            if kind == "bare":
                process.terminate()
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when a peer answers; raise RuntimeError when it ended instead."""
    import httpx

    until = time.monotonic() + 120.0
    while True:
        try:
            if httpx.post(f"http://127.0.0.1:{port}/v1/act", json={"steps": []}).status_code == 401:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("A peer did not come up: see above.")
        time.sleep(0.2)


def in_turns(
    load: Load, servers: Sequence[Server], connections: int, seconds: float, rounds: int
) -> list[list[Played]]:
    """Return each server's blocks; every round begins with the next server, and ends all episodes."""
    for server in servers:
        load.play(server, connections, seconds / 2)
    found: list[list[Played]] = [[] for _ in servers]
    for i in range(rounds):
        for k in range(len(servers)):
            at = (i + k) % len(servers)
            found[at].append(load.play(servers[at], connections, seconds))
        durable(load.end())
    return found


def durable(ended: Ended) -> None:
    """Return when every episode was acknowledged; raise RuntimeError otherwise."""
    if ended.num_acknowledged != ended.num_episodes or ended.num_missing:
        raise RuntimeError(f"Not every step that was answered is in the store: {ended}.")


def quantiles(case: str, one: Sequence[Played], other: Sequence[Played], q: float, goal: str) -> Row:
    """Return a row on the ratio of two quantiles of latency; its interval is of pairs of blocks, drawn again."""
    pairs = [(np.array(a.micros), np.array(b.micros)) for a, b in zip(one, other, strict=True)]
    rng = np.random.default_rng(SEED)

    def both(blocks: NDArray[np.int64]) -> tuple[float, float]:
        mine, theirs = (float(np.quantile(np.concatenate([pairs[i][k] for i in blocks]), q)) for k in (0, 1))
        return mine, theirs

    again = [a / b for a, b in (both(rng.integers(len(pairs), size=len(pairs))) for _ in range(1000))]
    low, bound, high = np.quantile(again, [0.025, 0.95, 0.975])
    mine, theirs = both(np.arange(len(pairs)))
    return {
        "id": "S3", "case": f"{case} ({mine:,.0f} µs, {theirs:,.0f} µs)", "value": round(mine / theirs, 3),
        "interval": [round(float(low), 3), round(float(high), 3)], "goal": goal,
        "passed": goal == INFO or bool(bound <= float(goal[2:])), "runs": len(pairs), "seed": SEED,
    }  # fmt: skip


def singles(quick: bool, load: Load, wheel: Wheel, peers: Sequence[Server]) -> Iterator[Row]:
    """Yield the rows of S3."""
    seconds, rounds = (0.4, 4) if quick else (1.0, 30)
    for connections in CONNECTIONS:
        before = wheel.server.cpu_s(), wheel.status()["decisions"]
        mine, *others = in_turns(load, [wheel.server, *peers], connections, seconds, rounds)
        used, num = wheel.server.cpu_s() - before[0], wheel.status()["decisions"] - before[1]
        for peer, theirs in zip(peers, others, strict=True):
            pairs = [(len(a.micros) / a.seconds, len(b.micros) / b.seconds) for a, b in zip(mine, theirs, strict=True)]
            rates, is_goal = np.median(pairs, axis=0), peer.name == "FastAPI"
            what = f"{connections} connection{'s' * (connections > 1)}, Flywheel / {peer.name}"
            case = f"requests a second, {what} (median {rates[0]:,.0f}, {rates[1]:,.0f})"
            yield ratio("S3", case, pairs, ">= 1" if is_goal else INFO)
            for q in (0.5, 0.99):
                goal = "<= 1.5" if is_goal and q == 0.99 else INFO
                yield quantiles(f"p{100 * q:.0f}, {what}", mine, theirs, q, goal)
        micros = {name: 1e6 * cpu_s / num for name, cpu_s in used.most_common(6)}
        told = ", ".join(f"{name} {each:.0f}" for name, each in micros.items())
        yield number("S3", f"CPU µs a decision, {connections} connections: {told}", 1e6 * used.total() / num)
    yield number("S3", "largest share of a CPU that the load generator took in a block", max(load.cpu_shares))


def batches(quick: bool, load: Load, wheel: Wheel) -> Iterator[Row]:
    """Yield the rows of S4."""
    for media in ("application/json", "application/msgpack"):
        load.play(wheel.server, 2, 1.0, rows=ROWS, media=media)
        rates = []
        for _ in range(3 if quick else 10):
            played = load.play(wheel.server, 2, 1.0 if quick else 3.0, rows=ROWS, media=media)
            durable(load.end())
            rates.append(ROWS * len(played.micros) / played.seconds)
        yield rate(f"decisions a second, {ROWS} a request as {media}, one replica, 2 connections", rates)


def rate(case: str, rates: Sequence[float]) -> Row:
    """Return a row on a mean rate, whose one-sided 95 % bound has to be above the goal."""
    error = float(np.std(rates, ddof=1)) / len(rates) ** 0.5
    half, bound = (float(student.ppf(q, len(rates) - 1)) * error for q in (0.975, 0.95))
    value = float(np.mean(rates))
    return {
        "id": "S4", "case": case, "value": round(value), "interval": [round(value - half), round(value + half)],
        "goal": ">= 20000", "passed": value - bound >= 20_000, "runs": len(rates), "seed": SEED,
    }  # fmt: skip


def without_observer(quick: bool, load: Load, wheel: Wheel) -> Iterator[Row]:
    """Yield the rows of S6; in the end another observer is there, and what was counted as lost is what is missing."""
    before = wheel.settled()
    wheel.lose_observer()
    alone = load.play(wheel.server, 8, 2.0 if quick else 10.0)
    more = load.play(wheel.server, 2, 60.0, rows=ROWS, most=QUEUE // ROWS + 50)
    num, after = alone.num_decisions + more.num_decisions, wheel.status()
    answered = after["decisions"] - before["decisions"]
    yield number("S6", f"the observer is killed: answered of {num:,} decisions", answered / num, "1", answered == num)
    counted = after["waiting"] + after["dropped"] - before["dropped"]
    case = f"counted as not logged by the replica / answered ({counted:,} of {num:,})"
    yield number("S6", case, counted / num, "1", counted == num)
    wheel.another_observer()
    wheel.settled()
    dropped, ended = after["dropped"] - before["dropped"], load.end()
    case = f"named as missing when the episodes end / counted as dropped ({ended.num_missing:,} of {dropped:,})"
    yield number("S6", case, ended.num_missing / dropped, "1", ended.num_missing == dropped > 0)


def rows(quick: bool, only: str | None) -> Iterator[Row]:
    """Yield every row; all that was started ends with it.

    S6 has a wheel of its own: an observer that comes back reads all episodes of the release before it goes on, and
    millions of steps would be a measure of that.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        load = stack.enter_context(closing(Load()))
        if only != "S6":
            with wheel(directory / "run") as ours:
                if only in (None, "S3"):
                    with peer("bare", ours, directory) as bare, peer("stock", ours, directory) as stock:
                        yield from singles(quick, load, ours, [bare, stock])
                if only in (None, "S4"):
                    yield from batches(quick, load, ours)
        if only in (None, "S6"):
            with wheel(directory / "other") as ours:
                yield from without_observer(quick, load, ours)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks, and nothing is written")
    parser.add_argument("--only", choices=["S3", "S4", "S6"], help="only these rows, and nothing is written")
    given, began, found = parser.parse_args(), time.monotonic(), []
    for row in rows(given.quick, given.only):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        found.append(row)
    tell("bench_serve", began, found, is_kept=not given.quick and not given.only)


if __name__ == "__main__":
    main()
