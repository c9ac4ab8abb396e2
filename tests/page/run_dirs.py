"""A run directory as a wheel leaves it, written in seconds without Ray: a world that changes, and three turns.

Policy 1 keeps a short pole up; production's pole becomes four times as long; the first candidate for it is refused,
the second one cures it. Everything in it is made by the rooms themselves, so that every episode can be computed again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np

from flywheel import archive, told
from flywheel.config import Config
from flywheel.correction import Correction
from flywheel.deploy.canary import Canary, Ramp
from flywheel.deploy.registry import POLICIES, Registry
from flywheel.draws import draw_key
from flywheel.gate.judge import SafetyGate
from flywheel.observe.observer import Observer
from flywheel.policy import load
from flywheel.records import Artifact, Episode, Parameters, Plan, Probe, Progress, Signal, Told, Turn, Verdict
from flywheel.simulate import play
from flywheel.simulate.corrected import corrected
from flywheel.store.intake import Intake
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, SHORT_POLE, write_linear_artifact
from flywheel.trace.context import EPISODE, STEP, TURN, trace_of
from flywheel.trace.row import Row, Value
from flywheel.trace.spanstore import SpanStore
from tests.deploy.conftest import verdict_on

HALF = tuple(0.3 * good + 0.7 * short for good, short in zip(GOOD, SHORT_POLE, strict=True))
"""Gains that let a third of the long poles fall."""
LONG = {"length": 2.0}
AT = 1_790_000_000.0
"""When the run began, unless something else is asked for."""
SPACING_S = 4.0
RANGES = {"length": (1.9, 2.1)}


class Writer:
    """Writes one run as its rooms would, a part at a time: what a living wheel would have written by then."""

    def __init__(self, run_dir: Path, at: float = AT) -> None:
        """Begin a run at `at`; its lock is not held."""
        self.run_dir, self.at, self.number = run_dir, at, 0
        config = Config(task="cartpole", run_dir=str(run_dir), seed=7)
        with archive.opened(run_dir, config, cartpole.name, task_digest(cartpole)):
            pass
        self.registry, self.store = Registry(run_dir, task_digest(cartpole)), Intake(run_dir)
        ticks = itertools.count()
        self._gate = SafetyGate(cartpole, clock=lambda: next(ticks) * 2e-5)
        self._observer = Observer(cartpole)
        self._log = [json.dumps({"kind": "start", "nominal": cartpole.nominal, "changed": LONG})]
        self.tell("start", "Ray is up, its dashboard at http://127.0.0.1:8265 (token: ray get-auth-token)", 4.0)

    def close(self) -> None:
        """Let go of the files."""
        self.registry.close()
        self.store.close()

    def tell(self, stage: str, text: str, seconds: float = 0.5, turn: int = 0, **numbers: float) -> None:
        """Say a sentence some seconds after the one before."""
        self.at += seconds
        archive.tell(
            self.run_dir,
            Told(at=self.at, stage=stage, text=text, turn=turn, passing=bool(numbers), numbers=numbers),
        )

    def train(self, turn: int, iterations: int = 14, best: float = 500.0) -> None:
        """Tell of a training whose return rises."""
        for i in range(1, iterations + 1):
            reached = best / (1 + math.exp(-(i - iterations / 2) / (iterations / 9)))
            failed = int(200 * max(0.0, 1 - reached / (0.97 * best)))
            progress = Progress(
                iteration=i, num_steps=1024 * i, num_steps_total=1024 * i, mean_return=reached, seconds=0.9, network=b""
            )
            probe = Probe(num_failed=failed, num_episodes=200, mean_return=reached, edge_failed=())
            self.tell("train", told.progress(progress, probe), 1.1, turn, **told.numbers(progress, probe))

    def candidate(self, gains: tuple[float, ...], plan: Plan) -> Artifact:
        """Write a policy's artifact."""
        artifact = write_linear_artifact(
            self.run_dir / POLICIES,
            cartpole,
            gains,
            version=self.registry.next_version(),
            parent=plan.warm_start,
            trained_on={
                "strategy": plan.strategy,
                "parameters": {name: list(span) for name, span in plan.parameters.items()},
                "steps": 14_336,
                "seed": 7,
            },
            made_at=self.at,
        )
        self.registry.add(artifact)
        return artifact

    def judge(self, artifact: Artifact, turn: int, parameters: Parameters) -> Verdict:
        """Let the gate judge it and keep the signed verdict."""
        champion = self.registry.champion()
        verdict = self._gate.judge(
            artifact,
            baseline=None if champion is None else self.registry.artifact(champion),
            parameters=parameters,
            seed=11,
            now=self.at,
        )
        signed = self.registry.record(verdict)
        self.tell("gate", told.verdict(signed), 0.4, turn)
        return signed

    def turn(self, plan: Plan, gains: tuple[float, ...], parameters: Parameters | None = None) -> Turn:
        """Turn the wheel as far as its release, as a draft."""
        self.number += 1
        number = self.number
        reasons = "; ".join(plan.reasons)
        self.tell("analyze", f"turn {number} is {plan.strategy}: {reasons}", 3.0, number)
        archive.keep_draft(self.run_dir, Turn(number=number, plan=plan))
        self.train(number)
        artifact = self.candidate(gains, plan)
        self.tell("gate", f"judging policy {artifact.digest[:8]}", 0.3, number)
        verdict = self.judge(artifact, number, parameters or {})
        turn = Turn(number=number, plan=plan, artifact=artifact, verdict=verdict)
        if verdict.outcome == "pass":
            release = self.registry.promote(artifact.digest, self.at)
            self._observer.release(release, cartpole.limits.max_failure_rate)
            turn = dataclasses.replace(turn, release=release)
            self.tell("deploy", f"policy {artifact.digest[:8]} answers at http://127.0.0.1:8000", 0.4, number)
        archive.keep_draft(self.run_dir, turn)
        return turn

    def produce(self, num: int, parameters: Parameters, seed: int, spacing_s: float = SPACING_S) -> list[Signal]:
        """Let production play so many episodes on the policy in service; return the alarms that this raised."""
        champion = self.registry.champion()
        assert champion is not None
        ids = [f"{seed:02x}{i:06x}-{np.random.default_rng([seed, i]).bytes(6).hex()}" for i in range(num)]
        keys = [draw_key(self.registry.keys.run, id_) for id_ in ids]
        policy = load(self.registry.artifact(champion))
        seeds = [seed * 100_000 + i for i in range(num)]
        played = play(cartpole, policy, seeds=seeds, parameters=[parameters] * num, draw_keys=keys, origin="production")
        raised: list[Signal] = []
        episodes = []
        for id_, episode in zip(ids, played, strict=True):
            self.at += spacing_s
            episode = as_production(episode, id_, self.at)
            episodes.append(episode)
            raised += self._observer.observe(episode, episode.ended_at)
            self._log.append(json.dumps({"kind": "episode", "id": id_, "changed": bool(parameters), "index": 0}))
        self.store.append(episodes)
        self.store.note("observer.signals", _json(self._observer.signals))
        return raised

    def observe(self, turn: Turn, signals: list[Signal], text: str, recovered: bool, before: float | None) -> None:
        """End a turn with what production showed."""
        self.tell("observe", text, 0.5, turn.number)
        outcomes = self.store.outcomes("production", 200)
        totals = [o.total for o in outcomes if turn.release is None or o.started_at >= turn.release.released_at]
        evidence = {
            "recovered": recovered,
            "stopped": False,
            "before": before,
            "episodes": len(totals),
            "mean_return": float(np.mean(totals)) if totals else None,
            "signals": [dataclasses.asdict(s) for s in signals],
            "seconds": {"analyze": 0.4, "train": 15.4, "export": 1.2, "gate": 0.7, "deploy": 0.3, "observe": 61.0},
        }
        archive.append_turn(self.run_dir, dataclasses.replace(turn, evidence=evidence))


def write_spans(run_dir: Path, episode: Episode) -> None:
    """Write what tracing keeps of one failed episode and of a turn."""
    trace, began = trace_of(episode.id), episode.started_at
    root = "00000000000000a1"
    about: dict[str, Value] = {EPISODE: episode.id}
    rows = [Row(trace, root, "", "episode", "observer", began, episode.ended_at, about, why="failed")]
    for t in range(min(episode.num_steps, 12)):
        at = began + 0.02 * t
        rows.append(Row(trace, f"{t + 256:016x}", root, "act", "replica", at, at + 0.0012, {**about, STEP: t}))
    turn = Row("ab" * 16, "00000000000000b1", "", "turn 1", "loop", began - 60, began, {TURN: 1}, why="turn")
    train = Row("ab" * 16, "00000000000000b2", turn.id, "train", "loop", began - 50, began - 30, {TURN: 1})
    with SpanStore(run_dir, 10_000) as spans:
        spans.append([*rows, turn, train])


def challenge(registry: Registry, number: float, now: float, ramp: Ramp | None = None) -> Canary:
    """Let a policy that passed be tried beside the one in service; another number gives another digest."""
    champion = registry.champion()
    artifact = write_linear_artifact(
        registry.run_dir / POLICIES,
        cartpole,
        tuple(number * gain for gain in GOOD),
        version=registry.next_version(),
        parent=champion,
        trained_on={"strategy": "continue_training"},
        made_at=now - 5.0,
    )
    registry.add(artifact)
    registry.record(verdict_on(artifact, baseline=champion, judged_at=now - 1.0, valid_until=now + 1e6))
    return registry.challenge(artifact.digest, ramp or Ramp(), now)


def as_production(episode: Episode, id_: str, started_at: float) -> Episode:
    """Return a simulated episode as production's: its seed and its world's parameters are nobody's to know."""
    ended_at = started_at + 0.02 * episode.num_steps
    return dataclasses.replace(
        episode, id=id_, parameters={}, scenario="", seed=None, started_at=started_at, ended_at=ended_at
    )


def _json(signals: tuple[Signal, ...]) -> str:
    import msgspec

    return msgspec.json.encode(signals).decode()


FIRST = Plan(strategy="continue_training", reasons=("no policy is in service yet",))


def write_run(run_dir: Path, at: float = AT, quiet: int = 180, changed: int = 60, cured: int = 120) -> Path:
    """Write a finished run of three turns and return its directory."""
    writer = Writer(run_dir, at)
    first = writer.turn(FIRST, SHORT_POLE)
    assert first.release is not None
    writer.tell("observe", f"0 episodes on policy {first.release.digest[:8]}", 0.1, 1)
    writer.produce(quiet, {}, 1)
    signals = writer.produce(changed, LONG, 2)
    words = ", ".join(f"{s.kind} by the {s.monitor} monitor" for s in signals)
    writer.observe(first, signals, f"{words}; {quiet + changed} episodes", False, 500.0)
    second = writer.turn(_shifted(signals, first.release.digest), HALF, LONG)
    assert second.artifact is not None
    writer.produce(20, LONG, 3)
    writer.observe(second, signals, "the alarm stands; 20 episodes", False, 500.0)
    third = writer.turn(_explored(signals, second.artifact.digest), GOOD, LONG)
    assert third.release is not None
    writer.produce(cured, LONG, 4)
    writer.observe(third, [], f"production is good again: {cured} episodes, mean return 500", True, None)
    writer.tell("end", "the process ended in order", 0.2, 3)
    (failed,) = writer.store.read([next(o.id for o in writer.store.outcomes("production")[::-1] if o.failed)])
    write_spans(run_dir, failed)
    traffic = run_dir / archive.TRAFFIC
    traffic.mkdir()
    (traffic / "client-0.jsonl").write_text("\n".join(writer._log) + "\n")
    writer.close()
    return run_dir


def _shifted(signals: list[Signal], start: str) -> Plan:
    return Plan(
        strategy="retrain_prioritize_recent",
        reasons=(
            *(f"{s.kind} ({s.monitor} monitor, evidence {s.value:,.0f} of {s.threshold:,.0f})" for s in signals),
            "length is 2 (1.98 to 2.03)",
            "production can't tell apart masscart, masspole, force_mag",
        ),
        signals=tuple(signals),
        sampling="recent",
        parameters=RANGES,
        warm_start=start,
    )


def _explored(signals: list[Signal], start: str) -> Plan:
    return Plan(
        strategy="increase_exploration",
        reasons=("the gate refused the last candidate (failure_rate)", "attempt 2 starts from the candidate"),
        signals=tuple(signals),
        sampling="recent",
        parameters=RANGES,
        warm_start=start,
        exploration=2.0,
    )


def write_swapped(run_dir: Path) -> Turn:
    """Go on in a finished run with a turn whose worlds swap the actions, as production does; return it."""
    correction = Correction(actions=(1, 0), explained=0.99, num_transitions=2000)
    plan = Plan(
        strategy="retrain_prioritize_recent",
        reasons=(f"{correction}, which explains 99% of what the simulator missed",),
        sampling="production",
        correction=correction,
    )
    at = max(turn.verdict.judged_at for turn in archive.read_turns(run_dir) if turn.verdict) + 1.0
    with closing(Registry(run_dir, task_digest(cartpole))) as registry:
        artifact = write_linear_artifact(
            run_dir / POLICIES, cartpole, tuple(-gain for gain in GOOD), version=registry.next_version(),
            trained_on={"strategy": plan.strategy, "correction": dataclasses.asdict(correction)}, made_at=at,
        )  # fmt: skip
        registry.add(artifact)
        verdict = SafetyGate(corrected(cartpole, correction)).judge(artifact, seed=11, now=at)
        turn = Turn(number=4, plan=plan, artifact=artifact, verdict=registry.record(verdict))
    archive.append_turn(run_dir, turn)
    return turn


def write_large(run_dir: Path, num: int = 10_000, at: float = AT) -> Path:
    """Write a finished run of one turn with so many production episodes, most of them short: the first of each kind
    is played, the others are the same under another id.
    """
    writer = Writer(run_dir, at)
    first = writer.turn(FIRST, SHORT_POLE)
    writer.produce(150, {}, 1, 0.4)
    signals = writer.produce(50, LONG, 2, 0.4)
    played = writer.store.recent(200)
    rng = np.random.default_rng(0)
    for begin in range(200, num, 1000):
        batch = []
        for i in range(begin, min(begin + 1000, num)):
            writer.at += 0.4
            place = int(rng.integers(150, 200)) if rng.random() < 0.9 else int(rng.integers(0, 150))
            batch.append(
                dataclasses.replace(
                    played[place], id=f"{i:06x}-{i * 2654435761 % 2**32:08x}", started_at=writer.at, ended_at=writer.at
                )
            )
        writer.store.append(batch)
    writer.observe(first, signals, f"{num} episodes", False, 500.0)
    writer.tell("end", "the process ended in order", 0.2, 1)
    writer.close()
    return run_dir
