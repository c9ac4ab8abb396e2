"""Whether a policy may be served: seeded simulations until the evidence is enough, then a Verdict.

In: a Policy or Artifact, the one in service, the simulator's parameters, a seed. Out: Verdict, Probe, Trials.
Never: torch, RLlib, a policy's promotion; it signs nothing and serves nothing.
"""

from flywheel.gate.judge import SafetyGate

__all__ = ["SafetyGate"]
