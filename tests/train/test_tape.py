"""Steps of many worlds, cut into runs all at once: as if each world's had been followed one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flywheel.train.tape import Played, Tape, learnt

NUM_WORLDS = 4


class OneByOne:
    """The same worlds, followed step by step as one would write it."""

    def __init__(self) -> None:
        self.open = [(0, 0.0)] * NUM_WORLDS
        self.told: list[tuple[int, float]] = []

    def follow(self, first: Any, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the runs of these steps, world by world."""
        runs: list[dict[str, Any]] = []
        self.told = []
        for world in range(NUM_WORLDS):
            run: dict[str, Any] | None = None
            seen = first[world]
            for step in steps:
                if step["void"][world]:
                    if step["lost"][world] and run is not None and not run["over"]:
                        run["truncated"] = run["over"] = True
                    if step["lost"][world]:
                        self.open[world] = (0, 0.0)
                    run = None
                else:
                    if run is None:
                        run = {"observations": [seen], "rewards": [], "terminated": False, "truncated": False}
                        run["over"] = False
                        runs.append(run)
                    run["observations"].append(step["observations"][world])
                    run["rewards"].append(step["rewards"][world])
                    run["terminated"] = bool(step["terminated"][world])
                    run["truncated"] = bool(step["truncated"][world]) and not run["terminated"]
                    run["over"] = run["terminated"] or run["truncated"]
                    length, total = self.open[world]
                    self.open[world] = (length + 1, total + step["rewards"][world])
                    if run["over"]:
                        if not step["aside"][world]:
                            self.told.append(self.open[world])
                        self.open[world] = (0, 0.0)
                seen = step["observations"][world]
        return runs


def steps_of(rng: np.random.Generator, num: int, ended: Any) -> tuple[list[dict[str, Any]], Any]:
    """Return steps as worlds give them: the one after an end is void, and so is one that a world broke in."""
    steps = []
    for _ in range(num):
        lost = rng.random(NUM_WORLDS) < 0.1
        void = ended | lost
        terminated = (rng.random(NUM_WORLDS) < 0.2) & ~void
        truncated = (rng.random(NUM_WORLDS) < 0.1) & ~void
        steps.append(
            {
                "observations": rng.normal(size=(NUM_WORLDS, 3)).astype(np.float32), "rewards": rng.normal(size=4),
                "terminated": terminated, "truncated": truncated, "void": void, "lost": lost,
                "actions": rng.integers(0, 2, NUM_WORLDS), "logps": rng.normal(size=4).astype(np.float32),
                "aside": rng.random(NUM_WORLDS) < 0.3,
            }
        )  # fmt: skip
        ended = terminated | truncated | lost
    return steps, ended


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_runs_and_returns_are_those_of_worlds_followed_one_by_one(seed: int, lengths: list[int]) -> None:
    rng, slow, open_ = np.random.default_rng(seed), OneByOne(), np.zeros((2, NUM_WORLDS))
    seen, ended = rng.normal(size=(NUM_WORLDS, 3)).astype(np.float32), np.zeros(NUM_WORLDS, np.bool_)
    for length in lengths:
        steps, ended = steps_of(rng, length, ended)
        tape = Tape(seen)
        for s in steps:
            drawn = s["actions"], np.zeros((NUM_WORLDS, 2), np.float32), s["logps"]
            stepped = s["observations"], s["rewards"], s["terminated"], s["truncated"]
            tape.add(drawn, stepped, s["void"], s["lost"], s["aside"])
        wanted = slow.follow(seen, steps)
        assert tape.num_real == sum(len(run["rewards"]) for run in wanted)
        seen = tape.seen
        if not tape.num_real:
            break  # a runner goes on until there is a step
        played, told = tape.end(open_)
        check(played, wanted)
        assert told.shape[1] == len(slow.told)
        assert np.allclose(sorted(told.T.tolist()), sorted(map(list, slow.told)))
        assert np.allclose(open_.T, slow.open)


def check(played: Played, wanted: list[dict[str, Any]]) -> None:
    """Assert that these are the runs."""
    assert played.lengths.tolist() == [len(run["rewards"]) for run in wanted]
    assert played.terminated.tolist() == [run["terminated"] for run in wanted]
    assert played.truncated.tolist() == [run["truncated"] for run in wanted]
    np.testing.assert_array_equal(played.observations, np.concatenate([run["observations"] for run in wanted]))
    np.testing.assert_array_equal(played.rewards, np.concatenate([run["rewards"] for run in wanted]))
    firsts = np.concatenate([run["observations"][:-1] for run in wanted])
    np.testing.assert_array_equal(played.observations[played.before], firsts)


def test_rewards_are_learnt_scaled_and_less_what_a_step_costs() -> None:
    tape = Tape(np.zeros((1, 1), np.float32))
    nothing = np.zeros(1, np.bool_)
    drawn = np.zeros(1, np.int64), np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    tape.add(drawn, (np.ones((1, 1)), np.array([5.0]), nothing, nothing), nothing, nothing, nothing)
    played, told = tape.end(np.zeros((2, 1)))
    assert told.shape == (2, 0)
    assert learnt(played, 1.0, 0.0) is played
    assert learnt(played, 0.5, 3.0).rewards.tolist() == [1.0]
