"""`flywheel page`: a run directory's page on this machine, without Ray, until somebody ends it."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn

from flywheel.config import PageConfig, digest
from flywheel.deploy.keys import DIRECTORY, OPERATE, READ, open_page_tokens
from flywheel.errors import UsageError
from flywheel.page.access import Access, is_loopback
from flywheel.page.app import build
from flywheel.page.guard import App
from flywheel.window import Window, opened


def access_to(run_dir: Path, host: str) -> Access:
    """Return who may read and operate the page of a run directory that is reached at `host`: its tokens are made."""
    read, operate = open_page_tokens(run_dir)
    local = is_loopback(host)
    return Access(read="" if local else read, operate=operate, name=f"flywheel-{digest(str(run_dir))[:8]}", local=local)


def app_of(window: Window, config: PageConfig) -> App:
    """Return the page of a window as an ASGI app."""
    return build(window, access_to(window.run_dir, config.host), config)


def watch(run_dir: Path, config: PageConfig) -> None:
    """Answer browsers until KeyboardInterrupt; UsageError where the port is taken or it is no run directory."""
    with opened(run_dir.resolve(), str(run_dir)) as window, listening(config) as door:
        host, port = door.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"The page of {run_dir} is at http://{shown}:{port}/ until Ctrl-C.", flush=True)
        if not is_loopback(config.host):
            print(f"To read it takes the token in {run_dir / DIRECTORY / READ}; put TLS in front of it.", flush=True)
        print(f"To operate it takes the token in {run_dir / DIRECTORY / OPERATE}.", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                app_of(window, config), log_level="warning", server_header=False, timeout_graceful_shutdown=1
            )
        )
        server.run(sockets=[door])


def listening(config: PageConfig) -> socket.socket:
    """Return a socket that listens where the configuration says."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((config.host, config.port))
    except (OSError, UnicodeError) as error:
        door.close()
        raise UsageError(
            f"Nothing can listen on {config.host}:{config.port} ({error}): give --port another one (0 picks a free "
            "one), or --host an address of this machine."
        ) from error
    return door
