"""The whole wheel as a user turns it: the command, its report, its end by Ctrl-C, and going on afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from flywheel import archive
from flywheel.analyze.replay import replayed
from flywheel.client import Client
from flywheel.config import TraceConfig
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.meters import BATCH_AGE, BATCH_EFFECTIVE, BATCH_SHARE, METERS
from flywheel.store import intake
from flywheel.trace.context import RELEASE, STEP, bar_of, is_sampled, trace_of
from flywheel.trace.spanstore import open_readonly
from tests.on_ray.scrape import Scraped
from tests.queries import asked, queries
from tests.trackers.events import curves

OFF_POLICY = (BATCH_SHARE, BATCH_AGE, BATCH_EFFECTIVE)
"""Meters of what algorithms draw that learn from a table; PPO draws nothing."""


class Run:
    """`python -m flywheel.run` in a process group of its own, as a terminal starts it."""

    def __init__(self, run_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.run_dir, self.log = run_dir, run_dir.parent / f"{run_dir.name}.log"
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flywheel.run", "--run-dir", str(run_dir), "--deploy.port", "0", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def wait_for(self, said: Callable[[str], bool], timeout_s: float = 240.0) -> None:
        """Return when it has printed what is waited for; fail when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not said(self.text):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def is_over(self, timeout_s: float) -> bool:
        """Say whether it ends within that time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def interrupt(self) -> float:
        """Press Ctrl-C, and return the seconds until it has ended."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)
        return time.monotonic() - began

    def summary(self) -> dict[str, Any]:
        """Return summary.json."""
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start runs in one run directory; whatever a test leaves up is ended."""
    runs: list[Run] = []

    def begin(*arguments: str) -> Run:
        runs.append(Run(tmp_path / "run", *arguments))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.terminate()
        run.process.wait(60)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Scraped]:
    """A whole run in which the change hurt, and its metrics: what it trained may bear the change; then another seed."""
    for seed in (11, 12, 13):
        run, scraped = turn_to_the_end(tmp_path_factory.mktemp("turned") / "run", seed)
        if run.process.poll() != 0 or run.summary()["production"]["recovered"] is not None:
            break
    return run, scraped


def turn_to_the_end(run_dir: Path, seed: int) -> tuple[Run, Scraped]:
    """Make a whole run, scraping each second; one stranger's episode begins in it and is never ended."""
    with tempfile.TemporaryDirectory(prefix="fw-", ignore_cleanup_errors=True) as temp:  # Ray's sockets need it short
        run = Run(
            run_dir,
            *("--seed", str(seed), "--observe.episode-timeout-s", "15"),
            environment={"RAY_TMPDIR": temp, "RAY_metrics_report_interval_ms": "1000"},
        )
        scraped, deadline = Scraped(Path(temp) / "ray"), time.monotonic() + 600
        try:
            run.wait_for(lambda text: "answers at" in text, 420)
            begin_and_leave(run)
            scraped.watch(lambda seconds: run.is_over(seconds) or time.monotonic() > deadline)
        finally:
            run.process.terminate()  # nothing, if it has ended
            run.process.wait(60)
        return run, scraped


def begin_and_leave(run: Run) -> None:
    """Take one step of an episode, and never come back."""
    url = run.text.partition("answers at ")[2].split()[0]
    with Client(url, token_file(run.run_dir, CLIENT).read_text().strip()) as client:
        batch = client.batch()
        batch.act(batch.begin(1), np.zeros((1, 4)), None)


def test_every_episode_that_failed_or_was_sampled_and_every_turn_has_its_spans(turned: tuple[Run, Scraped]) -> None:
    run_dir, bar = turned[0].run_dir, bar_of(TraceConfig().sample_share)
    with open_readonly(run_dir) as spans, intake.open_readonly(run_dir) as store:
        for outcome in store.outcomes("production"):
            found = spans.of_episode(outcome.id)
            if outcome.failed or outcome.end == "lost" or is_sampled(trace_of(outcome.id), bar):
                assert found[0].name == "episode"
                steps = [span.attributes[STEP] for span in found if span.name == "act"]
                assert sorted(set(steps)) == list(range(outcome.num_steps)), outcome
        for turn in archive.read_turns(run_dir):
            root, *stages = spans.of_turn(turn.number)
            assert (root.name, root.attributes["flywheel.strategy"]) == ("turn", turn.plan.strategy)
            names = [span.name for span in stages if span.depth == 1]
            assert names[0] == "analyze" and names[-1] == "observe"
            curve = [dict((name, value) for name, value, _ in s.metrics) for s in stages if s.name == "iteration"]
            assert turn.plan.strategy == "hold" or [point["steps"] for point in curve] == sorted(
                point["steps"] for point in curve
            )
            if turn.release is not None:
                (deploy,) = (span for span in stages if span.name == "deploy")
                assert deploy.attributes[RELEASE] == turn.release.released_at
        assert len(spans.named("signal")) >= 1
        assert {link for span in spans.named("turn") for link, _ in span.links} <= {
            span.trace for span in spans.named("signal")
        }


def test_the_wheel_turns_from_shift_to_recovery(turned: tuple[Run, Scraped]) -> None:
    run, _ = turned
    assert run.process.poll() == 0, run.text
    summary = run.summary()
    production = summary["production"]
    assert summary["detected_after_episodes"] <= 30, run.text
    assert production["recovered"] >= 0.95 * production["before"], run.text
    assert summary["requests"]["errors"] == 0
    assert summary["requests"]["total"] > 0
    assert summary["episodes"]["acknowledged"] == summary["episodes"]["stored"] > 0
    strategies = [turn["strategy"] for turn in summary["turns"]]
    assert strategies[0] == "continue_training"
    assert "retrain_prioritize_recent" in strategies
    assert summary["turns"][-1]["released"]
    assert (run.run_dir / "report.png").stat().st_size > 10_000
    assert "Traceback" not in run.text


def test_it_recovers_where_no_parameter_of_the_simulator_explains_the_change(start: Callable[..., Run]) -> None:
    run = start("--seed", "11", "--traffic.fault", "swapped")
    assert run.is_over(420.0) and run.process.poll() == 0, run.text
    production = run.summary()["production"]
    assert production["after_shift"] < 50.0 and production["recovered"] >= 0.95 * production["before"], run.text
    turns = archive.read_turns(run.run_dir)
    last = next(turn for turn in reversed(turns) if turn.release is not None)
    assert last.plan.correction is not None and last.plan.correction.actions == (1, 0)
    assert last.verdict is not None and last.verdict.correction == last.plan.correction
    assert last.artifact is not None and last.artifact.trained_on["correction"]["actions"] == [1, 0]
    assert all(again.is_same for again in replayed(turns)), "every decision comes out the same"


def test_each_round_has_its_curves_and_each_turn_its_point(turned: tuple[Run, Scraped]) -> None:
    run, _ = turned
    board = run.run_dir / "tensorboard"
    for turn in archive.read_turns(run.run_dir):
        if turn.artifact is None:
            continue
        found = curves(board / f"turn-{turn.number:04}")
        steps = [step for step, _ in found["probe/failure_rate"]]
        assert steps == sorted(set(steps)) and steps[-1] <= turn.artifact.trained_on["steps"]
        assert all(value > 0.0 for _, value in found["train/steps_per_second"])
        assert (turn.number, float(turn.verdict is not None and turn.verdict.outcome == "pass")) in curves(
            board / "turns"
        )["gate/passed"]
    assert sum(path.stat().st_size for path in board.rglob("*") if path.is_file()) < 500_000
    lines = [line for line in run.text.splitlines() if " train " in line]
    assert any("at most" in line for line in lines) and "nan" not in " ".join(lines)


def test_every_meter_and_every_query_of_the_dashboard_is_in_the_scrape_of_a_live_run(
    turned: tuple[Run, Scraped],
) -> None:
    _, scraped = turned
    for meter in METERS:
        if meter in OFF_POLICY:
            continue
        for end in ("_bucket", "_sum", "_count") if meter.kind == "histogram" else ("",):
            assert {"wheel", *meter.tags} <= scraped.labels(meter.shown + end), meter.name
    unseen = {meter.shown for meter in OFF_POLICY}
    for query in queries():
        for name, labels in asked(query).items():
            assert name in unseen or labels <= scraped.labels(name), query


def test_a_gauge_that_was_set_once_stays(turned: tuple[Run, Scraped]) -> None:
    _, scraped = turned
    assert scraped.presence("ray_flywheel_policy_version") > 0.5


def test_the_scraped_numbers_are_those_of_the_run(turned: tuple[Run, Scraped]) -> None:
    run, scraped = turned
    turns = archive.read_turns(run.run_dir)
    verdicts = [turn.verdict.outcome for turn in turns if turn.verdict is not None]
    assert scraped.values("ray_flywheel_verdicts_total", "outcome") == {(o,): verdicts.count(o) for o in verdicts}
    assert sum(scraped.values("ray_flywheel_releases_total").values()) == sum(t.release is not None for t in turns)
    assert scraped.values("ray_flywheel_policy_version", "stage")[("full",)] in {
        turn.artifact.version for turn in turns if turn.artifact is not None
    }
    assert scraped.values("ray_flywheel_release_share", "stage") == {("shadow",): 0, ("canary",): 0, ("full",): 1}
    assert {kind for (kind,) in scraped.values("ray_flywheel_signals_total", "kind")} <= {
        "shift_detected",
        "degradation",
    }
    assert scraped.values("ray_flywheel_losses_total", "kind")[("void",)] >= 1
    assert 0 < sum(scraped.values("ray_flywheel_episodes_total").values()) <= intake_count(run.run_dir)
    rows = scraped.values("ray_flywheel_rows_total", "kind")
    assert 0 < rows[("kept",)] <= rows[("received",)]
    assert sum(scraped.values("ray_flywheel_decisions_total").values()) > 0
    assert 0 <= min(scraped.seen["ray_flywheel_production_failure_rate"]) < 1
    assert 400 < max(scraped.seen["ray_flywheel_production_return"]) <= 500
    assert max(scraped.seen["ray_flywheel_monitor_evidence"]) >= min(scraped.seen["ray_flywheel_monitor_threshold"]) > 1
    assert scraped.values("ray_flywheel_simulations_total", "purpose")[("judge",)] >= 100
    spent = scraped.values("ray_flywheel_stage_seconds_total", "stage")
    assert spent[("train",)] == pytest.approx(sum(turn.evidence["seconds"]["train"] for turn in turns), rel=0.01)
    assert {stage for (stage,) in scraped.values("ray_flywheel_stages_total", "stage")} >= {"train", "gate"}
    requests = scraped.values("ray_flywheel_requests_total", "route", "code")
    assert requests[("/v1/act", "200")] > requests[("/v1/end", "200")] > 0
    timed = scraped.values("ray_flywheel_request_seconds_count", "route", "code")
    assert 0 < timed[("/v1/act", "200")] <= requests[("/v1/act", "200")]
    mean_ingest = sum(scraped.values("ray_flywheel_ingest_seconds_sum").values()) / sum(
        scraped.values("ray_flywheel_ingest_seconds_count").values()
    )
    assert 0 < mean_ingest < 5


def trainer_of(run: Run) -> psutil.Process:
    """Return the process of a run's trainer: a child of the raylet that belongs to the run's own Ray."""
    living = archive.read_living(run.run_dir)
    assert living is not None
    raylets = [p for p in psutil.process_iter(["name", "cmdline"]) if p.info["name"] == "raylet"]
    (raylet,) = (p for p in raylets if any(living["address"] in word for word in p.info["cmdline"]))
    (trainer,) = (p for p in raylet.children() if "trainer" in p.name().lower())
    return trainer


def test_it_outlives_its_trainer_ctrl_c_ends_it_cleanly_and_the_same_directory_goes_on(
    start: Callable[..., Run],
) -> None:
    soon = ("--deploy.ramp", "0.5", "--deploy.ramp-first", "5", "--deploy.canary-margin", "0.3")  # not in thousands
    first = start("--seed", "12", "--no-drift", "--turns", "1", *soon)
    first.wait_for(lambda text: "probe:" in text)
    trainer_of(first).kill()  # as the loss of its node does
    first.wait_for(lambda text: "It begins again" in text)
    first.wait_for(lambda text: "answers at" in text)
    first.wait_for(lambda _: intake_count(first.run_dir) >= 20)
    seconds = first.interrupt()
    assert first.process.returncode == 130, first.text
    assert "Traceback" not in first.text
    assert seconds < 30, "it must take 10 s; a loaded test machine gets three times that"
    summary = first.summary()
    assert summary["episodes"]["acknowledged"] == summary["episodes"]["stored"] > 0
    assert [turn.number for turn in archive.read_turns(first.run_dir)] == [1]

    second = start("--seed", "12", "--no-drift", "--turns", "1", "--loop.observe-episodes", "30", *soon)
    assert second.process.wait(300) == 0, second.text
    turns = archive.read_turns(second.run_dir)
    assert [turn.number for turn in turns] == [1, 2]
    assert not {turn.plan.strategy for turn in turns} & {"rollback_and_retrain", "retrain_prioritize_recent"}
    assert second.summary()["episodes"]["stored"] > summary["episodes"]["stored"]


@pytest.mark.parametrize(
    ("said", "number"),
    [("start    Ray", signal.SIGINT), ("probe:", signal.SIGINT), ("probe:", signal.SIGTERM)],
    ids=["while Ray starts", "while Serve starts", "by SIGTERM"],
)
def test_it_ends_cleanly_at_awkward_moments(start: Callable[..., Run], said: str, number: signal.Signals) -> None:
    run = start("--seed", "13")
    run.wait_for(lambda text: said in text)
    began = time.monotonic()
    os.killpg(run.process.pid, number) if number == signal.SIGINT else run.process.send_signal(number)
    assert run.process.wait(60) == 130, run.text
    assert time.monotonic() - began < 30, "it must take 10 s; a loaded test machine gets three times that"
    assert "Traceback" not in run.text
    assert "no turn was finished" in run.text
    assert run.summary()["turns"] == []


def intake_count(run_dir: Path) -> int:
    """Return how many episodes the run's store holds now."""
    if not (run_dir / intake.FILE).exists():
        return 0
    store = intake.open_readonly(run_dir / intake.FILE)
    try:
        return store.count(origin="production")
    finally:
        store.close()
