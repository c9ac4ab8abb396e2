"""What an address says: whether it is this machine, and whether something listens there."""

from __future__ import annotations

import ipaddress
import socket

_TIMEOUT_S = 5.0


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, which no proxy of the environment can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reach(address: str) -> None:
    """Open a connection to host:port and close it; OSError when nothing takes it within 5 s."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
