"""Simulated production plays by the protocol, changes its world when told to, and stops cleanly."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.client import Client
from flywheel.errors import FlywheelError, UsageError
from flywheel.task import Task
from flywheel.tasks import traffic
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.traffic import BURST, Bucket, Habits, Traffic, arguments, main, read_log

DIGEST = "d" * 64


class FakeServer(ThreadingHTTPServer):
    """Answers as the policy's replicas do, with a policy that lets the pole fall, and checks what clients repeat."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.away = threading.Event()
        self.refused = threading.Event()
        self.steps: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.ends: dict[str, dict[str, Any]] = {}
        self.broken: list[str] = []
        self.is_paid_otherwise = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away in the middle of a request; name everything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.broken.append(repr(error))

    def act(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for row in rows:
            repeated = (row.get("digest"), row.get("action"), row.get("reward"))
            if not self.is_paid_otherwise and repeated != ((None,) * 3 if row["t"] == 0 else (DIGEST, 1, 1.0)):
                self.broken.append(f"{row}")
            if row["t"] and row["t"] - 1 not in self.steps[row["episode"]]:
                self.broken.append(f"{row} has a gap before it")
            self.steps[row["episode"]][row["t"]] = row
        answers = [{"episode": r["episode"], "t": r["t"], "digest": DIGEST} for r in rows]
        return {"decisions": [{**a, "action": 1, "raw_action": 1, "logp": -0.1} for a in answers]}

    def end(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for row in rows:
            if sorted(self.steps[row["episode"]]) != list(range(row["t"])):
                self.broken.append(f"{row} counts other steps than came")
            self.ends[row["episode"]] = row
        return {"acknowledged": [row["episode"] for row in rows], "missing": {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {"error": "Wrong token.", "field": ""})
        elif self.server.away.is_set():
            self.server.refused.set()
            self._answer(503, {"error": "The observer is away.", "field": ""})
        elif self.path == "/v1/act":
            self._answer(200, self.server.act(body["steps"]))
        else:
            self._answer(200, self.server.end(body["episodes"]))

    def _answer(self, status: int, plain: dict[str, Any]) -> None:
        data = json.dumps(plain).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


def until(condition: Any, patience_s: float = 20.0) -> None:
    """Return when the condition holds; fail when patience is over."""
    deadline = time.monotonic() + patience_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        pause.wait(0.005)


def play(server: FakeServer, log: Path, habits: Habits, num: int, meanwhile: Any = None, task: Task = cartpole) -> None:
    """Play until the server has acknowledged at least `num` episodes."""
    stop = threading.Event()
    with open(log, "w", encoding="utf-8") as file, Client(server.url, "secret") as client:
        playing = Traffic(task, client, habits, file, stop)
        thread = threading.Thread(target=playing.play)
        thread.start()
        if meanwhile is not None:
            meanwhile()
        until(lambda: len(server.ends) >= num)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        playing.close()


FAST = Habits(at_once=4, starts_per_s=1000.0, step_s=0.0)


def test_whole_episodes_are_played_and_each_acknowledged_one_is_logged(server: FakeServer, tmp_path: Path) -> None:
    play(server, tmp_path / "log.jsonl", FAST, 12)
    assert server.broken == []
    found = read_log(tmp_path / "log.jsonl")
    assert {e["id"] for e in found.episodes} == set(server.ends) == set(server.steps)
    assert sorted(e["index"] for e in found.episodes) == list(range(len(found.episodes)))
    assert all(e["num_steps"] == e["total"] == server.ends[e["id"]]["t"] for e in found.episodes)
    assert all(server.ends[e["id"]]["terminated"] and not server.ends[e["id"]]["truncated"] for e in found.episodes)
    assert found.requests > 0 and found.errors == 0 and found.change == ""


def blackjack() -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(gymnasium.make("Blackjack-v1"), lambda _: 1.0)


def test_an_environments_own_observation_is_sent_in_its_own_shape(server: FakeServer, tmp_path: Path) -> None:
    task = Task(name="blackjack", env=blackjack, failed=lambda episode: False)
    play(server, tmp_path / "log.jsonl", FAST, 8, task=task)
    assert server.broken == []
    sent = [row["observation"] for steps in server.steps.values() for row in steps.values()]
    cards = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(n) for n in (32, 11, 2)])
    assert all(len(row) == 3 and [type(number) for number in row] == [int] * 3 for row in sent)
    assert all(cards.contains(tuple(np.int64(number) for number in row)) for row in sent)


def test_the_world_changes_for_episodes_that_begin_after_the_change(server: FakeServer, tmp_path: Path) -> None:
    habits = Habits(at_once=4, starts_per_s=1000.0, step_s=0.0, change_after=10, changed={"length": 4.0})
    play(server, tmp_path / "log.jsonl", habits, 24)
    found = read_log(tmp_path / "log.jsonl")
    assert found.change == "length 0.5 → 4"
    assert all(e["changed"] == (e["index"] >= 10) for e in found.episodes)
    assert max(e["num_steps"] for e in found.episodes if not e["changed"]) < min(
        e["num_steps"] for e in found.episodes if e["changed"]
    )


@pytest.mark.parametrize(("fault", "said"), [("swapped", "actions swapped"), ("delayed", "actions 7 steps late")])
def test_a_fault_that_no_parameter_makes_comes_with_the_change(
    fault: str, said: str, server: FakeServer, tmp_path: Path
) -> None:
    habits = dataclasses.replace(FAST, change_after=10, fault=fault, fault_steps=7)
    play(server, tmp_path / "log.jsonl", habits, 24)
    found = read_log(tmp_path / "log.jsonl")
    assert found.change == said and server.broken == []
    assert all(e["changed"] == (e["index"] >= 10) for e in found.episodes)

    def drift(episode: Any) -> float:
        """Return where the cart goes: the fake policy always pushes it to the right."""
        steps = server.steps[episode["id"]]
        return float(np.sign(steps[len(steps) - 1]["observation"][1]))

    sides = {(e["changed"], drift(e)) for e in found.episodes}
    assert sides == {(False, 1.0), (True, -1.0 if fault == "swapped" else 1.0)}


def test_another_reward_is_paid_after_the_change(server: FakeServer, tmp_path: Path) -> None:
    server.is_paid_otherwise = True
    play(server, tmp_path / "log.jsonl", dataclasses.replace(FAST, change_after=10, fault="reward"), 24)
    found = read_log(tmp_path / "log.jsonl")
    assert found.change == "reward for another place"
    assert all(e["total"] == e["num_steps"] for e in found.episodes if not e["changed"])
    assert all(0.5 < e["total"] / e["num_steps"] < 0.8 for e in found.episodes if e["changed"]), "5/8 at x = 0"


def test_the_same_seed_begins_in_the_same_states(server: FakeServer, tmp_path: Path) -> None:
    def begun(name: str, seed: int) -> list[Any]:
        server.ends.clear()
        play(server, tmp_path / name, Habits(at_once=1, starts_per_s=1000.0, step_s=0.0, seed=seed), 3)
        return [server.steps[e["id"]][0]["observation"] for e in read_log(tmp_path / name).episodes[:3]]

    assert begun("a", 1) == begun("b", 1) != begun("c", 2)


def test_nothing_is_lost_while_the_server_is_away(server: FakeServer, tmp_path: Path) -> None:
    def go_away() -> None:
        until(lambda: len(server.ends) >= 3)
        server.away.set()
        server.refused.wait(20)
        server.away.clear()

    play(server, tmp_path / "log.jsonl", FAST, 12, meanwhile=go_away)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert server.broken == []
    assert {line["id"] for line in lines if line["kind"] == "episode"} == set(server.ends) == set(server.steps)
    assert lines[-1]["errors"] == 0 and lines[-1]["not_2xx"] > 0 and lines[-1]["open"] == 0


class Broken(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that breaks, in reset or in its third step, in each `every`-th episode."""

    how, every, begun = "", 4, 0

    def reset(self, **options: Any) -> Any:
        Broken.begun, self.t = Broken.begun + 1, 0
        self.bad = Broken.begun % Broken.every == 0
        if self.bad and Broken.how == "reset":
            raise OSError("no licence")
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.t += 1
        if self.bad and self.t == 3:
            if Broken.how == "raise":
                raise OSError("disk full")
            reward = float("nan") if Broken.how == "reward" else reward
            observation = observation * np.nan if Broken.how == "observation" else observation
        return observation, reward, *rest


def broken() -> gymnasium.Env[Any, Any]:
    return Broken(gymnasium.make("CartPole-v1"))


BROKEN = dataclasses.replace(cartpole, env=broken)


@pytest.mark.parametrize("how", ["raise", "reward", "observation", "reset"])
def test_an_episode_whose_world_misbehaves_is_abandoned_and_told(
    how: str, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "how", how)
    monkeypatch.setattr(Broken, "begun", 0)
    play(server, tmp_path / "log.jsonl", FAST, 20, task=BROKEN)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    raised = [line for line in lines if line["kind"] == "raised"]
    assert len(raised) == read_log(tmp_path / "log.jsonl").raised >= 5
    assert {line["num_steps"] for line in raised} == ({0} if how == "reset" else {3})
    assert all(line["error"].startswith(("raised OSError", "gave the reward nan", "gave an obs")) for line in raised)
    assert server.broken == [] and lines[-1]["open"] == 0 and lines[-1]["errors"] == 0
    ended = {line["index"] for line in lines if line["kind"] == "episode"}
    assert not ended & {line["index"] for line in raised}
    assert len(server.steps) == len(ended) + (0 if how == "reset" else len(raised))


@pytest.mark.parametrize("how", ["raise", "reset"])
def test_a_world_that_always_breaks_ends_the_client_with_a_sentence(
    how: str, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "how", how)
    monkeypatch.setattr(Broken, "every", 1)
    stop = threading.Event()
    with open(tmp_path / "log.jsonl", "w", encoding="utf-8") as log, Client(server.url, "secret") as client:
        traffic_ = Traffic(BROKEN, client, FAST, log, stop)
        with pytest.raises(FlywheelError, match=r"last 10 episodes of simulated production all broke off.*OSError"):
            traffic.until_stopped(traffic_, stop)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "end" and server.ends == {}


def test_episodes_without_end_are_cut_off(server: FakeServer, tmp_path: Path) -> None:
    play(server, tmp_path / "log.jsonl", FAST, 4, task=dataclasses.replace(cartpole, max_steps=5))
    assert all(end["truncated"] and not end["terminated"] and end["t"] == 5 for end in server.ends.values())


def start(server: FakeServer, tmp_path: Path, *more: str, token: str = "secret") -> subprocess.Popen[bytes]:
    (tmp_path / "token").write_text(f"{token}\n")
    words = ["--url", server.url, "--token-file", str(tmp_path / "token"), "--log", str(tmp_path / "log.jsonl"), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "flywheel.tasks.traffic", "--starts-per-s", "200", *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "end of input"])
def test_it_finishes_what_is_open_when_told_to_stop(server: FakeServer, tmp_path: Path, how: str) -> None:
    with start(server, tmp_path) as process:
        assert process.stdin is not None
        until(lambda: len(server.ends) >= 3)
        if how == "end of input":
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))
        assert process.wait(20) == 0
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["open"], last["errors"]) == ("end", 0, 0)
    assert {e["id"] for e in read_log(tmp_path / "log.jsonl").episodes} == set(server.steps)


def test_what_can_not_be_finished_is_left_and_counted(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "FINISH_S", 0.05)
    stop = threading.Event()

    def break_off() -> None:
        until(lambda: len(server.ends) >= 3)
        server.away.set()
        server.refused.wait(20)
        stop.set()

    thread = threading.Thread(target=break_off)
    thread.start()
    with open(tmp_path / "log.jsonl", "w", encoding="utf-8") as file, Client(server.url, "secret") as client:
        traffic.until_stopped(Traffic(cartpole, client, FAST, file, stop), stop)
        assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["open"] > 0
        server.away.clear()
    thread.join()


def test_a_refusal_is_one_sentence_and_an_exit_code(server: FakeServer, tmp_path: Path) -> None:
    with start(server, tmp_path, token="wrong") as process:
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"traffic: Wrong token.\n"


def test_wrong_calls_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("secret")
    words = ["--url", "http://127.0.0.1:9", "--token-file", str(tmp_path / "token"), "--log", str(tmp_path / "log")]
    assert main([*words, "--changed", "lenght=2"]) == 2
    assert "Did you mean 'length'?" in capsys.readouterr().err
    assert main([*words, "--fault", "reversed"]) == 2
    assert "have no sign: use swapped" in capsys.readouterr().err
    assert main([*words, "--task", "cartpol"]) == 2
    assert "Did you mean 'cartpole'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        arguments([*words, "--changed", "length"])
    assert "'length' is not of the form" in capsys.readouterr().err


def test_a_task_without_that_parameter_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log, Client("http://127.0.0.1:9", "t") as client, pytest.raises(UsageError):
        Traffic(cartpole, client, Habits(changed={"wind": 1.0}), log, threading.Event())


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("")
    assert read_log(path).episodes == ()
    path.write_text(
        '{"kind": "begin", "requests": 0, "errors": 0}\n{"kind": "episode", "requests": 7, "errors": 1}\n{"ki'
    )
    found = read_log(path)
    assert (len(found.episodes), found.requests, found.errors) == (1, 7, 1)


@given(
    rate=st.floats(0.1, 1000),
    gaps=st.lists(st.floats(0, 10), max_size=50),
)
def test_never_more_episodes_begin_than_the_rate_allows(rate: float, gaps: list[float]) -> None:
    now, taken, bucket = 100.0, 0, Bucket(rate, 100.0)
    for gap in gaps:
        now += gap
        while bucket.take(now):
            taken += 1
        assert taken <= BURST + (now - 100.0) * rate + 1e-6
        assert bucket.take(now + bucket.wait_s() + 1e-6)
        taken, now = taken + 1, now + bucket.wait_s() + 1e-6
    assert math.isfinite(bucket.wait_s())


def test_playing_loads_neither_ray_nor_torch_nor_a_runtime() -> None:
    code = "import sys; from flywheel.tasks import load, traffic; load('cartpole').make_env(); print(*sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not set(done.stdout.split()) & {"ray", "torch", "onnxruntime"}
