"""Fit the simulator's parameters to whole episodes of production, for tasks that can't be put into a state.

The simulator plays the policy that served at many parameters, and each episode is told by its statistics. A projection
of the statistics onto what they say of each parameter (Fearnhead and Prangle 2012) and a surface that gives the mean
and the spread of that projection as a function of the parameters (a synthetic likelihood: Wood 2010) turn the mean over
production's episodes into a posterior of the parameters. The surface is fitted several times, each time closer to
production, and the projection comes from the draws of the times before, so that it never flatters itself.
Whether *any* parameters explain production is read off all statistics, not off the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from flywheel.analyze.spread import Map, Stage
from flywheel.analyze.statistics import Scale, Statistics, usable, width
from flywheel.analyze.surface import SYSTEMATIC, Belief, Floats, Mask, Surface, believe, projection
from flywheel.config import AnalyzeConfig
from flywheel.policy import Policy
from flywheel.records import Calibration, Episode
from flywheel.task import Task

LEAST_EPISODES = 8
"""Whole episodes of production below which nothing is fitted: a mean of fewer has no known spread."""
CHECKED = 64
"""Simulated episodes at nominal parameters, and again at the fit, whose statistics are held against production's."""
LEAST_DRAWS = 64
"""Simulated episodes of one round, however long they are."""
AT_ONCE = 5
"""Steps in a vector form that cost about as much as one step of a world of its own."""
IDENTIFIED = 0.7
"""Deviation that the data may leave of a parameter, as a share of a uniform one's: at most this (R2 of 0.5)."""
CAREFUL = (2, 5, 12, 30)
"""Episodes that production counts for at most in the first rounds, whose surfaces span wide ranges and fit badly."""
ROUNDS = 2 + len(CAREFUL)
"""Shares of the budget: two for the draws all over the ranges, one for each that comes closer."""
WIDER = 2.0
"""Factor on the deviation of what is believed when the next round is drawn from it."""
SPLITS = 100
"""Random halvings of simulated episodes that say how far two groups lie apart by chance."""
NEAR = 0.2
"""Share of a statistic's width all over the ranges that two worlds may at least differ by until it counts in full."""
EDGE = 0.01
"""Share of a parameter's range that counts as its edge."""


def needed(task: Task) -> bool:
    """Say whether only whole episodes can calibrate this task: one-step transitions need states it doesn't give."""
    return task.set_state is None or task.observed_state is None


def obstacle(task: Task, policy: Policy | None, episodes: Sequence[Episode]) -> str:
    """Return why these episodes can't calibrate this task's simulator, as a phrase; "" if they can."""
    if not task.parameters:
        return f"task {task.name} names no parameters"
    if policy is None:
        return f"task {task.name} gives no set_state or no observed_state, and the policy that served isn't at hand"
    num = len(_served(policy, episodes))
    if num < LEAST_EPISODES:
        return f"only {num} whole episodes of the {LEAST_EPISODES} that statistics need"
    return ""


def calibrate(
    task: Task,
    policy: Policy,
    episodes: Sequence[Episode],
    config: AnalyzeConfig,
    seed: int,
    map: Map | None = None,
) -> Calibration | None:
    """Return the parameters that whole episodes show, or None where `obstacle` names a reason.

    Reads the last `config.episodes` episodes that this policy began. The same arguments give the same answer. `map`
    plays parts of what takes a heavy simulator long. Raises FlywheelError where the simulator can't be played.
    """
    if obstacle(task, policy, episodes):
        return None
    produced = _served(policy, episodes)[-config.episodes :]
    player = _Player(task, Stage(task, policy, map), seed)
    nominal = player.same(player.nominal)
    num = _affordable(task, config, nominal.episodes, produced)
    statistics = Statistics(policy.spec, nominal.episodes, rewarded=all(np.isfinite(e.rewards).all() for e in produced))
    shown = statistics.of(produced)
    wide = player.draws(player.spread(2 * num))
    far = statistics.of(wide.episodes)
    belief, blurred = _rounds(player, statistics, shown, (wide.points, far))
    fitted = statistics.of(player.same(belief.mean).episodes)
    explained, left = _explained(shown, statistics.of(nominal.episodes), fitted, far, player.rng)
    if explained < 1.0 and player.on_edge(belief.mean):
        explained = 0.0
    low, high = player.values(belief.low), player.values(belief.high)
    return Calibration(
        values=player.values(belief.mean),
        intervals={name: (low[name], high[name]) for name in player.names},
        explained=explained,
        residual=left,
        num_transitions=sum(e.num_steps for e in produced),
        not_identified=tuple(n for n, is_blurred in zip(player.names, blurred, strict=True) if is_blurred),
        method="episodes",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Draws:
    """Simulated episodes and the coordinates float64[N, P] of each one's parameters."""

    points: Floats
    episodes: list[Episode]


class _Player:
    """The simulator with the policy in it, as a function of coordinates: 0 and 1 are the ends of a range."""

    def __init__(self, task: Task, stage: Stage, seed: int) -> None:
        self.names = [p.name for p in task.parameters]
        self.rng = np.random.default_rng(seed)
        self._stage = stage
        low, high = (np.array([getattr(p, end) for p in task.parameters]) for end in ("low", "high"))
        self._sign = np.where(low * high > 0, np.sign(low), 0.0)  # 0: the range holds 0, so logs have no place
        self._low, self._high = self._scaled(low), self._scaled(high)
        span = np.where(self._high == self._low, 1.0, self._high - self._low)
        self.nominal = np.asarray((self._scaled(np.array([p.nominal for p in task.parameters])) - self._low) / span)

    def _scaled(self, values: Floats) -> Floats:
        return np.asarray(np.where(self._sign == 0, values, np.log(np.where(self._sign == 0, 1.0, abs(values)))))

    def values(self, point: Floats) -> dict[str, float]:
        """Return the parameters at a point, by name."""
        at = self._low + point * (self._high - self._low)
        found = np.where(self._sign == 0, at, self._sign * np.exp(np.where(self._sign == 0, 0.0, at)))
        return dict(zip(self.names, found.tolist(), strict=True))

    def on_edge(self, point: Floats) -> bool:
        """Say whether a parameter was moved to an end of its range."""
        moved = abs(point - self.nominal) > EDGE
        return bool((moved & ((point < EDGE) | (point > 1 - EDGE))).any())

    def spread(self, num: int) -> Floats:
        """Return float64[num, P] spread evenly over all ranges."""
        sobol = qmc.Sobol(len(self.names), rng=self.rng)
        return np.asarray(sobol.random_base2(max(1, (num - 1).bit_length()))[:num])

    def around(self, belief: Belief, num: int) -> Floats:
        """Return float64[num, P] drawn from what is believed, wider, within the ranges."""
        covariance = WIDER**2 * belief.covariance + 1e-12 * np.eye(len(belief.mean))
        drawn = self.rng.multivariate_normal(belief.mean, covariance, size=20 * num, method="cholesky")
        inside = drawn[((drawn >= 0) & (drawn <= 1)).all(axis=1)]
        return np.asarray(np.concatenate([inside, np.clip(drawn, 0, 1)])[:num])

    def same(self, point: Floats) -> _Draws:
        """Play CHECKED episodes at one point."""
        return self.draws(np.tile(point, (CHECKED, 1)))

    def draws(self, points: Floats) -> _Draws:
        """Play one episode at each point; those that have no statistics are left out."""
        seeds, keys = self.rng.integers(2**31, size=len(points)), self.rng.integers(2**63, size=len(points))
        episodes = self._stage.play(seeds.tolist(), [self.values(point) for point in points], keys.tolist())
        kept = usable(episodes)
        places = {e.id for e in kept}
        return _Draws(points=points[[e.id in places for e in episodes]], episodes=kept)


def _served(policy: Policy, episodes: Sequence[Episode]) -> list[Episode]:
    return [e for e in usable(episodes) if not policy.digest or e.digests[0] == policy.digest]


def _affordable(task: Task, config: AnalyzeConfig, *episodes: Sequence[Episode]) -> int:
    """Return the episodes of one round, which share the budget of episodes and of steps."""
    length = max(float(np.mean([e.num_steps for e in some])) for some in episodes)
    steps = config.simulated_steps * (1 if task.vector is None else AT_ONCE)
    total = min(config.simulations, steps / length) - 2 * CHECKED
    return max(LEAST_DRAWS, int(total / ROUNDS))


Known = tuple[Floats, Floats]
"""Coordinates float64[N, P] of simulated episodes and their statistics float64[N, F]."""


def _rounds(player: _Player, statistics: Statistics, shown: Floats, wide: Known) -> tuple[Belief, Mask]:
    """Return what is believed after the last round, and which parameters production can't tell (from each other)."""
    done = [(wide[0][::2], wide[1][::2]), (wide[0][1::2], wide[1][1::2])]
    free = np.ones(len(player.names), dtype=np.bool_)
    start = player.nominal
    for most in CAREFUL:
        surface, mean = _surface(done, shown, min(len(shown), most))
        belief = believe(surface, mean, nominal=player.nominal, free=free, start=start, rng=player.rng)
        start = belief.mean
        draws = player.draws(player.around(belief, len(wide[0]) // 2))
        done.append((draws.points, statistics.of(draws.episodes)))
    surface, mean = _surface(done, shown, len(shown))
    belief, free = _clear(surface, mean, player, belief)
    return belief, ~free


def _surface(done: Sequence[Known], shown: Floats, num: int) -> tuple[Surface, Floats]:
    """Return the surface over the newest draws, projected as those before say, and the mean to ask it about."""
    *older, (points, newest) = done
    scale = Scale(newest)
    before, known = (np.concatenate(some) for some in zip(*older[-2:], strict=True))
    return Surface(points, scale(newest), projection(before, scale(known)), num), scale(shown).mean(axis=0)


def _clear(surface: Surface, mean: Floats, player: _Player, belief: Belief) -> tuple[Belief, Mask]:
    """Return what is believed, and which parameters are free.

    One after another is held at its nominal value, first the one whose nominal value costs least, until the data say
    enough of all the rest.
    """

    def tried(free: Mask) -> Belief:
        return believe(surface, mean, nominal=player.nominal, free=free, start=belief.mean, rng=player.rng)

    limit = IDENTIFIED / np.sqrt(12)
    free = np.ones(len(player.names), dtype=np.bool_)
    belief = tried(free)
    unclear = belief.deviation > limit
    while unclear.any():
        fewer = [free & (np.arange(len(free)) != i) for i in np.flatnonzero(unclear)]
        belief, free = min(((tried(some), some) for some in fewer), key=lambda pair: pair[0].cost)
        unclear = belief.deviation > limit
    return belief, free


def _explained(
    shown: Floats, nominal: Floats, fitted: Floats, far: Floats, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the share of production's distance from the nominal simulator that the fit removed, and what is left.

    A distance is the root mean square, over all statistics, of a difference of means in deviations of that difference.
    `far` are statistics of worlds all over the ranges: what hardly differs beside them is nobody's business.
    """
    apart = np.abs(np.median(shown, axis=0) - np.median(nominal, axis=0))
    scale = Scale(nominal, fitted, least=np.maximum(apart, NEAR * width(far)))
    shown, nominal, fitted = (scale(some) for some in (shown, nominal, fitted))
    deviation = np.sqrt((nominal.var(axis=0) + fitted.var(axis=0)) / 2)

    def distance(one: Floats, other: Floats) -> float:
        chance = np.sqrt(deviation**2 * (1 / len(one) + 1 / len(other)) + SYSTEMATIC**2)
        return float(np.sqrt((((one.mean(axis=0) - other.mean(axis=0)) / chance) ** 2).mean()))

    before, left = distance(shown, nominal), distance(shown, fitted)
    half = len(fitted) // 2
    halves = [rng.permutation(len(fitted)) for _ in range(SPLITS)]
    chance = np.array([distance(fitted[order[:half]], fitted[order[half:]]) for order in halves])
    if before <= np.quantile(chance, 0.95):
        return 1.0, left  # nominal parameters leave nothing to explain
    noise = float(chance.mean())
    return float(np.clip(1 - max(left - noise, 0.0) / (before - noise), 0.0, 1.0)), left
