"""Starts and ends the processes: every room as an actor of Ray, Serve, and production's clients.

Ray is either one of our own, which lives and dies with this process, or a cluster that is attached to: there the
store, the observer, the registry and Serve are detached, and go on when this process ends.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # or a late call would start another Ray after the end

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flywheel import archive, net, sqlite, story, told
from flywheel.analyze import early
from flywheel.config import Config, DeployConfig
from flywheel.console import Say
from flywheel.deploy import registry as registries
from flywheel.deploy.environment import claim_port, serve_environment
from flywheel.deploy.keys import CLIENT, token_file
from flywheel.deploy.on_ray import OBSERVER, REGISTRY, RegistryActor, namespace
from flywheel.errors import FlywheelError, UsageError
from flywheel.gate.judge import SafetyGate
from flywheel.gate.on_ray import GateActor
from flywheel.observe.on_ray import ObserverActor
from flywheel.preflight import check_cpus
from flywheel.store.on_ray import StoreActor, make_table
from flywheel.story import Story
from flywheel.task import Task, spec_of, task_digest
from flywheel.tasks import rewired
from flywheel.tasks.production import Production
from flywheel.testing import try_task
from flywheel.trace.on_ray import HAND_OVER_S, TRACE, TraceActor, hand_over, outlet
from flywheel.train import running
from flywheel.train.on_ray import CLAIM, TrainerActor
from flywheel.train.recipe import spec_for

OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's shared memory: messages here are small, and a laptop's /dev/shm may be, too."""
STORE = "store"
"""Name of the store's actor."""
_HEAD = "node:__internal_head__"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one wheel's processes are, apart from those of every other wheel on the same cluster."""

    name: str
    head: str = ""
    """Id of the cluster's head node, beside the run directory; "" on a Ray of our own."""
    resource: str = ""
    """Custom resource of the nodes that simulate and train; "" where there is none."""

    @property
    def namespace(self) -> str:
        """Ray's namespace of the wheel's actors."""
        return namespace(self.name)

    @property
    def route(self) -> str:
        """Path under which clients find the wheel's policy."""
        return f"/{self.name}" if self.head else "/"

    @property
    def claims(self) -> dict[str, float]:
        """What every process claims that is to be on a node that simulates and trains."""
        return {self.resource: CLAIM} if self.resource else {}

    def owner(self, body: type, name: str, *, max_task_retries: int = 0) -> Any:
        """Return the actor class of a room that owns state: on a cluster beside the run directory, and detached."""
        where = {}
        if self.head:
            pinned = NodeAffinitySchedulingStrategy(self.head, soft=False)
            where = {"lifetime": "detached", "get_if_exists": True, "scheduling_strategy": pinned}
        return self._actor(body, name, num_cpus=0, max_task_retries=max_task_retries, **where)

    def worker(self, body: type, name: str, num_cpus: float, **where: Any) -> Any:
        """Return the actor class of a room that computes: it ends with this process, and its calls may be repeated."""
        return self._actor(body, name, num_cpus=num_cpus, resources=self.claims, max_task_retries=3, **where)

    def _actor(self, body: type, name: str, **options: Any) -> Any:
        """Return the class of an actor that comes back by itself, on another node where its own is gone."""
        return ray.remote(body).options(name=name, namespace=self.namespace, max_restarts=-1, **options)


def wheel_name(config: Config, run_dir: Path) -> str:
    """Return the wheel's name: the given one, or the run directory's, in letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", config.name or run_dir.name).strip("-") or "wheel"


@contextmanager
def start(task: Task, config: Config, run_dir: Path, say: Say) -> Iterator[Rooms]:
    """Start the rooms' processes, yield them, and end all of them but those that are detached on a cluster.

    Only what serves and watches is there until `begin_training`.
    Raises UsageError before anything is started or written when ports, CPUs, tokens or the run directory don't fit.
    """
    SafetyGate(task, config.gate)
    spec_of(task)
    rewired.check(task, config.traffic.fault, config.traffic.fault_steps)
    for warning in try_task(task):
        say("start", warning)
    name = wheel_name(config, run_dir)
    _check_living(run_dir, config, name)
    _check_tokens(run_dir, config)
    port = 0 if config.address else claim_port(config.deploy)
    with archive.opened(run_dir, config, task.name, task_digest(task)), story.kept(run_dir, say) as telling:
        if config.address:
            yield from _attached(task, config, run_dir, name, telling)
        else:
            os.environ.update(serve_environment(config.deploy))
            yield from _own(task, config, run_dir, name, port, telling)


def _own(task: Task, config: Config, run_dir: Path, name: str, port: int, say: Story) -> Iterator[Rooms]:
    say("start", "Ray")
    try:
        context = _init(
            address="local",
            namespace=Place(name).namespace,
            num_cpus=config.num_cpus or os.cpu_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,
        )
    except Exception as error:  # Ray's own exceptions share no base with one another
        first = str(error).strip().splitlines()[0].rstrip(" (:")
        raise FlywheelError(f"Ray could not be started ({first}): is the machine overloaded?") from error
    say("start", f"Ray is up, its dashboard at http://{context.dashboard_url} (token: ray get-auth-token)")
    try:
        rooms = Rooms(task, config, run_dir, Place(name), port, say)
        archive.write_living(run_dir, context.address_info["gcs_address"], name, rooms.place.route)
        try:
            yield rooms
        finally:
            rooms.stop()
    finally:
        ray.shutdown()
        archive.forget_living(run_dir)


def _attached(task: Task, config: Config, run_dir: Path, name: str, say: Story) -> Iterator[Rooms]:
    say("start", f"attaching to the Ray cluster at {config.address}")
    context = connect(config.address, Place(name).namespace)
    try:
        head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), "")
        if head != ray.get_runtime_context().get_node_id():
            raise UsageError(
                "This process is not on the cluster's head node, where the run directory and its owners are: submit it "
                "there with `ray job submit -- python -m flywheel.run --address auto …`."
            )
        resource = config.sim_resource if ray.cluster_resources().get(config.sim_resource) else ""
        place = Place(name, head, resource)
        rooms = Rooms(task, config, run_dir, place, -1, say)
        archive.write_living(run_dir, context.address_info["gcs_address"], name, place.route)
        nodes = sum(node["Alive"] for node in ray.nodes())
        say("start", f"wheel {name} on {nodes} nodes, dashboard at http://{context.dashboard_url}")
        try:
            yield rooms
        finally:
            rooms.stop()
    finally:
        ray.shutdown()


def _check_living(run_dir: Path, config: Config, name: str) -> None:
    """Raise UsageError when this run directory's owners are up on a cluster that this start wouldn't attach to."""
    living = archive.read_living(run_dir)
    if living is None or archive.is_held(run_dir) or (config.address and living["name"] == name):
        return
    try:
        net.reach(living["address"])
    except OSError:
        return
    raise UsageError(
        f"The owners of {run_dir} may be up on the cluster at {living['address']} as wheel {living['name']}: go on "
        f"with that --address and --name, or end them first by `flywheel down --run-dir {shlex.quote(str(run_dir))}`."
    )


def _check_tokens(run_dir: Path, config: Config) -> None:
    """Raise UsageError when other machines could reach a policy that no token lets anybody ask."""
    if net.is_loopback(config.deploy.host) or not sqlite.is_made(run_dir / registries.FILE):
        return  # a first start makes an everyday one
    with closing(registries.open_readonly(run_dir)) as registry:
        if not any(token.lets(["act"]) for token in registry.in_force()):
            raise UsageError(
                f"Nobody could ask the policy that is to listen on {config.deploy.host}, because no token with the "
                f"scope act is in force: make one by `flywheel tokens add NAME --scope act --run-dir "
                f"{shlex.quote(str(run_dir))}`, or leave out --deploy.host."
            )


def connect(address: str, namespace: str) -> Any:
    """Connect this process to a Ray that runs; raise UsageError when none answers at that address."""
    try:
        return _init(address=address, namespace=namespace)
    except Exception as error:  # Ray's own exceptions share no base with one another
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"No Ray answers at {address} ({first}): start it, or leave --address out.") from error


def _init(**options: Any) -> Any:
    on_term = signal.getsignal(signal.SIGTERM)
    context = ray.init(log_to_driver=False, logging_level="ERROR", **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray put its own in its place, which aborts
    return context


def _claim_on_cluster(config: DeployConfig) -> int:
    """Return the port that Serve is to listen on; UsageError where replicas on other machines could not be reached."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1 and net.is_loopback(config.host) and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise UsageError(
            f"The cluster has {len(machines)} machines, and replicas that listen on {config.host} can't be reached "
            "from another one: give --deploy.host 0.0.0.0 inside a private network, with TLS in front of it."
        )
    return claim_port(config)


@dataclass(frozen=True, slots=True)
class Serving:
    """What is up once Serve is: handles of the store and the observer, and the deployment."""

    store: Any
    observer: Any
    deployment: Any


class Rooms:
    """Handles of every room's actor, and how one asks them."""

    def __init__(self, task: Task, config: Config, run_dir: Path, place: Place, port: int, say: Story) -> None:
        """Start the registry; `begin_training` and `begin_serving` start the rest. `port` is -1 on a cluster."""
        self._task, self._config, self._run_dir, self._port, self.say = task, config, run_dir, port, say
        self.place = place
        self._future: Future[Serving] | None = None
        self._stopping = threading.Event()
        self.registry = place.owner(RegistryActor, REGISTRY).remote(
            str(run_dir), task_digest(task), place.name, config.deploy, task.limits.max_failure_rate
        )
        self.trace = place.owner(TraceActor, TRACE, max_task_retries=-1).remote(str(run_dir), config.trace, place.name)
        self.spans = outlet(config.trace, place.namespace)
        there = ask(self.registry.run_dir) if place.head else str(run_dir)
        if there != str(run_dir):
            raise UsageError(
                f"A wheel named {place.name} is on this cluster already, with the run directory {there}: give this one "
                "another --name, or the same --run-dir to go on with it."
            )
        self.production = Production(run_dir / archive.TRAFFIC, config, task)

    def begin_training(self) -> None:
        """Start the trainer and the gate; raise UsageError when the trainer would wait for ever for its CPUs."""
        task, config = self._task, self._config
        resource = self.place.resource
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and (not resource or resource in n["Resources"])]
        check_cpus(config, sum(node.get("CPU", 0.0) for node in nodes))
        if instead := running.said(config.train, task):
            self.say("start", instead)
        spec = spec_for(task, spec_of(task), config.train)
        self._make_table = make_table(spec, config.train, self.place.worker)  # shards live as long as it does
        self.trainer = self.place.worker(TrainerActor, "trainer", 0.5).remote(
            task, spec, config.train, config.seed, resource, self.place.name, self._make_table
        )
        self.gate = self.place.worker(GateActor, "gate", 0.0).remote(
            task, config.gate, self.place.name, self.place.claims
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
        """Start store, observer and Serve; a release of an earlier start is watched again."""
        try:
            from flywheel.deploy import on_serve  # a slow import, and it reads the environment

            began, place, config = time.monotonic(), self.place, self._config
            store = place.owner(StoreActor, STORE, max_task_retries=-1).remote(
                str(self._run_dir), config.store, place.name
            )
            observer = place.owner(ObserverActor, OBSERVER, max_task_retries=-1).remote(
                self._task, config.observe, STORE, place.name, place.namespace, config.trace, early.estimate
            )
            for release in ask(self.registry.releases)[-1:]:
                ask(observer.release, release, self._task.limits.max_failure_rate)
            if self._stopping.is_set():
                raise FlywheelError("Serve was not started because the run is ending.")
            port = self._port
            if port < 0:  # the cluster's first wheel chooses where Serve listens
                port = config.deploy.port if on_serve.is_up() else _claim_on_cluster(config.deploy)
            deployment = on_serve.start_serve(config.deploy, port, place.name, place.route, config.trace)
            self.say("start", f"Serve is up at {deployment.url} after {time.monotonic() - began:.1f} s")
            future.set_result(Serving(store, observer, deployment))
        except BaseException as error:  # whoever waits for it is told
            future.set_exception(error)
        else:
            if place.head:
                self._tell_what_stays(future.result())

    def _tell_what_stays(self, serving: Serving) -> None:
        """Say which settings are not as asked for, because an earlier start's owners are up and keep theirs."""
        try:
            living = {"store": ask(serving.store.settings), "observe": ask(serving.observer.settings)}
            stays = told.stays(living | {"deploy": serving.deployment.settings()}, self._config, self._run_dir)
        except Exception as error:  # Ray's, Serve's or a room's: nothing but this sentence hangs on it
            stays = f"store, observer or replicas could not be asked for the settings that they have ({error})"
        if stays and not self._stopping.is_set():
            self.say("start", stays)

    def produce(self) -> None:
        """Start production's clients, unless they play already or production is somebody else's.

        Raises UsageError when their token was revoked.
        """
        if self._config.traffic.num_clients and not self.production.is_running:
            token = token_file(self._run_dir, CLIENT)
            if not token.exists():
                raise UsageError(
                    f"Simulated production has no token, because {token} was revoked: make another one by `flywheel "
                    f"tokens add {CLIENT} --scope act`, or leave production to others by --traffic.num-clients 0."
                )
            self.production.start(self.serving.deployment.url, token)

    def stop(self) -> None:
        """End production in order; everything that was acknowledged is on the disk already."""
        self._stopping.set()
        self.production.stop()
        if not self.place.head and self._future is not None:
            hand_over(self._future)
        self.spans.close(HAND_OVER_S)

    def work(self, function: Callable[..., Any]) -> Any:
        """Return a pure function as a task of the cluster, for `ask`."""
        return ray.remote(function).options(num_cpus=0, name=function.__name__, resources=self.place.claims)


def ask(method: Any, *arguments: Any, **named: Any) -> Any:
    """Return an actor's answer; what goes wrong there is a FlywheelError that says where to read on."""
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
    except ray.exceptions.RayError as error:  # a task whose worker was killed, for its memory or with its node
        first = str(error).strip().splitlines()[0]
        raise FlywheelError(f"A process of the run was lost: {first}; {logs}. The same --run-dir goes on.") from error
