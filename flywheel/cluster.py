"""The one place where rooms meet: starts them as actors of a local Ray, and is the loop's Stages over them."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from flywheel import archive, told
from flywheel.analyze.diagnose import Diagnosis, diagnose, enough, split
from flywheel.analyze.recovery import conclude, mean_before
from flywheel.analyze.strategy import decide
from flywheel.config import Config
from flywheel.console import Say
from flywheel.deploy.environment import claim_port, serve_environment
from flywheel.deploy.keys import DIRECTORY, TOKEN
from flywheel.deploy.on_ray import OBSERVER, REGISTRY, RegistryActor
from flywheel.errors import FlywheelError, UsageError
from flywheel.gate.on_ray import GateActor
from flywheel.observe.on_ray import ObserverActor
from flywheel.policy import NETWORK
from flywheel.records import Artifact, Episode, Parameters, Plan, Probe, Progress, Release, Signal, Turn, Verdict
from flywheel.store.on_ray import StoreActor
from flywheel.task import Task, spec_of, task_digest
from flywheel.tasks.production import Production
from flywheel.train.ending import deserves_verdict, is_over
from flywheel.train.on_ray import TrainerActor

OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's shared memory: messages here are small, and a laptop's /dev/shm may be, too."""
ANALYZED = 500
"""Most recent episodes of a release that an analysis reads, changed and unchanged together."""
STORE = "store"
"""Name of the store's actor."""
LOOK_S = 0.5
"""Seconds between two looks at production when nothing new is heard from the observer."""


def preflight(config: Config) -> None:
    """Raise UsageError when the processes that claim CPUs would wait for one another for ever."""
    available = config.num_cpus or os.cpu_count() or 1
    claimed = 0.5 + 0.5 * config.train.num_runners
    if claimed > available:
        raise UsageError(
            f"Training claims {claimed:g} CPUs (half a one for the learner and for each of {config.train.num_runners} "
            f"env runners) but Ray is given {available}, so it would wait for ever: lower --train.num-runners or raise "
            "--num-cpus."
        )


@contextmanager
def start(task: Task, config: Config, run_dir: Path, say: Say) -> Iterator[OnRay]:
    """Start a local Ray with every room on it, yield the Stages, and end all of it.

    Raises UsageError before anything is started or written when ports, CPUs or the run directory don't fit.
    """
    preflight(config)
    port = claim_port(config.deploy)
    archive.begin(run_dir, config, task.name, task_digest(task))
    os.environ.update(serve_environment(config.deploy))
    say("start", "Ray, the trainer and the gate")
    context = ray.init(
        address="local",
        namespace="flywheel",
        num_cpus=config.num_cpus or os.cpu_count(),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=True,
        log_to_driver=False,
        logging_level="ERROR",
    )
    say("start", f"Ray is up, its dashboard at http://{context.dashboard_url} (token: ray get-auth-token)")
    stages = OnRay(task, config, run_dir, port, say)
    try:
        yield stages
    finally:
        stages.stop()
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class Serving:
    """What is up once Serve is: handles of the store and the observer, and the deployment."""

    store: Any
    observer: Any
    deployment: Any


class OnRay:
    """Stages over actors: forwards each arrow of the loop, tells what happens, and times it."""

    def __init__(self, task: Task, config: Config, run_dir: Path, port: int, say: Say) -> None:
        """Start the trainer, the gate and the registry; Serve, observer and store come beside the training."""
        self._task, self._config, self._run_dir, self._port, self._say = task, config, run_dir, port, say
        self._spec = spec_of(task)
        self._seeds = np.random.SeedSequence([config.seed, len(archive.read_turns(run_dir))])
        self._turns = archive.read_turns(run_dir)
        self._seconds: dict[str, float] = defaultdict(float)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="serve")
        self._future: Future[Serving] | None = None
        self._trainer = _actor(TrainerActor, "trainer", num_cpus=0.5).remote(
            task, self._spec, config.train, self._seed(), str(run_dir / archive.POLICIES)
        )
        self._gate = _actor(GateActor, "gate").remote(task, config.gate, str(run_dir))
        self._registry = _actor(RegistryActor, REGISTRY).remote(str(run_dir), task_digest(task))
        drift = ",".join(f"{name}={value:g}" for name, value in task.drift.items()) if config.drift else ""
        self._production = Production(
            run_dir / archive.TRAFFIC, config.traffic, task=config.task, seed=self._seed(), drift=drift
        )

    def numbers(self) -> range:
        """Return the numbers of the turns to come: a run directory goes on where its journal ends."""
        done = self._turns[-1].number if self._turns else 0
        return range(done + 1, done + 1 + self._config.turns)

    # Analyze

    def analyze(self) -> Plan:
        """Decide what to do next from the journal, the open signals and what production showed."""
        with self._timed("analyze"):
            champion = self._champion()
            signals: tuple[Signal, ...] = ()
            diagnosis = Diagnosis(calibration=None, obstacle="", num_changed=0)
            if champion is not None:
                self._produce()
                signals = self._ask(self._serving.observer.signals)
                if current := self._about(self._release(), signals):
                    self._say("analyze", "fitting the simulator to production since the alarm", passing=True)
                    diagnosis = self._diagnose(champion, current)
            plan = decide(
                self._turns,
                signals,
                diagnosis.calibration,
                self._config.analyze,
                champion=champion,
                previous=self._ask(self._registry.previous),
                condemned=self._ask(self._registry.condemned),
                nominal=self._task.nominal,
                obstacle=diagnosis.obstacle,
            )
        self._say("analyze", f"turn {self.numbers()[0]} is {plan.strategy}: {'; '.join(plan.reasons)}")
        return plan

    def _diagnose(self, champion: str, signals: list[Signal]) -> Diagnosis:
        """Wait until production has shown enough of the change, and fit the simulator to it."""
        serving, deadline = self._serving, time.monotonic() + self._config.analyze.patience_s
        while True:
            episodes = self._recent(champion)
            if enough(episodes, signals, self._config.analyze) or time.monotonic() > deadline:
                break
            self._ask(serving.observer.wait, digest=champion, episodes=self._count(champion) + 1, timeout_s=LOOK_S)
        fit = ray.remote(diagnose).options(num_cpus=0, name="diagnose")
        found: Diagnosis = ray.get(fit.remote(self._task, episodes, signals, self._config.analyze))
        return found

    # Train

    def begin(self, plan: Plan) -> Probe | None:
        """Set the trainer on the plan; in quiet times return the probe of the policy in service."""
        with self._timed("train"):
            self._ask(self._trainer.begin, plan)
            self._probe_seed = self._seed()
            champion = self._champion()
            if plan.strategy != "continue_training" or champion is None:
                return None
            artifact: Artifact = self._ask(self._registry.artifact, champion)
            return self._look(plan, (Path(artifact.uri) / NETWORK).read_bytes())

    def advance(self) -> Progress:
        """Train one iteration; after the very first one Serve starts beside the training."""
        with self._timed("train"):
            progress: Progress = self._ask(self._trainer.advance)
        self._begin_serving()
        return progress

    def probe(self, plan: Plan, progress: Progress) -> Probe:
        """Try the weights of an iteration on the gate's probe, in the worlds that the verdict will be about."""
        with self._timed("train"):
            probe = self._look(plan, progress.network)
        self._say("train", told.progress(progress, probe), passing=True)
        return probe

    def _look(self, plan: Plan, network: bytes) -> Probe:
        episodes = self._config.train.probe_episodes
        probe: Probe = self._ask(self._gate.probe, network, self._spec, self._probe_seed, _middle(plan), episodes)
        return probe

    def enough(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> bool:
        """Say whether this round's training is over."""
        best = self._task.return_range[1] if self._task.return_range else math.inf
        over = is_over(plan, progress, probe, rival, best, self._config.train)
        if over:
            self._say("train", told.progress(progress, probe))
        elif rival is None:
            self._probe_seed = self._seed()
        return over

    def worth_judging(self, plan: Plan, probe: Probe, rival: Probe | None) -> bool:
        """Say whether a trained candidate deserves a verdict; a quiet one must beat the policy in service."""
        return deserves_verdict(probe, rival)

    def export(self, plan: Plan, progress: Progress) -> Artifact:
        """Write the candidate as an artifact and register it."""
        with self._timed("export"):
            trained_on = {
                "strategy": plan.strategy,
                "parameters": {name: list(span) for name, span in plan.parameters.items()},
                "steps": progress.num_steps,
                "seed": self._config.seed,
            }
            version = self._ask(self._registry.next_version)
            artifact: Artifact = self._ask(self._trainer.export, version, plan.warm_start, trained_on, time.time())
            self._ask(self._registry.add, artifact)
        return artifact

    # Gate and deploy

    def judge(self, plan: Plan, artifact: Artifact) -> Verdict:
        """Let the gate judge in the worlds that production showed; the verdict comes back signed and recorded."""
        with self._timed("gate"):
            self._say("gate", f"judging policy {artifact.digest[:8]}", passing=True)
            champion = self._champion()
            baseline = None if champion is None else self._ask(self._registry.artifact, champion)
            verdict = self._ask(self._gate.judge, artifact, baseline, _middle(plan), self._seed())
            signed: Verdict = self._ask(self._registry.record, verdict)
        self._say("gate", told.verdict(signed))
        return signed

    def release(self, verdict: Verdict) -> Release:
        """Put a judged digest into service; raises Refused unless its verdict passed."""
        with self._timed("deploy"):
            self._begin_serving()
            _ = self._serving
            return self._announce(self._ask(self._registry.promote, verdict.digest))

    def rollback(self, plan: Plan) -> Release:
        """Put the previous policy back into service and condemn the present one."""
        with self._timed("deploy"):
            return self._announce(self._ask(self._registry.rollback))

    def _announce(self, release: Release) -> Release:
        """Let the observer watch the release and every replica answer with it; raise FlywheelError if one does not."""
        self._ask(self._serving.observer.release, release, self._task.limits.max_failure_rate)
        statuses = self._serving.deployment.reload()
        for status in statuses:
            if status["digest"] != release.digest:
                raise FlywheelError(f"A replica did not take policy {release.digest[:8]}: {status['trouble']}")
        self._say("deploy", f"policy {release.digest[:8]} answers at {self._serving.deployment.url}")
        self._produce()
        return release

    # Observe

    def observe(self, plan: Plan) -> Mapping[str, Any]:
        """Wait until production says something: a signal that the plan hasn't held for, a recovery, enough episodes."""
        evidence: dict[str, Any] = {"recovered": False, "stopped": False}
        champion = self._champion()
        try:
            with self._timed("observe"):
                if champion is not None:
                    evidence |= self._watch(champion, plan.signals if plan.strategy == "hold" else ())
        except KeyboardInterrupt:  # what the turn did is done: it belongs into the journal before the run ends
            evidence["stopped"] = True
        seconds = {stage: round(value, 3) for stage, value in self._seconds.items()}
        self._seconds.clear()
        return evidence | {"seconds": seconds}

    def _watch(self, champion: str, held: tuple[Signal, ...]) -> Mapping[str, Any]:
        serving, release = self._serving, self._release()
        before: float | None = self._turns[-1].evidence.get("before") if self._turns else None
        begun = self._count(champion)
        while True:
            outcomes = self._ask(serving.observer.window, ANALYZED, champion)
            outcomes = [outcome for outcome in outcomes if outcome.started_at >= release.released_at]
            raised = self._ask(serving.observer.signals)
            signals = [signal for signal in self._about(release, raised) if signal not in held]
            count = self._count(champion)
            found = conclude(outcomes, count - begun, signals, before, self._config.loop)
            if found is not None:
                self._say("observe", told.production(found, champion))
                good, _ = split(self._recent(champion), signals)
                return found if not signals else found | {"before": mean_before(good, before)}
            self._say("observe", f"{count - begun} more episodes on policy {champion[:8]}", passing=True)
            self._production.check()
            self._ask(serving.observer.wait, signals=len(raised), timeout_s=LOOK_S)

    def record(self, turn: Turn) -> None:
        """Write the turn to the journal, durably."""
        archive.append_turn(self._run_dir, turn)
        self._turns.append(turn)

    # Asking, starting, ending

    def _champion(self) -> str | None:
        champion: str | None = self._ask(self._registry.champion)
        return champion

    def _release(self) -> Release:
        release: Release = self._ask(self._registry.releases)[-1]
        return release

    def _about(self, release: Release, signals: tuple[Signal, ...]) -> list[Signal]:
        return [signal for signal in signals if signal.evidence["released_at"] == release.released_at]

    def _recent(self, digest: str) -> list[Episode]:
        episodes: list[Episode] = self._ask(self._serving.store.recent, ANALYZED, None, digest)
        return episodes

    def _count(self, digest: str) -> int:
        count: int = self._ask(self._serving.store.count, digest, "production")
        return count

    def _begin_serving(self) -> None:
        self._future = self._future or self._background.submit(self._start_serving)

    @property
    def _serving(self) -> Serving:
        self._begin_serving()
        assert self._future is not None
        return self._future.result()

    def _start_serving(self) -> Serving:
        from flywheel.deploy.on_serve import start_serve  # a slow import, and it reads the environment

        began = time.monotonic()
        store = _actor(StoreActor, STORE, max_task_retries=-1).remote(str(self._run_dir), self._config.store)
        observer = _actor(ObserverActor, OBSERVER, max_task_retries=-1).remote(self._task, self._config.observe, STORE)
        deployment = start_serve(self._config.deploy, self._port)
        self._say("start", f"Serve is up at {deployment.url} (took {time.monotonic() - began:.1f} s beside training)")
        return Serving(store, observer, deployment)

    def _produce(self) -> None:
        """Start production's clients, unless they play already or production is somebody else's."""
        if self._config.traffic.num_clients and not self._production.is_running:
            self._production.start(self._serving.deployment.url, self._run_dir / DIRECTORY / TOKEN)

    def stop(self) -> None:
        """End production in order; everything that was acknowledged is on the disk already."""
        self._production.stop()
        self._background.shutdown(wait=False, cancel_futures=True)

    def _seed(self) -> int:
        return int(self._seeds.spawn(1)[0].generate_state(1)[0])

    def _ask(self, method: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments, **named))
        except ray.exceptions.RayTaskError as error:  # a room said no: its own sentence is what a person needs
            raise error.cause if isinstance(error.cause, FlywheelError) else error from None
        except ray.exceptions.ActorDiedError as error:
            raise FlywheelError(
                f"A process of the run died. What it said last: {str(error).strip().splitlines()[-1]} Its log is under "
                f"/tmp/ray/session_latest/logs. Go on with: --run-dir {self._run_dir}"
            ) from error

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - began


def _actor(body: type, name: str, *, num_cpus: float = 0.0, max_task_retries: int = 0) -> Any:
    """Return the actor class of a room's body: it comes back by itself; only harmless calls may be repeated."""
    return ray.remote(body).options(name=name, num_cpus=num_cpus, max_restarts=-1, max_task_retries=max_task_retries)


def _middle(plan: Plan) -> Parameters:
    """Return the parameters that the gate judges at: the middle of what the plan trains in."""
    return {name: (low + high) / 2 for name, (low, high) in plan.parameters.items()}
