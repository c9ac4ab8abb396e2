"""Client: what a production program imports to let a policy act for it.

    client = Client("http://127.0.0.1:8000", token)
    with client.episode() as episode:
        action = episode.act(observation)
        episode.reward(1.0)
        episode.end(observation, terminated=True)

In: observations, rewards and ends of a program. Out: actions, and episodes that are durable once `end` returns.
Never: imports Ray, torch or ONNX Runtime; forgets a step before its episode is acknowledged.
"""

from flywheel.client.batch import Batch, Episode
from flywheel.client.http import Client, Counters
from flywheel.client.refusal import RejectedError, UnavailableError

__all__ = ["Batch", "Client", "Counters", "Episode", "RejectedError", "UnavailableError"]
