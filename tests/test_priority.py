"""A program that uses a room by itself keeps its own priority; on Ray, see tests/on_ray/test_gate.py."""

from __future__ import annotations

import os

from flywheel.config import GateConfig
from flywheel.gate.on_ray import GateActor
from flywheel.tasks.cartpole import cartpole


def test_a_gate_in_ones_own_program_changes_no_priority() -> None:
    before = os.nice(0)
    GateActor(cartpole, GateConfig())
    assert os.nice(0) == before
