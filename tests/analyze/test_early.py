"""Before rewards arrive: what open episodes are estimated to come to, and that the intervals hold what they did.

Episodes drift: a number walks at random from 0, pays 1 less its square each step, and fails beyond 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flywheel.analyze.early import LEAST, Early, estimate, foresee, learn
from flywheel.records import Episode
from flywheel.tasks.cartpole import cartpole

STEPS = 40


def walk(seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    path = np.concatenate(([0.0], np.cumsum(rng.normal(0.0, 0.13, STEPS))))
    fell = np.abs(path) > 1.0
    num = int(fell.argmax()) if fell.any() else STEPS
    seen = np.zeros((num + 1, 2), np.float32)
    seen[:, 0], seen[:, 1] = path[: num + 1], rng.normal(size=num + 1)
    return Episode(
        id=f"e{seed}", origin="production", task="", parameters={}, draw_key=0, digests=("d",) * num, observations=seen,
        raw_actions=np.zeros(num, np.int64), rewards=1.0 - np.square(path[1 : num + 1]), logps=np.zeros(num),
        end="terminated" if fell.any() else "truncated", failed=bool(fell.any()),
    )  # fmt: skip


def margin(episode: Episode) -> float:
    return 1.0 - float(np.abs(episode.observations[:, 0]).max())


def cut(episode: Episode, t: int) -> Episode:
    """Return an episode as far as it came by step t."""
    return dataclasses.replace(
        episode, digests=episode.digests[:t], observations=episode.observations[: t + 1],
        raw_actions=episode.raw_actions[:t], rewards=episode.rewards[:t], logps=episode.logps[:t], end="lost",
        failed=False,
    )  # fmt: skip


CLOSED = [walk(seed) for seed in range(120)]


def open_ones(seed: int, num: int = 30) -> tuple[list[Episode], list[Episode]]:
    """Return episodes that are found open at some moment, and what becomes of them."""
    rng = np.random.default_rng([seed, 1])
    some = [walk(10_000 + 500 * seed + i) for i in range(4 * num)]
    lengths = np.array([e.num_steps for e in some])
    chosen = rng.choice(len(some), size=num, p=lengths / lengths.sum())
    whole = [some[i] for i in chosen]
    return [cut(e, int(rng.integers(1, e.num_steps))) for e in whole], whole


@pytest.mark.parametrize("with_margin", [False, True])
def test_intervals_hold_what_open_episodes_came_to(with_margin: bool) -> None:
    critic = learn(CLOSED, margin if with_margin else None)
    assert critic is not None and critic.num == len(CLOSED)
    held, off = [0, 0], []
    for seed in range(40):
        begun, whole = open_ones(seed)
        found = foresee(critic, begun, seed)
        assert found is not None
        truth = float(np.mean([e.total for e in whole])), float(np.mean([e.failed for e in whole]))
        spans = found.return_interval, found.failure_interval
        held = [num + (low <= true <= high) for num, true, (low, high) in zip(held, truth, spans, strict=True)]
        off.append((found.mean_return - truth[0], found.failure_rate - truth[1]))
    assert min(held) >= 34, held
    bias = np.mean(off, axis=0)
    assert abs(bias[0]) < 1.5 and abs(bias[1]) < 0.05


def test_it_tells_those_that_are_about_to_fail_from_those_that_are_not() -> None:
    critic = learn(CLOSED)
    assert critic is not None
    near, far = (cut(walk(3), 10) for _ in range(2))
    near.observations[-1, 0], far.observations[-1, 0] = 0.95, 0.0
    rates = [found.failure_rate for each in (near, far) if (found := foresee(critic, [each], 0)) is not None]
    assert rates[0] > rates[1] + 0.3


def test_late_rewards_are_estimated_and_the_outcome_of_what_is_over_is_known() -> None:
    critic = learn(CLOSED)
    assert critic is not None
    whole = [walk(seed) for seed in range(500, 540)]
    late = [dataclasses.replace(e, rewards=np.where(np.arange(e.num_steps) < 5, e.rewards, np.nan)) for e in whole]
    found = foresee(critic, late, 0)
    assert found is not None and found.num_over == found.num == 40
    assert found.failure_interval == (found.failure_rate,) * 2
    assert found.failure_rate == pytest.approx(np.mean([e.failed for e in whole]))
    assert found.return_interval[0] <= np.mean([e.total for e in whole]) <= found.return_interval[1]
    assert "40 open episodes, 40 of them waiting for rewards" in str(found)


def test_what_no_closed_episode_showed_may_be_all_the_same() -> None:
    fine = [dataclasses.replace(e, failed=False) for e in CLOSED]
    critic = learn(fine)
    assert critic is not None
    found = foresee(critic, open_ones(0)[0], 0)
    assert found is not None and found.failure_interval[0] == 0.0 and 0.0 < found.failure_interval[1] < 0.2


def test_too_few_closed_episodes_and_nothing_open_give_no_estimate() -> None:
    begun, _ = open_ones(0)
    assert estimate(cartpole, CLOSED[: LEAST - 1], begun, 5.0) is None
    lost = [dataclasses.replace(e, end="lost") for e in CLOSED]
    assert learn(lost) is None and learn([]) is None
    assert estimate(dataclasses.replace(cartpole, margin=None), CLOSED, [], 5.0) is None
    found = estimate(dataclasses.replace(cartpole, margin=margin), CLOSED, begun, 5.0)
    again = estimate(dataclasses.replace(cartpole, margin=margin), CLOSED, begun, 5.0)
    assert isinstance(found, Early) and found == again and found.at == 5.0 and found.digest == "d"
    assert str(found).startswith("estimated: return ") and str(found).endswith("from 30 open episodes")


def test_no_return_beyond_the_possible_ones_is_told() -> None:
    critic, (begun, _) = learn(CLOSED), open_ones(0)
    assert critic is not None
    free = foresee(critic, begun, 0)
    assert free is not None
    most = free.return_interval[1]
    assert most > free.mean_return
    held = foresee(critic, begun, 0, possible=(0.0, most - 0.5))
    assert held is not None and held.return_interval == (free.return_interval[0], most - 0.5)
    assert held.mean_return <= most - 0.5
