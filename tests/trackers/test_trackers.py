"""Curves: what they hold, how large they get, what a crash leaves of them, and what a failing tracker costs."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import trackers
from flywheel.config import Config, TrainConfig
from flywheel.console import silent
from flywheel.errors import UsageError
from flywheel.preflight import check, check_installed
from flywheel.records import Check, Plan, Probe, Progress, Turn, Verdict
from flywheel.trackers import behind, scalars
from flywheel.trackers.tensorboard import KEPT, TensorBoard, record
from tests.trackers.events import curves, masked

PROBE = Probe(num_failed=3, num_episodes=20, mean_return=90.0, edge_failed=("tilted",))


def progress(steps: int, mean_return: float = 100.0, **more: Any) -> Progress:
    return Progress(
        iteration=1, num_steps=steps, num_steps_total=steps, mean_return=mean_return, seconds=1.0, network=b"", **more
    )


def turn(number: int) -> Turn:
    check = Check(name="failure_rate", value=0.01, interval=(0.0, 0.04), bound=0.05, passed=True)
    odd = Check(name="regression", value=math.nan, interval=(math.nan, math.nan), bound=0.05, passed=True)
    evidence = {"mean_return": 480.0, "failure_rate": 0.02, "episodes": 400, "seconds": {"train": 9.5}}
    plan = Plan(strategy="continue_training", reasons=())
    verdict = Verdict(
        digest="d", baseline=None, task="t", config="c", simulator="s", outcome="pass", checks=(check, odd), trials=(),
        seed=1, cost_s=2.0, judged_at=3.0, valid_until=4.0, num_played=250,
    )  # fmt: skip
    return Turn(number=number, plan=plan, verdict=verdict, evidence=evidence)


def test_a_round_and_a_turn_are_told_in_finite_numbers() -> None:
    first = scalars.of_round(progress(0, math.nan), PROBE)
    assert first == {"probe/failure_rate": 0.15, "probe/return": 90.0, "probe/edge_cases_failed": 1.0}
    later = scalars.of_round(progress(9, steps_per_s=1500.0, left_s=60.0, losses={"entropy": 0.5}), PROBE)
    assert later["train/steps_per_second"] == 1500.0 and later["train/seconds_left"] == 60.0
    assert later["train/return"] == 100.0 and later["learner/entropy"] == 0.5
    whole = scalars.of_turn(turn(1))
    assert whole["gate/failure_rate"] == 0.01 and whole["gate/failure_rate_bound"] == 0.05
    assert whole["gate/passed"] == 1.0 and "gate/regression" not in whole
    assert (whole["production/return"], whole["production/failure_rate"], whole["seconds/train"]) == (480.0, 0.02, 9.5)
    held = scalars.of_turn(Turn(number=2, plan=Plan(strategy="hold", reasons=())))
    assert held == {"production/alarms": 0.0}


def test_a_number_that_float32_has_no_room_for_is_the_largest_it_has(tmp_path: Path) -> None:
    following = trackers.opened(["tensorboard"], tmp_path, "wheel", {}, silent)
    following.begin(1, 4_000)
    following.round(progress(1_000, losses={"kl": 1e40, "vf": -1e300}), PROBE)
    following.close()
    found = curves(tmp_path / "tensorboard/turn-0001")
    assert found["learner/kl"][0][1] == pytest.approx(3.4e38) and found["learner/vf"][0][1] == pytest.approx(-3.4e38)


def test_a_run_has_curves_of_each_round_and_a_point_of_each_turn(tmp_path: Path) -> None:
    following = trackers.opened(["tensorboard"], tmp_path, "wheel", {}, silent)
    for number in (1, 2):
        following.begin(number, 4_000)
        for steps in (1_000, 2_000, 3_000):
            following.round(progress(steps, 10.0 * number), PROBE)
        following.turn(turn(number))
    following.close()
    assert curves(tmp_path / "tensorboard/turn-0002")["train/return"] == [(1_000, 20.0), (2_000, 20.0), (3_000, 20.0)]
    assert curves(tmp_path / "tensorboard/turns")["production/return"] == [(1, 480.0), (2, 480.0)]


def test_a_long_round_stays_small_and_old_rounds_go(tmp_path: Path) -> None:
    following = trackers.opened(["tensorboard"], tmp_path, "wheel", {}, silent)
    losses = {name: 0.1 for name in ("policy_loss", "value_loss", "entropy")}
    for number in range(1, KEPT + 4):
        following.begin(number, 1_000_000)
        for steps in range(256, 1_000_000, 256 if number == KEPT else 100_000):
            following.round(progress(steps, losses=losses, steps_per_s=1.0, left_s=1.0), PROBE)
    following.close()
    directories = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert directories == [f"turn-{number:04}" for number in range(4, KEPT + 4)]
    (file,) = (tmp_path / f"tensorboard/turn-{KEPT:04}").iterdir()
    assert 20_000 < file.stat().st_size < 64 * 2**10
    assert 90 <= len(curves(file.parent)["train/return"]) <= trackers.POINTS


def test_what_a_killed_process_leaves_is_read_and_gone_on_with(tmp_path: Path) -> None:
    for _ in range(2):  # two processes, neither of which closes anything, in the same second
        board = TensorBoard(tmp_path, clock=lambda: 1e9)
        for steps in (100, 200, 300):
            board.round(7, steps, steps, {"train/return": float(steps)}, is_first=steps == 100)
    one, two = sorted((tmp_path / "turn-0007").iterdir())
    two.write_bytes(two.read_bytes()[:-3])
    assert curves(tmp_path / "turn-0007")["train/return"] == [(100, 100.0), (200, 200.0)], "the second start's"
    two.unlink()
    assert curves(tmp_path / "turn-0007")["train/return"][-1] == (300, 300.0)
    assert one.exists()


def test_records_have_the_checksums_that_readers_ask_for() -> None:
    assert masked(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(
        4, "little"
    ), "the check value of CRC-32C"
    for data in (b"", b"123456789", bytes(range(256))):
        assert record(data).endswith(data + masked(data))


class Failing:
    """A tracker that takes one round."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def round(self, turn: int, steps: int, total: int, numbers: Mapping[str, float], *, is_first: bool) -> None:
        """Take the first."""
        if self.steps:
            raise OSError("no space left")
        self.steps.append(steps)

    def turn(self, number: int, numbers: Mapping[str, float]) -> None:
        """Fail."""
        raise OSError("no space left")

    def close(self) -> None:
        """Do nothing."""


def test_a_tracker_that_fails_is_left_out_with_a_sentence_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    board, failing = TensorBoard(tmp_path), Failing()
    following = trackers.Trackers({"odd": failing, "tensorboard": board}, lambda stage, text, **_: said.append(text))
    following.begin(1, 100)
    for steps in (10, 20, 30):
        following.round(progress(steps), PROBE)
    assert said == ["odd gets no more curves (OSError: no space left)"]
    assert failing.steps == [10] and len(curves(tmp_path / "turn-0001")["train/return"]) == 3


def test_a_lost_trainer_begins_its_curve_again_and_the_total_goes_on() -> None:
    seen: list[tuple[int, int, bool]] = []
    fake = SimpleNamespace(round=lambda turn, steps, total, numbers, is_first: seen.append((steps, total, is_first)))
    following = trackers.Trackers({"fake": fake}, silent)  # type: ignore[dict-item]
    following.begin(1, 100)
    for steps in (10, 20, 10, 20):
        following.round(progress(steps), PROBE)
    following.begin(2, 100)
    following.round(progress(10), PROBE)
    assert seen == [(10, 10, True), (20, 20, False), (10, 30, True), (20, 40, False), (10, 50, True)]


def test_a_slow_service_delays_nothing_and_one_that_hangs_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "CLOSE_S", 0.05)
    go, steps = threading.Event(), []

    def slow(turn: int, at: int, total: int, numbers: Any, *, is_first: bool) -> None:
        go.wait(10)
        steps.append(at)

    slowly = behind.Behind(SimpleNamespace(round=slow, close=lambda: None))
    for at in (1, 2, 3):
        slowly.round(1, at, at, {}, is_first=False)
    assert steps == []
    with pytest.raises(TimeoutError, match="last 4 calls"):
        slowly.close()
    go.set()
    slowly._thread.join(10)
    assert steps == [1, 2, 3] and not slowly._thread.is_alive()


def test_what_a_service_raised_is_raised_by_the_next_call() -> None:
    failing = behind.Behind(Failing())
    failing.turn(1, {})
    failing._thread.join(10)
    with pytest.raises(OSError, match="no space left"):
        failing.round(1, 1, 1, {}, is_first=False)


class Recording:
    """Stands in for a package: writes down whatever is called, and answers with itself."""

    def __init__(self, calls: list[tuple[Any, ...]], name: str = "") -> None:
        self.calls, self.name = calls, name

    def __getattr__(self, name: str) -> Any:
        return Recording(self.calls, f"{self.name}.{name}".lstrip("."))

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls.append((self.name, given, named))
        return None if self.name.endswith("get_experiment_by_name") else Recording(self.calls, self.name)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_service_is_given_settings_rounds_and_turns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    package = Recording(calls)
    monkeypatch.setitem(sys.modules, name, package)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, f"{name}.entities", Recording(calls, "entities"))  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    following = trackers.opened([name], tmp_path, "wheel", {"train.lr": 0.001}, silent)
    following.begin(1, 100)
    following.round(progress(10), PROBE)
    following.turn(turn(1))
    following.close()
    told = repr(calls)
    assert "'wheel'" in told and "0.001" in told and "'train/return'" in told and "'production/return'" in told
    last = calls[-1][0]
    if name == "mlflow":
        assert calls[0][2] == {"tracking_uri": (tmp_path / "mlruns").as_uri()} and last.endswith("set_terminated")
        assert ("entities.Metric", "train/return", 100.0, 10) in [(c[0], *c[1][:2], *c[1][3:]) for c in calls]
        assert ("entities.Metric", "gate/passed", 1.0, 1) in [(c[0], *c[1][:2], *c[1][3:]) for c in calls]
    else:
        assert ("train/*", "steps") in [(*c[1], c[2].get("step_metric")) for c in calls if c[0].endswith("metric")]
        logged = [c[1][0] for c in calls if c[0].endswith(".log")]
        assert [each.get("steps") for each in logged] == [10, None] and logged[1]["turn"] == 1
        assert last.endswith("finish")


def test_a_service_that_refuses_at_the_start_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no API key")

    said: list[str] = []
    monkeypatch.setattr(trackers, "WandB", refuse)
    trackers.opened(["wandb"], tmp_path, "wheel", {}, lambda stage, text, **_: said.append(text))
    assert said == ["wandb gets no curves (RuntimeError: no API key)"]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    train = dataclasses.replace(TrainConfig(), trackers=("tensorboard", "mlflow"))
    with pytest.raises(UsageError, match=r"pip install 'flywheel-rl\[mlflow\]'"):
        check(dataclasses.replace(Config(), train=train))
    check_installed(("tensorboard",))
