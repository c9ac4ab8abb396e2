"""Fit the simulator's parameters to production's transitions.

The task's own simulator predicts the state one step after each observed one; nonlinear least squares over the logs of
the parameters makes prediction meet production. What the data can't tell apart is read off the singular values of the
Jacobian: a direction they say less about than the prior is not theirs to move, and of all explanations along it the
one that changes fewest parameters is given (least sum of absolute changes: Chen, Donoho and Saunders 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, linprog

from flywheel.config import AnalyzeConfig
from flywheel.records import Calibration, Episode
from flywheel.simulate.transitions import Floats, Simulator, Transitions, gather
from flywheel.task import Task

PRIOR = 1.0
"""Deviation of a parameter's log change before data are seen: a factor of e."""
STEP = 1e-3
"""Half-width of the central differences, in logs: their error is its square."""
TOLD = 1e-5
"""Share of the greatest singular value below which one is the differences' error (about STEP squared), not the data."""
ROUNDING = 1e-6
"""Deviations: a residual below this is the rounding of float32 observations, not the world."""
MOST_STEPS = 50
"""Transitions read of one episode."""
FAR = 1e9
"""Deviations: the residual of a prediction that is no finite number."""
EDGE = 1e-3
"""Share of a parameter's range (in logs) that counts as its edge."""
PER_PARAMETER = 5
"""Transitions for each parameter below which nothing is fitted."""

Mask = NDArray[np.bool_]


def obstacle(task: Task, episodes: Sequence[Episode], before: Sequence[Episode] = ()) -> str:
    """Return why these episodes can't calibrate this task's simulator, as a phrase; "" if they can.

    `before` are episodes from before the change: what moved in them and stands still since is a broken sensor.
    """
    if not task.parameters:
        return f"task {task.name} names no parameters"
    missing = [name for name in ("set_state", "observed_state") if getattr(task, name) is None]
    if missing:
        return f"task {task.name} gives no {' and no '.join(missing)}"
    num, least = sum(e.num_steps for e in episodes), PER_PARAMETER * len(task.parameters)
    if num < least:
        return f"only {num} transitions of the {least} that {len(task.parameters)} parameters need"
    moves = _moves(task, episodes)
    still = ~moves & (_moves(task, before) if before else ~moves.any())
    if not still.any():
        return ""
    named = "no number" if still.all() else f"number {', '.join(map(str, np.flatnonzero(still)))}"
    return f"{named} of the observed state {'ever' if still.all() else 'never'} moves, as with a broken sensor"


def _moves(task: Task, episodes: Sequence[Episode]) -> Mask:
    """Return bool[S]: which numbers of the observed state are ever changed by a step of these episodes."""
    data = gather(task, episodes, MOST_STEPS)
    return np.asarray((data.states != data.successors).any(axis=0))


def calibrate(
    task: Task, episodes: Sequence[Episode], config: AnalyzeConfig, *, before: Sequence[Episode] = ()
) -> Calibration | None:
    """Return the parameters that production's episodes show, or None where `obstacle` names a reason.

    Deterministic. Reads the last `config.episodes` episodes; some of them may come from another world than most of the
    later half, and are then left out. `before` are episodes from before the change: what is left of *their* residual
    after a fit is production's own noise, which no parameter is asked to explain. A fit that ends on the edge of a
    parameter's range explains nothing (`explained` is 0): a world out of range, or a broken sensor, looks like that.
    """
    if obstacle(task, episodes, before):
        return None
    with Simulator(task) as simulator:
        space = _Space(task, simulator)
        data = gather(task, episodes[-config.episodes :], MOST_STEPS)
        deviation = data.states.std(axis=0)
        space.scale = np.where(deviation > 0, deviation, 1.0)
        fit = _fit(space, data)
        noise = 0.0
        if before and not obstacle(task, before):
            noise = _fit(space, gather(task, before[-config.episodes :], MOST_STEPS)).left
        return _calibration(space, fit, noise)


class _Space:
    """Parameters as coordinates: 0 is nominal, 1 a factor of e (or, where a range reaches 0, the whole range)."""

    def __init__(self, task: Task, simulator: Simulator) -> None:
        self.names = [p.name for p in task.parameters]
        self.scale: Floats = np.ones(1)
        self._simulator = simulator
        self._nominal = np.array([p.nominal for p in task.parameters])
        low, high = (np.array([getattr(p, end) for p in task.parameters]) for end in ("low", "high"))
        self._log = low > 0
        self._span = np.where(self._log, 1.0, high - low)
        self.low, self.high = self._inverse(low), self._inverse(high)

    def _inverse(self, values: Floats) -> Floats:
        safe = np.where(self._log, values / np.where(self._log, self._nominal, 1.0), 1.0)
        return np.where(self._log, np.log(safe), (values - self._nominal) / self._span)

    def on_edge(self, x: Floats) -> bool:
        """Say whether a parameter was moved to an end of its range."""
        near = EDGE * (self.high - self.low)
        return bool(((abs(x) > near) & ((x < self.low + near) | (x > self.high - near))).any())

    def values(self, x: Floats) -> dict[str, float]:
        """Return the parameters at a point, by name."""
        found = np.where(self._log, self._nominal * np.exp(np.where(self._log, x, 0.0)), self._nominal + x * self._span)
        return dict(zip(self.names, found.tolist(), strict=True))

    def residuals(self, data: Transitions, points: Sequence[Floats]) -> Floats:
        """Return float64[M, N, S]: prediction minus production in deviations of the state, at M points.

        A prediction that is no finite number (a broken sensor may show states that no simulator can step) is FAR off.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = self._simulator.successors(data, [self.values(x) for x in points])
            residuals = (predicted - data.successors) / self.scale
        return np.asarray(np.nan_to_num(residuals, nan=FAR, posinf=FAR, neginf=-FAR))

    def jacobian(self, data: Transitions, x: Floats) -> Floats:
        """Return float64[N, S, P] by central differences."""
        steps = STEP * np.eye(len(x))
        up, down = np.split(self.residuals(data, [*(x + steps), *(x - steps)]), 2)
        return np.moveaxis((up - down) / (2 * STEP), 0, -1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    x: Floats
    """float64[P]: coordinates of the best point"""
    jacobian: Floats
    """float64[N·S, P], in deviations of the noise"""
    nominal: float
    """mean square of the residual at nominal parameters, in deviations of the state"""
    left: float
    """the same at the best point"""
    num: int


def _fit(space: _Space, data: Transitions) -> _Fit:
    """Fit twice: robustly on the later half of the episodes, then exactly on everything that agrees with it."""
    later = data.only(data.episodes >= (data.episodes.max() + 1) // 2)
    x = _least_squares(space, later, np.zeros(len(space.names)), _noise(space, later, None), robust=True)
    data = data.only(_same_world(space, data, later, x))
    for _ in range(2):
        noise = _noise(space, data, x)
        x = _least_squares(space, data, x, noise, robust=False)
    data = data.only(_without_jumps(space, data, x, noise))
    noise = _noise(space, data, x)
    x = _least_squares(space, data, x, noise, robust=False)
    nominal, left = (float((r**2).mean()) for r in space.residuals(data, [np.zeros_like(x), x]))
    jacobian = (space.jacobian(data, x) / noise[:, None]).reshape(-1, len(x))
    return _Fit(x=x, jacobian=jacobian, nominal=nominal, left=left, num=len(data))


def _noise(space: _Space, data: Transitions, x: Floats | None) -> Floats:
    """Return float64[S]: the deviation of the residual, by its median so that a few strange rows don't count."""
    at = np.zeros(len(space.names)) if x is None else x
    spread = 1.4826 * np.median(np.abs(space.residuals(data, [at])[0]), axis=0)
    return np.asarray(np.maximum(spread, ROUNDING))


def _least_squares(space: _Space, data: Transitions, start: Floats, noise: Floats, *, robust: bool) -> Floats:
    prior = np.eye(len(start)) / PRIOR

    def residuals(x: Floats) -> Floats:
        return np.concatenate([(space.residuals(data, [x])[0] / noise).ravel(), x / PRIOR])

    def jacobian(x: Floats) -> Floats:
        return np.concatenate([(space.jacobian(data, x) / noise[:, None]).reshape(-1, len(x)), prior])

    found = least_squares(
        residuals,
        np.clip(start, space.low + 1e-9, space.high - 1e-9),
        jacobian,
        bounds=(space.low, space.high),
        loss="soft_l1" if robust else "linear",
        f_scale=0.1,
        xtol=1e-6 if robust else 1e-8,  # the first one only has to tell which episodes belong together
        max_nfev=50,
    )
    return np.asarray(found.x, dtype=np.float64)


def _same_world(space: _Space, data: Transitions, later: Transitions, x: Floats) -> Mask:
    """Say which transitions belong to episodes that fit about as well as the later half's typical one does."""

    def by_episode(some: Transitions) -> dict[int, float]:
        size = (space.residuals(some, [x])[0] ** 2).mean(axis=1)
        return {int(e): float(np.sqrt(np.median(size[some.episodes == e]))) for e in np.unique(some.episodes)}

    typical = float(np.median(list(by_episode(later).values())))
    kept = [e for e, size in by_episode(data).items() if size <= 3.0 * typical + 10 * ROUNDING]
    return np.isin(data.episodes, kept)


def _without_jumps(space: _Space, data: Transitions, x: Floats, noise: Floats) -> Mask:
    """Leave out jumps that no step of the world makes (a reset inside an episode), as long as they are accidents."""
    jumps = (np.abs(space.residuals(data, [x])[0]) > np.maximum(20.0 * noise, 0.01)).any(axis=1)
    return ~jumps if jumps.mean() <= 0.05 else np.ones(len(data), dtype=bool)


def _calibration(space: _Space, fit: _Fit, noise: float) -> Calibration:
    _, singular, rows = np.linalg.svd(fit.jacobian, full_matrices=False)
    told = (singular * PRIOR > 1.0) & (singular > TOLD * singular[0])
    x = _sparsest(fit.x, rows[~told], space)
    deviation = np.sqrt(((rows[told] / singular[told, None]) ** 2).sum(axis=0))
    low, high = (space.values(np.clip(x + side * 1.96 * deviation, space.low, space.high)) for side in (-1, 1))
    blurred = np.sqrt((rows[~told] ** 2).sum(axis=0)) > 0.2
    return Calibration(
        values=space.values(x),
        intervals={name: (low[name], high[name]) for name in space.names},
        explained=0.0 if space.on_edge(x) else _explained(fit, noise),
        residual=float(np.sqrt(fit.left)),
        num_transitions=fit.num,
        not_identified=tuple(name for name, is_blurred in zip(space.names, blurred, strict=True) if is_blurred),
    )


def _explained(fit: _Fit, noise: float) -> float:
    nothing = max(1.1 * noise, (10 * ROUNDING) ** 2)
    if fit.nominal <= nothing:
        return 1.0  # nominal parameters leave nothing to explain
    return float(np.clip(1.0 - (fit.left - noise) / (fit.nominal - noise), 0.0, 1.0))


def _sparsest(x: Floats, directions: Floats, space: _Space) -> Floats:
    """Return the point with the least sum of absolute changes among those that data can't tell from `x`.

    `directions` float64[D, P] span what they can't tell: minimize sum(u) with -u <= x + z @ directions <= u.
    """
    num, size = directions.shape
    if num == 0:
        return x
    cost = np.concatenate([np.zeros(num), np.ones(size)])
    eye, moves = np.eye(size), directions.T
    upper = np.block([[moves, -eye], [-moves, -eye], [moves, np.zeros((size, size))], [-moves, np.zeros((size, size))]])
    limit = np.concatenate([-x, x, space.high - x, x - space.low])
    found = linprog(cost, A_ub=upper, b_ub=limit, bounds=[(None, None)] * num + [(0, None)] * size)
    return np.asarray(x + found.x[:num] @ directions) if found.success else x
