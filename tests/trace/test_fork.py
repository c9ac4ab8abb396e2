"""Forks: without an edit the rest is the original to the last bit, with one it is what would have been."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.policy import Policy
from flywheel.records import Episode
from flywheel.simulate import play
from flywheel.tapes import chain
from flywheel.task import Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import SHORT_POLE, load_linear
from flywheel.trace import Fork

GOOD_, SHORT = "a" * 64, "b" * 64


@cache
def policies() -> dict[str, Policy]:
    return {GOOD_: load_linear(cartpole, digest=GOOD_), SHORT: load_linear(cartpole, SHORT_POLE, digest=SHORT)}


def played(task: Task, policy: Policy, seed: int, **parameters: float) -> Episode:
    return play(task, policy, seeds=[seed], parameters=[{**task.nominal, **parameters}], draw_keys=[seed])[0]


@settings(max_examples=15)
@given(st.integers(0, 2**53), st.floats(0.0, 0.999), st.booleans())
def test_a_fork_without_an_edit_is_the_original_to_the_last_bit(seed: int, where: float, short: bool) -> None:
    episode = played(cartpole, policies()[SHORT if short else GOOD_], seed, length=2.0)
    fork = Fork(cartpole, episode, int(where * episode.num_steps), policies())
    for _ in range(2):
        result = fork.replay()
        assert result.exact and result.difference is None and result.fork.failed == episode.failed
        assert chain(result.fork) == chain(episode)
        assert result.fork.logps.tobytes() == episode.logps.tobytes()
