"""What production says of a candidate and of the gate, over a run directory that was made without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import cli, foreign, owner
from flywheel.analyze.predictive import doubt
from flywheel.config import AnalyzeConfig, GateConfig
from flywheel.deploy.registry import open_readonly
from flywheel.errors import UsageError
from flywheel.gate import SafetyGate
from flywheel.policy import load
from flywheel.predicting import Foresight, releases
from flywheel.records import Episode
from flywheel.store.intake import Intake
from flywheel.task import spec_of
from flywheel.testing import SHORT_POLE, linear_policy
from tests.runs import CHANGED, REFERENCE, RELAXED, produced

NEAR = tuple(1.02 * gain for gain in SHORT_POLE)
"""Gains of a policy that acts nearly as the one in service."""


def make(run_dir: Path, num: int, **parameters: float) -> tuple[str, Sequence[Episode]]:
    """Make a run directory in which a policy is in service and production played so many episodes in such worlds."""
    spec = spec_of(RELAXED)
    with owner.opened(RELAXED, REFERENCE, run_dir) as writer:
        network = foreign.load(linear_policy(spec, SHORT_POLE)[0], spec)
        artifact, _ = owner.submit(writer, RELAXED, network, run_dir, seed=1)
        at = writer.promote(artifact.digest).released_at
    seen = produced(RELAXED, load(artifact), num, **parameters)
    episodes = [
        dataclasses.replace(e, started_at=at + 1 + i, ended_at=at + 2 + i, digests=(artifact.digest,) * e.num_steps)
        for i, e in enumerate(seen)
    ]
    with Intake(run_dir) as store:
        store.append(episodes)
    return artifact.digest, episodes


def submit(run_dir: Path, gains: Any) -> tuple[str, Any]:
    spec = spec_of(RELAXED)
    with owner.opened(RELAXED, REFERENCE, run_dir) as writer:
        network = foreign.load(linear_policy(spec, gains)[0], spec)
        artifact, verdict = owner.submit(writer, RELAXED, network, run_dir, seed=2)
    return artifact.digest, verdict


def foresight(run_dir: Path, registry: Any, said: list[str]) -> Foresight:
    def ask(method: Callable[..., Any], *given: Any) -> Any:
        return method(*given)

    def say(stage: str, text: str, **_: Any) -> None:
        said.append(f"{stage}: {text}")

    return Foresight(
        RELAXED,
        GateConfig(),
        AnalyzeConfig(),
        run_dir,
        ask,
        SimpleNamespace(
            registry=registry,
            serving=SimpleNamespace(observer=SimpleNamespace(settled_until=lambda: (float("inf"), ""))),
        ),
        say,  # type: ignore[arg-type]
    )


def test_a_candidate_is_judged_as_ever_while_production_is_as_foretold(tmp_path: Path) -> None:
    make(tmp_path, 60)
    _, verdict = submit(tmp_path, NEAR)
    check = verdict.checks[-1]
    assert verdict.outcome == "pass" and check.name == "predictive" and check.passed is True
    assert "in production 0.0% of 60 failed" in check.note


def test_a_candidate_that_would_pass_is_undecided_once_production_contradicts_the_gate(tmp_path: Path) -> None:
    served, _ = make(tmp_path, 60, **CHANGED)
    _, verdict = submit(tmp_path, NEAR)
    assert verdict.outcome == "inconclusive"
    assert [check.name for check in verdict.checks if check.passed is not True] == ["predictive"]
    assert f"of policy {served[:8]} the gate foretold that 0.0% fail" in verdict.checks[-1].note
    said: list[str] = []
    with closing(open_readonly(tmp_path)) as registry:
        look = foresight(tmp_path, registry, said)
        again = look.question({})
        assert again is not None and again.note == verdict.checks[-1].note, "the same files give the same answer"
        assert look.question(CHANGED) is None, "a calibrated simulator is another one"
        found = releases(
            RELAXED, AnalyzeConfig(sim_gap=0.999, sim_loss=0.999), tmp_path, lambda m, *given: m(*given), registry
        )
        assert [each.is_contradicted for each in found] == [False]
    assert said == [f"gate: {verdict.checks[-1].note}"]


def test_of_the_present_release_only_what_is_settled_counts_while_episodes_are_played(tmp_path: Path) -> None:
    _, episodes = make(tmp_path, 60, **CHANGED)
    place = episodes[10].started_at, episodes[10].id
    with closing(open_readonly(tmp_path)) as registry:
        given = RELAXED, AnalyzeConfig(), tmp_path, lambda m, *these: m(*these), registry
        assert [each.num for each in releases(*given)] == [60]
        assert [each.num for each in releases(*given, lambda: place)] == [10]
        assert list(releases(*given, lambda: (0.0, ""))) == []


def test_what_was_released_before_the_last_calibration_is_not_read(tmp_path: Path) -> None:
    served, _ = make(tmp_path, 60)
    asked: list[str] = []
    with closing(open_readonly(tmp_path)) as registry:
        (release,), (verdict, *_) = registry.releases(), registry.verdicts(served)

        def verdicts(digest: str) -> list[Any]:
            asked.append(digest)
            simulator = "calibrated" if digest == "newest" else verdict.simulator
            return [dataclasses.replace(verdict, digest=digest, simulator=simulator)]

        at = [release.released_at + 20.0 * i for i in range(-1, 2)]
        all_ = [
            dataclasses.replace(release, digest=d, released_at=t)
            for d, t in zip(("oldest", served, "newest"), at, strict=True)
        ]
        known = SimpleNamespace(releases=lambda: all_, verdicts=verdicts)
        with Intake(tmp_path) as store:
            new = [dataclasses.replace(e, id=f"new{e.id}", digests=("newest",) * e.num_steps) for e in store.recent(60)]
            store.append(new)
        found = releases(RELAXED, AnalyzeConfig(), tmp_path, lambda m, *these: m(*these), known)
        check = doubt(found, "calibrated", True)
    assert check is not None and "of policy newest" in check.note
    assert asked == ["newest", served]


def test_no_release_and_no_store_say_nothing(tmp_path: Path) -> None:
    _, verdict = submit(tmp_path, SHORT_POLE)
    assert "predictive" not in [check.name for check in verdict.checks]


def test_a_candidate_is_looked_at_on_the_episodes_of_the_policy_in_service(tmp_path: Path) -> None:
    served, _ = make(tmp_path, 120)
    near, _ = submit(tmp_path, NEAR)
    said: list[str] = []
    with closing(open_readonly(tmp_path)) as registry:
        look = foresight(tmp_path, registry, said)
        look.look(near, served, (), 0)
        assert look.estimate is not None and look.estimate.effective > 50 and not look.is_slow
        look.estimate = dataclasses.replace(
            look.estimate, failed=dataclasses.replace(look.estimate.failed, interval=(0.9, 1.0))
        )  # type: ignore[arg-type, type-var]
        assert look.is_slow
        kept = look.evidence()["off_policy"]
        assert kept["digest"] == near and kept["screened"] and {w["method"] for w in kept["returns"]} >= {"DR", "WIS"}
        assert look.evidence() == {} and not look.is_slow
        look.look(near, None, (), 0)
        look.look(served, served, (), 0)
        assert look.estimate is None
    assert len(said) == 1 and said[0].startswith(f"gate: off-policy estimate of policy {near[:8]} from 120 episodes")


def test_an_estimate_that_fails_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, _ = make(tmp_path, 120)
    near, _ = submit(tmp_path, NEAR)

    def fails(*_: Any) -> Any:
        raise ValueError("a shape that nobody thought of")

    said: list[str] = []
    with closing(open_readonly(tmp_path)) as registry:
        look = foresight(tmp_path, registry, said)
        with monkeypatch.context() as patched:
            patched.setattr("flywheel.predicting.evaluate", fails)
            look.look(near, served, (), 0)
        with Intake(tmp_path) as store:
            store.sealer.seal(1e12)
        (tmp_path / "segments" / "00000001.parquet").write_bytes(b"?")
        look.look(near, served, (), 0)
        assert look.estimate is None
    assert len(said) == 2 and "a shape that nobody" in said[0] and "is damaged" in said[1]


def test_the_command_estimates_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served, episodes = make(tmp_path, 60)
    far, _ = submit(tmp_path, [-gain for gain in SHORT_POLE])
    assert cli.call(["estimate", served[:8], "--run-dir", str(tmp_path), "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"policy {served[:8]} on 60 episodes of policy {served[:8]}, which count as 60 (seed 1)" in shown
    mean = sum(episode.total for episode in episodes) / 60
    assert shown.count(f"{mean:8.5g}") == 5, "the same policy has the logged mean, by each method"
    assert cli.call(["estimate", far[:8], "--run-dir", str(tmp_path)]) == 3
    assert "refused: 60 episodes of production count as" in capsys.readouterr().out
    with pytest.raises(UsageError, match="policy"):
        cli.call(["estimate", "nothing", "--run-dir", str(tmp_path)])


def test_the_gate_adds_a_doubt_to_what_it_finds() -> None:
    gate = SafetyGate(RELAXED, GateConfig(latency_calls=50, search_sims=0, workers=1))
    policy = linear_policy(spec_of(RELAXED), SHORT_POLE)[0]
    plain = gate.judge(policy, seed=3, now=1.0)
    doubt = dataclasses.replace(plain.checks[0], name="predictive", passed=None)
    doubted = gate.judge(policy, seed=3, now=1.0, doubt=doubt)
    assert plain.outcome == "pass" and doubted.outcome == "inconclusive" and doubted.checks[-1] == doubt
