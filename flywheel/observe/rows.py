"""Columns that hold the steps of all open episodes, in slots that are used again."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flywheel.errors import FlywheelError
from flywheel.records import Array, Spec, Steps

Slots = NDArray[np.int64]
_SLOT_BYTES = 200
"""Memory by which an open episode knows one of its slots, about: two Python numbers and their place in a dict."""


_COLUMNS = (
    "observations", "raw_actions", "logps", "rewards", "draw_keys", "seen_at", "digests", "repeated_digests",
    "repeated_actions",
)  # fmt: skip


class Rows:
    """A table of steps that grows by doubling; one NumPy call a column moves a whole batch of them."""

    def __init__(self, spec: Spec) -> None:
        self._free: list[int] = []
        self._codes: dict[str, int] = {}
        self._names: list[str] = []
        self.observations: Array = np.zeros((0, *spec.observation_shape), spec.observation_dtype)
        self.raw_actions: Array = np.zeros((0, *spec.action_shape), spec.action_dtype)
        self.logps = np.zeros(0)
        self.rewards = np.zeros(0)
        self.draw_keys = np.zeros(0, np.uint64)
        self.seen_at = np.zeros(0)
        self.digests = np.zeros(0, np.int64)
        self.repeated_digests = np.zeros(0, np.int64)
        self.repeated_actions: Array = np.zeros((0, *spec.action_shape), spec.action_dtype)
        columns: list[Array] = [getattr(self, name) for name in _COLUMNS]
        self.row_bytes = _SLOT_BYTES + sum(c.dtype.itemsize * math.prod(c.shape[1:]) for c in columns)
        """Memory that one step takes, about."""

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
        self.digests[slots] = self._encode(steps.digests, rows)
        if steps.repeated_digests:
            self.repeated_digests[slots] = self._encode(steps.repeated_digests, rows)
            self.repeated_actions[slots] = steps.repeated_actions[rows]
        else:
            self.repeated_digests[slots] = -1

    def agree(self, slots: Slots, steps: Steps, rows: Slots) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return twice bool[n]: whether the slots hold the same as these rows, and whether the client told the same.

        The time doesn't count. An end row holds nothing but what the client told, since the rest of it is void.
        """
        end = np.array([steps.ends[row] != "no" for row in rows], dtype=np.bool_)
        action = _equal(self.raw_actions[slots], steps.raw_actions[rows])
        decision = action & (self.digests[slots] == self._encode(steps.digests, rows))
        seen = _equal(self.observations[slots], steps.observations[rows])
        told = seen & _equal(self.rewards[slots], steps.rewards[rows])
        return np.asarray(told & (decision | end)), np.asarray(told)

    def repeats(self, slot: int, before: int) -> bool:
        """Say whether the client that sent the row in `slot` repeated the answer that the slot `before` holds."""
        action = np.array_equal(self.repeated_actions[slot], self.raw_actions[before])
        return bool(action and self.repeated_digests[slot] == self.digests[before])

    def see(self, slots: Slots, seen_at: NDArray[np.float64]) -> None:
        """Keep the earlier of the times at which these steps were seen."""
        np.minimum.at(self.seen_at, slots, seen_at)

    def digest_names(self, slots: Slots) -> tuple[str, ...]:
        """Return the digest of each slot."""
        return tuple([self._names[code] for code in self.digests[slots].tolist()])

    def _encode(self, digests: tuple[str, ...], rows: Slots) -> NDArray[np.int64]:
        codes = self._codes
        for name in set(digests).difference(codes):
            codes[name] = len(self._names)
            self._names.append(name)
        return np.fromiter((codes[digests[row]] for row in rows.tolist()), np.int64, len(rows))

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
        for name in _COLUMNS:
            column = getattr(self, name)
            wider = np.zeros((new, *column.shape[1:]), column.dtype)
            wider[:old] = column
            setattr(self, name, wider)
        self._free.extend(range(new - 1, old - 1, -1))


def _equal(a: Array, b: Array) -> NDArray[np.bool_]:
    same = (a == b) | ((a != a) & (b != b))  # NaN is a reward that isn't known
    return np.asarray(same.reshape(len(same), -1).all(axis=1))
