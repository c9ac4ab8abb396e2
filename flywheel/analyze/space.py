"""A task's parameters as coordinates, and what its simulator predicts there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from flywheel.simulate.transitions import Transitions
from flywheel.task import Task

STEP = 1e-3
"""Half-width of the central differences, in logs of a parameter or deviations of the state: their error is its
square."""
FAR = 1e9
"""Deviations: the residual of a prediction that is no finite number."""
EDGE = 1e-3
"""Share of a parameter's range (in logs) that counts as its edge."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Successors = Callable[[Transitions, Sequence[Mapping[str, float]]], Floats]
"""Predicted successors float64[M, N, S] of N transitions under each of M parameter sets."""


class Space:
    """Parameters as coordinates: 0 is nominal, 1 a factor of e (or, where a range reaches 0, the whole range)."""

    def __init__(self, task: Task, successors: Successors) -> None:
        """Ask `successors` for every prediction."""
        self.names = [p.name for p in task.parameters]
        self.scale: Floats = np.ones(0)
        """float64[S]: deviation of each number of the state, in which residuals are counted"""
        self._successors = successors
        self._nominal = np.array([p.nominal for p in task.parameters])
        low, high = (np.array([getattr(p, end) for p in task.parameters]) for end in ("low", "high"))
        self._log = low > 0
        self._span = np.where(self._log, 1.0, high - low)
        self.low, self.high = self._inverse(low), self._inverse(high)

    def _inverse(self, values: Floats) -> Floats:
        safe = np.where(self._log, values / np.where(self._log, self._nominal, 1.0), 1.0)
        return np.where(self._log, np.log(safe), (values - self._nominal) / self._span)

    def set_scale(self, data: Transitions) -> None:
        """Count residuals in deviations of these states from now on."""
        deviation = data.states.std(axis=0)
        self.scale = np.where(deviation > 0, deviation, 1.0)

    def on_edge(self, x: Floats) -> bool:
        """Say whether a parameter was moved to an end of its range."""
        near = EDGE * (self.high - self.low)
        return bool(((abs(x) > near) & ((x < self.low + near) | (x > self.high - near))).any())

    def values(self, x: Floats) -> dict[str, float]:
        """Return the parameters at a point, by name."""
        found = np.where(self._log, self._nominal * np.exp(np.where(self._log, x, 0.0)), self._nominal + x * self._span)
        return dict(zip(self.names, found.tolist(), strict=True))

    def predicted(self, data: Transitions, points: Sequence[Floats]) -> Floats:
        """Return the successors float64[M, N, S] in deviations of the state, at M points; some may be infinite or NaN.

        A broken sensor may show states that no simulator can step.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self._successors(data, [self.values(x) for x in points]) / self.scale)

    def residuals(self, data: Transitions, points: Sequence[Floats]) -> Floats:
        """Return float64[M, N, S]: prediction minus production in deviations of the state, at M points.

        A prediction that is no finite number is FAR off.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            residuals = self.predicted(data, points) - data.successors / self.scale
        return np.asarray(np.nan_to_num(residuals, nan=FAR, posinf=FAR, neginf=-FAR))

    def jacobian(self, data: Transitions, x: Floats) -> Floats:
        """Return float64[N, S, P] by central differences."""
        steps = STEP * np.eye(len(x))
        up, down = np.split(self.residuals(data, [*(x + steps), *(x - steps)]), 2)
        return np.moveaxis((up - down) / (2 * STEP), 0, -1)

    def sparsest(self, x: Floats, directions: Floats) -> Floats:
        """Return the point with the least sum of absolute changes among those that data can't tell from `x`.

        `directions` float64[D, P] span what they can't tell: minimize sum(u) with -u <= x + z @ directions <= u.
        """
        num, size = directions.shape
        if num == 0:
            return x
        cost = np.concatenate([np.zeros(num), np.ones(size)])
        eye, nothing, moves = np.eye(size), np.zeros((size, size)), directions.T
        upper = np.block([[moves, -eye], [-moves, -eye], [moves, nothing], [-moves, nothing]])
        limit = np.concatenate([-x, x, self.high - x, x - self.low])
        found = linprog(cost, A_ub=upper, b_ub=limit, bounds=[(None, None)] * num + [(0, None)] * size)
        return np.asarray(x + found.x[:num] @ directions) if found.success else x
