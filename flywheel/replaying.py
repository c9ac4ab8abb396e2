"""Every knob of what an off-policy algorithm learns from; part of `config`, which holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """What an off-policy algorithm learns from, and how often."""

    capacity: int = 1_000_000
    """transitions held; the oldest episodes leave first"""
    most_mib: float = 2048.0
    """memory that they may take; fewer are held where their observations are large"""
    directory: str = ""
    """where a file holds them that is mapped into memory, so that `most_mib` may be more than memory has: ten million
    transitions of CartPole, 700 MiB, are drawn from 1.4 times as slowly as ten thousand; empty keeps them in memory"""
    shards: int = 0
    """processes that hold the transitions, spread over the nodes that train; up to 1 keeps them in the trainer's own,
    where a draw takes 0.03 ms and no call to another process: more are for what one node's memory can't hold"""
    batch: int = 64
    """transitions of one update"""
    samples_per_insert: float = 32.0
    """transitions drawn for each one that came, from simulation or production: an update of 64 for every second step
    (of many that production brings at once no more are made up for than are due for simulation's own)"""
    begin_at: int = 1_000
    """transitions before the first update"""
    num_steps: int = 3
    """steps that a transition looks ahead before the critic's own estimate stands in"""
    target_every: int = 100
    """updates of DQN from one copy of the target network to the next; 0: it follows by `target_rate`, as SAC's do"""
    target_rate: float = 0.005
    """share of SAC's critics that goes into their targets with each update"""
    huber_delta: float = 1.0
    """size of DQN's TD errors from which on they count in proportion, below it by their squares. Returns are many
    rewards: a large one lets rare failures weigh what they cost"""
    epsilon: float = 0.04
    """share of random actions of the runners, times the Plan's exploration"""
    epsilon_steps: int = 8_000
    """simulated steps in which a round that starts from fresh weights comes down to it from 1"""
    production_share: float = 0.5
    """share of production's transitions in a batch, where the Plan samples production and there are any"""
    half_life: float = 20.0
    """episodes of production after which a transition of it is drawn half as often, where the Plan asks for recent data
    and no alarm says since when the world is another one; 200 took twice the steps to recover from swapped actions"""
    failure_factor: float = 5.0
    """how many times as often a step of an episode of production that failed is drawn, where the Plan asks for that"""
    alpha: float = 0.0
    """exponent on TD errors as priorities; 0 draws without. Not together with recent data first"""
    beta: float = 0.4
    """exponent of the importance weights that make up for priorities"""
    temperature: float = 0.05
    """what values are divided by before the softmax from which a policy draws that isn't greedy, in units of reward"""


OFF_POLICY = ("dqn", "sac")
"""Algorithms that learn from a table of steps, whoever took them."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "ppo": {},
    "appo": {},
    "dqn": {
        "hidden": [128, 128],
        "activation": "relu",
        "steps_per_world": 32,
        "lr": 1e-3,
        "lr_warm": 0.0,
        "lr_end": 0.0,
        # chosen together on worlds whose actions were swapped: with the defaults above half the runs didn't recover
        "replay": {"batch": 128, "samples_per_insert": 128.0, "target_every": 0, "target_rate": 0.01},
    },
    "sac": {
        "hidden": [256, 256],
        "activation": "relu",
        "lr": 3e-4,
        "lr_warm": 0.0,
        "lr_end": 0.0,
        "num_runners": 1,  # the learner needs the other CPU all the time
        "worlds_per_runner": 8,
        "steps_per_world": 32,  # 256 steps an iteration, and as many updates: what an iteration costs besides is little
        "probe_every": 8,
        "min_steps": 2_048,
        "replay": {"batch": 256, "samples_per_insert": 256.0, "num_steps": 1},
    },
}
"""What an algorithm needs of `train`'s settings whatever the task is, in place of the defaults, which are PPO's.

SAC has the values of Haarnoja et al. 2018, with one update for each step; DQN those with which it found back after a
change of the world (`experiments.store_recovery`), also where a task has others for PPO."""
