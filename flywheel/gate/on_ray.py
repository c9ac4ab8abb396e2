"""The gate's body on the cluster: one actor that judges and probes, and workers that it starts. It loads no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.config import GateConfig
from flywheel.errors import FlywheelError
from flywheel.gate.grow import Growth
from flywheel.gate.interval import Ranges
from flywheel.gate.judge import SafetyGate
from flywheel.gate.spread import Player, crew_of, cut, joined
from flywheel.gate.trials import Alone, Crew, Situation, Tried
from flywheel.meters import WHEEL, readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import Bundle, Policy
from flywheel.priority import let_others_first
from flywheel.records import Check, Correction, Episode, Parameters, Probe, Spec, Verdict
from flywheel.simulate.corrected import corrected
from flywheel.simulate.stop import go_on_or_stop
from flywheel.tapes import Scenario
from flywheel.task import Task

TRIES = 3
"""How often a part is played again whose worker died, by itself or with its node."""
_LOOK_S = 1.0  # seconds between two looks whether anybody still waits


class GateActor:
    """Holds a SafetyGate; `ray.remote(GateActor)` makes it an actor."""

    def __init__(
        self, task: Task, config: GateConfig, wheel: str = WHEEL, claims: Mapping[str, float] | None = None
    ) -> None:
        """Build the gate. `wheel` is the name that its metrics carry; its workers claim what `claims` says."""
        let_others_first()
        self._meters = Recorder(wheel)

        def gate(task: Task) -> SafetyGate:
            def many(num: int) -> Crew:
                num = num or _num_cpus(claims or {})
                return Actors(task, config.lockstep, num, claims or {}) if num > 1 else Alone(task, config.lockstep)

            return SafetyGate(task, config, crew=crew_of(task, config, many))

        self._task, self._make, self._gate = task, gate, gate(task)
        self._corrected: tuple[Correction, SafetyGate] | None = None

    def __repr__(self) -> str:
        return f"gate({self._meters.wheel})"

    def _in(self, correction: Correction | None) -> SafetyGate:
        """Return the gate in worlds that act by a correction; the last such one is kept."""
        if correction is None:
            return self._gate
        if self._corrected is None or self._corrected[0] != correction:
            self._corrected = correction, self._make(corrected(self._task, correction))
        return self._corrected[1]

    def judge(
        self,
        policy: Bundle,
        baseline: Bundle | None,
        parameters: Parameters | None,
        seed: int,
        suite: Sequence[Scenario] = (),
        tries: int = 0,
        doubt: Check | None = None,
        correction: Correction | None = None,
        ranges: Ranges | None = None,
    ) -> Verdict:
        """Return the Verdict on a policy, not signed yet; `tries` others were judged since a release was confirmed.

        It is judged in worlds that act by `correction`, as it is probed in such.
        """
        verdict = self._in(correction).judge(
            policy, baseline=baseline, parameters=parameters, suite=suite, seed=seed, now=time.time(), tries=tries,
            doubt=doubt, ranges=ranges,
        )  # fmt: skip
        self._meters.record(readings.of_verdict(verdict))
        return verdict

    def grow(
        self, policy: Bundle, episodes: Sequence[Episode], *, correction: Correction | None = None, **given: Any
    ) -> Growth:
        """As SafetyGate.grow."""
        return self._in(correction).grow(policy, episodes, **given)

    def is_spent(self, tries: int) -> bool:
        """As SafetyGate.is_spent."""
        return self._gate.is_spent(tries)

    def probe(
        self,
        network: bytes,
        spec: Spec,
        seed: int,
        parameters: Parameters | None = None,
        episodes: int = 200,
        max_failed: int | None = None,
        suite: Sequence[Scenario] = (),
        correction: Correction | None = None,
        ranges: Ranges | None = None,
    ) -> Probe:
        """Return a quick look at a network in training, given as ONNX."""
        began, policy = time.perf_counter(), Policy(network, spec)
        probe = self._in(correction).probe(
            policy, seed=seed, parameters=parameters, suite=suite, episodes=episodes, max_failed=max_failed,
            ranges=ranges,
        )  # fmt: skip
        self._meters.record(readings.of_probe(probe, time.perf_counter() - began))
        return probe


class Worker(Player):
    """One of the gate's processes."""

    def __init__(self, *made_of: Any) -> None:
        """Wait to be given parts, behind whoever answers clients."""
        let_others_first()
        super().__init__(*made_of)


class Actors:
    """Plays situations in actors over all nodes that have what is claimed; Ray replaces those that die."""

    def __init__(self, task: Task, lockstep: int, num: int, claims: Mapping[str, float]) -> None:
        """Keep what they are made of; they start with the first play."""
        self._made_of, self._num, self._claims = (task, lockstep), num, dict(claims)
        self._workers: list[Any] = []

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation; a part whose worker dies is played again. FlywheelError where none survives."""
        import ray

        parts = cut(policy, situations, now, self._num)
        if not self._workers:
            self._workers = [self._worker() for _ in range(self._num)]
        asked = [worker.play.remote(part) for worker, part in zip(self._workers, parts, strict=False)]
        try:
            return joined([_answer(part) for part in asked])
        except BaseException as error:
            self.close()  # what is still being played belongs to nobody
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
                raise error.cause from None  # what a policy or a simulator raised there
            if isinstance(error, ray.exceptions.RayActorError):
                raise FlywheelError(
                    f"Workers of the gate died {TRIES + 1} times over the same simulations, so none of them counts: "
                    "an environment crashes, or memory runs out. Judge again with fewer gate.workers, or put that "
                    "right."
                ) from error
            raise

    def close(self) -> None:
        """End the actors; the next play starts others. They end with this process in any case."""
        import ray

        while self._workers:
            ray.kill(self._workers.pop())

    def _worker(self) -> Any:
        import ray

        options = {"max_restarts": -1, "max_task_retries": TRIES, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(Worker).options(num_cpus=0, resources=self._claims, **options)
        return actor.remote(*self._made_of)


def _answer(part: Any) -> Tried:
    """Return the answer to a part; raise Stopped when nobody waits for it any more."""
    import ray

    while not ray.wait([part], timeout=_LOOK_S)[0]:
        go_on_or_stop()
    found: Tried = ray.get(part)
    return found


def _num_cpus(claims: Mapping[str, float]) -> int:
    """Return how many CPUs the nodes have that have what is claimed."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(sum(node.get("CPU", 0) for node in nodes if set(claims) <= set(node)))
