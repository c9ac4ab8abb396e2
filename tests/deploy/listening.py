"""A door on a real port, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from flywheel.deploy.door import Door
from flywheel.deploy.environment import free_ports


class _Server(uvicorn.Server):
    """Says when it listens, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_decided = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        try:
            await super().startup()
        finally:
            self.is_decided.set()


@contextmanager
def listening(door: Door) -> Iterator[str]:
    """Let a door answer, and yield its address."""
    (port,) = free_ports(1)
    server = _Server(uvicorn.Config(door, host="127.0.0.1", port=port, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_decided.wait(30) and server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
