"""Minari's datasets: the one format of offline reinforcement learning that Gymnasium's own people keep."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flywheel.errors import UsageError
from flywheel.records import ELSEWHERE, Array, End, Episode

DATASET = "flywheel/episodes-v0"
"""Name of the dataset in the directory that an export makes."""
_ROOT = "MINARI_DATASETS_PATH"
_META = "data/metadata.json"


def made(
    id_: str, task: str, observations: Array, actions: Array, rewards: Array, logps: Array, end: End, inclusion: float
) -> Episode:
    """Return an episode that another program recorded."""
    actions = actions.astype(np.float32) if actions.dtype.kind == "f" else actions.astype(np.int64)
    return Episode(
        id=id_, origin="train", task=task, parameters={}, draw_key=0, digests=(ELSEWHERE,) * len(rewards),
        observations=observations, raw_actions=actions, rewards=np.asarray(rewards, np.float64),
        logps=np.asarray(logps, np.float64), end=end, failed=False, inclusion=inclusion,
    )  # fmt: skip


def _minari() -> Any:
    if any(importlib.util.find_spec(name) is None for name in ("minari", "PIL")):
        raise UsageError("Minari is not installed here: pip install 'flywheel-rl[minari]'.")
    import minari  # one of the extras

    return minari


def write(episodes: Sequence[Episode], directory: Path) -> None:
    """Write a Minari dataset of raw actions; MINARI_DATASETS_PATH at the directory, its name is `DATASET`."""
    minari = _minari()
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    def space(arrays: Sequence[Array]) -> spaces.Space[Any]:
        kind, shape = arrays[0].dtype, arrays[0].shape[1:]
        if kind.kind in "iu" and not shape:
            most = max((int(each.max(initial=0)) for each in arrays), default=0)
            return spaces.Discrete(most + 1)
        low, high = (-np.inf, np.inf) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
        return spaces.Box(low, high, shape, kind.type)

    def at_end(e: Episode, is_so: bool) -> list[bool]:
        return [False] * (e.num_steps - 1) + [is_so]

    buffers = [
        EpisodeBuffer(
            id=number, seed=e.seed, observations=list(e.observations), actions=list(e.raw_actions),
            rewards=e.rewards.tolist(), terminations=at_end(e, e.end == "terminated"),
            truncations=at_end(e, e.end != "terminated"),
            infos={"action_logp": [*e.logps.tolist(), np.nan], "inclusion": [e.inclusion] * (e.num_steps + 1)},
        )
        for number, e in enumerate(e for e in episodes if e.num_steps)
    ]  # fmt: skip
    with _rooted(directory), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is given no environment, whose spaces it has
        minari.create_dataset_from_buffers(
            DATASET, buffers, observation_space=space([e.observations for e in episodes]),
            action_space=space([e.raw_actions for e in episodes]), data_format="arrow",
            algorithm_name="flywheel", author="flywheel", author_email="-", code_permalink="-",
            description="Episodes of a flywheel's store; actions as the policies gave them.",
        )  # fmt: skip


def holds(directory: Path) -> bool:
    """Say whether a directory holds one Minari dataset, or is one."""
    return next(_datasets(directory), None) is not None


def _datasets(directory: Path) -> Iterator[Path]:
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        yield from (each.parents[1] for each in sorted(directory.glob(depth + _META)))


def read(directory: Path, task: str) -> list[Episode]:
    """Return the episodes of the Minari dataset in a directory; UsageError where there is more than one of them."""
    minari, (first, *more) = _minari(), _datasets(directory)
    if more:
        raise UsageError(f"{directory} holds {1 + len(more)} Minari datasets: name the directory of one, as {first}.")
    with _rooted(first.parent):
        found = minari.load_dataset(first.name)
        return [_episode(f"{first.name}-{each.id}", task, each) for each in found.iterate_episodes()]


def _episode(id_: str, task: str, found: Any) -> Episode:
    if not (isinstance(found.observations, np.ndarray) and isinstance(found.actions, np.ndarray)):
        raise UsageError(f"Episode {id_} has observations or actions of several parts: flatten them first.")
    infos, num = found.infos or {}, len(found.rewards)
    logps = infos.get("action_logp", np.full(num, np.nan))[:num]
    inclusion = float(infos["inclusion"][0]) if "inclusion" in infos else 1.0
    end: End = "terminated" if found.terminations[-1] else "truncated"
    return made(id_, task, found.observations, found.actions, found.rewards, logps, end, inclusion)


@contextmanager
def _rooted(directory: Path) -> Iterator[None]:
    """Have Minari look here: it takes its directory from the environment alone."""
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = str(directory.resolve())
    try:
        yield
    finally:
        del os.environ[_ROOT]
        if before is not None:
            os.environ[_ROOT] = before
