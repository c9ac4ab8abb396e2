"""What a person is told: of settings that stay as those who are up have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flywheel import told
from flywheel.config import Config, DeployConfig, ObserveConfig, StoreConfig

RUN_DIR = Path("/runs/mine")
LIVING = {"store": StoreConfig(), "observe": ObserveConfig(), "deploy": DeployConfig(port=8123)}


def asked(**rooms: Any) -> Config:
    return dataclasses.replace(Config(), **{"deploy": DeployConfig(port=8123), **rooms})


def test_each_setting_that_stays_is_named_with_what_was_asked_for_and_what_to_do() -> None:
    deploy = DeployConfig(port=9000, num_replicas=3)
    config = asked(observe=ObserveConfig(wait_s=0.5), store=StoreConfig(group_s=0.1), deploy=deploy)
    assert told.stays(LIVING, config, RUN_DIR) == (
        "what was up already keeps its settings: store.group_s 0.005 (not 0.1), observe.wait_s 0.04 (not 0.5), "
        "deploy.port 8123 (not 9000), deploy.num_replicas 1 (not 3); to change them, end it by "
        "`flywheel down --run-dir /runs/mine`, then start again"
    )


def test_nothing_is_said_where_nothing_differs_or_nobody_can_be_asked() -> None:
    assert told.stays(LIVING, asked(), RUN_DIR) == ""
    assert told.stays(LIVING, asked(deploy=DeployConfig(port=0)), RUN_DIR) == "", "any port is as asked for"
    assert told.stays(LIVING | {"deploy": None}, asked(deploy=DeployConfig(num_replicas=9)), RUN_DIR) == ""


@given(st.sampled_from([f.name for f in dataclasses.fields(ObserveConfig)]), st.floats(1.5, 1e6))
def test_whatever_differs_is_named(name: str, value: float) -> None:
    living = LIVING | {"observe": dataclasses.replace(ObserveConfig(), **{name: value})}
    differs = value != getattr(ObserveConfig(), name)
    assert (f"observe.{name} {value} (not " in told.stays(living, asked(), RUN_DIR)) == differs
