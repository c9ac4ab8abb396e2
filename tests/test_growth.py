"""A run directory's suite grows: from the store's failures, through the gate, into the registry, and once each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.gate_suite import TASK, holed, once, produced
from flywheel import cli, foreign, growth, owner
from flywheel.config import Config, GateConfig
from flywheel.gate import SafetyGate
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.store.intake import Intake
from flywheel.tapes import Scenario, short
from flywheel.task import spec_of
from flywheel.testing import load_linear

CENTRE = 0.9
NOW = 5000.0
CONFIG = Config(gate=GateConfig(search_sims=0, latency_calls=50, workers=1))


class Asked:
    """A run directory with a policy in service that has a hole, and what its looks asked for."""

    def __init__(self, run_dir: Path, writer: owner.Owner) -> None:
        self.run_dir, self.registry = run_dir, writer.registry
        self.policy = self.serve(holed(CENTRE), writer)
        self.num_grown = 0

    def serve(self, network: bytes, writer: owner.Owner) -> Policy:
        spec = spec_of(TASK)
        artifact, _ = owner.submit(writer, TASK, foreign.load(network, spec), self.run_dir, 1)
        writer.promote(artifact.digest)
        return Policy(network, spec, artifact.digest)

    def produce(self, num: int, state: tuple[float, ...] | None = None, seed: int = 1) -> list[Episode]:
        """Put episodes into production, the last ones that it had."""
        episodes = produced(self.policy, np.random.default_rng(seed), [state] * num)
        with Intake(self.run_dir) as store:
            first = store.count()
            episodes = [dataclasses.replace(e, started_at=1000.0 + first + i) for i, e in enumerate(episodes)]
            store.append(episodes)
        return episodes

    def look(self, now: float = NOW, **parameters: float) -> growth.Look:
        """Look at production's failures."""

        def ask(method: Any, *arguments: Any, **named: Any) -> Any:
            self.num_grown += method == gate.grow
            return method(*arguments, **named)

        gate = SafetyGate(TASK, CONFIG.gate)
        return growth.look(TASK, CONFIG.gate, self.run_dir, ask, self.registry, gate.grow, parameters, now)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Asked]:
    with owner.opened(TASK, "experiments.gate_suite:TASK", tmp_path / "run", CONFIG) as writer:
        yield Asked(tmp_path / "run", writer)


def test_failures_are_looked_at_once_and_become_one_scenario(run: Asked) -> None:
    assert str(run.look()) == "" and run.num_grown == 0, "there is no production yet"
    run.produce(10)
    assert run.look() == growth.Look() and run.num_grown == 0, "nothing failed"
    failed = run.produce(3, (CENTRE, 0.0, 0.0, 0.0), seed=2)
    found = run.look()
    (scenario,) = run.registry.scenarios()
    assert found.made == (scenario,) and scenario.fork[0] in {episode.id for episode in failed}
    assert str(found) == (
        f"1 failure of production became a scenario: {scenario.name} (episode {short(scenario.fork[0])}); "
        "2 more are copies of these or earlier ones"
    )
    assert run.look() == growth.Look() and run.num_grown == 1, "each failure is looked at once"
    run.produce(2, (CENTRE, 0.0, 0.0, 0.0), seed=3)
    later = run.look()
    assert later.made == () and later.num_copies == 2 and str(later) == ""
    assert run.registry.scenarios() == (scenario,)


def test_what_did_not_come_again_is_looked_at_in_another_world_only(run: Asked) -> None:
    """The cause is the world: production's pole is longer than the simulator's."""
    with Intake(run.run_dir) as store:
        calm = produced(run.policy, np.random.default_rng(1), [None] * 5)
        store.append([*calm[:4], dataclasses.replace(calm[4], failed=True)])
    found = run.look()
    assert found.num_unexplained == 1 and "did not fail again in simulation" in str(found) and not found.made
    assert run.look() == growth.Look() and run.num_grown == 1
    assert run.look(force_mag=3.0, gravity=30.0, length=0.1).made and run.num_grown == 2, (
        "in this one the policy is too weak"
    )


def test_what_a_person_dropped_does_not_come_back(run: Asked) -> None:
    run.produce(4)
    run.produce(1, (CENTRE, 0.0, 0.0, 0.0), seed=2)
    (scenario,) = run.look().made
    run.registry.drop_scenario(scenario.name)
    run.produce(1, (CENTRE, 0.0, 0.0, 0.0), seed=3)
    assert run.look().made == () and run.registry.scenarios() == ()


def test_what_nobody_survives_is_given_up(run: Asked) -> None:
    doomed = Scenario(
        name="doomed", parameters={}, fork=("episode_1", 0), saved_at=NOW, state=(0.0, 0.0, 0.2, 4.0),
        origin="production", survived=False,
    )  # fmt: skip
    run.registry.grown([doomed], {"episode_1": "doomed"}, "", NOW)
    gate = SafetyGate(TASK, CONFIG.gate)
    for number in range(5):
        assert run.look().given_up == ()
        judged = gate.judge(load_linear(TASK), suite=run.registry.scenarios(), seed=number, now=NOW + 1 + number)
        assert judged.outcome == "fail"
        run.registry.record(dataclasses.replace(judged, digest=run.policy.digest))
    found = run.look()
    assert found.given_up == (doomed,) and "nobody was ever seen to survive doomed (episode episode_1)" in str(found)
    assert run.registry.scenarios() == () and run.registry.dropped() == (doomed,)


def test_one_that_is_mastered_again_and_again_is_closed_and_stays(
    run: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.produce(4)
    run.produce(1, (CENTRE, 0.0, 0.0, 0.0), seed=2)
    (scenario,) = run.look().made
    listed = ["flywheel", "scenarios", "list", "--run-dir", str(run.run_dir)]
    monkeypatch.setattr("sys.argv", listed)
    gate, told = SafetyGate(TASK, CONFIG.gate), []
    for number in range(3):
        assert run.look().closed == frozenset()
        assert cli.call(listed[1:]) == 0
        told.append(capsys.readouterr().out)
        judged = gate.judge(load_linear(TASK), suite=run.registry.scenarios(), seed=number, now=NOW + 1 + number)
        run.registry.record(dataclasses.replace(judged, digest=run.policy.digest))
    assert run.look().closed == {scenario.name} and run.registry.scenarios() == (scenario,)
    assert cli.call(listed[1:]) == 0
    assert "failed in production; a start state; open, not tried yet" in told[0]
    assert "open, mastered" in told[2] and "closed, mastered" in capsys.readouterr().out


def test_failures_of_a_policy_that_is_not_here_are_told_and_hide_no_others(run: Asked) -> None:
    run.produce(4)
    run.produce(1, (CENTRE, 0.0, 0.0, 0.0), seed=2)
    stranger = produced(
        Policy(run.policy.network, run.policy.spec, "stranger"), np.random.default_rng(3), [(CENTRE, 0, 0, 0)]
    )
    with Intake(run.run_dir) as store:
        store.append([dataclasses.replace(episode, started_at=9000.0) for episode in stranger])
    found = run.look()
    assert len(found.made) == 1 and len(found.notes) == 1 and "knows no policy stranger" in found.notes[0]


@pytest.mark.parametrize("how", ["start", "push"])
def test_nobodys_help_is_needed(how: str, tmp_path: Path) -> None:
    seen = once(np.random.default_rng(11), tmp_path / "run", how, copies=2)
    assert seen.in_suite and seen.refused and seen.passed and seen.num_scenarios == 1
