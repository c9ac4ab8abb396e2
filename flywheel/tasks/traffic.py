"""Simulated production: a process that plays whole episodes over HTTP, a client like any other.

    python -m flywheel.tasks.traffic --url http://127.0.0.1:8000 --token-file TOKEN --task cartpole --log FILE
        --change-after 100 --changed length=2.0 --fault delayed

It imports the client SDK, the task and Gymnasium; its world is its own, and nobody tells the policy when it changes.
SIGTERM, SIGINT or the end of a piped standard input stop it: no episode begins any more, open ones are finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

import gymnasium
import numpy as np

from flywheel.client import Client, UnavailableError
from flywheel.errors import FlywheelError, UsageError, unknown
from flywheel.faults import said, sound
from flywheel.records import SCHEMA_VERSION
from flywheel.task import Task
from flywheel.tasks import rewired

FINISH_S = 5.0
"""Seconds that open episodes have after the stop."""
GATHER_S = 0.2
"""Seconds over which ends share one request: each waits until its episode is durable, and the others' steps with it."""
BURST = 2.0
"""Episodes that may begin at once after a pause."""
RAISED = 10
"""Episodes in a row that may break off before a client takes its world for broken."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How one client behaves."""

    at_once: int = 16
    """episodes in play at once, with one request a step"""
    starts_per_s: float = 10.0
    """episodes begun a second at most"""
    change_after: int = -1
    """episodes of this client after which the next ones begin in the changed world; negative: never"""
    changed: Mapping[str, float] = field(default_factory=dict)
    """parameters of the changed world, where they differ from nominal"""
    fault: str = ""
    """what happens in the changed world that no parameter makes: a name of `rewired.FAULTS`"""
    fault_steps: int = 5
    """steps by which actions are late where the fault is `delayed`"""
    step_s: float = 0.005
    """seconds from one step to the next at least: the world's own pace, which leaves the processor to others"""
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class _Play:
    """One episode in play, in its world."""

    env: gymnasium.Env[Any, Any]
    id: str
    index: int
    changed: bool
    started_at: float
    observation: Any
    reward: float = float("nan")
    total: float = 0.0
    num_steps: int = 0
    terminated: bool = False
    truncated: bool = False


class Bucket:
    """Tokens that come at a steady rate and pile up to BURST."""

    def __init__(self, per_s: float, now: float) -> None:
        """Hold one token."""
        self._per_s, self._tokens, self._at = per_s, 1.0, now

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait_s(self) -> float:
        """Return the seconds from the last `take` until there is a token."""
        return max(0.0, (1.0 - self._tokens) / self._per_s)


class Traffic:
    """Plays episodes of a task until it is told to stop, and writes a line for each that was acknowledged."""

    def __init__(self, task: Task, client: Client, habits: Habits, log: TextIO, stop: threading.Event) -> None:
        """Begin nothing yet. Raises UsageError for a changed parameter, or a fault, that the task doesn't have."""
        for name in habits.changed:
            if name not in task.nominal:
                raise unknown(f"parameter of task {task.name}:", name, task.nominal)
        rewired.check(task, habits.fault, habits.fault_steps)
        self._task, self._client, self._habits, self._stop = task, client, habits, stop
        self._batch = client.batch()
        self._log, self._lock = log, threading.Lock()
        self._num_begun, self._closed = 0, False
        self._free: list[gymnasium.Env[Any, Any]] = []
        self._broken: deque[bool] = deque([False] * RAISED, maxlen=RAISED)
        fault = rewired.named(habits.fault, habits.fault_steps)
        changed = {"changed": dict(habits.changed), "fault": fault}
        self._write("begin", schema_version=SCHEMA_VERSION, task=task.name, nominal=task.nominal, **changed)

    def play(self) -> None:
        """Return when `stop` is set and every episode that began is acknowledged."""
        bucket = Bucket(self._habits.starts_per_s, time.monotonic())
        playing: list[_Play] = []
        over: list[_Play] = []
        gathered_at = time.monotonic()
        while playing or over or not self._stop.is_set():
            step_at = time.monotonic() + self._habits.step_s
            while len(playing) < self._habits.at_once and not self._stop.is_set() and bucket.take(time.monotonic()):
                playing += self._begin()
            if playing:
                playing, ended = self._step(playing)
                over += ended
            if over and (not playing or time.monotonic() - gathered_at > GATHER_S):
                self._end(over)
                over, gathered_at = [], time.monotonic()
            pause_s = step_at - time.monotonic() if playing or over else bucket.wait_s()
            if pause_s > 0:
                self._stop.wait(pause_s)

    def close(self) -> None:
        """Write the last line, with what the client's requests came to; later ones are not written."""
        counters = self._client.counters
        self._write(
            "end",
            attempts=counters.attempts,
            not_2xx=counters.not_2xx,
            not_answered=counters.not_answered,
            open=len(self._batch.open),
        )
        self._closed = True

    def _begin(self) -> list[_Play]:
        """Return an episode that began, or none when its world raised."""
        index, self._num_begun = self._num_begun, self._num_begun + 1
        changed = 0 <= self._habits.change_after <= index
        (seed,) = np.random.SeedSequence([self._habits.seed, index]).generate_state(1)
        env = None
        try:
            env = self._free.pop() if self._free else self._make()
            own = rewired.turn(env, changed)
            if self._task.set_parameters is not None:
                self._task.set_parameters(own, {**self._task.nominal, **(self._habits.changed if changed else {})})
            observation, _ = env.reset(seed=int(seed))
            sound(env.observation_space, observation)
        except Exception as error:  # an environment is anybody's code
            self._raised(error, env, index=index, num_steps=0)
            return []
        (id_,) = self._batch.begin()
        return [_Play(env=env, id=id_, index=index, changed=changed, started_at=time.time(), observation=observation)]

    def _make(self) -> gymnasium.Env[Any, Any]:
        env, habits = self._task.make_env(), self._habits
        return rewired.with_fault(env, habits.fault, habits.fault_steps) if habits.fault else env

    def _raised(self, error: Exception, env: gymnasium.Env[Any, Any] | None, *, index: int, num_steps: int) -> None:
        """Give up an environment and write of its episode; raise FlywheelError when the last ones all broke off."""
        with contextlib.suppress(Exception):
            if env is not None:
                env.close()  # type: ignore[no-untyped-call]
        self._write("raised", index=index, num_steps=num_steps, error=said(error))
        self._broken.append(True)
        if all(self._broken):
            raise FlywheelError(
                f"The last {RAISED} episodes of simulated production all broke off, the last one in step {num_steps} "
                f"because the environment of task {self._task.name} {said(error)}: put the environment right."
            ) from error

    def _step(self, playing: Sequence[_Play]) -> tuple[list[_Play], list[_Play]]:
        """Ask for one action for each, carry it out, and return those that go on and those that are over.

        One whose world misbehaves is neither: it is abandoned, and its environment with it.
        """
        ids, rewards = [p.id for p in playing], [p.reward for p in playing]
        observations = [p.observation for p in playing]
        actions = self._insist(lambda: self._batch.act(ids, observations, rewards))
        going: list[_Play] = []
        over: list[_Play] = []
        for p, action in zip(playing, actions, strict=True):
            p.num_steps += 1
            try:
                p.observation, reward, p.terminated, p.truncated, _ = p.env.step(action)
                sound(p.env.observation_space, p.observation, reward)
            except Exception as error:
                self._batch.abandon([p.id])
                self._raised(error, p.env, index=p.index, num_steps=p.num_steps)
                continue
            p.truncated = p.truncated or p.num_steps >= self._task.max_steps
            p.reward = float(reward)
            p.total += p.reward
            (over if p.terminated or p.truncated else going).append(p)
        self._broken.extend([False] * len(over))
        return going, over

    def _end(self, over: Sequence[_Play]) -> None:
        ids, rewards = [p.id for p in over], [p.reward for p in over]
        observations = [p.observation for p in over]
        terminated, truncated = [p.terminated for p in over], [p.truncated and not p.terminated for p in over]
        self._insist(lambda: self._batch.end(ids, observations, rewards, terminated, truncated))
        for p in over:
            self._free.append(p.env)
            self._write(
                "episode",
                id=p.id,
                index=p.index,
                changed=p.changed,
                total=p.total,
                num_steps=p.num_steps,
                acknowledged=True,
                started_at=p.started_at,
                ended_at=time.time(),
            )

    def _insist(self, call: Callable[[], T]) -> T:
        """Make the same call again for as long as nobody answers, until the stop."""
        while True:
            try:
                return call()
            except UnavailableError:
                if self._stop.is_set():
                    raise

    def _write(self, kind: str, **values: Any) -> None:
        counters = self._client.counters
        line = {"kind": kind, **values, "requests": counters.requests, "errors": counters.errors}
        with self._lock:
            if not self._closed:
                self._log.write(json.dumps(line) + "\n")
                self._log.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What one client wrote."""

    episodes: tuple[Mapping[str, Any], ...]
    """of each acknowledged episode: id, index, changed, total, num_steps, started_at, ended_at"""
    requests: int
    errors: int
    raised: int
    """episodes that broke off because the environment misbehaved"""
    change: str
    """What changes in its world, like "length 0.5 → 2" or "actions swapped"; "" if nothing does."""


def read_log(path: Path) -> Log:
    """Return what a client wrote so far; a last line that is cut off is left out."""
    lines = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"
    ]
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    nominal = first.get("nominal", {})
    changes = [f"{name} {nominal[name]:g} → {value:g}" for name, value in first.get("changed", {}).items()]
    return Log(
        episodes=tuple(line for line in lines if line["kind"] == "episode"),
        requests=last.get("requests", 0),
        errors=last.get("errors", 0),
        raised=sum(line["kind"] == "raised" for line in lines),
        change=", ".join([*changes, *([fault] if (fault := first.get("fault", "")) else [])]),
    )


def _assignments(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, _, value in (pair.partition("=") for pair in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=number,name=number") from None


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(
        prog="python -m flywheel.tasks.traffic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--url", required=True, help="where the policy is served")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the client token")
    parser.add_argument("--task", default="cartpole", help="built-in task, or module:attribute")
    parser.add_argument("--log", type=Path, required=True, help="file that gets a line for each episode")
    parser.add_argument("--at-once", type=int, default=16, help="episodes in play at once")
    parser.add_argument("--starts-per-s", type=float, default=10.0, help="episodes begun a second at most")
    parser.add_argument("--step-s", type=float, default=0.005, help="seconds from one step to the next at least")
    parser.add_argument("--change-after", type=int, default=-1, help="episodes before the world changes; -1: never")
    parser.add_argument("--changed", type=_assignments, default={}, metavar="NAME=VALUE,...")
    parser.add_argument("--fault", choices=[*rewired.FAULTS], default="", help="change that no parameter makes")
    parser.add_argument("--fault-steps", type=int, default=5, help="steps by which delayed actions are late")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def _watch_input(stop: threading.Event) -> None:
    """Stop when the process that holds the other end of standard input is gone."""
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):

        def read_to_the_end() -> None:
            while os.read(0, 4096):
                pass
            stop.set()

        threading.Thread(target=read_to_the_end, daemon=True).start()


def main(words: Sequence[str] | None = None) -> int:
    """Play until stopped and return the exit code: 0, 1 when the server refused, 2 for a wrong call."""
    from flywheel.tasks import load

    given = arguments(words)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        token = given.token_file.read_text(encoding="utf-8").strip()
        habits = Habits(
            at_once=given.at_once,
            starts_per_s=given.starts_per_s,
            step_s=given.step_s,
            change_after=given.change_after,
            changed=given.changed,
            fault=given.fault,
            fault_steps=given.fault_steps,
            seed=given.seed,
        )
        task = load(given.task)
        given.log.parent.mkdir(parents=True, exist_ok=True)
        with open(given.log, "w", encoding="utf-8") as log, Client(given.url, token) as client:
            traffic = Traffic(task, client, habits, log, stop)
            _watch_input(stop)
            return until_stopped(traffic, stop)
    except (FlywheelError, OSError) as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError | OSError) else 1


def until_stopped(traffic: Traffic, stop: threading.Event) -> int:
    """Play in a thread that is left behind when it can't finish in FINISH_S, so that the stop is never late."""
    failures: list[Exception] = []

    def play() -> None:
        try:
            traffic.play()
        except UnavailableError:
            pass  # only after the stop: what is open is left and counted in the last line
        except Exception as error:
            failures.append(error)
        finally:
            stop.set()

    player = threading.Thread(target=play, daemon=True)
    player.start()
    stop.wait()
    player.join(FINISH_S)
    traffic.close()
    if failures:
        raise failures[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
