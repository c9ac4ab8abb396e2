"""Finds the actors of a wheel, or of `flywheel serve`, that is up in another process, and ends them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from flywheel import archive, net
from flywheel.cluster import STORE, Place, connect
from flywheel.deploy.on_ray import OBSERVER, REGISTRY
from flywheel.errors import UsageError
from flywheel.trace.on_ray import TRACE


class Attached:
    """The actors of a wheel, or of `flywheel serve`, that is up in another process."""

    def __init__(self, living: Mapping[str, str]) -> None:
        """Find them by their names."""
        self.place = Place(living["name"])
        self.route = living["route"]
        self.registry, self.observer, self.store = (self.find(name) for name in (REGISTRY, OBSERVER, STORE))

    def find(self, name: str) -> Any:
        """Return an actor's handle, None where there is none (any more, or yet)."""
        try:
            return ray.get_actor(name, namespace=self.place.namespace)
        except ValueError:
            return None

    def close(self) -> None:
        """Leave; the others go on."""
        ray.shutdown()


def attach(run_dir: Path) -> Attached | None:
    """Return the actors of whoever is up in a run directory, None when nobody is; a note of a dead one is taken away.

    Raises UsageError while they are starting: there is nobody to talk to yet.
    """
    living = archive.read_living(run_dir)
    if living is None:
        return None
    try:
        net.reach(living["address"])
    except ConnectionRefusedError:  # it was killed before it could take its note away
        archive.forget_living(run_dir)
        return None
    except OSError as error:
        raise UsageError(f"The owner of {run_dir} at {living['address']} can't be reached ({error}).") from error
    connect(living["address"], Place(living["name"]).namespace)
    attached = Attached(living)
    if attached.registry is not None and attached.observer is not None:
        return attached
    if attached.registry is None and not archive.is_held(run_dir):  # another Ray is at that address now
        attached.close()
        archive.forget_living(run_dir)
        return None
    if not archive.is_held(run_dir):
        return attached  # what an end that was cut off has left
    attached.close()
    raise UsageError(f"The owner of {run_dir} is starting or ending: try again in some seconds.")


def end(run_dir: Path) -> None:
    """End the detached actors and the replicas of a run directory's wheel; the run directory stays as it is."""
    from flywheel.deploy import on_serve

    if archive.is_held(run_dir):
        raise UsageError(f"The loop of {run_dir} is turning: end it first (Ctrl-C, or `ray job stop`).")
    attached = attach(run_dir)
    if attached is None:
        raise UsageError(f"Nothing of {run_dir} is up, so there is nothing to end.")
    try:
        on_serve.end_app(attached.place.name)
        for actor in (attached.observer, attached.store, attached.find(TRACE), attached.registry):
            if actor is not None:
                ray.kill(actor, no_restart=True)
    finally:
        attached.close()
    archive.forget_living(run_dir)
