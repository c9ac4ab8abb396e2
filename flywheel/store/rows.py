"""Steps in memory, or in files that are mapped into it, one row each, and a queue of what is known of runs of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Episode, Spec
from flywheel.sampling import Floats

LINE = 64
"""Bytes that a processor fetches at once: a small step's row is one such line, and a draw waits for memory once."""


def row_of(spec: Spec) -> np.dtype[np.void]:
    """Return what one row holds: all that a draw of it needs, side by side; 64 bytes of CartPole.

    A row that holds a run's last observation has nothing else.
    """
    return np.dtype(
        [
            ("observation", spec.observation_dtype, spec.observation_shape),
            ("action", np.dtype(spec.action_dtype).name, spec.action_shape),
            ("entry", np.int64),  # number of the run, counted from the first ever added; -1 where nothing is held
            ("episode", np.int64),  # number of the episode, counted in the same way
            ("reward", np.float32),
            ("gain", np.float32),  # sum of gamma^k r_k over the window that begins here
            ("logp", np.float32),
            ("left", np.int32),  # steps from this one to the end of its run; 0 in a last row, and where nothing is held
            ("policy", np.int32),
            ("is_final", np.bool_),  # the episode terminates at the run's end
        ],
        align=True,
    )


def make(kind: np.dtype[np.void], num_rows: int, directory: Path | None = None) -> NDArray[np.void]:
    """Return rows of zeros; in a file of this directory, which the disk bounds, where one is given."""
    size = num_rows * kind.itemsize
    if directory is None:
        held = np.zeros(size + LINE, np.uint8)
        begin = -held.ctypes.data % LINE
        return held[begin : begin + size].view(kind)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "rows", "w+b") as file:
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # no draw says anything of the next one
    return np.frombuffer(mapped, kind)


def runs_of(episode: Episode) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each run of steps with known rewards by one policy."""
    known, digests = ~np.isnan(episode.rewards), episode.digests
    if known.all() and digests and digests[0] and digests.count(digests[0]) == len(digests):
        yield 0, episode.num_steps
        return
    cuts = [t for t in range(1, len(digests)) if known[t] != known[t - 1] or digests[t] != digests[t - 1]]
    for begin, end in zip([0, *cuts], [*cuts, len(digests)], strict=True):
        if end > begin and known[begin] and digests[begin]:
            yield begin, end


def gains(rewards: NDArray[np.float64], gammas: Floats) -> Floats:
    """Return float64[T]: of each step the discounted sum of the rewards float64[T] in the window that begins there."""
    found = np.asarray(gammas[0] * rewards, np.float64)
    for k in range(1, min(len(gammas), len(rewards))):
        found[:-k] += gammas[k] * rewards[k:]
    return found


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
