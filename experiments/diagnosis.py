"""Whether a diagnosis names the true cause: production with one incident of a known kind, told by its episodes alone.

A policy serves, another one is released after it, and 100 to 200 episodes later something breaks (a bad release: at the
release). The diagnosis reads all of it, 80 to 120 changed episodes included, without any alarm that would tell it
where to look. Worlds: CartPole in gusts through noisy sensors (experiments/gusty.py), and CartPole-v1 as it is through
noisy sensors.

    python -m experiments.diagnosis            all of it, into results/diagnosis.json
    python -m experiments.diagnosis --quick    fewer runs, and nothing is written
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import gusty
from experiments.report import median, share, tell
from flywheel.analyze.cause import find
from flywheel.causes import Cause
from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.task import Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, load_linear

GAINS = np.array([3.0, 6.0, 60.0, 24.0])
NOISE = np.array([0.004, 0.02, 0.004, 0.02])
"""Deviations of the sensors' noise in CartPole-v1."""
Rng = np.random.Generator
Changed = Callable[[Episode, Rng], Episode]


@dataclasses.dataclass(frozen=True)
class World:
    """Where episodes come from."""

    name: str
    task: Task
    former: Policy
    present: Policy
    """As good as the one before it."""
    bad: Sequence[Policy]

    def play(
        self, policy: Policy, name: str, num: int, rng: Rng, start: float = 0.05, values: Any = ()
    ) -> list[Episode]:
        """Return production's episodes with a policy that is called `name`, of a world with changed parameters."""
        keys = rng.integers(2**53, size=num)
        first = rng.uniform(-start, start, (num, 4))
        is_gusty = self.task is gusty.GUSTY
        states = [
            (*row, 0.0, float(key), 0.0) if is_gusty else tuple(row) for row, key in zip(first, keys, strict=True)
        ]
        episodes = play(
            self.task,
            policy,
            seeds=[0] * num,
            parameters=[{**self.task.nominal, **dict(values)}] * num,
            draw_keys=rng.integers(2**62, size=num).tolist(),
            states=states,
            origin="production",
            lockstep=512,
        )
        noisy = [e if is_gusty else _noisy(e, rng) for e in episodes]
        return [
            dataclasses.replace(e, digests=(name,) * e.num_steps, parameters={}, seed=None, scenario="") for e in noisy
        ]


def _noisy(episode: Episode, rng: Rng) -> Episode:
    seen = episode.observations + NOISE * rng.normal(size=episode.observations.shape)
    return dataclasses.replace(episode, observations=seen.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Incident:
    """What breaks, and what it should be called."""

    name: str
    kind: str
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    start: float = 0.05
    change: Changed | None = None


def _biased(episode: Episode, rng: Rng) -> Episode:
    """Let a sensor be off by about as much as the number itself moves; which one is the same for a whole incident."""
    which, size = int(rng.integers(1, 4)), (0.0, 0.3, 0.05, 0.3)
    shift = np.zeros(4)
    shift[which] = size[which] * rng.choice([-1, 1])
    return dataclasses.replace(episode, observations=(episode.observations + shift).astype(np.float32))


def _dropped(episode: Episode, rng: Rng) -> Episode:
    gone = rng.random(episode.num_steps) < 0.05
    return dataclasses.replace(episode, rewards=np.where(gone, np.nan, episode.rewards))


def _zeroed(episode: Episode, rng: Rng) -> Episode:
    gone = rng.random(episode.num_steps) < 0.05
    return dataclasses.replace(episode, rewards=np.where(gone, 0.0, episode.rewards))


def _scaled(episode: Episode, _: Rng) -> Episode:
    return dataclasses.replace(episode, rewards=0.8 * episode.rewards)


def worlds() -> Mapping[str, World]:
    """Return both worlds."""
    spec_policy = gusty.policy
    bad = [spec_policy(GAINS, bias=4.0), spec_policy(GAINS, exploration_rate=0.2)]
    good, weak = np.array(GOOD), 0.14 * np.array(GOOD)
    return {
        "gusty": World("gusty", gusty.GUSTY, spec_policy(GAINS), spec_policy([1, 1.1, 1.1, 1] * GAINS), bad),
        "cartpole": World(
            "cartpole",
            cartpole,
            load_linear(cartpole, tuple(good), digest="a" * 64),
            load_linear(cartpole, tuple(1.1 * good), digest="b" * 64),
            [load_linear(cartpole, tuple(weak), digest="c" * 64)],
        ),
    }


def incidents(world: World) -> list[Incident]:
    """Return ten kinds of incident, of which nothing is one."""
    last = ("gusts x1.3", {"gust": 1.3}) if world.task is gusty.GUSTY else ("gravity +22 %", {"gravity": 12.0})
    return [
        Incident("bad release", "policy"),
        Incident("pole length x2", "dynamics", {"length": 1.0}),
        Incident("force -20 %", "dynamics", {"force_mag": 8.0}),
        Incident("pole mass x3", "dynamics", {"masspole": 0.3}),
        Incident(last[0], "dynamics", last[1]),
        Incident("initial states x3 as wide", "initial_states", start=0.15),
        Incident("sensor bias", "sensors", change=_biased),
        Incident("5 % of rewards dropped", "logging", change=_dropped),
        Incident("rewards x0.8", "reward", change=_scaled),
        Incident("nothing, but a release", "nothing"),
    ]


def happened(world: World, incident: Incident, rng: Rng) -> tuple[list[Episode], int]:
    """Return production's episodes in order of start, and the number of the first changed one."""
    before, after = int(rng.integers(100, 201)), int(rng.integers(80, 121))
    earlier = world.play(world.former, "former", int(rng.integers(100, 201)), rng)
    if incident.kind == "policy":
        bad = world.bad[int(rng.integers(len(world.bad)))]
        episodes, at = [*earlier, *world.play(bad, "present", after, rng)], len(earlier)
    else:
        quiet = world.play(world.present, "present", before, rng)
        changed = world.play(world.present, "present", after, rng, incident.start, incident.values)
        if incident.change is not None:
            once = int(rng.integers(2**31))  # a bias is the same one for all of them
            rngs = [np.random.default_rng(once) if incident.change is _biased else rng for _ in changed]
            changed = [incident.change(e, each) for e, each in zip(changed, rngs, strict=True)]
        episodes, at = [*earlier, *quiet, *changed], len(earlier) + len(quiet)
    return [
        dataclasses.replace(e, id=f"episode_{i:05d}", started_at=float(i), ended_at=i + 1.0)
        for i, e in enumerate(episodes)
    ], at


def diagnosed(world: World, incident: Incident, num: int, seed: int) -> Iterator[tuple[Cause, int]]:
    """Yield what is said of each of so many incidents, and by how many episodes its beginning is missed."""
    spec = spec_of(world.task)
    for number in range(num):
        rng = np.random.default_rng([seed, number, *incident.name.encode(), *world.name.encode()])
        episodes, at = happened(world, incident, rng)
        cause = find(episodes, spec, seed=number)
        place = {e.id: i for i, e in enumerate(episodes)}
        yield cause, abs(place.get(cause.since_episode, at) - at)


def named(world: World, seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row on each kind of incident, and those on all of them together."""
    right: dict[str, np.ndarray] = {}
    away: list[int] = []
    for incident in incidents(world):
        num = (5 if quick else 30) if incident.kind != "nothing" else (10 if quick else 200)
        found = list(diagnosed(world, incident, num, seed))
        hits = np.array([cause.kind == incident.kind for cause, _ in found])
        right[incident.name] = hits
        if incident.kind == "nothing":
            yield share("A1", f"{world.name}: nothing is called something", ~hits, 0.05, True, seed)
            continue
        away += [apart for cause, apart in found if cause.kind == incident.kind]
        others = sorted({cause.kind for cause, _ in found if cause.kind != incident.kind})
        more = f" (else {', '.join(others)})" if others else ""
        yield share("A1", f"{world.name}: {incident.name} is called {incident.kind}{more}", hits, None, False, seed)
    each = min(len(hits) for hits in right.values())
    everything = np.concatenate([hits[:each] for hits in right.values()])
    yield share("A1", f"{world.name}: the cause is named right, ten kinds alike", everything, 0.95, False, seed)
    yield median("A1", f"{world.name}: episodes by which its beginning is missed", np.array(away), None, seed)


def faint(world: World, seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rows on incidents that hardly show, for information."""
    weaker = dataclasses.replace(world, bad=[gusty.policy([1.0, 0.3, 1.0, 0.3] * GAINS)])
    for where, incident in (
        (weaker, Incident("a release with 12 % failures in place of 2 %", "policy")),
        (world, Incident("gravity +22 %, in which fewer episodes fail", "dynamics", {"gravity": 12.0})),
        (world, Incident("gusts +9 %", "dynamics", {"gust": 1.09})),
        (world, Incident("5 % of rewards 0", "logging", change=_zeroed)),
    ):
        hits = [cause.kind == incident.kind for cause, _ in diagnosed(where, incident, 2 if quick else 20, seed)]
        case = f"{world.name}: {incident.name} is called {incident.kind}"
        yield share("A1", case, np.array(hits), None, False, seed)


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    found = worlds()
    measures = [
        *(lambda w=w: named(w, seed, given.quick) for w in found.values()),
        lambda: faint(found["gusty"], seed, given.quick),
    ]
    rows = []
    for row in (row for measure in measures for row in measure()):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell("diagnosis", began, rows, is_kept=not given.quick)


if __name__ == "__main__":
    main()
