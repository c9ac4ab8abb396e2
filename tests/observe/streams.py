"""Whole episodes as the rows that replicas would send, and real CartPole episodes for the monitors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from flywheel.records import Episode, Steps
from flywheel.simulate.play import play
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, load_linear

DIGEST = "d" * 64
Row = tuple[str, int, np.ndarray, int, float, str, float]  # id, t, observation, action, reward, end, seen_at


def rows_of(id_: str, num_steps: int, start: float, seed: int = 0, end: str = "terminated") -> list[Row]:
    """The rows of one episode: num_steps decisions and its end, a hundredth of a second apart."""
    rng = np.random.default_rng([seed, len(id_), *id_.encode()])
    rows = []
    for t in range(num_steps + 1):
        reward = float("nan") if t == 0 else float(rng.integers(0, 5))
        observation = rng.normal(size=4).astype(np.float32)
        kind = end if t == num_steps else "no"
        rows.append((id_, t, observation, int(rng.integers(0, 2)), reward, kind, start + t / 100))
    return rows


def steps_of(rows: Sequence[Row]) -> Steps:
    """Steps with these rows."""
    return Steps(
        episodes=tuple(r[0] for r in rows),
        t=np.array([r[1] for r in rows], np.int64),
        digests=tuple("" if r[5] != "no" else DIGEST for r in rows),
        observations=np.array([r[2] for r in rows], np.float32).reshape(len(rows), 4),
        raw_actions=np.array([r[3] for r in rows], np.int64),
        logps=np.array([-0.5 if r[5] == "no" else 0.0 for r in rows]),
        draw_keys=np.array([7 if r[5] == "no" else 0 for r in rows], np.uint64),
        rewards=np.array([r[4] for r in rows]),
        ends=tuple(r[5] for r in rows),  # type: ignore[arg-type]
        seen_at=np.array([r[6] for r in rows], np.float64),
    )


def rows_of_episode(episode: Episode, start: float) -> list[Row]:
    """The rows of a played episode."""
    rewards = [float("nan"), *episode.rewards.tolist()]
    actions = [*episode.raw_actions.tolist(), 0]
    ends = ["no"] * episode.num_steps + [episode.end]
    return [
        (episode.id, t, episode.observations[t], actions[t], rewards[t], ends[t], start + t / 1000)
        for t in range(episode.num_steps + 1)
    ]


def real(
    num: int, seed: int, gains: Iterable[float] = GOOD, *, noise: float = 0.0, spread: float = 0.0, **changed: float
) -> list[Episode]:
    """Episodes of the real CartPole, with sensor noise, starts from a box of half width `spread`, other parameters."""
    rng = np.random.default_rng(seed)
    roots = range(seed * 10_000, seed * 10_000 + num)
    episodes = play(
        cartpole,
        load_linear(cartpole, tuple(gains), digest=DIGEST),
        seeds=list(roots),
        parameters=[{**cartpole.nominal, **changed}] * num,
        draw_keys=list(roots),
        states=[tuple(row) for row in rng.uniform(-spread, spread, (num, 4))] if spread else None,
        origin="production",
    )
    if not noise:
        return episodes
    scale = noise * np.array([0.2, 1.0, 0.2, 1.0])
    return [
        dataclasses.replace(
            e, observations=(e.observations + scale * rng.normal(size=e.observations.shape)).astype(np.float32)
        )
        for e in episodes
    ]
