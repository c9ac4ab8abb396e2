"""Whether a configuration can work, before anything is started."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flywheel.config import Config, TrainConfig
from flywheel.errors import FlywheelError, UsageError

MAY_BE_ZERO = frozenset(
    {"seed", "num_cpus", "deploy.port", "page.port", "deploy.flush_s", "observe.wait_s", "store.group_s"}
    | {"train.entropy", "train.edge_case_share", "train.min_steps", "train.probe_max_failed", "train.lambda_"}
    | {"train.lr_warm", "train.step_cost", "train.lr_end", "gate.edge_max_failed", "gate.probe_edge_max_failed"}
    | {
        "gate.search_sims",
        "gate.stress_sims",
        "gate.suite_open",
        "gate.workers",
        "traffic.num_clients",
        "traffic.change_after",
    }
    | {"analyze.patience_s", "analyze.widen", "analyze.cooldown_s", "analyze.most_rounds"}
    | {"trace.sample_share", "trace.around", "trace.flush_s"}
    | {
        f"train.replay.{name}"
        for name in ("alpha", "beta", "half_life", "epsilon", "production_share", "begin_at", "shards", "target_every")
    }
    | {"deploy.shadow_decisions", "deploy.settle_s", "observe.reward_window_s", "observe.lease_wait_s"}
    | {"deploy.control_share", "store.seal_after_s", "store.keep_whole_s"}
)
"""Numbers for which 0 has a meaning; every other one must be more than 0."""
ANY_NUMBER = frozenset({"env_failed_below"})
"""Numbers that may be negative."""
PERSON = "person"
"""Who approves challengers where no function does: whoever says so by `flywheel canary approve`, or on the page."""


def check(config: Config) -> None:
    """Raise UsageError with a sentence when a value can't work; return None otherwise."""
    gate, deploy, ramp = config.gate, config.deploy, config.deploy.ramp
    rules = [
        (gate.max_sims >= gate.num_sims, "gate.max_sims must be at least gate.num_sims"),
        (gate.edge_max_failed < gate.edge_trials, "gate.edge_max_failed must be less than edge_trials"),
        (gate.probe_edge_max_failed < gate.probe_edge_trials, "gate.probe_edge_max_failed must be less than trials"),
        (max(gate.error, gate.budget) < 1, "gate.error and gate.budget are probabilities, less than 1"),
        (gate.lockstep <= 256, "gate.lockstep must be at most 256: rows are bit-equal only up to there"),
        (deploy.port < 65536, "deploy.port must be less than 65536"),
        (
            bool(ramp) and ramp[0] > 0 and ramp[-1] < 1 and list(ramp) == sorted(set(ramp)),
            "deploy.ramp must be shares between 0 and 1, each more than the one before",
        ),
        (
            max(deploy.rollback_error, deploy.promote_error, deploy.lost_error, deploy.split_error) < 1,
            "deploy.rollback_error, promote_error, lost_error and split_error are probabilities, less than 1",
        ),
        (
            max(deploy.canary_margin, deploy.incident_margin) <= 0.5,
            "deploy.canary_margin and incident_margin must be at most 0.5",
        ),
        (deploy.control_share <= 0.5, "deploy.control_share must be at most 0.5"),
        (config.page.port < 65536, "page.port must be less than 65536"),
        (config.observe.false_alarm_episodes > 1, "observe.false_alarm_episodes must be more than 1"),
        (config.train.edge_case_share <= 1, "train.edge_case_share is a share, at most 1"),
        (
            max(config.train.replay.epsilon, config.train.replay.production_share) <= 1,
            "train.replay.epsilon and production_share are shares, at most 1",
        ),
        (config.store.keep_share < 1, "store.keep_share is a share, less than 1"),
        (
            config.store.seal_after_s >= config.observe.reward_window_s,
            "store.seal_after_s must be at least observe.reward_window_s",
        ),
        (config.trace.sample_share <= 1, "trace.sample_share is a share, at most 1"),
    ]
    wrong = [sentence for fine, sentence in rules if not fine]
    for path, value in _numbers(config):
        if path in ANY_NUMBER:
            continue
        if path in MAY_BE_ZERO and not value >= 0:
            wrong.append(f"{path} must not be negative")
        elif path not in MAY_BE_ZERO and not value > 0:
            wrong.append(f"{path} must be more than 0")
    if wrong:
        raise UsageError("The configuration can't work: " + "; ".join(wrong) + ".")
    check_installed(config.train.trackers)
    approver(deploy.approve)


def check_installed(trackers: Sequence[str]) -> None:
    """Raise UsageError for a tracker whose package is missing."""
    for name in trackers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.trackers names {name}, which is not installed: pip install 'flywheel-rl[{name}]', or leave it "
                "out of train.trackers."
            )


def check_passed(train: TrainConfig) -> None:
    """Raise UsageError where RLlib can't be given what `train.rllib` says; asked of a process that may import it."""
    if not train.rllib:
        return
    try:
        told = json.dumps(dataclasses.asdict(train))
    except TypeError as error:
        raise UsageError(f"train.rllib takes numbers, text, lists and null only: {error}.") from error
    command = [sys.executable, "-m", "flywheel.train.rllib.passing"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UsageError(done.stdout.strip())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise FlywheelError(f"RLlib could not be asked about train.rllib: {last}.")


def approver(reference: str) -> Callable[[Any], Any] | None:
    """Return the function `module:function` that approves challengers, None where a person does, or nobody has to.

    Raises UsageError where there is none.
    """
    if reference in ("", PERSON):
        return None
    module, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a person's module may do anything when it is imported
        raise UsageError(
            f"deploy.approve is {reference!r}, and there is no such function ({error}): give module:function, "
            f"importable where the registry runs, or {PERSON}."
        ) from error
    if not callable(found):
        raise UsageError(f"deploy.approve is {reference!r}, which is no function.")
    approve: Callable[[Any], Any] = found
    return approve


def check_cpus(config: Config, available: float) -> None:
    """Raise UsageError when the processes that claim CPUs would wait for ever."""
    claimed = 0.5 + 0.5 * config.train.num_runners
    if claimed > available:
        raise UsageError(
            f"Training claims {claimed:g} CPUs (half a one for the learner and for each of {config.train.num_runners} "
            f"env runners) but Ray is given {available:g}, so it would wait for ever: lower --train.num-runners or "
            "raise --num-cpus."
        )


def _numbers(part: Any, where: str = "") -> Iterator[tuple[str, float]]:
    for field_ in dataclasses.fields(part):
        value, path = getattr(part, field_.name), f"{where}{field_.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{path}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, value
