"""S1 and S2 of `canary_power`: who answers while policies change and processes die, and how soon a rollback holds.

The wheel's own processes, with HTTP load over this machine's loopback by clients in a process of their own
(experiments/serve_callers.py), which keep who answered each step, and when. The first policy is judged by the gate; the
verdicts on all others are copies of that one, which the registry signs, for here it isn't the gate that is tried.

S1  meanwhile judged policies are promoted, tried beside the champion and rolled back, replicas, the registry and the
    observer are killed, and what is unjudged, refused, condemned, late or another task's is put forward. Then answers
    are joined with verdicts by the files alone (experiments/verdict_join.py)
S2  a policy is rolled back under load, by HTTP or by the registry alone, as the loop does it, which replicas learn of
    when they look next; its last answer is waited for longer than the goal allows
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from experiments.report import share
from experiments.serve_callers import Answers, Called, Calling, calling
from experiments.verdict_join import proven, unproven
from flywheel.cluster import Rooms, start
from flywheel.config import Config, DeployConfig
from flywheel.console import silent
from flywheel.deploy.keys import CLIENT, OPERATE, token_file
from flywheel.deploy.links import AwayError
from flywheel.errors import Refused
from flywheel.gate import SafetyGate
from flywheel.gate.judge import terms
from flywheel.policy import pack
from flywheel.records import Verdict
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD
from flywheel.testing.fakes import linear_policy

QUICK_RAMP = DeployConfig(port=0, quota=1e6, shadow_decisions=40, ramp=(0.1, 0.5), ramp_first=5, settle_s=0.5)
"""Challengers go their whole way in seconds, so that there are many of them."""
PATIENCE_S = 60.0
"""Seconds after which a process that was killed has to be back."""
MOST_S = 280.0
"""Seconds after which S1 ends, whether there were answers enough or not."""
IN_FORCE_S = 2.0
SEEN = 400
"""Decisions of a policy before it is rolled back: a dozen episodes begin among so many."""
Row = dict[str, Any]


@dataclass(slots=True)
class Wheel:
    """A wheel that serves, and what is done to it."""

    rooms: Rooms
    run_dir: Path
    verdict: Verdict
    """The gate's, which others are copies of."""
    num_made: int = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return str(self.rooms.serving.deployment.url)

    def calls(self, connections: int, **more: Any) -> dict[str, Any]:
        """Return what callers of this wheel are told."""
        token = token_file(self.run_dir, CLIENT).read_text()
        return {"port": urlsplit(self.url).port, "token": token, "connections": connections, **more}

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return the registry's answer, as soon as it is there again; raises what it raises."""
        import ray

        return _again(lambda: ray.get(getattr(self.rooms.registry, method).remote(*arguments), timeout=PATIENCE_S))

    def status(self) -> list[dict[str, Any]]:
        """Return each replica's, as soon as there is one that has a policy."""

        def asked() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self.rooms.serving.deployment.status(5.0)
            if not found or not all(status["digest"] for status in found):
                raise TimeoutError("There is no replica with a policy.")
            return found

        return _again(asked)

    def policy(self, outcome: str | None = "pass", **changes: Any) -> str:
        """Return the digest of a new policy with such a verdict against the champion, None for no verdict."""
        self.num_made += 1
        network, weights, golden = linear_policy(spec_of(cartpole), np.array(GOOD) * (1 + self.num_made / 1000))
        digest, files = pack(
            network=network, weights=weights, spec=spec_of(cartpole), golden=golden, version=self.num_made, parent=None,
            trained_on={}, made_at=0.0,
        )  # fmt: skip
        self.ask("write", digest, files)
        if outcome is not None:
            self.judge(digest, outcome, **changes)
        return digest

    def judge(self, digest: str, outcome: str = "pass", **changes: Any) -> None:
        """Let the registry sign a verdict on a policy."""
        now = time.time()
        given = {"digest": digest, "outcome": outcome, "baseline": self.ask("champion"), "judged_at": now}
        self.ask("record", dataclasses.replace(self.verdict, **{**given, "valid_until": now + 600.0, **changes}))

    def promote(self, digest: str) -> None:
        """Put a judged policy into service on every replica."""
        self.ask("promote", digest)
        _again(lambda: self.rooms.serving.deployment.reload(5.0))

    def answer(self, num: int) -> None:
        """Return when it has made so many decisions more; raise TimeoutError when that takes too long."""

        def made() -> int:
            return sum(status["decisions"] for status in self.status())

        until, enough = time.monotonic() + PATIENCE_S, made() + num
        while made() < enough:
            if time.monotonic() > until:
                raise TimeoutError(f"There were not {num} decisions in {PATIENCE_S:.0f} s: are there callers?")
            time.sleep(0.05)

    def kill(self, actor: Any) -> None:
        """Kill an actor, which Ray starts again."""
        import ray

        ray.kill(actor, no_restart=False)


def _again(asked: Callable[[], Any]) -> Any:
    """Return an answer, however often it has to be asked for while processes come back."""
    from ray.exceptions import GetTimeoutError, RayActorError

    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return asked()
        except (RayActorError, GetTimeoutError, TimeoutError, AwayError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextmanager
def wheel(directory: Path, config: Config) -> Iterator[Wheel]:
    """Yield a wheel that serves a policy which its gate let pass."""
    with start(cartpole, config, directory, silent) as rooms:
        network, weights, golden = linear_policy(spec_of(cartpole), GOOD)
        digest, files = pack(
            network=network, weights=weights, spec=spec_of(cartpole), golden=golden, version=1, parent=None,
            trained_on={}, made_at=0.0,
        )  # fmt: skip
        made = Wheel(rooms, directory, None)  # type: ignore[arg-type]
        made.ask("write", digest, files)
        made.ask("set_terms", *terms(cartpole, config.gate, cartpole.nominal))
        verdict = SafetyGate(cartpole, config.gate).judge(made.ask("bundle", digest), seed=7)
        made.verdict = made.ask("record", verdict)
        made.promote(digest)
        assert {status["digest"] for status in made.status()} == {digest}
        yield made


# S1


class Storm:
    """What is done while clients ask, one thing after another; it counts what was done, and what was let through."""

    def __init__(self, wheel: Wheel) -> None:
        """Do nothing yet."""
        self.wheel, self.done, self.let_through = wheel, Counter[str](), list[str]()
        self.tried = 0
        self.steps = (
            self.promotion, self.refusals, self.challenge, self.lost_replica, self.rollback, self.challenge,
            self.lost_registry, self.promotion, self.lost_observer, self.refusals, self.challenge, self.rollback,
        )  # fmt: skip

    def promotion(self) -> None:
        """Put a judged policy into service."""
        self.wheel.promote(self.wheel.policy())

    def challenge(self) -> None:
        """Try a judged policy beside the champion, from the shadow on."""
        self.wheel.ask("challenge", self.wheel.policy())

    def rollback(self) -> None:
        """Roll back by HTTP."""
        answer = _rolled_back(self.wheel, {"reason": "a storm"})
        if answer.status_code != 200:
            self.done[f"rollback answered {answer.status_code}"] += 1

    def lost_replica(self) -> None:
        """Kill a replica's process."""
        os.kill(self.wheel.status()[0]["pid"], signal.SIGKILL)

    def lost_registry(self) -> None:
        """Kill the registry's process."""
        self.wheel.kill(self.wheel.rooms.registry)

    def lost_observer(self) -> None:
        """Kill the observer's process."""
        self.wheel.kill(self.wheel.rooms.serving.observer)

    def refusals(self) -> None:
        """Put forward what may not serve, each in every way there is."""
        wheel = self.wheel
        wrong = {
            "unjudged": wheel.policy(None), "failed": wheel.policy("fail"), "open": wheel.policy("inconclusive"),
            "late": wheel.policy(valid_until=time.time() - 1.0), "another task's": wheel.policy(task="0" * 64),
            "another champion's": wheel.policy(baseline="0" * 64),
        }  # fmt: skip
        condemned = sorted(wheel.ask("condemned"))
        for digest in condemned[:1]:
            wheel.judge(digest)
            wrong["condemned"] = digest
        for name, digest in wrong.items():
            for way in ("promote", "challenge"):
                self._tried(f"{name}, by {way}", lambda way=way, digest=digest: wheel.ask(way, digest))  # type: ignore[misc]
            self._named(name, digest)

    def _tried(self, what: str, way: Callable[[], Any]) -> None:
        self.tried += 1
        try:
            way()
        except Refused:
            return
        self.let_through.append(what)

    def _named(self, name: str, digest: str) -> None:
        """Let a client say that its episode began with such a policy."""
        self.tried += 1
        row = {"episode": f"liar-{digest[:8]}", "t": 1, "observation": [0.0] * 4, "digest": digest, "action": 0}
        shown = {"Authorization": f"Bearer {token_file(self.wheel.run_dir, CLIENT).read_text()}"}
        try:
            answer = httpx.post(f"{self.wheel.url}/v1/act", json={"steps": [row]}, headers=shown, timeout=10.0)
        except httpx.TransportError:  # a replica that is being started
            return
        if answer.status_code == 200 and answer.json()["decisions"][0]["digest"] == digest:
            self.let_through.append(f"{name}, named by a client")

    def rage(self, calling: Calling, pause_s: float) -> None:
        """Do it all again and again until the callers have ended."""
        while True:
            for step in self.steps:
                if calling.pause(pause_s):
                    return
                try:
                    step()
                except Refused:  # a canary ended meanwhile, so that another champion serves than it was judged against
                    self.done[f"{step.__name__} (too late)"] += 1
                else:
                    self.done[step.__name__] += 1


def _rolled_back(wheel: Wheel, body: dict[str, Any]) -> httpx.Response:
    """Return the answer to a rollback by HTTP."""
    shown = {"Authorization": f"Bearer {token_file(wheel.run_dir, OPERATE).read_text()}"}
    return httpx.post(f"{wheel.url}/v1/rollback", json=body, headers=shown, timeout=30.0)


def judged(quick: bool) -> Iterator[Row]:
    """Yield the rows of S1."""
    most = 5_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        with wheel(run_dir, Config(deploy=QUICK_RAMP)) as made:
            storm = Storm(made)
            with calling(Path(directory), **made.calls(32, most=most, seconds=MOST_S)) as callers:
                storm.rage(callers, 0.5 if quick else 1.5)
                called, answers = callers.called()
        bad, events = unproven(answers, proven(run_dir)), ", ".join(f"{n} {name}" for name, n in storm.done.items())
    case = f"answers from a policy without a passing verdict, in {called.num_answers:,} answers of "
    yield _count("S1", f"{case}{len(answers.digests)} policies", bad, called.num_answers, called.num_answers >= most)
    yield _count("S1", "what may not serve, put forward and let through", len(storm.let_through), storm.tried)
    told = ", ".join(f"{n} {status}" for status, n in sorted(called.otherwise.items())) or "none"
    case = f"requests answered otherwise than by decisions, and sent again ({told}), during {events}"
    yield _info("S1", case, sum(called.otherwise.values()), called.num_answers)


# S2


@dataclass(frozen=True, slots=True)
class Rolled:
    """One rollback."""

    digest: str
    at: float
    """When it was asked for."""


def rolled(wheel: Wheel, callers: Calling, num: int) -> list[Rolled]:
    """Roll so many policies back, every other one by HTTP; each has served new and running episodes by then."""
    found = []
    for i in range(num):
        digest = wheel.policy()
        wheel.promote(digest)
        wheel.answer(SEEN)
        found.append(Rolled(digest, time.time()))
        if i % 2:
            wheel.ask("rollback", "it is measured", digest)
        else:
            answer = _rolled_back(wheel, {"reason": "it is measured", "digest": digest})
            answer.raise_for_status()
        callers.pause(IN_FORCE_S + 0.3)  # what comes later would be seen, too
    return found


def last_answers(rollbacks: Sequence[Rolled], answers: Answers, begin: bool) -> list[float]:
    """Return the seconds from each rollback to the last answer of its policy, in episodes that begin or go on."""
    known, which = {digest: i for i, digest in enumerate(answers.digests)}, (answers.t == 0) == begin
    found = []
    for rollback in rollbacks:
        at = answers.at[which & (answers.digest == known.get(rollback.digest, -1))]
        if not len(at):
            raise RuntimeError(f"Policy {rollback.digest[:12]} answered nobody, so its rollback shows nothing.")
        found.append(max(0.0, float(at.max()) - rollback.at))
    return found


def rollbacks(quick: bool) -> Iterator[Row]:
    """Yield the rows of S2."""
    num = 4 if quick else 20
    for replicas, connections in ((1, 8),) if quick else ((1, 8), (1, 32), (2, 32)):
        config = Config(deploy=DeployConfig(port=0, quota=1e6, num_replicas=replicas))
        with (
            tempfile.TemporaryDirectory() as directory,
            wheel(Path(directory) / "run", config) as made,
            calling(Path(directory), **made.calls(connections)) as callers,
        ):
            done = rolled(made, callers, num)
            called, answers = callers.called()
        yield from _told(f"{replicas} replica{'s' * (replicas > 1)}, {connections} connections", done, called, answers)


def _told(where: str, done: Sequence[Rolled], called: Called, answers: Answers) -> Iterator[Row]:
    for kind, begin in (("that begin", True), ("that go on", False)):
        seconds = np.array(last_answers(done, answers, begin))
        what = f"{where}: slowest time until the last answer of the bad policy, in episodes {kind}, s"
        yield {
            "id": "S2", "case": f"{what} (median {np.median(seconds):.3f})", "value": round(float(seconds.max()), 3),
            "interval": None, "goal": f"<= {IN_FORCE_S:g}", "passed": bool(seconds.max() <= IN_FORCE_S),
            "runs": len(seconds), "seed": 7,
        }  # fmt: skip
        yield share("S2", f"{where}: within 2 s, episodes {kind}", seconds <= IN_FORCE_S, None, False, 7)
    failed, num = sum(called.otherwise.values()), called.num_answers
    yield _count("S2", f"{where}: failed requests, in {num:,} answers", failed, num)


def _count(id_: str, case: str, value: int, runs: int, enough: bool = True) -> Row:
    """Return a row on a count that has to be 0."""
    return _info(id_, case, value, runs) | {"goal": "<= 0", "passed": value == 0 and enough}


def _info(id_: str, case: str, value: int, runs: int) -> Row:
    return {
        "id": id_, "case": case, "value": value, "interval": None, "goal": "for information", "passed": True,
        "runs": runs, "seed": 7,
    }  # fmt: skip


MEASURES = (judged, rollbacks)
