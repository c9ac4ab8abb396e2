"""DQ3: is a candidate refused that is worse than the policy in service? Part of `python -m experiments.gate_power`."""
