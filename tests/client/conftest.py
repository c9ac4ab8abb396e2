"""A door on a real port, without Ray, whose observer can forget and go away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from flywheel.client import Client
from flywheel.config import DeployConfig
from flywheel.deploy.door import Door
from flywheel.deploy.environment import free_ports
from flywheel.deploy.service import Service
from flywheel.records import Artifact
from tests.client.network import Network
from tests.deploy.conftest import NOW, Links, World


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.port = free_ports(1)[0]
        self.listens = threading.Event()
        super().__init__(uvicorn.Config(network, host="127.0.0.1", port=self.port, log_config=None, ws="none"))

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.listens.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.registry.close()


@pytest.fixture
def artifact(world: World) -> Artifact:
    """A policy that is in service; ask for it before the client, so that it is there when the server starts."""
    return world.served()


@pytest.fixture
def links(world: World) -> Iterator[Links]:
    links = Links(world.registry)
    yield links
    if "store" in vars(links):
        links.store.close()


@pytest.fixture
def server(links: Links) -> Iterator[Server]:
    service = Service(DeployConfig(flush_s=0.001, poll_s=0.01), links, links, lambda: NOW)
    server = Server(Network(Door(service)))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.listens.wait(30)
    yield server
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(server: Server, world: World) -> Iterator[Client]:
    with Client(server.url, world.token, patience_s=5.0) as client:
        yield client
