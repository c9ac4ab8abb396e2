"""Serving without training: store, observer, registry and Serve, until somebody ends it."""

from __future__ import annotations

from pathlib import Path

from flywheel import cluster, told
from flywheel.config import Config
from flywheel.console import Say
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.task import Task

LOOK_S = 1.0
"""Seconds between two looks at the registry, as replicas take them; an alarm is told at once."""


def serve(task: Task, config: Config, run_dir: Path, say: Say) -> None:
    """Let the registry's policy answer clients until KeyboardInterrupt; say who answers and what the monitors raise.

    A policy that another process promotes meanwhile is watched from the next look on, and replicas take it by
    themselves. Raises as `cluster.start`.
    """
    with cluster.start(task, config, run_dir, say) as rooms:
        serving, say = rooms.serving, rooms.say
        say("start", f"the token of clients is in {token_file(run_dir, CLIENT)}")
        released_at, num_signals = None, 0
        while True:
            for release in cluster.ask(rooms.registry.releases)[-1:]:
                cluster.ask(serving.observer.release, release, task.limits.max_failure_rate)
                if release.released_at != released_at:
                    released_at = release.released_at
                    say("deploy", f"policy {release.digest[:8]} answers at {serving.deployment.url}")
            if released_at is None:
                say("deploy", "no policy is in service yet: put one in by `flywheel policies add`", passing=True)
            signals = cluster.ask(serving.observer.signals)
            for signal in signals[num_signals:]:
                say("observe", told.signal(signal))
            num_signals = len(signals)
            cluster.ask(serving.observer.wait, signals=num_signals, timeout_s=LOOK_S)
