"""What is told of a round while it goes on: each point once, the time left, and nothing of it at the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flywheel.config import Config, TrainConfig
from flywheel.following import Following, failure_rate, settings_of
from flywheel.meters.on_ray import Recorder
from flywheel.records import Plan, Probe, Progress
from tests.test_arms import outcome
from tests.trackers.events import curves

PLAN = Plan(strategy="continue_training", reasons=())
PROBE = Probe(num_failed=1, num_episodes=20, mean_return=400.0, edge_failed=())


def progress(steps: int) -> Progress:
    return Progress(
        iteration=1, num_steps=steps, num_steps_total=steps, mean_return=200.0, seconds=1.0, network=b"",
        steps_per_s=1000.0,
    )  # fmt: skip


def test_a_round_is_followed_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    said: list[tuple[str, bool, dict[str, float]]] = []

    def say(stage: str, text: str, *, passing: bool = False, **numbers: float) -> None:
        assert stage == "train"
        said.append((text, passing, numbers))

    config = dataclasses.replace(Config(), train=dataclasses.replace(TrainConfig(), max_steps=10_000))
    following = Following(config, tmp_path, "wheel", say, Recorder())  # type: ignore[arg-type]
    following.begin(3, PLAN, None)
    shown = [following.seen(progress(steps), PROBE) for steps in (1_000, 5_000, 10_000)]
    assert shown[-1].left_s == 0.0 and all(each.left_s is not None for each in shown)
    following.over(shown[-1], PROBE)
    following.close()
    texts = [text for text, *_ in said]
    assert all(" at 1,000/s, return 200, at most " in text for text in texts[:3])
    assert texts[-1] == "10,000 steps at 1,000/s, return 200; probe: 1 of 20 failed", "what is over has no time left"
    assert [passing for _, passing, _ in said] == [True, True, True, False]
    assert [numbers.get("steps") for *_, numbers in said] == [1_000, 5_000, 10_000, None]
    assert all(numbers["left_s"] >= 0.0 for *_, numbers in said[:3])
    assert [step for step, _ in curves(tmp_path / "tensorboard/turn-0003")["train/return"]] == [1_000, 5_000, 10_000]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    def say(*_: Any, **__: Any) -> None:
        return None

    config = dataclasses.replace(Config(), train=dataclasses.replace(TrainConfig(), trackers=()))
    following = Following(config, tmp_path, "wheel", say, Recorder())  # type: ignore[arg-type]
    following.begin(1, PLAN, PROBE)
    following.seen(progress(1_000), PROBE)
    assert not list(tmp_path.iterdir())


def test_lost_episodes_count_for_no_failure_rate() -> None:
    whole = [outcome(float(n), "p", failed=n < 2) for n in range(8)]
    lost = [dataclasses.replace(each, end="lost", failed=False) for each in whole]
    assert failure_rate([*whole, *lost]) == {"failure_rate": 0.25} and failure_rate(lost) == {}


def test_settings_have_their_whole_names() -> None:
    found = settings_of(Config())
    assert found["train.replay.batch"] == 64 and found["turns"] == 4 and "train.replay" not in found
