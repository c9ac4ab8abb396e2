"""Columns of steps in memory, or in files that are mapped into it, and a queue of what is known of runs of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array, Spec


class Columns:
    """R rows of what steps are made of; a row that holds a run's last observation has nothing else."""

    def __init__(self, spec: Spec, num_rows: int, directory: Path | None = None) -> None:
        """Make the columns; in files of this directory, which the disk bounds, where one is given."""
        self._directory = directory
        self.num_rows = num_rows
        self.observations: Array = self._make("observations", spec.observation_dtype, spec.observation_shape)
        self.actions: Array = self._make("actions", np.dtype(spec.action_dtype).name, spec.action_shape)
        self.rewards: NDArray[np.float32] = self._make("rewards", "float32")
        self.logps: NDArray[np.float32] = self._make("logps", "float32")
        self.ends: NDArray[np.bool_] = self._make("ends", "bool")
        """bool[R]: the episode terminated by this step"""
        self.left: NDArray[np.int32] = self._make("left", "int32")
        """int32[R]: steps from this one to the end of its run; 0 in a last row, and where nothing is held"""
        self.entry: NDArray[np.int64] = self._make("entry", "int64")
        """int64[R]: number of the run, counted from the first ever added"""

    def _make(self, name: str, dtype: str, shape: tuple[int, ...] = ()) -> Array:
        if self._directory is None:
            return np.zeros((self.num_rows, *shape), dtype)
        self._directory.mkdir(parents=True, exist_ok=True)
        return np.memmap(self._directory / f"{name}.column", dtype, "w+", shape=(self.num_rows, *shape))


def bytes_of_row(spec: Spec) -> int:
    """Return what one row takes."""
    observation = np.dtype(spec.observation_dtype).itemsize * int(np.prod(spec.observation_shape))
    action = np.dtype(spec.action_dtype).itemsize * int(np.prod(spec.action_shape))
    return observation + action + 4 + 4 + 1 + 4 + 8


class Queue:
    """Records in order: new ones at one end, the oldest leave at the other; both in constant time on average."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        """Begin with none."""
        self._held: NDArray[np.void] = np.zeros(64, dtype)
        self._begin = self._end = 0
        self.num_left = 0
        """Records that have left: the number of the oldest one that is here."""

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def records(self) -> NDArray[np.void]:
        """What is here, oldest first: a view that holds until the next `append`."""
        return self._held[self._begin : self._end]

    def append(self, record: tuple[object, ...]) -> int:
        """Add a record and return its number, counted from the first one ever added."""
        if self._end == len(self._held):
            records = self.records.copy()
            if len(records) > len(self._held) // 2:
                self._held = np.zeros(2 * len(self._held), self._held.dtype)
            self._held[: len(records)] = records
            self._begin, self._end = 0, len(records)
        self._held[self._end] = record
        self._end += 1
        return self.num_left + len(self) - 1

    def leave(self) -> None:
        """Let the oldest go."""
        self._begin += 1
        self.num_left += 1
