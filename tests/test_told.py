"""What a person is told: of settings that stay as those who are up have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import told
from flywheel.config import Config, DeployConfig, ObserveConfig, StoreConfig
from flywheel.deploy.admission import Served
from flywheel.errors import UsageError
from flywheel.records import Probe, Progress, Signal

RUN_DIR = Path("/runs/mine")
LIVING = {"store": StoreConfig(), "observe": ObserveConfig(), "deploy": DeployConfig(port=8123)}


def asked(**rooms: Any) -> Config:
    return dataclasses.replace(Config(), **{"deploy": DeployConfig(port=8123), **rooms})


def test_each_setting_that_stays_is_named_with_what_was_asked_for_and_what_to_do() -> None:
    deploy = DeployConfig(port=9000, num_replicas=3)
    config = asked(observe=ObserveConfig(wait_s=0.5), store=StoreConfig(group_s=0.1), deploy=deploy)
    assert told.stays(LIVING, config, RUN_DIR) == (
        "what was up already keeps its settings: store.group_s 0.005 (not 0.1), observe.wait_s 0.2 (not 0.5), "
        "deploy.port 8123 (not 9000), deploy.num_replicas 1 (not 3); to change them, end it by "
        "`flywheel down --run-dir /runs/mine`, then start again"
    )


def test_who_answered_is_told_with_whoever_was_tried_beside_it() -> None:
    at = told.seconds("2026-11-26T03:00:00")
    assert at == told.seconds("2026-11-26 04:00:00+01:00") == told.seconds("1795662000") == 1795662000.0
    moment, champion, challenger = "2026-11-26 03:00:00 UTC", "a" * 64, "b" * 64
    assert told.served(Served(at, None, None, 0.0)) == f"{moment}  no policy was in service yet"
    assert told.served(Served(at, champion, None, 0.0)) == f"{moment}  policy aaaaaaaa answered"
    assert told.served(Served(at, champion, challenger, 0.0)).endswith("bbbbbbbb was tried beside it, in the shadow")
    assert told.served(Served(at, champion, challenger, 0.1)).endswith("beside it, with 10% of new episodes")
    control = told.served(Served(at, champion, None, 0.0, challenger, 0.1))
    assert control.endswith("answered; 10% of new episodes stayed on policy bbbbbbbb, as its control")


@pytest.mark.parametrize("text", ["", "yesterday", "nan", "1e9", "-1", "99999999999", "2026-13-01"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        told.seconds(text)


def test_nothing_is_said_where_nothing_differs_or_nobody_can_be_asked() -> None:
    assert told.stays(LIVING, asked(), RUN_DIR) == ""
    assert told.stays(LIVING, asked(deploy=DeployConfig(port=0)), RUN_DIR) == "", "any port is as asked for"
    assert told.stays(LIVING | {"deploy": None}, asked(deploy=DeployConfig(num_replicas=9)), RUN_DIR) == ""


@given(st.sampled_from([f.name for f in dataclasses.fields(ObserveConfig)]), st.floats(1.5, 1e6))
def test_whatever_differs_is_named(name: str, value: float) -> None:
    living = LIVING | {"observe": dataclasses.replace(ObserveConfig(), **{name: value})}
    differs = value != getattr(ObserveConfig(), name)
    assert (f"observe.{name} {value} (not " in told.stays(living, asked(), RUN_DIR)) == differs


def test_a_probe_that_failed_in_open_worlds_says_so_once() -> None:
    note = "31 of 100 worlds failed that are drawn from length 0.45 to 3"
    probe = Probe(num_failed=0, num_episodes=200, mean_return=500.0, edge_failed=("interval",), note=note)
    progress = Progress(iteration=1, num_steps=1024, num_steps_total=1024, mean_return=480.0, seconds=1.0, network=b"")
    assert told.progress(progress, probe) == f"1,024 steps, return 480; probe: 0 of 200 failed; {note}"


def test_a_turn_that_holds_does_not_call_production_good_while_its_alarm_is_open() -> None:
    found = {"episodes": 52, "mean_return": 498.0, "recovered": True}
    open_ = Signal(
        kind="shift_detected", monitor="world", digest="a" * 64, value=3.0, threshold=2.0, since_episode="e1",
        at_episode="e2", evidence={}, at=1.0,
    )  # fmt: skip
    so_far = "52 episodes on policy aaaaaaaa, mean return 498"
    assert told.production(found, [], "a" * 64) == f"production is good again: {so_far}"
    assert told.production(found, [], "a" * 64, [open_]) == (
        f"production's return is good again, but what was raised stays open (shift_detected by the world monitor): "
        f"{so_far}"
    )


def test_a_round_for_another_reward_tells_how_far_its_return_is() -> None:
    progress = Progress(
        iteration=1, num_steps=4096, num_steps_total=0, mean_return=300.0, seconds=1.0, network=b"", left_s=9.0
    )
    probe = Probe(num_failed=0, num_episodes=200, mean_return=343.2, edge_failed=())
    assert told.progress(progress, probe).endswith("probe: 0 of 200 failed")
    assert told.progress(progress, probe, 475.0).endswith("probe: 0 of 200 failed, return 343 of 475 needed")
    assert told.progress(progress, probe, float("inf")).endswith("probe: 0 of 200 failed"), "nobody knows what is"
