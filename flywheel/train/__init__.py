"""Train a policy by a Plan, in simulated worlds.

In: a Task, Plans, weights by digest. Out: Progress after every iteration, Artifacts.
Never: production's episodes in PPO's loss, a judgement of a policy, RLlib or torch outside `rllib/`.
"""
