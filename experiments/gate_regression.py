"""DQ3: is a candidate refused that is worse than the policy in service? Part of `python -m experiments.gate_power`.

The world is `gusty`: the policy in service fails in 2 % of its nominal episodes. Five ways of getting worse were fixed
beforehand, each strong enough for 5 %. A run is the gate's own: what the policy in service shows in pilot worlds, then
up to 200 pairs of worlds at that stretch, beside the 100 nominal pairs that a verdict has in any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from experiments.gusty import GUSTY, policy
from experiments.report import share
from flywheel.config import GateConfig
from flywheel.gate import checks
from flywheel.gate.stress import gauge, stress_situations
from flywheel.gate.trials import Alone, nominal_situations
from flywheel.policy import Policy
from flywheel.records import Trial

CONFIG = GateConfig()
GAINS = np.array([3.0, 6.0, 60.0, 24.0])
