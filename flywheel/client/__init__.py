"""Client: what a production program imports to let a policy act for it.

    client = Client("http://127.0.0.1:8000", token)
    with client.episode() as episode:
        action = episode.act(observation)
        episode.reward(1.0)
        episode.end(observation, terminated=True)

`AsyncClient` is the same with awaits; `Local` acts in process, without a request a step.

In: observations, rewards and ends of a program. Out: actions, and episodes that are durable: on the server once `end`
returns, by `Local` on this machine's disk until the server has them.
Never: imports Ray or torch, or ONNX Runtime but for `Local`; forgets a step before its episode is acknowledged; acts by
a policy that isn't proven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flywheel.client.batch import AsyncBatch, AsyncEpisode, Batch, Episode
from flywheel.client.calls import Counters
from flywheel.client.http import AsyncClient, Client
from flywheel.client.refusal import DamagedError, FullError, RejectedError, UnavailableError

if TYPE_CHECKING:
    from flywheel.client.local import Local, LocalEpisode

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncEpisode",
    "Batch",
    "Client",
    "Counters",
    "DamagedError",
    "Episode",
    "FullError",
    "Local",
    "LocalEpisode",
    "RejectedError",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    if name in ("Local", "LocalEpisode"):  # they need what acts; whoever asks a server doesn't
        from flywheel.client import local

        return getattr(local, name)
    raise AttributeError(f"module 'flywheel.client' has no attribute {name!r}; it has {', '.join(__all__)}")
