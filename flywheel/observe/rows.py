"""Columns that hold the steps of all open episodes, in slots that are used again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import FlywheelError
from flywheel.records import Array, Spec, Steps

Slots = NDArray[np.int64]


class Rows:
    """A table of steps that grows by doubling; one NumPy call a column moves a whole batch of them."""

    def __init__(self, spec: Spec) -> None:
        self._free: list[int] = []
        self._codes: dict[str, int] = {}
        self._names: list[str] = []
        self.observations: Array = np.zeros((0, *spec.observation_shape), spec.observation_dtype)
        action = np.int64 if spec.action_kind == "discrete" else np.float32
        self.raw_actions: Array = np.zeros((0, *spec.action_shape), action)
        self.logps = np.zeros(0)
        self.rewards = np.zeros(0)
        self.draw_keys = np.zeros(0, np.uint64)
        self.seen_at = np.zeros(0)
        self.digests = np.zeros(0, np.int64)

    @property
    def num_used(self) -> int:
        """Number of slots that hold a step."""
        return len(self.rewards) - len(self._free)

    def take(self, n: int) -> list[int]:
        """Return n slots that nothing else uses until they are given back."""
        if n > len(self._free):
            self._grow(n)
        cut = len(self._free) - n
        slots, self._free = self._free[cut:], self._free[:cut]
        return slots

    def give_back(self, slots: list[int]) -> None:
        """Let the slots be used again."""
        self._free.extend(slots)

    def write(self, slots: Slots, steps: Steps, rows: Slots) -> None:
        """Write these rows of the steps into the slots, an end's void action included."""
        self.observations[slots] = steps.observations[rows]
        self.raw_actions[slots] = steps.raw_actions[rows]
        self.logps[slots] = steps.logps[rows]
        self.rewards[slots] = steps.rewards[rows]
        self.draw_keys[slots] = steps.draw_keys[rows]
        self.seen_at[slots] = steps.seen_at[rows]
        self.digests[slots] = self._encode(steps, rows)

    def agree(self, slots: Slots, steps: Steps, rows: Slots) -> NDArray[np.bool_]:
        """Return bool[n]: whether the slots hold the same content as these rows; the time doesn't count.

        An end row agrees by observation and reward alone, since the rest of it is void.
        """
        end = np.array([steps.ends[row] != "no" for row in rows], dtype=np.bool_)
        action = _equal(self.raw_actions[slots], steps.raw_actions[rows])
        decision = action & (self.digests[slots] == self._encode(steps, rows))
        seen = _equal(self.observations[slots], steps.observations[rows])
        return np.asarray(seen & _equal(self.rewards[slots], steps.rewards[rows]) & (decision | end))

    def see(self, slots: Slots, seen_at: NDArray[np.float64]) -> None:
        """Keep the earlier of the times at which these steps were seen."""
        np.minimum.at(self.seen_at, slots, seen_at)

    def digest_names(self, slots: Slots) -> tuple[str, ...]:
        """Return the digest of each slot."""
        return tuple([self._names[code] for code in self.digests[slots].tolist()])

    def _encode(self, steps: Steps, rows: Slots) -> NDArray[np.int64]:
        codes = self._codes
        for name in set(steps.digests).difference(codes):
            codes[name] = len(self._names)
            self._names.append(name)
        return np.fromiter((codes[steps.digests[row]] for row in rows.tolist()), np.int64, len(rows))

    def check(self, steps: Steps) -> None:
        """Raise FlywheelError when the steps are not of this table's shapes and types."""
        for what, mine, theirs in (
            ("observations", self.observations, steps.observations),
            ("raw_actions", self.raw_actions, steps.raw_actions),
        ):
            if mine.shape[1:] != theirs.shape[1:] or not np.can_cast(theirs.dtype, mine.dtype, "same_kind"):
                raise FlywheelError(
                    f"The observer got {what} {theirs.dtype}{list(theirs.shape[1:])} where its task has "
                    f"{mine.dtype}{list(mine.shape[1:])}: the replicas serve another task."
                )

    def _grow(self, n: int) -> None:
        old = len(self.rewards)
        new = max(1024, 2 * old, old + n)
        for name in ("observations", "raw_actions", "logps", "rewards", "draw_keys", "seen_at", "digests"):
            column = getattr(self, name)
            wider = np.zeros((new, *column.shape[1:]), column.dtype)
            wider[:old] = column
            setattr(self, name, wider)
        self._free.extend(range(new - 1, old - 1, -1))


def _equal(a: Array, b: Array) -> NDArray[np.bool_]:
    same = (a == b) | ((a != a) & (b != b))  # NaN is a reward that isn't known
    return np.asarray(same.reshape(len(same), -1).all(axis=1))
