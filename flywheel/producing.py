"""Every knob of simulated production; part of `config`, which holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrafficConfig:
    """Simulated production: client processes that play whole episodes over HTTP."""

    num_clients: int = 2
    """client processes; 0 leaves production to the outside"""
    at_once: int = 32
    """episodes a client plays at once, with one request a step"""
    starts_per_s: float = 10.0
    """episodes a client begins per second at most, so that short, failed ones don't flood the loop"""
    change_after: int = 200
    """episodes (of all clients together) after which the world changes; fewer never reach the monitors' baseline"""
    fault: Literal["", "swapped", "delayed", "reversed", "reward"] = ""
    """what changes then, in place of the task's own drift, that no parameter of a simulator makes: discrete actions (or
    the numbers of a box action) are swapped, come `fault_steps` late, box actions have the other sign, or the reward is
    paid for being near 1 in the first number of the observation"""
    fault_steps: int = 5
    """steps by which delayed actions are late: up to 3 of them (0.06 s) cost a policy of CartPole nothing"""
