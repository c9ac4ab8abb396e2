"""`flywheel page`: a run directory's page on this machine, without Ray, until somebody ends it."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import uvicorn

from flywheel.config import PageConfig, digest
from flywheel.deploy.keys import DIRECTORY, OPERATE, READ, open_page_tokens
from flywheel.errors import UsageError
from flywheel.page.access import Access, is_loopback
from flywheel.page.app import build
from flywheel.page.guard import Guard
from flywheel.window import Window

GRACE_S = 2
"""Seconds that requests which are under way may still take when the server ends."""


def access_to(run_dir: Path, host: str) -> Access:
    """Return who may read and operate the page of a run directory that is reached at `host`: its tokens are made."""
    read, operate = open_page_tokens(run_dir)
    local = is_loopback(host)
    return Access(read="" if local else read, operate=operate, name=f"flywheel-{digest(str(run_dir))[:8]}", local=local)


def app_of(window: Window, config: PageConfig) -> Guard:
    """Return the page of a window as an ASGI app."""
    return build(window, access_to(window.run_dir, config.host), config)


def watch(run_dir: Path, config: PageConfig) -> None:
    """Answer browsers until KeyboardInterrupt; UsageError where the port is taken or it is no run directory."""
    with closing(Window(run_dir.resolve(), str(run_dir))) as window, listening(config) as door:
        host, port = door.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"The page of {run_dir} is at http://{shown}:{port}/ until Ctrl-C.", flush=True)
        if not is_loopback(config.host):
            print(f"To read it takes the token in {run_dir / DIRECTORY / READ}; put TLS in front of it.", flush=True)
        print(f"To operate it takes the token in {run_dir / DIRECTORY / OPERATE}.", flush=True)
        Server(app_of(window, config)).run(sockets=[door])


class Server(uvicorn.Server):
    """A server of the page: when it ends, open pages are let go of first."""

    def __init__(self, page: Guard) -> None:
        """Serve it on the sockets that `run` is given."""
        self._page = page
        super().__init__(
            uvicorn.Config(page, log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE_S)
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End open streams, then everything else."""
        self._page.leave()
        await super().shutdown(sockets)


def listening(config: PageConfig) -> socket.socket:
    """Return a socket that listens where the configuration says."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((config.host, config.port))
        door.listen(128)  # whoever reads the address may come at once
    except (OSError, UnicodeError) as error:
        door.close()
        raise UsageError(
            f"Nothing can listen on {config.host}:{config.port} ({error}): give --port another one (0 picks a free "
            "one), or --host an address of this machine."
        ) from error
    return door
