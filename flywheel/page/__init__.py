"""The page shows a run directory to people: what turns, what is served, every turn, policy and episode.

In: a Source of records. Out: JSON, pictures, server-sent events, static files that draw them, and the records
themselves for programs that travel in time from elsewhere.
Never: writes to a run directory itself, loads Ray or torch, or asks anybody outside this machine.
"""
