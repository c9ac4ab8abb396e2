"""The store keeps every episode for good: acknowledged means durable.

In: whole (or lost) Episodes, late Rewards. Out: the same Episodes by id or by order of start, and summaries of them.
Never: decides what is worth learning from, imports torch, or acknowledges before its commit.
"""
