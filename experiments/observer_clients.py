"""False alarms of the observer itself in `observer_power`: on real Gymnasium episodes, and with 64 clients at once.

Each release is watched for 10,000 episodes or until its first rollback alarm, by all its monitors. It is held to what
1,000 episodes of the policy before have shown, drawn anew for every release.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from experiments.observer_streams import CLEAN
from experiments.observer_worlds import PROMISED, SOFT, between
from flywheel.config import ObserveConfig
from flywheel.observe.monitors.outcome import shown
from flywheel.observe.observer import Observer
from flywheel.records import Episode, Release, Signal
from flywheel.tasks.cartpole import cartpole

WATCHED = 10_000
"""Episodes of a release that are watched at most."""
FIRM = 0.78 * np.array(SOFT)
"""Gains of a policy that fails in about 2 % of CartPole-v1's episodes, where no wind blows."""
NUM_CLIENTS = 64
WHOLE_S, SHORT_S = 10.0, (0.2, 4.0)
"""Seconds that an episode takes which goes well, and the least and the most of one that fails."""


def real(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on episodes of Gymnasium's own CartPole-v1, read one after another."""
    rng, total = np.random.default_rng([seed, 61]), 4_000 if quick else 150_000
    episodes, found = gymnasium_episodes(rng), dict[str, int]()
    num, number = 0, 0
    while num < total:
        before = [next(episodes).failed for _ in range(1_000)]
        observer, start, number = Observer(cartpole), 0.0, number + 1
        observer.release(_release(start), PROMISED, shown(sum(before), len(before)))
        for _ in range(min(WATCHED, total - num)):
            num += 1
            if _rolls_back(found, observer.observe(next(episodes), now=start)):
                break
    yield from _rows("real Gymnasium CartPole-v1", num, found, seed)


def gymnasium_episodes(rng: np.random.Generator, at_once: int = 1_000) -> Iterator[Episode]:
    """Yield episodes of CartPole-v1 without end."""
    worlds = CartPoleVectorEnv(at_once, max_episode_steps=500)
    while True:
        seen, acted = np.empty((501, at_once, 4), np.float32), np.empty((500, at_once), np.int64)
        length, fell, over = np.full(at_once, 500), *np.zeros((2, at_once), np.bool_)
        seen[0], _ = worlds.reset(seed=int(rng.integers(2**31)))
        for t in range(500):
            acted[t] = rng.random(at_once) * (1.0 + np.exp(-np.clip(seen[t] @ FIRM, -50.0, 50.0))) < 1.0
            seen[t + 1], _, terminated, truncated, _ = worlds.step(acted[t])
            new = (terminated | truncated) & ~over
            length[new], fell, over = t + 1, fell | (terminated & ~over), over | new
        for i, num in enumerate(length):
            yield _episode(f"{i}", bool(fell[i]), 0.0, 0.0, seen[: num + 1, i].copy(), acted[:num, i].copy())


def clients(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows on 64 clients at once, whose failed episodes come back first."""
    rng, total = np.random.default_rng([seed, 64]), 4_000 if quick else 250_000
    found, num = dict[str, int](), 0
    while num < total:
        observer = Observer(cartpole, ObserveConfig())
        failed = int(rng.binomial(1_000, CLEAN))
        observer.release(_release(0.0), PROMISED, shown(failed, 1_000))
        num += _watch(observer, rng, min(WATCHED, total - num), found)
    yield from _rows(f"{NUM_CLIENTS} clients at once", num, found, seed)


def _watch(observer: Observer, rng: np.random.Generator, most: int, found: dict[str, int]) -> int:
    """Let clients play until the first rollback alarm; return the number of episodes that the monitors have read."""
    queue = [(float(start), f"e{i:07d}", None) for i, start in enumerate(rng.uniform(0.0, WHOLE_S, NUM_CLIENTS))]
    events: list[tuple[float, str, Episode | None]] = list(queue)
    heapq.heapify(events)
    running, next_tick, number = dict[str, float](), 0.0, NUM_CLIENTS
    while observer.heard(0)[0] < most:
        now, id_, over = heapq.heappop(events)
        if now >= next_tick:
            observer.begun(running, now)
            next_tick = now + 1.0
            if _rolls_back(found, observer.tick(now)):
                break
        if over is not None:
            del running[id_]
            observer.uploaded(observer.placed([over]), {id_: "stored"}, now)
            id_, number = f"e{number:07d}", number + 1
        failed = bool(rng.random() < CLEAN)
        end = now + (float(rng.uniform(*SHORT_S)) if failed else WHOLE_S)
        running[id_] = now
        observer.begun({id_: now}, now)
        seen, acted = rng.normal(size=(3, 4)).astype(np.float32), rng.integers(0, 2, 2)
        heapq.heappush(events, (end, id_, _episode(id_, failed, now, end, seen, acted)))
    if (late := observer.status(1)["counts"]["late"]) > 0:
        raise AssertionError(f"{late} episodes were read by nobody: the clients told too late of them.")
    return observer.heard(0)[0]


def _episode(id_: str, failed: bool, start: float, end: float, seen: Any, acted: Any) -> Episode:
    """Return an episode that gains 500 where it goes well."""
    num = len(acted)
    return Episode(
        id=id_, origin="production", task="", parameters={}, draw_key=0, digests=("policy",) * num, observations=seen,
        raw_actions=acted, rewards=np.full(num, 1.0 if failed else 500.0 / num), logps=np.zeros(num), failed=failed,
        end="terminated" if failed else "truncated", started_at=start, ended_at=end,
    )  # fmt: skip


def _release(at: float) -> Release:
    return Release(digest="policy", stage="full", share=1.0, previous=None, released_at=at)


def _rolls_back(found: dict[str, int], signals: list[Signal]) -> bool:
    """Count the alarms by kind; say whether one of them may lead to a rollback."""
    for signal in signals:
        found[signal.kind] = found.get(signal.kind, 0) + 1
    return any(signal.kind == "degradation" for signal in signals)


def _rows(case: str, num: int, found: dict[str, int], seed: int) -> Iterator[dict[str, Any]]:
    yield between(
        "DQ6", f"{case}: episodes between false rollback alarms", num, found.get("degradation", 0), 10_000.0, seed
    )
    every = between(
        "DQ6", f"{case}: episodes between false alarms of all monitors", num, sum(found.values()), 10_000.0, seed
    )
    yield every | {"goal": "for information", "passed": True}
