"""What Serve finds in the environment, and ports."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from flywheel.config import DeployConfig
from flywheel.deploy.environment import claim_port, free_ports, haproxy_binary, serve_environment
from flywheel.errors import UsageError


def test_every_value_is_text_and_every_port_is_another_one() -> None:
    found = serve_environment(DeployConfig())
    assert all(isinstance(value, str) for value in found.values())
    ports = [value for name, value in found.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports)


def test_haproxy_can_be_switched_off() -> None:
    assert serve_environment(DeployConfig(haproxy=False))["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


@pytest.mark.skipif(haproxy_binary() is None, reason="ray[serve] brings no HAProxy for this platform")
def test_haproxy_is_wrapped_so_that_its_side_doors_stay_on_this_machine(tmp_path: Path) -> None:
    found = serve_environment(DeployConfig())
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    wrapper = Path(found["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert stat.S_IMODE(wrapper.parent.stat().st_mode) == 0o700
    longest = Path(found["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
    assert len(str(longest.parent / ("f" * 56) / longest.name)) < 100, "a socket's path may have 107 bytes"
    metrics, stats = found["RAY_SERVE_HAPROXY_METRICS_PORT"], found["RAY_SERVE_HAPROXY_STATS_PORT"]
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    log 127.0.0.1:514 local0 info\ndefaults\n    log global\n    mode http\n    timeout client 5s\n"
        "    timeout server 5s\n    timeout connect 5s\n"
        f"frontend prometheus\n    bind :{metrics}\nfrontend a\n    bind *:8000\nlisten stats\n  bind *:{stats}\n"
    )
    # Ray calls it with `-db -f FILE …`
    subprocess.run([wrapper, "-c", "-f", config], env=os.environ | found, check=True, capture_output=True)
    text = config.read_text()
    assert f"bind 127.0.0.1:{metrics}\n" in text
    assert f"bind 127.0.0.1:{stats}\n" in text
    assert "bind *:8000\n" in text, "the configured host is left alone"
    assert "local0" not in text, "nobody is sent a line for each request"


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} on 127"):
            claim_port(DeployConfig(port=port))
    assert claim_port(DeployConfig(port=port)) == port, "it is free again"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"])
@pytest.mark.parametrize("port", [0, 8000])
def test_a_host_that_is_not_this_machine_is_named(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=f"Nothing can listen on {host}"):
        claim_port(DeployConfig(host=host, port=port))


def test_zero_picks_a_free_port_that_nobody_else_is_given() -> None:
    port = claim_port(DeployConfig(port=0))
    assert 20_000 <= port < 30_000
    assert len(set(free_ports(5))) == 5
