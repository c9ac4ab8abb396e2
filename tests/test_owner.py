"""Who writes to a run directory: one at a time, by the gate's word, in the worlds that the wheel knows."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from flywheel import archive, cli, foreign, owner
from flywheel import verdicts as signed
from flywheel.config import Config, DeployConfig, GateConfig, TrainConfig
from flywheel.deploy import registry as registries
from flywheel.deploy.registry import open_readonly
from flywheel.errors import Refused, UsageError
from flywheel.policy import Policy
from flywheel.records import Plan, Turn, Verdict
from flywheel.store.excluded import Exclusion
from flywheel.task import Limits, spec_of, task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, linear_policy

# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
TASK = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))


def policy(gains: tuple[float, ...] = GOOD) -> Policy:
    spec = spec_of(TASK)
    return foreign.load(linear_policy(spec, gains)[0], spec)


def verdicts(run_dir: Path) -> list[Verdict]:
    """Return every verdict that the registry holds, oldest first."""
    with contextlib.closing(sqlite3.connect(run_dir / registries.FILE)) as db:
        return [signed.decode(text) for (text,) in db.execute("SELECT record FROM verdicts ORDER BY id")]


def submit(run_dir: Path, gains: tuple[float, ...] = GOOD) -> str:
    """Submit a policy and promote it; return its digest."""
    with owner.opened(TASK, "cartpole", run_dir) as writer:
        artifact, _ = owner.submit(writer, TASK, policy(gains), run_dir, seed=1)
        return writer.promote(artifact.digest).digest


def test_a_good_policy_is_put_into_service_and_its_verdict_signed(tmp_path: Path) -> None:
    digest = submit(tmp_path / "run")
    registry = open_readonly(tmp_path / "run")
    assert registry.champion() == digest
    (artifact,) = registry.artifacts()
    assert artifact.trained_on["strategy"] == "trained elsewhere"
    verdict = registry.verdict(digest)
    assert verdict is not None and verdict.outcome == "pass" and verdict.signature
    registry.close()


def test_each_candidate_spends_of_the_budget_until_it_is_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with owner.opened(cartpole, "cartpole", tmp_path) as writer:
        for factor in (1, 2):
            gains = tuple(factor * gain for gain in GOOD)
            _, second = owner.submit(writer, cartpole, policy(gains), tmp_path, seed=1)
    assert second.tries == 1
    assert cli.call(["budget", f"--run-dir={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert told.count("was judged") == 2
    assert "2 candidates judged since it was filled; the next one may pass with an error of 0.0083." in told
    assert cli.call(["budget", f"--run-dir={tmp_path}", "--refill", "a week without a failure"]) == 0
    told = capsys.readouterr().out
    assert "filled: a week without a failure" in told and "0 candidates judged since it was filled" in told


def test_a_rollback_condemns_the_policy_in_service_for_good(tmp_path: Path) -> None:
    first, second = submit(tmp_path, GOOD), submit(tmp_path, tuple(2 * gain for gain in GOOD))
    with owner.opened(TASK, "cartpole", tmp_path) as writer:
        assert writer.rollback().digest == first
        with pytest.raises(Refused, match="nothing to roll back to"):
            writer.rollback()
    registry = open_readonly(tmp_path)
    assert registry.champion() == first and registry.condemned() == {second}
    assert registry.reasons()[second][0] == "rolled back"
    registry.close()


def test_a_challenge_goes_by_the_directorys_configuration(tmp_path: Path) -> None:
    config = Config(deploy=DeployConfig(shadow_decisions=0, ramp=(0.2, 0.4)))
    with archive.opened(tmp_path, config, TASK.name, task_digest(TASK)):
        pass
    first = submit(tmp_path)
    with owner.opened(TASK, "cartpole", tmp_path) as writer:
        artifact, _ = owner.submit(writer, TASK, policy(tuple(2 * gain for gain in GOOD)), tmp_path, seed=1)
        canary = writer.challenge(artifact.digest)
    assert (canary.champion, canary.challenger, canary.share) == (first, artifact.digest, 0.2)


def test_a_bad_policy_is_kept_with_its_verdict_and_never_serves(tmp_path: Path) -> None:
    good = submit(tmp_path)
    with pytest.raises(Refused, match="'fail', so it can't be served"):
        submit(tmp_path, BAD)
    registry = open_readonly(tmp_path)
    assert registry.champion() == good
    outcomes = [registry.verdict(artifact.digest) for artifact in registry.artifacts()]
    assert [verdict and verdict.outcome for verdict in outcomes] == ["pass", "fail"]
    assert outcomes[1] is not None and outcomes[1].baseline == good
    registry.close()


def test_the_same_file_is_the_same_policy_and_stays_condemned(tmp_path: Path) -> None:
    first = submit(tmp_path)
    assert submit(tmp_path) == first
    assert len(verdicts(tmp_path)) == 1, "the one in service keeps its verdict"
    second = submit(tmp_path, tuple(2 * gain for gain in GOOD))
    with owner.opened(TASK, "cartpole", tmp_path) as writer:
        writer.registry.rollback(now=writer.registry.releases()[-1].released_at + 1)
    with pytest.raises(Refused, match="condemned"):
        submit(tmp_path, tuple(2 * gain for gain in GOOD))
    registry = open_readonly(tmp_path)
    assert registry.champion() == first and registry.condemned() == {second}
    registry.close()


def test_it_is_judged_in_the_worlds_that_the_wheel_trained_for_last(tmp_path: Path) -> None:
    with archive.opened(tmp_path, Config(), TASK.name, task_digest(TASK)):
        plan = Plan(strategy="hold", reasons=(), parameters={"length": (1.8, 2.2)})
        archive.append_turn(tmp_path, Turn(number=1, plan=plan, artifact=None, verdict=None, release=None, evidence={}))
    with pytest.raises(Refused):
        submit(tmp_path, SHORT_POLE)
    (verdict,) = verdicts(tmp_path)
    assert {trial.parameters["length"] for trial in verdict.trials if trial.scenario == "nominal"} == {2.0}
    open_to = {trial.parameters["length"] for trial in verdict.trials if trial.scenario == "interval"}
    assert len(open_to) > 50 and min(open_to) > 1.8 and max(open_to) < 2.2, "as the wheel's own candidates are"
    registry = open_readonly(tmp_path)
    assert registry.artifacts()[0].trained_on["parameters"] == {"length": [1.8, 2.2]}
    registry.close()


def test_the_configuration_of_the_last_start_counts_and_stays(tmp_path: Path) -> None:
    config = Config(gate=GateConfig(num_sims=120, max_sims=300), train=TrainConfig(lr=0.5), run_dir="mine")
    with archive.opened(tmp_path, config, TASK.name, task_digest(TASK)):
        pass
    submit(tmp_path)
    assert owner.configuration(tmp_path, "cartpole") == config
    (verdict,) = verdicts(tmp_path)
    assert sum(trial.scenario == "nominal" for trial in verdict.trials) == 120


def test_one_process_writes(tmp_path: Path) -> None:
    with (
        owner.opened(TASK, "cartpole", tmp_path),
        pytest.raises(UsageError, match="Another process"),
        owner.opened(TASK, "cartpole", tmp_path),
    ):
        pass
    with pytest.raises(UsageError, match="belongs to"), owner.opened(cartpole, "cartpole", tmp_path):
        pass


def test_an_owner_that_was_killed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    submit(tmp_path)
    archive.write_living(tmp_path, f"127.0.0.1:{port}", "wheel", "/")
    submit(tmp_path)
    assert archive.read_living(tmp_path) is None


def test_the_living_owner_of_the_store_excludes_and_readmits() -> None:
    asked: list[tuple[str, ...]] = []
    there = Exclusion(kind="episode", name="e1", why="a hand", at=1.0)

    def answer(*words: str) -> Exclusion:
        asked.append(words)
        return there

    store = SimpleNamespace(exclude=answer, readmit=answer)
    attached = SimpleNamespace(registry=None, observer=None, store=store)
    living = owner.Living(attached, lambda method, *arguments: method(*arguments), TASK, Config())
    assert living.exclude("episode=e1", "a hand") is living.readmit("episode=e1") is there
    assert asked == [("episode=e1", "a hand"), ("episode=e1",)]
    attached.store = None
    with pytest.raises(UsageError, match="starting or ending"):
        owner.Living(attached, lambda method: method(), TASK, Config()).readmit("episode=e1")
