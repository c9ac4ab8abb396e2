"""Fit the simulator's parameters to production's transitions.

The task's own simulator predicts the state one step after each observed one; nonlinear least squares over the logs of
the parameters makes prediction meet production. Where that leaves noise, a filter goes on from there. What the data
can't tell apart is read off the singular values of the Jacobian: a direction they say less about than the prior is not
theirs to move, and of all explanations along it the one that changes fewest parameters is given (least sum of absolute
changes: Chen, Donoho and Saunders 1998).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel.analyze import squares
from flywheel.analyze.explained import explained, misfit
from flywheel.analyze.filtered import PRIOR, fitted
from flywheel.analyze.space import Floats, Mask, Space
from flywheel.analyze.spread import Map, Stepper
from flywheel.analyze.tracks import Tracks, follow
from flywheel.config import AnalyzeConfig
from flywheel.records import Calibration, Episode
from flywheel.simulate.transitions import Simulator, gather
from flywheel.task import Task

TOLD = 1e-5
"""Share of the greatest singular value below which one is the differences' error (about STEP squared), not the data."""
QUIET = 1e-5
"""Deviations of the state: where a typical residual of a fit is smaller in every number, nothing is noisy."""
LOUD = 1e6
"""The same: where it is greater, no simulator can step what is seen, and no filter can follow it."""
MOST_STEPS = 50
"""Transitions read of one episode."""
TRACK_STEPS = 200
"""Steps read of the beginning of one episode where they are noisy; MOST_STEPS where worlds are stepped one by one."""
FEWEST_TRACKS = 2
"""Episodes long enough to be followed below which noise is not told from the rest."""
PER_PARAMETER = 5
"""Transitions for each parameter below which nothing is fitted."""


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
    task: Task,
    episodes: Sequence[Episode],
    config: AnalyzeConfig,
    *,
    before: Sequence[Episode] = (),
    map: Map | None = None,
) -> Calibration | None:
    """Return the parameters that production's episodes show, or None where `obstacle` names a reason.

    Deterministic. Reads the last `config.episodes` episodes; some of them may come from another world than most of the
    later half, and are then left out. `before` are episodes from before the change: what is left of *them* after a fit
    is production's own noise, which no parameter is asked to explain. A fit that ends on the edge of a parameter's
    range explains nothing (`explained` is 0): a world out of range, or a broken sensor, looks like that. `map` computes
    parts of what takes a heavy simulator long.
    """
    if obstacle(task, episodes, before):
        return None
    with Simulator(task) as simulator:
        space = Space(task, Stepper(task, simulator, map).successors)
        shown = _Shown(task, space, episodes[-config.episodes :])
        known = None
        if before and not obstacle(task, before):
            known = _Shown(task, space, before[-config.episodes :])
        if shown.is_noisy and (known is None or known.is_noisy):
            tracks, past = shown.tracks(), None if known is None else known.tracks()
            if min(len(some.lengths) for some in (tracks, past or tracks)) >= FEWEST_TRACKS:
                return _through_noise(space, shown, tracks, known, past)
        return _exactly(space, shown.fit, 0.0 if known is None else known.fit.left)


class _Shown:
    """Episodes and the least squares' fit to them. The first ones give a space its scale."""

    def __init__(self, task: Task, space: Space, episodes: Sequence[Episode]) -> None:
        data = gather(task, episodes, MOST_STEPS)
        if len(space.scale) != data.states.shape[1]:
            space.set_scale(data)
        self._task, self._space, self._episodes = task, space, episodes
        self.fit = squares.fit(space, data)

    @property
    def is_noisy(self) -> bool:
        """Say whether there is noise that a filter can see through."""
        return QUIET < float(self.fit.noise.max()) < LOUD

    def tracks(self) -> Tracks:
        """Return the beginnings of the episodes of one world, each as far as it goes without a jump."""
        kept = [self._episodes[i] for i in np.unique(self.fit.data.episodes)]
        most = MOST_STEPS if self._task.vector is None else TRACK_STEPS
        whole = follow(self._task, self._space, kept, most)
        if not len(whole.lengths):
            return whole
        return whole.until(squares.jumps(self._space, whole.transitions(self._space), self.fit))


def _exactly(space: Space, fit: squares.Fit, noise: float) -> Calibration:
    _, singular, rows = np.linalg.svd(fit.jacobian, full_matrices=False)
    told = _told(singular)
    deviations = np.sqrt(((rows[told] / singular[told, None]) ** 2).sum(axis=0))
    return _calibration(space, fit.x, deviations, rows[~told], squares.explained(fit, noise), fit.left, len(fit.data))


def _through_noise(
    space: Space, shown: _Shown, tracks: Tracks, known: _Shown | None, past: Tracks | None
) -> Calibration:
    found = fitted(space, tracks, shown.fit.x)
    values, vectors = np.linalg.eigh(found.information)
    singular, rows = np.sqrt(np.maximum(values[::-1], 0.0)), vectors.T[::-1]
    told = _told(singular)
    noise, floor = found.noise, None
    if known is not None and past is not None:
        quiet = fitted(space, past, known.fit.x)
        noise = quiet.noise
        floor = misfit(space, past, quiet.x, noise)
    nominal, fit = (misfit(space, tracks, x, noise) for x in (np.zeros_like(found.x), found.x))
    left = float((space.residuals(shown.fit.data, [found.x])[0] ** 2).mean())
    return _calibration(
        space,
        found.x,
        found.deviations(rows[told], singular[told]),
        rows[~told],
        explained(nominal, fit, floor),
        left,
        int(tracks.lengths.sum()),
    )


def _told(singular: Floats) -> Mask:
    """Return which directions the data say more about than the prior."""
    return np.asarray((singular * PRIOR > 1.0) & (singular > TOLD * singular[0]))


def _calibration(
    space: Space, x: Floats, deviations: Floats, untold: Floats, explained: float, left: float, num: int
) -> Calibration:
    """Return coordinates and their deviations as parameters; `untold` float64[D, P] are directions of no say."""
    x = space.sparsest(x, untold)
    low, high = (space.values(np.clip(x + side * 1.96 * deviations, space.low, space.high)) for side in (-1, 1))
    blurred = np.sqrt((untold**2).sum(axis=0)) > 0.2
    return Calibration(
        values=space.values(x),
        intervals={name: (low[name], high[name]) for name in space.names},
        explained=0.0 if space.on_edge(x) else explained,
        residual=float(np.sqrt(left)),
        num_transitions=num,
        not_identified=tuple(name for name, is_blurred in zip(space.names, blurred, strict=True) if is_blurred),
    )
