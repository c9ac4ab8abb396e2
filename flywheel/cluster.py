"""Starts and ends the processes: every room as an actor of a local Ray, Serve, and production's clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from flywheel import archive
from flywheel.config import Config
from flywheel.console import Say
from flywheel.deploy.environment import claim_port, serve_environment
from flywheel.deploy.keys import DIRECTORY, TOKEN
from flywheel.deploy.on_ray import NAMESPACE, OBSERVER, REGISTRY, RegistryActor
from flywheel.errors import FlywheelError, UsageError
from flywheel.gate.judge import SafetyGate
from flywheel.gate.on_ray import GateActor
from flywheel.observe.on_ray import ObserverActor
from flywheel.store.on_ray import StoreActor
from flywheel.task import Task, spec_of, task_digest
from flywheel.tasks.production import Production
from flywheel.train.on_ray import TrainerActor

OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's shared memory: messages here are small, and a laptop's /dev/shm may be, too."""
STORE = "store"
"""Name of the store's actor."""
GATE = "gate"
"""Name of the gate's actor."""


def preflight(task: Task, config: Config) -> None:
    """Raise UsageError when the task can't be judged, or when the processes that claim CPUs would wait for ever."""
    SafetyGate(task, config.gate)
    spec_of(task)
    available = config.num_cpus or os.cpu_count() or 1
    claimed = 0.5 + 0.5 * config.train.num_runners
    if claimed > available:
        raise UsageError(
            f"Training claims {claimed:g} CPUs (half a one for the learner and for each of {config.train.num_runners} "
            f"env runners) but Ray is given {available}, so it would wait for ever: lower --train.num-runners or raise "
            "--num-cpus."
        )


@contextmanager
def start(task: Task, config: Config, run_dir: Path, say: Say, *, training: bool = True) -> Iterator[Rooms]:
    """Start a local Ray with every room on it, yield them, and end all of it.

    Without `training` there are the rooms that serve and watch only: no trainer, no gate, no simulated production.
    Raises UsageError before anything is started or written when ports, CPUs or the run directory don't fit.
    """
    if training:
        preflight(task, config)
    port = claim_port(config.deploy)
    with archive.opened(run_dir, config, task.name, task_digest(task)):
        os.environ.update(serve_environment(config.deploy))
        yield from _started(task, config, run_dir, port, say, training)


def _started(task: Task, config: Config, run_dir: Path, port: int, say: Say, training: bool) -> Iterator[Rooms]:
    say("start", "Ray, the trainer and the gate" if training else "Ray, the registry, the store and the observer")
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=config.num_cpus or os.cpu_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:  # Ray's own exceptions share no base with one another
        raise FlywheelError(
            f"Ray could not be started ({error}): is this machine overloaded, or out of memory?"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray put its own in its place, which aborts
    say("start", f"Ray is up, its dashboard at http://{context.dashboard_url} (token: ray get-auth-token)")
    rooms = Rooms(task, config, run_dir, port, say, training=training)
    archive.write_address(run_dir, context.address_info["gcs_address"], NAMESPACE)
    try:
        yield rooms
    finally:
        archive.forget_address(run_dir)
        rooms.stop()
        ray.shutdown()


class Attached:
    """The actors of a wheel, or of `flywheel serve`, that is up in another process."""

    def __init__(self, namespace: str) -> None:
        """Find them by their names; `gate` is None where nobody trains."""
        self.registry = ray.get_actor(REGISTRY, namespace=namespace)
        self.observer = ray.get_actor(OBSERVER, namespace=namespace)
        self.gate = None
        with contextlib.suppress(ValueError):
            self.gate = ray.get_actor(GATE, namespace=namespace)

    def ask(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """As Rooms.ask."""
        return ask(method, *arguments, **named)

    def close(self) -> None:
        """Leave; the others go on."""
        ray.shutdown()


def attach(run_dir: Path) -> Attached | None:
    """Return the actors of whoever is up in a run directory, None when the one who was is dead.

    Raises UsageError while they are starting: there is nobody to talk to yet.
    """
    found = archive.read_address(run_dir)
    if found is None:
        return None
    address, namespace = found
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:  # it was killed before it could take its address back
        return None
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray's own exceptions share no base with one another
        raise FlywheelError(f"The owner of {run_dir} is at {address}, but Ray can't reach it there: {error}") from error
    try:
        return Attached(namespace)
    except ValueError as error:
        ray.shutdown()
        raise UsageError(f"The owner of {run_dir} is starting or ending: try again in some seconds.") from error


@dataclass(frozen=True, slots=True)
class Serving:
    """What is up once Serve is: handles of the store and the observer, and the deployment."""

    store: Any
    observer: Any
    deployment: Any


class Rooms:
    """Handles of every room's actor, and how one asks them."""

    def __init__(
        self, task: Task, config: Config, run_dir: Path, port: int, say: Say, *, training: bool = True
    ) -> None:
        """Start the trainer, the gate and the registry; `begin_serving` starts the rest beside the training."""
        self._task, self._config, self._run_dir, self._port, self._say = task, config, run_dir, port, say
        self._future: Future[Serving] | None = None
        self._stopping = threading.Event()
        if training:
            self.trainer = _actor(TrainerActor, "trainer", num_cpus=0.5).remote(
                task, spec_of(task), config.train, config.seed, str(run_dir / archive.POLICIES)
            )
            self.gate = _actor(GateActor, GATE).remote(task, config.gate, str(run_dir))
        self.registry = _actor(RegistryActor, REGISTRY).remote(str(run_dir), task_digest(task))
        drift = ",".join(f"{name}={value:g}" for name, value in task.drift.items()) if config.drift else ""
        self.production = Production(
            run_dir / archive.TRAFFIC, config.traffic, task=config.task, seed=config.seed, drift=drift
        )

    def begin_serving(self) -> None:
        """Start store, observer and Serve in the background, if that hasn't begun."""
        if self._future is None:
            self._future = Future()
            threading.Thread(target=self._start_serving, args=[self._future], daemon=True, name="serve").start()

    @property
    def serving(self) -> Serving:
        """Store, observer and deployment, once they are up."""
        self.begin_serving()
        assert self._future is not None
        return self._future.result()

    def _start_serving(self, future: Future[Serving]) -> None:
        """Start store, observer and Serve beside the training; a release of an earlier start is watched again."""
        try:
            from flywheel.deploy.on_serve import start_serve  # a slow import, and it reads the environment

            began = time.monotonic()
            store = _actor(StoreActor, STORE, max_task_retries=-1).remote(str(self._run_dir), self._config.store)
            observer = _actor(ObserverActor, OBSERVER, max_task_retries=-1).remote(
                self._task, self._config.observe, STORE
            )
            for release in self.ask(self.registry.releases)[-1:]:
                self.ask(observer.release, release, self._task.limits.max_failure_rate)
            if self._stopping.is_set():
                raise FlywheelError("Serve was not started because the run is ending.")
            deployment = start_serve(self._config.deploy, self._port)
            self._say("start", f"Serve is up at {deployment.url}, {time.monotonic() - began:.1f} s beside the training")
            future.set_result(Serving(store, observer, deployment))
        except BaseException as error:  # whoever waits for it is told
            future.set_exception(error)

    def produce(self) -> None:
        """Start production's clients, unless they play already or production is somebody else's."""
        if self._config.traffic.num_clients and not self.production.is_running:
            self.production.start(self.serving.deployment.url, self._run_dir / DIRECTORY / TOKEN)

    def stop(self) -> None:
        """End production in order; everything that was acknowledged is on the disk already."""
        self._stopping.set()
        self.production.stop()

    def ask(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """As `cluster.ask`."""
        return ask(method, *arguments, **named)

    def work(self, function: Callable[..., Any]) -> Any:
        """Return a pure function as a task of the cluster, for `ask`."""
        return ray.remote(function).options(num_cpus=0, name=function.__name__)


def ask(method: Any, *arguments: Any, **named: Any) -> Any:
    """Return a room's answer; what goes wrong there is a FlywheelError that says where to read on."""
    logs = "its log is under /tmp/ray/session_latest/logs"
    try:
        return ray.get(method.remote(*arguments, **named))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FlywheelError):  # the room's own sentence is what a person needs
            raise error.cause from None
        raise FlywheelError(f"A process of the run failed with {error.cause!r}; {logs}.") from error
    except ray.exceptions.RayActorError as error:
        last = str(error).strip().splitlines()[-1]
        raise FlywheelError(f"A process of the run died: {last}; {logs}. The same --run-dir goes on.") from error


def _actor(body: type, name: str, *, num_cpus: float = 0.0, max_task_retries: int = 0) -> Any:
    """Return the actor class of a room's body: it comes back by itself; only harmless calls may be repeated."""
    return ray.remote(body).options(name=name, num_cpus=num_cpus, max_restarts=-1, max_task_retries=max_task_retries)
