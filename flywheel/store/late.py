"""Rewards that come late: rows of their own, joined to their episodes on reading, so that no content ever changes."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flywheel.records import Episode, Reward
from flywheel.sqlite import has_table

RewardAnswer = Literal["stored", "same", "conflict", "unknown"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS rewards (
    episode TEXT NOT NULL, t INTEGER NOT NULL, reward REAL NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (episode, t)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rewards_aside (
    episode TEXT NOT NULL, t INTEGER NOT NULL, reward REAL NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (episode, t, reward)) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """A stored episode as its rewards are known now, and its return before the last ones came."""

    episode: Episode
    total_before: float


def keep(connection: sqlite3.Connection, reward: Reward, told: float | None) -> RewardAnswer:
    """Keep a late reward and return what became of it; inside a transaction of the caller's.

    `told` is what came with the step: NaN where no reward did, None where nobody knows the step.
    """
    late = connection.execute(
        "SELECT reward FROM rewards WHERE episode = ? AND t = ?", (reward.episode, reward.t)
    ).fetchone()
    if told is None:
        return "unknown"
    if late is None and math.isnan(told):
        connection.execute("INSERT INTO rewards VALUES (?, ?, ?, ?)", _row(reward))
        return "stored"
    if reward.reward == (told if late is None else late[0]):
        return "same"
    connection.execute("INSERT OR IGNORE INTO rewards_aside VALUES (?, ?, ?, ?)", _row(reward))
    return "conflict"


def _row(reward: Reward) -> tuple[str, int, float, float]:
    return reward.episode, reward.t, reward.reward, reward.seen_at


def join(connection: sqlite3.Connection, episode: Episode) -> Episode:
    """Return the episode with the late rewards of those steps with which none came."""
    if not np.isnan(episode.rewards).any():
        return episode
    return joined(episode, known(connection, episode.id))


def known(connection: sqlite3.Connection, id_: str) -> dict[int, float]:
    """Return an episode's late rewards by step."""
    if not has_table(connection, "rewards"):
        return {}
    return dict(connection.execute("SELECT t, reward FROM rewards WHERE episode = ?", (id_,)).fetchall())


def joined(episode: Episode, late: Mapping[int, float]) -> Episode:
    """Return the episode with these late rewards, by step, where none came with the step."""
    unknown, rewards = np.isnan(episode.rewards), episode.rewards.copy()
    for t, reward in late.items():
        if t < len(rewards) and unknown[t]:
            rewards[t] = reward
    rewards.flags.writeable = False
    return dataclasses.replace(episode, rewards=rewards)


def settle(connection: sqlite3.Connection, episode: Episode) -> float:
    """Return an episode's return with its late rewards, those that contradict it set aside; inside a transaction.

    One that came while its episode was open contradicts it where another number came with the step after all.
    """
    rows = connection.execute("SELECT t, reward, seen_at FROM rewards WHERE episode = ?", (episode.id,)).fetchall()
    for t, reward, seen_at in rows:
        told = episode.rewards[t] if t < episode.num_steps else math.nan
        if not math.isnan(told):
            connection.execute("DELETE FROM rewards WHERE episode = ? AND t = ?", (episode.id, t))
            if told != reward:
                aside = Reward(episode=episode.id, t=t, reward=reward, seen_at=seen_at)
                connection.execute("INSERT OR IGNORE INTO rewards_aside VALUES (?, ?, ?, ?)", _row(aside))
    return join(connection, episode).total if rows else episode.total
