"""Trace shows what happened: every prediction, episode, signal and stage of the loop as spans that belong together.

In: what clients, replicas, the observer and the loop did. Out: spans by episode, step, trace or turn.
Never: delays an answer, fails a request, or is the truth of anything: that is the acknowledged episode.
"""
