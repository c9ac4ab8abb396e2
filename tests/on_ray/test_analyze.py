"""A fit on the cluster: the same as at home, with parts of a heavy simulator's work in tasks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel.analyze.on_ray import diagnose, spread
from flywheel.analyze.spread import Steps, stepped
from flywheel.config import AnalyzeConfig
from flywheel.records import Signal
from flywheel.simulate import play
from flywheel.simulate.transitions import gather
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, load_linear


def spread_out(parts: Sequence[Steps]) -> list[Any]:
    return spread(stepped, parts)


def test_a_fit_and_its_parts_are_tasks(ray_cluster: Any) -> None:
    policy, seeds = load_linear(cartpole, SHORT_POLE, digest="served"), range(6)
    episodes = play(cartpole, policy, seeds=seeds, parameters=[{"length": 1.0}] * 6, draw_keys=seeds)
    data = gather(cartpole, episodes, 50)
    parts = [
        Steps(task=cartpole, data=data.at(rows), parameters=[cartpole.nominal, {**cartpole.nominal, "length": 1.0}])
        for rows in np.array_split(np.arange(len(data)), 3)
    ]
    found = ray_cluster.get(ray_cluster.remote(spread_out).options(num_cpus=0).remote(parts))
    assert np.array_equal(np.concatenate(found, axis=1), np.concatenate([stepped(part) for part in parts], axis=1))

    alarm = Signal(
        kind="shift_detected", monitor="m", digest="served", value=1, threshold=1, since_episode="gone", at_episode="",
        evidence={}, at=0,
    )  # fmt: skip
    fit = ray_cluster.remote(diagnose).options(num_cpus=0)
    diagnosis = ray_cluster.get(fit.remote(cartpole, episodes, [alarm], AnalyzeConfig()))
    assert diagnosis.calibration is not None
    assert abs(diagnosis.calibration.values["length"] - 1.0) < 1e-3
