"""A crew of processes on this machine, for environments that have no vector form.

A worker is a fresh interpreter that gets the task as cloudpickle. It never runs the program that started it again, so a
script needs no `if __name__ == "__main__"`, and what is defined in a script or a notebook goes along. It loads neither
Ray nor torch, unless the task does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any

import cloudpickle
import gymnasium

from flywheel.config import GateConfig
from flywheel.errors import FlywheelError
from flywheel.gate.spread import NoTravel, Part, Player, crew_of, cut, joined
from flywheel.gate.trials import Alone, Crew, Situation, Tried
from flywheel.policy import Policy
from flywheel.simulate.corrected import plain
from flywheel.simulate.stop import go_on_or_stop
from flywheel.task import Task

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_LOOK_S = 0.1  # seconds between two looks whether anybody still waits
_END_S = 10.0  # seconds in which a process that has closed its pipe should have ended
_SIZE = struct.Struct("<Q")
_INSTEAD = "put that right, or set gate.workers to 1, so that the gate plays by itself"


def local_crew(task: Task, config: GateConfig) -> Crew:
    """Return who plays by `gate.workers` on this machine."""

    def many(num: int) -> Crew:
        num = num or num_cpus()
        return Alone(task, config.lockstep) if num == 1 else Processes(task, config.lockstep, num)

    return crew_of(task, config, many)


def num_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Plays situations in several processes of one thread each.

    They start with the first play, and each proves then that its worlds are this process's: the first one is played
    here, too. They end with this object, its block, or this process, and when anything is raised.
    """

    def __init__(self, task: Task, lockstep: int, num: int) -> None:
        """Start nothing yet."""
        self._task, self._lockstep, self._num = task, lockstep, num
        self._workers: list[_Worker] = []
        self._turn = threading.Lock()
        self._end = weakref.finalize(self, _end, self._workers)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The processes that are up."""
        return [worker.pid for worker in self._workers]

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return one Trial a situation.

        Raises NoTravel when the task can't be sent, FlywheelError when a process dies or its worlds are others than
        here, and what is raised there.
        """
        parts = cut(policy, situations, now, self._num)
        with self._turn:
            try:
                if not self._workers:
                    self._begin(policy, parts[0])
                for worker, part in zip(self._workers, parts, strict=False):
                    worker.ask(cloudpickle.dumps(part))
                answers = [worker.answer() for worker, _ in zip(self._workers, parts, strict=False)]
            except BaseException:
                self.close()  # what is still being played belongs to nobody
                raise
        return joined(answers)

    def close(self) -> None:
        """End the processes; the next play starts others."""
        _end(self._workers)

    def _begin(self, policy: Policy, part: Part) -> None:
        """Start the processes and compare their first world with this process's."""
        packed = _packed(self._task, self._lockstep)
        sample = dataclasses.replace(part, situations=part.situations[:1])
        for _ in range(self._num):
            self._workers.append(_Worker())
        for worker in self._workers:
            worker.ask(packed)
            worker.ask(cloudpickle.dumps(sample))
        mine = Alone(self._task, 1).play(policy, sample.situations, sample.now).trials
        for worker in self._workers:
            if repr(worker.answer().trials) != repr(mine):  # in words a NaN equals itself
                raise FlywheelError(
                    f"The world of seed {sample.situations[0].seed} came out otherwise in a process of its own than "
                    "here, so it is no function of its seed and parameters (a generator without a seed, or something "
                    f"that this program changed after it was imported): {_INSTEAD}."
                )


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from flywheel.gate.crew import work; work()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
        )
        self.pid = self._process.pid

    def ask(self, message: bytes) -> None:
        """Send a message."""
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, message)
        except OSError:
            raise self._dead() from None

    def answer(self) -> Tried:
        """Return the answer to the next part, or raise what was raised there; Stopped when nobody waits any more."""
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], _LOOK_S)[0]:
            go_on_or_stop()
        message = _read(self._process.stdout)
        if message is None:
            raise self._dead()
        answer = cloudpickle.loads(message)
        if isinstance(answer, BaseException):
            raise answer
        found: Tried = answer
        return found

    def _dead(self) -> FlywheelError:
        try:
            code = self._process.wait(_END_S)
            how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            how = "closed its pipe"
        return FlywheelError(
            f"A process that played for the gate {how}, and its simulations with it, so none of them counts: an "
            f"environment crashed, or memory ran out. Judge again with fewer gate.workers, or {_INSTEAD}."
        )

    def end(self) -> None:
        """End the process, whatever it does, and wait for that."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what wasn't sent yet has nobody to read it
                pipe.close()


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _packed(task: Task, lockstep: int) -> bytes:
    env = plain(task).env
    known = gymnasium.registry.get(env) if isinstance(env, str) else None  # this program may have named it
    try:
        packed: bytes = cloudpickle.dumps((task, lockstep, known))
    except Exception as error:  # whatever the objects that a task holds on to raise
        raise NoTravel(
            f"Task {task.name} can't be sent to other processes ({type(error).__name__}: {error}): let its functions "
            f"hold nothing that can't be pickled (locks, open files), or set gate.workers to 1."
        ) from error
    return packed


def work() -> None:
    """Be a worker: play what comes in by standard input, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gate, which ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an environment prints is no answer
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=[asked], daemon=True).start()
    player, packed = None, asked.get()
    while True:
        part = asked.get()
        try:
            if player is None:
                player = _player(packed)
            answer: Any = player.play(cloudpickle.loads(part))
        except Exception as error:  # it is raised where the part came from
            answer = error
        _write(answers, _sent(answer))


def _player(packed: bytes) -> Player:
    try:
        task, lockstep, known = cloudpickle.loads(packed)
    except Exception as error:
        raise FlywheelError(
            f"The task can't be loaded in a process of its own ({type(error).__name__}: {error}): {_INSTEAD}."
        ) from error
    if known is not None:
        gymnasium.registry.setdefault(known.id, known)
    # Its digest is asked of the gate only; the source of what came by value can't be read here.
    return Player(dataclasses.replace(task, version=task.version or "worker"), lockstep)


def _sent(answer: Any) -> bytes:
    """Return an answer as bytes; an error that doesn't survive that as the sentence that the judge makes of it."""
    packed: bytes
    try:
        packed = cloudpickle.dumps(answer)
        cloudpickle.loads(packed)
    except Exception:
        packed = cloudpickle.dumps(FlywheelError(f"broke with {type(answer).__name__}: {answer}"))
    return packed


def _listen(asked: queue.SimpleQueue[bytes]) -> None:
    """Queue what is asked; when nobody can ask any more, end the process at once."""
    with os.fdopen(os.dup(0), "rb") as questions:
        while (message := _read(questions)) is not None:
            asked.put(message)
    os._exit(0)


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_SIZE.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """Return the next message; None when the other side has ended."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    message = pipe.read(_SIZE.unpack(head)[0])
    return message if len(message) == _SIZE.unpack(head)[0] else None
