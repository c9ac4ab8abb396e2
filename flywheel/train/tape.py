"""What T steps of N worlds gave: noted step by step, then cut into runs of episodes all at once. No Ray, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flywheel.records import Array
from flywheel.train.nets import Floats
from flywheel.train.practice import Stepped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """S steps of one policy in R runs, one run after another: whole episodes, or parts of them."""

    observations: Floats
    """float32[S + R, D]: what was seen before each step, and after the last one of each run."""
    actions: Array
    """[S, *a] as they were drawn."""
    outputs: Floats
    """float32[S, O]: what they were drawn from."""
    logps: Floats
    """float32[S]: their log probabilities."""
    rewards: NDArray[np.float64]
    """float64[S]."""
    lengths: NDArray[np.intp]
    """int[R]: steps of each run."""
    terminated: NDArray[np.bool_]
    """bool[R]: runs after which nothing comes."""
    truncated: NDArray[np.bool_]
    """bool[R]: runs that were cut off there; of the others the next one goes on."""

    def __len__(self) -> int:
        """Return the number of steps: RLlib counts them."""
        return len(self.logps)

    @property
    def before(self) -> NDArray[np.intp]:
        """Rows int[S] of the observations that a step was taken from."""
        return np.arange(len(self)) + np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def last(self) -> NDArray[np.intp]:
        """The last step of each run, int[R]."""
        return np.cumsum(self.lengths) - 1


def joined(parts: list[Played]) -> Played:
    """Return the runs of several as one."""
    if len(parts) == 1:
        return parts[0]
    return Played(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Played.__slots__})


class Tape:
    """Steps that are under way."""

    def __init__(self, first: Floats) -> None:
        """Begin with what the worlds show, float32[N, D]."""
        self.num_real = 0
        self._observations = [first]
        self._columns: list[tuple[Array, ...]] = []

    @property
    def seen(self) -> Floats:
        """What the worlds show now, float32[N, D]."""
        return self._observations[-1]

    def add(
        self, drawn: tuple[Array, Floats, Floats], stepped: Stepped, void: Array, lost: Array, aside: Array
    ) -> None:
        """Note one step of every world: actions [N, *a] with outputs and log probabilities, and what came of them.

        `void` marks the worlds whose step was their new beginning or never was, `lost` those of them that broke, and
        `aside` those whose episode isn't told of.
        """
        observations, *told = stepped
        self._observations.append(np.asarray(observations, dtype=np.float32))
        self._columns.append((*drawn, *told, void, lost, aside.copy()))
        self.num_real += len(void) - int(np.count_nonzero(void))

    def end(self, open_: NDArray[np.float64]) -> tuple[Played, NDArray[np.float64]]:
        """Return what was played, and (length, return) float64[2, E] of each episode told of that ended meanwhile.

        `open_` float64[2, N] holds steps and return of the episodes under way before, and is brought up to date. An
        episode whose world broke is cut off where it was, and not told.
        """
        columns = [np.stack(column, axis=1) for column in zip(*self._columns, strict=True)]
        actions, outputs, logps, rewards, terminated, truncated, void, lost, aside = columns
        (num_worlds, num_steps), real = void.shape, ~void
        around = np.zeros((num_worlds, num_steps + 2), dtype=np.bool_)
        around[:, 1:-1] = real
        begins, ends = (np.flatnonzero(real & ~beside) for beside in (around[:, :-2], around[:, 2:]))
        is_cut = np.zeros_like(lost)
        is_cut[:, :-1] = lost[:, 1:]
        over, cut = (terminated | truncated).ravel()[ends], is_cut.ravel()[ends]
        played = Played(
            observations=np.stack(self._observations, axis=1)[around[:, 1:] | around[:, :-1]],
            actions=actions[real],
            outputs=outputs[real],
            logps=logps[real],
            rewards=rewards[real],
            lengths=ends - begins + 1,
            terminated=terminated.ravel()[ends],
            truncated=(truncated & ~terminated).ravel()[ends] | (cut & ~over),
        )
        worlds, (at, until) = begins // num_steps, (begins % num_steps, ends % num_steps)
        sums = np.stack([played.lengths, np.add.reduceat(played.rewards, played.last - played.lengths + 1)])
        sums[:, at == 0] += open_[:, worlds[at == 0]]
        goes_on = ~over & ~cut & (until == num_steps - 1)
        open_[:] = 0.0
        open_[:, worlds[goes_on]] = sums[:, goes_on]
        return played, sums[:, over & ~aside.ravel()[ends]]


def learnt(played: Played, scale: float, step_cost: float) -> Played:
    """Return what was played with rewards as training has them."""
    if scale == 1.0 and not step_cost:
        return played
    return replace(played, rewards=scale * (played.rewards - step_cost))
