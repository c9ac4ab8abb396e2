"""`flywheel page`: a run directory's page on this machine, without Ray, until somebody ends it."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import uvicorn

from flywheel import sqlite
from flywheel.config import PageConfig, digest
from flywheel.deploy.keys import OPERATE, PAGE, cookie_key, token_file
from flywheel.deploy.registry import FILE, Registry, open_readonly
from flywheel.errors import UsageError
from flywheel.page.access import Access, is_loopback
from flywheel.page.app import build
from flywheel.page.guard import Guard
from flywheel.tokens import Token
from flywheel.window import Window

GRACE_S = 2
"""Seconds that requests which are under way may still take when the server ends."""


class InForce:
    """Tells a run directory's tokens in force; what it has read it keeps until the registry has changed."""

    def __init__(self, run_dir: Path) -> None:
        """Look at a run directory, which may still be without a registry, and then has no tokens."""
        self._run_dir = run_dir
        self._registry: Registry | None = None
        self._known: tuple[int, Sequence[Token]] = (-1, ())

    def __call__(self) -> Sequence[Token]:
        """Return the tokens that open something now."""
        if self._registry is None:
            if not sqlite.is_made(self._run_dir / FILE):
                return ()
            self._registry = open_readonly(self._run_dir)
        version = self._registry.version()
        if version != self._known[0]:
            self._known = version, self._registry.in_force()
        return self._known[1]


def access_to(run_dir: Path, host: str) -> Access:
    """Return who may read and operate the page of a run directory that is reached at `host`.

    Raises UsageError when other machines would reach it and no token lets them read.
    """
    tokens, local = InForce(run_dir), is_loopback(host)
    if not local and not any(token.lets(["read"]) for token in tokens()):
        raise UsageError(
            f"Nobody could read the page that is to listen on {host}, because no token with the scope read is in "
            f"force: make one by `flywheel tokens add NAME --scope read --run-dir {shlex.quote(str(run_dir))}`, or "
            "leave out --host."
        )
    return Access(tokens, cookie_key(run_dir), f"flywheel-{digest(str(run_dir))[:8]}", local)


def app_of(window: Window, config: PageConfig) -> Guard:
    """Return the page of a window as an ASGI app; raises as `access_to`."""
    return build(window, access_to(window.run_dir, config.host), config)


def watch(run_dir: Path, config: PageConfig) -> None:
    """Answer browsers until KeyboardInterrupt.

    Raises UsageError where the port is taken or it is no run directory, and as `access_to`.
    """
    with closing(Window(run_dir.resolve(), str(run_dir))) as window, listening(config) as door:
        app = app_of(window, config)
        host, port = door.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"The page of {run_dir} is at http://{shown}:{port}/ until Ctrl-C.", flush=True)
        if not is_loopback(config.host):
            print(f"To read it takes the token in {token_file(run_dir, PAGE)}; put TLS in front of it.", flush=True)
        print(f"To operate it takes the token in {token_file(run_dir, OPERATE)}.", flush=True)
        Server(app).run(sockets=[door])


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
