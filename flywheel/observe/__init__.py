"""The observer turns what replicas saw into whole episodes, and says when production is no longer what it was.

In: Steps, in any order, delayed or doubled; whole Episodes; late Rewards. Out: Episodes (for the store), missing steps
(for the client), Signals.
Never: acknowledges an episode that is not durable, decides what to do about a Signal, imports torch.
"""
