"""Deploy: puts judged policies into service and answers clients over HTTP.

In: Artifact and Verdict (of train and gate), requests of clients. Out: Decisions and leases to clients; Steps, whole
Episodes and late Rewards to observe; Release.
Never: serves a digest without a passing, signed verdict; answers whom no token in force lets in; restarts a replica to
change the policy; loads torch or RLlib; acknowledges an end that isn't durable.
"""
