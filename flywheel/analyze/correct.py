"""What production's steps do that the simulator's don't, where no parameter explains it.

First which action arrives (`correct_actions`): two of them swapped, a sign, a delay. Where that leaves much, what is
added to the state, by regression (`correct_surface`); and to the reward, where rewards are to be followed. How much a
correction explains is asked of episodes that it was not fitted to: the whole fit is made of one half of the episodes
and tried on the other one, both ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel.analyze.correct_actions import SIMPLER, forms
from flywheel.analyze.correct_surface import surface
from flywheel.analyze.missing import Floats, Mask, Missing, shown
from flywheel.config import AnalyzeConfig
from flywheel.correction import Correction
from flywheel.records import Episode, Parameters
from flywheel.remembering import forgotten
from flywheel.simulate.corrected import plain
from flywheel.simulate.transitions import Simulator
from flywheel.task import Task, spec_of

FEWEST_STEPS = 100
"""Steps of production below which nothing is fitted."""
FEWEST_EPISODES = 4
"""The same of episodes: half of them answer for the other half."""
CHANCE = 3.0
"""Deviations of chance that what is missed must exceed what was missed before the change."""
GROWN = 1.1
"""Times what was missed before the change that it must be, too."""
WORTH = 0.8
"""Share of what another action leaves that is left at most where something is added to the state as well."""
OLD = 0.25
"""An episode is of the world before the change when that one misses less than so much of what the new one does."""
LIKE = 0.02
"""Difference of two gains or offsets that is a fit's error."""
EXACT = 1e-4
"""Share of its unit by which a reward may be off without being another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came out: `correction` that corrects nothing where the simulator does what production does."""

    correction: Correction | None = None
    why: str = ""
    """Why there is none, as a phrase."""


def obstacle(task: Task, episodes: Sequence[Episode]) -> str:
    """Return why these episodes can't correct this task's simulator, as a phrase; "" if they can."""
    missing = [name for name in ("set_state", "state", "observed_state") if getattr(task, name) is None]
    if missing:
        return f"task {task.name} gives no {' and no '.join(missing)}"
    if spec_of(task).action_kind == "multi_discrete":
        return f"an action of task {task.name} has several parts, for which no correction is fitted"
    some = [episode for episode in episodes if episode.num_steps]
    num = sum(episode.num_steps for episode in some)
    if num < FEWEST_STEPS or len(some) < FEWEST_EPISODES:
        return f"only {num} steps of {len(some)} episodes show it, of {FEWEST_STEPS} and {FEWEST_EPISODES} needed"
    return ""


def correct(
    task: Task,
    episodes: Sequence[Episode],
    config: AnalyzeConfig,
    *,
    parameters: Parameters,
    before: Sequence[Episode] = (),
    present: Correction | None = None,
    known: Parameters | None = None,
) -> Found:
    """Return the correction with which the simulator at `parameters` does what the episodes show, or why there is none.

    Deterministic. The last `config.episodes` episodes are read; some of them may be of the world before the change,
    which acts by the `present` correction, at the parameters `known` (None: the same). What that misses in the episodes
    `before` the change is noise.
    """
    why = obstacle(task, episodes)
    if why:
        return Found(why=why)
    before = forgotten(task, before)[1]
    task, episodes = forgotten(task, episodes)
    spec = spec_of(task)
    since, earlier = (shown(task, spec, some[-config.episodes :]) for some in (episodes, before))
    if since is None or 2 * len(since) < FEWEST_STEPS or len(np.unique(since.episodes)) < FEWEST_EPISODES:
        return Found(why="too few steps show a state that is finite, as with a broken sensor")
    with Simulator(plain(task)) as simulator:
        fit = _Fit(Missing(task, parameters, simulator, since), present or Correction(), config)
        if earlier is not None:
            fit.know(Missing(task, parameters if known is None else known, simulator, earlier))
        return fit.run()


class _Fit:
    """One fit."""

    def __init__(self, missing: Missing, present: Correction, config: AnalyzeConfig) -> None:
        self._missing, self._present, self._config = missing, present, config
        self._noise: Floats = np.zeros(1)
        """float64[N]: mean square of what each episode before the change misses."""
        self._reward_noise: Floats = np.zeros(1)

    def know(self, past: Missing) -> None:
        """Learn what is noise from steps before the change, beside the simulator of that time."""
        past.span, past.reward_unit = self._missing.span, self._missing.reward_unit
        successors, rewards = past.predicted(past.data, self._present)
        noise = (past.spans(past.data, successors) ** 2).mean(axis=0)
        past.set_noise(noise)
        self._missing.set_noise(noise)
        self._noise = _finite(past.data.by_episode(past.squares(past.data, successors)))
        self._reward_noise = _finite(past.data.by_episode(np.nan_to_num(past.reward_squares(past.data, rewards))))

    def run(self) -> Found:
        """Return what explains the steps."""
        for known in (self._present, Correction()):
            if not any(self._is_missing(known)):
                return Found(correction=known)
        self._drop_old()
        states, rewards = self._is_missing(Correction())
        tries = (True, False) if states else (False,)
        best = 0.0
        for with_surface in tries:
            shares = [self._tried(half, states, rewards, with_surface) for half in self._missing.data.halves()]
            explained = float(np.mean(shares))
            if explained >= self._config.corrected:
                every = np.ones(len(self._missing.data), dtype=np.bool_)
                found = self._fitted(every, states, rewards, with_surface)
                if is_like(found, self._present):
                    return Found(correction=self._present)
                num = len(self._missing.data)
                return Found(correction=dataclasses.replace(found, explained=explained, num_transitions=num))
            best = max(best, explained)
        return Found(why=f"nothing that is tried explains more than {best:.0%} of what the simulator misses")

    def _squares(self, correction: Correction) -> tuple[Floats, Floats]:
        """Return float64[M] twice: what a correction misses of states and of rewards, squared."""
        data = self._missing.data
        successors, rewards = self._missing.predicted(data, correction)
        return self._missing.squares(data, successors), self._missing.reward_squares(data, rewards)

    def _is_missing(self, correction: Correction) -> tuple[bool, bool]:
        """Say whether states, and rewards where they are followed, are missed beyond what was noise before."""
        states, rewards = self._squares(correction)
        data = self._missing.data
        is_off = _is_more(data.by_episode(states), self._noise, self._missing.rounding)
        known = np.nan_to_num(rewards)
        is_other = _is_more(data.by_episode(known), self._reward_noise, EXACT**2)
        return is_off, is_other and self._config.follow_rewards

    def _drop_old(self) -> None:
        """Leave out episodes that are clearly of the world before the change, where they are the fewer."""
        data = self._missing.data
        every = np.ones(len(data), dtype=np.bool_)
        states, rewards = self._is_missing(Correction())
        found = self._fitted(every, states, rewards, with_surface=states)
        old, new = (data.by_episode(self._total(each)) for each in (self._present, found))
        is_old = old < OLD * new
        if 0 < is_old.sum() <= len(is_old) // 2:
            self._missing.data = data.only(~is_old[data.episodes])

    def _total(self, correction: Correction) -> Floats:
        states, rewards = self._squares(correction)
        return states + (np.nan_to_num(rewards) if self._config.follow_rewards else 0.0)

    def _tried(self, train: Mask, states: bool, rewards: bool, with_surface: bool) -> float:
        """Return the share of what is missed that the fit of one half explains in the other one."""
        found = self._fitted(train, states, rewards, with_surface)
        nothing, left = self._squares(Correction()), self._squares(found)
        noises = (self._noise, self._reward_noise)
        shares = []
        for is_asked, was, now, noise in zip((states, rewards), nothing, left, noises, strict=True):
            asked = ~train & np.isfinite(was)
            if is_asked and asked.any():
                floor = min(float(noise.mean()), float(was[asked].mean()))
                missed = float(was[asked].mean()) - floor
                shares.append(1.0 - max(float(now[asked].mean()) - floor, 0.0) / missed if missed > 0 else 1.0)
        return float(np.clip(min(shares, default=0.0), 0.0, 1.0))

    def _fitted(self, train: Mask, states: bool, rewards: bool, with_surface: bool) -> Correction:
        """Return the correction that is fitted to the steps of bool[M] `train`."""
        found = self._acting(train) if states else Correction()
        data = self._missing.data
        if with_surface:
            found = self._with_surface(train, found)
        if rewards and self._misses_rewards(train, found):
            gained = self._missing.predicted(data, found)[1]
            made = surface(self._missing, train, found, (data.rewards - gained)[:, None])
            found = dataclasses.replace(found, reward=made)
        return found

    def _misses_rewards(self, train: Mask, found: Correction) -> bool:
        """Say whether rewards are other ones yet where what acts is corrected: they may hang on that."""
        rewards, data = np.nan_to_num(self._squares(found)[1][train]), self._missing.data.only(train)
        return _is_more(data.by_episode(rewards), self._reward_noise, EXACT**2)

    def _acting(self, train: Mask) -> Correction:
        """Return the simplest form of acting that misses hardly more than the best one; the given actions first."""
        tried = [Correction(), *forms(self._missing, train)]
        left = [float(self._squares(each)[0][train].mean()) for each in tried]
        floor = min(float(self._noise.mean()), left[0])
        slack = SIMPLER * (left[0] - floor)
        return next(each for each, misses in zip(tried, left, strict=True) if misses <= min(left) + slack)

    def _with_surface(self, train: Mask, acting: Correction) -> Correction:
        """Return the form of acting, and what is added to the state where it leaves more than noise, and that helps."""
        data = self._missing.data
        nothing = float(self._squares(Correction())[0][train].mean())
        floor = min(float(self._noise.mean()), nothing)
        squares = self._squares(acting)[0]
        best, left = acting, max(float(squares[train].mean()) - floor, 0.0)
        by_episode = data.only(train).by_episode(squares[train])
        if not _is_more(by_episode, self._noise, self._missing.rounding):
            return acting
        for base in (Correction(), acting) if not acting.is_none else (acting,):
            missed = data.successors - self._missing.predicted(data, base)[0]
            found = dataclasses.replace(base, state=surface(self._missing, train, base, missed))
            now = max(float(self._squares(found)[0][train].mean()) - floor, 0.0)
            if now < WORTH * left:
                best, left = found, now
        return best


def is_like(one: Correction, other: Correction) -> bool:
    """Say whether two corrections are the same but for the errors of a fit; what a surface adds is never told so."""
    if (one.actions, one.delay, one.waiting) != (other.actions, other.delay, other.waiting):
        return False
    if any(each.state or each.reward for each in (one, other)) or bool(one.gain) != bool(other.gain):
        return False
    gains, offsets = (np.allclose(a or 0.0, b or 0.0, rtol=LIKE, atol=LIKE) for a, b in
                      ((one.gain, other.gain), (one.offset, other.offset)))  # fmt: skip
    return bool(gains and offsets)


def _finite(by_episode: Floats) -> Floats:
    """Return what is known of episodes, 0 of none."""
    some = by_episode[np.isfinite(by_episode)]
    return some if len(some) else np.zeros(1)


def _is_more(now: Floats, before: Floats, rounding: float) -> bool:
    """Say whether episodes miss more than those before the change did, beyond chance and rounding."""
    now = _finite(now)
    if len(before) > 1:
        chance = CHANCE * float(np.sqrt(before.var() * (1 / len(now) + 1 / len(before))))
    else:
        chance = CHANCE * float(np.sqrt(now.var() / len(now)))
    more = float(now.mean() - before.mean())
    return more > chance and float(now.mean()) > GROWN * float(before.mean()) and more > rounding
