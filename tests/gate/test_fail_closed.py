"""Whatever goes wrong with a verdict, nothing is deployed by it: each case, twenty times, through the real registry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.config import GateConfig
from flywheel.deploy.registry import Registry
from flywheel.errors import Refused
from flywheel.gate import SafetyGate
from flywheel.gate.judge import terms
from flywheel.gate.trials import Alone, Situation, Tried
from flywheel.policy import Policy
from flywheel.records import Artifact, Verdict
from flywheel.task import Limits, Task, task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, load_linear, write_linear_artifact
from flywheel.verdicts import encode

TIMES = 20
CONFIG = GateConfig(num_sims=20, batch=20, max_sims=200, latency_calls=5, search_sims=0, stress_sims=20, edge_trials=2)
TASK = dataclasses.replace(cartpole, limits=Limits(max_failure_rate=0.2, max_regression=0.2, max_latency_s=60.0))
SHORT = dataclasses.replace(
    TASK, max_steps=5, parameters=cartpole.parameters[3:4], drift={}, edge_cases=cartpole.edge_cases[:1]
)
"""Episodes of 5 steps, which every policy here survives: what is tried is what becomes of a verdict."""
NOW = 1000.0


class Odd(Alone):
    """A crew to which something happens at its call number `at`."""

    def __init__(self, task: Task, at: int, happens: Callable[[Tried], Tried]) -> None:
        super().__init__(task, 256)
        self._at, self._happens, self._calls = at, happens, 0

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        self._calls += 1
        played = super().play(policy, situations, now)
        return self._happens(played) if self._calls == self._at else played


def lost(played: Tried) -> Tried:
    return dataclasses.replace(played, trials=played.trials[:-1])


def swapped(played: Tried) -> Tried:
    return dataclasses.replace(played, trials=(*played.trials[1:], played.trials[0]))


def no_return(played: Tried) -> Tried:
    return dataclasses.replace(
        played, trials=(*played.trials[:-1], dataclasses.replace(played.trials[-1], total=math.nan))
    )


def no_margin(played: Tried) -> Tried:
    odd = dataclasses.replace(played.trials[-1], margin=math.nan)
    return dataclasses.replace(played, trials=(*played.trials[:-1], odd))


def late(played: Tried) -> Tried:
    raise TimeoutError("no answer within 60 s")


def dead(played: Tried) -> Tried:
    raise RuntimeError("the worker died")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, list[Artifact]]]:
    """A registry with a policy in service and candidates."""
    run_dir = tmp_path_factory.mktemp("closed")
    registry = Registry(run_dir, task_digest(SHORT))
    some = []
    for number in range(TIMES + 1):
        gains = np.array(GOOD) * (1 + number / 1000)
        some.append(write_linear_artifact(run_dir / "policies", SHORT, tuple(gains), version=number + 1))
        registry.add(some[-1])
    first = SafetyGate(SHORT, CONFIG).judge(some[0], seed=1, now=NOW)
    registry.set_terms(*terms(SHORT, CONFIG, {}), NOW)
    registry.record(first)
    registry.promote(some[0].digest, NOW)
    yield registry, some
    registry.close()


def refused(registry: Registry, digest: str, now: float = NOW) -> str:
    """Return why a promotion is refused, after which the same policy is in service as before."""
    before = registry.champion()
    with pytest.raises(Refused) as why:
        registry.promote(digest, now)
    assert registry.champion() == before
    return str(why.value)


@pytest.mark.parametrize("happens", [lost, swapped, no_return, no_margin, late, dead])
def test_a_crew_that_brings_back_anything_else_than_all_of_it(
    happens: Callable[[Tried], Tried], shelf: tuple[Registry, list[Artifact]]
) -> None:
    registry, (champion, *candidates) = shelf
    for number, candidate in enumerate(candidates):
        at = 1 + number % 8  # every call of a verdict in turn: edge cases, pilot, cells, nominal and stressed worlds
        gate = SafetyGate(SHORT, CONFIG, crew=Odd(SHORT, at, happens))
        verdict = gate.judge(candidate, baseline=champion, seed=number, now=NOW)
        assert verdict.outcome == "inconclusive", (number, verdict.checks)
        registry.record(verdict)
        assert "inconclusive" in refused(registry, candidate.digest)


def test_a_verdict_that_is_not_there_in_time(shelf: tuple[Registry, list[Artifact]]) -> None:
    registry, (champion, *candidates) = shelf
    for number, candidate in enumerate(candidates):
        gate = SafetyGate(SHORT, dataclasses.replace(CONFIG, timeout_s=1e-4))
        verdict = gate.judge(candidate, baseline=champion, seed=number, now=NOW)
        assert verdict.outcome == "inconclusive" and "timeout_s" in verdict.checks[0].note
        registry.record(verdict)
        assert "inconclusive" in refused(registry, candidate.digest)


def of_another_digest(verdict: Verdict, other: Artifact) -> Verdict:
    return dataclasses.replace(verdict, digest=other.digest)


@pytest.mark.parametrize(
    ("change", "now", "said"),
    [
        ({"outcome": "inconclusive"}, NOW, "inconclusive"),
        ({"outcome": "fail"}, NOW, "fail"),
        ({"task": "0" * 64}, NOW, "another task"),
        ({"config": "0" * 64}, NOW, "configuration is another"),
        ({"simulator": "0" * 64}, NOW, "calibrated anew"),
        ({"baseline": "0" * 64}, NOW, "not judged against the policy that is in service"),
        ({"baseline": None}, NOW, "not judged against the policy that is in service"),
        ({}, NOW + 86_401, "not valid now"),
        ({}, NOW - 1, "not valid now"),
    ],
)
def test_a_verdict_that_is_not_about_this(
    change: dict[str, Any], now: float, said: str, shelf: tuple[Registry, list[Artifact]]
) -> None:
    registry, (champion, *candidates) = shelf
    gate = SafetyGate(SHORT, CONFIG)
    good = gate.judge(candidates[0], baseline=champion, seed=3, now=NOW)
    assert good.outcome == "pass"
    for candidate in candidates:
        registry.record(dataclasses.replace(of_another_digest(good, candidate), **change))
        assert said in refused(registry, candidate.digest, now)


def test_a_verdict_for_another_digest(shelf: tuple[Registry, list[Artifact]]) -> None:
    registry, (champion, *candidates) = shelf
    for candidate, other in zip(candidates, candidates[1:] + candidates[:1], strict=True):
        signed = registry.record(
            SafetyGate(SHORT, CONFIG).judge(load_linear(SHORT, digest=other.digest), baseline=champion, seed=1, now=NOW)
        )
        moved = dataclasses.replace(signed, digest=candidate.digest)
        with registry._db:
            registry._db.execute(
                "INSERT INTO verdicts (digest, outcome, judged_at, record) VALUES (?, 'pass', ?, ?)",
                (candidate.digest, NOW, encode(moved)),
            )
        assert "signature" in refused(registry, candidate.digest)


def test_recalibration_ends_promotion_by_an_old_verdict_and_never_a_rollback(tmp_path: Path) -> None:
    registry, gate = Registry(tmp_path, task_digest(SHORT)), SafetyGate(SHORT, CONFIG)
    some = [
        write_linear_artifact(tmp_path / "policies", SHORT, tuple(np.array(GOOD) * (1 + n / 1000)), version=n + 1)
        for n in range(3)
    ]
    for artifact in some:
        registry.add(artifact)
    registry.set_terms(*terms(SHORT, CONFIG, {}), NOW)
    for number, artifact in enumerate(some):
        registry.record(gate.judge(artifact, baseline=some[number - 1] if number else None, seed=1, now=NOW))
    for artifact in some[:2]:
        registry.promote(artifact.digest, NOW)
    registry.set_terms(*terms(SHORT, CONFIG, {"length": 2.0}), NOW)
    assert "calibrated anew" in refused(registry, some[2].digest)
    assert registry.rollback(NOW).digest == some[0].digest
    registry.close()
