"""A run directory made without Ray: a judged policy, production's episodes, a change of the world, a signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flywheel import foreign, owner
from flywheel.draws import draw_key
from flywheel.observe.observer import SIGNALS
from flywheel.policy import Policy, load
from flywheel.records import Episode, Signal
from flywheel.simulate import play
from flywheel.store.intake import Intake
from flywheel.task import Limits, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, linear_policy

RUN_KEY = b"the key of these runs"
# Wide of the mark on purpose: no verdict in these tests may depend on how busy the machine is.
RELAXED = dataclasses.replace(cartpole, limits=Limits(max_latency_s=60.0))
REFERENCE = "tests.runs:RELAXED"
CHANGED = {"length": 2.0}


def produced(task: Task, policy: Policy, num: int, first: int = 0, **parameters: float) -> list[Episode]:
    """Return production's episodes, from number `first` on: nobody knows their seeds, their ids draw the actions."""
    names = [f"episode_{first + i:05d}" for i in range(num)]
    keys = [draw_key(RUN_KEY, name) for name in names]
    seeds = range(first, first + num)
    episodes = play(task, policy, seeds=seeds, parameters=[parameters] * num, draw_keys=keys, origin="production")
    return [
        dataclasses.replace(
            e,
            id=name,
            seed=None,
            parameters={},
            scenario="",
            started_at=1000.0 + first + i,
            ended_at=1001.0 + first + i,
        )
        for i, (name, e) in enumerate(zip(names, episodes, strict=True))
    ]


def make_run(run_dir: Path, *, before: int = 40, after: int = 10, gains: Any = SHORT_POLE) -> Sequence[Episode]:
    """Make the run directory; its pole gets longer after `before` of its episodes, and a signal says about when.

    Returns production's episodes in order of start.
    """
    spec = spec_of(RELAXED)
    with owner.opened(RELAXED, REFERENCE, run_dir) as writer:
        artifact, _ = owner.submit(writer, RELAXED, foreign.load(linear_policy(spec, gains)[0], spec), run_dir, seed=1)
        writer.promote(artifact.digest)
    policy = load(artifact)
    episodes = produced(RELAXED, policy, before) + produced(RELAXED, policy, after, before, **CHANGED)
    with Intake(run_dir) as store:
        store.append(episodes)
        if after:
            store.note(SIGNALS, msgspec.json.encode([_signal(policy.digest, episodes, before - 2)]).decode())
    return episodes


def _signal(digest: str, episodes: Sequence[Episode], since: int) -> Signal:
    return Signal(
        kind="shift_detected",
        monitor="world",
        digest=digest,
        value=40_000.0,
        threshold=30_000.0,
        since_episode=episodes[since].id,
        at_episode=episodes[-1].id,
        evidence={"released_at": 0.0},
        at=2000.0,
    )
