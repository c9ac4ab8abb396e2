"""Acting in process: the judged policy comes to the program, and whole episodes go back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from flywheel.client.batch import OneEpisode
from flywheel.client.http import SPOOL_BYTES, Client
from flywheel.client.quick import Quick
from flywheel.client.refusal import DamagedError, RejectedError, UnavailableError
from flywheel.client.spool import Kept, Row, Spool
from flywheel.client.supply import MAX_BODY, Lease, Supply
from flywheel.client.worker import Worker, flush
from flywheel.errors import Refused, UsageError
from flywheel.policy import Policy
from flywheel.trace import context

log = logging.getLogger(__name__)
_PATIENCE_S = 0.2
"""Seconds for which one request in the background is made again before its round is given up."""
_BODY = 2**20
"""Bytes of episodes, as they lie in the spool, after which a request is full: an eighth of what a server takes."""
_ROWS = 512
"""Most episodes of one request, and most others that it tells of."""
_BESIDE = 2**18
"""Bytes of a request that are left for what it tells of others."""
_TELL_S = 2.0
"""Seconds after which the server is told again what runs, at the latest: it waits for word as long as that."""
_WRONG = frozenset({400, 409, 413, 422})
"""Answers that say that the content itself will never be taken."""


class Local:
    """Lets the policy act in this process: no request stands between an observation and its action.

    Policies come with their verdicts and are proven as a replica proves them. An episode begins under a lease, which
    fixes its policy and its draws as the server would, so that its records are the same; leases, new policies and
    whole episodes are fetched and sent by a thread. Without a network, episodes begin until the leases are used up.
    Safe to share between threads; close it, or use it in a `with`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        directory: str | Path,
        *,
        public_key: str | None = None,
        num_leases: int = 256,
        poll_s: float = 2.0,
        timeout_s: float = 5.0,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        """Begin to fetch what is needed; what an earlier program left in the directory is sent.

        Args:
            url: where the policy is served, e.g. http://127.0.0.1:8000.
            token: one with the scope act.
            directory: of this program alone (UsageError when another one has it open): the pinned key, policies, and
                episodes until they are acknowledged.
            public_key: what verdicts have to be signed with, hex, as in run_dir/keys/signing.pub; None takes the
                server's word at first use, and no other afterwards (UsageError for another one than is pinned).
            num_leases: episodes, from 1 to 1,024, that can begin without the server.
            poll_s: seconds between looks at who answers now.
            timeout_s: seconds one attempt of a request may take.
            spool_bytes: bytes of episodes that wait for the server at most.
        """
        directory = Path(directory)
        self._timeout_s = timeout_s
        self._client = Client(url, token, timeout_s=timeout_s, patience_s=_PATIENCE_S)
        self._supply = Supply(self._client, directory, public_key, num_leases)
        self._spool = Spool(directory / "spool", spool_bytes)
        self._said = set[str]()
        self._supplier = Worker(self._renew, poll_s, "flywheel-supplier")
        self._courier = Worker(self._send, min(poll_s, _TELL_S), "flywheel-courier")
        self._spool.wake = self._courier.wake

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the work in the background; episodes that aren't acknowledged yet stay in the directory."""
        for worker in (self._supplier, self._courier):
            worker.close()
        self._client.close()
        self._spool.close()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the episodes that are over and that the server hasn't acknowledged yet."""
        return self._spool.waiting

    @property
    def num_leases(self) -> int:
        """Episodes that can begin without the server."""
        return len(self._supply)

    def episode(self) -> LocalEpisode:
        """Return a new episode to be used in a `with`.

        Raises UnavailableError when no lease is left and none can be had, Refused when the policy is not proven,
        RejectedError when the server refuses, FullError when the spool has no room.
        """
        lease, policy = self._leased()
        if self._supply.is_low:
            self._supplier.wake()
        episode = LocalEpisode(self._spool, lease, policy, self._supply)
        self._courier.wake()  # the server is told at once: the order of start is that in which it hears of episodes
        return episode

    def _leased(self) -> tuple[Lease, Policy]:
        worker = self._supplier
        while (taken := self._supply.take()) is None:
            is_over = worker.round(lambda: len(self._supply) > 0, 3 * self._timeout_s)
            if len(self._supply) == 0 and (worker.trouble is not None or not is_over):
                raise self._refusal(worker.trouble)
        return taken

    @staticmethod
    def _refusal(trouble: Exception | None) -> Exception:
        if isinstance(trouble, Refused | RejectedError):
            return trouble
        refusal = UnavailableError(
            "No episode can begin: no lease is left, and none could be had. Those that run go on; begin again once the "
            f"server can be reached. {trouble or ''}"
        )
        refusal.__cause__ = trouble
        return refusal

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return when every episode that is over is acknowledged; raise UnavailableError when time is over before."""
        flush(self._spool, self._courier, timeout_s)

    # In the threads

    def _renew(self) -> None:
        try:
            self._supply.renew()
        finally:
            condemned = {row["digest"] for row in self._begun() if self._supply.is_condemned(row["digest"])}
            for digest in condemned - self._said:
                log.error(
                    "Policy %s may not act any more, and acts in episodes that run: end those that say `is_condemned`.",
                    digest[:12],
                )
            self._said |= condemned

    def _send(self) -> None:
        trouble: UnavailableError | None = None
        is_told = False
        for group in self._groups():
            is_told = True
            try:
                self._upload(group)
            except RejectedError as error:
                if error.status not in _WRONG:
                    raise
                for each in group:  # one of them may be wrong
                    self._upload_alone(each)
            except UnavailableError as error:  # it may be these that can't be taken, and no others
                trouble = trouble or error
        if not is_told and self._begun():
            self._upload([])
        if trouble is not None:
            raise trouble

    def _begun(self) -> list[Row]:
        """Return what episodes began with that aren't acknowledged yet, in order of start."""
        return sorted((row for row in self._spool.begun() if "seal" in row), key=lambda row: float(row["started_at"]))

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """Yield what waits, as it is sent, in groups of one request each, in order of start.

        What has no step that is known to be taken is forgotten, and what can't be read is put aside.
        """
        places = {row["episode"]: at for at, row in enumerate(self._begun())}
        group, size = list[dict[str, Any]](), 0
        for id in sorted(self._spool.waiting, key=lambda id: places.get(id, -1)):
            try:
                found = self._spool.read(id)
                if found.end is None and len(found.steps) < 2:
                    self._spool.drop(id)
                    continue
                told = _told(found)
            except (DamagedError, KeyError) as error:  # KeyError: it was kept by something else than this
                self._spool.refuse(id, f"{error!r}")
                continue
            if group and (size + found.num_bytes > _BODY or len(group) == _ROWS):
                yield group
                group, size = [], 0
            group.append(told)
            size += found.num_bytes
        if group:
            yield group

    def _upload(self, group: Sequence[dict[str, Any]]) -> None:
        body = {"episodes": group, "running": self._running({told["episode"] for told in group})}
        answer = self._client.run(self._client.calls.request("POST", "/v1/episodes", body, packed=True))
        for id in answer["acknowledged"]:
            self._spool.drop(id)
        for id, why in answer["refused"].items():
            self._spool.refuse(id, why)

    def _running(self, ids: set[str]) -> list[dict[str, Any]]:
        """Return what a request tells of episodes that began: of those that it brings, and of the others the oldest.

        Younger ones need no place as long as older ones of this program hold theirs.
        """
        now, begun = time.time(), self._begun()
        mine = [row for row in begun if row["episode"] in ids]
        others = [row for row in begun if row["episode"] not in ids]
        return [
            {name: row[name] for name in ("episode", "digest", "given_at", "seal")}
            | {"age_s": max(0.0, now - row["started_at"])}
            for row in (*mine, *others[:_ROWS])
        ]

    def _upload_alone(self, told: dict[str, Any]) -> None:
        try:
            self._upload([told])
        except RejectedError as error:
            if error.status not in _WRONG:
                raise
            self._spool.refuse(told["episode"], str(error))


class LocalEpisode(OneEpisode):
    """One episode that is acted in this process, by one thread. Use it in a `with`, and end it there.

    One that is left by an exception, or by the death of the program, is sent as cut off at its last observation.
    """

    def __init__(self, spool: Spool, lease: Lease, policy: Policy, supply: Supply | None = None) -> None:
        """Begin the episode of a lease; `supply` knows what becomes of its policy, and how much a request takes."""
        super().__init__(lease.episode)
        self.digest = lease.digest
        """The policy that acts in it."""
        self._t, self._logp = 0, float("nan").__float__
        self._quick = Quick(policy, lease.draw_key, lease.episode)
        self._spool, self._supply = spool, supply
        self._most_steps = 0
        context.link([self.id])
        spool.begin(self.id, digest=lease.digest, given_at=lease.given_at, seal=lease.seal, started_at=time.time())

    def __enter__(self) -> LocalEpisode:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leave(error)

    def act(self, observation: Any) -> Any:
        """Return the action for the environment: an int, or an array in the action's shape.

        Raises UsageError for an observation that the policy can't read, and for a step with which the episode would not
        fit into one request any more, Refused when the policy answers with a number that is not finite, FullError when
        the spool is full; after the last one the same call may be made again.
        """
        self._check_open()
        quick, t = self._quick, self._t
        told = quick.see(observation)
        raw_action, self._logp = quick.act(t)
        plain = raw_action.tolist() if isinstance(raw_action, np.ndarray) else raw_action
        if t == self._most_steps:
            self._check_size(packed(told) + packed(plain) + packed(0.0))
        row = {"t": t, "observation": told, "action": plain, "reward": self._known(), "at": time.time()}
        self._spool.add(self.id, row)
        self._t, self._reward = t + 1, math.nan
        self._scope.acted(t, self.digest)
        return quick.to_env(raw_action)

    def end(self, observation: Any, *, terminated: bool = False, truncated: bool = False) -> None:
        """Return when the episode is on this machine's disk, from where it is sent.

        `observation` is the last one; one of the two ways to end is true. Raises as `act`.
        """
        self._check_open()
        self._check_end(terminated, truncated)
        if not self._t:
            raise UsageError(f"Episode {self.id!r} has no step yet, so there is nothing to end.")
        row = {"t": self._t, "observation": self._quick.see(observation), "reward": self._known()}
        self._spool.add(self.id, row | {"terminated": terminated, "truncated": truncated, "ended_at": time.time()})
        self._spool.sync(self.id)
        self._ended = True
        self._spool.leave(self.id)

    @property
    def logp(self) -> float:
        """Log probability of the last action; NaN before the first one."""
        return self._logp()

    @property
    def is_condemned(self) -> bool:
        """True once its policy may not act any more, as after a rollback, and this program knows it: end it then."""
        return self._supply is not None and self._supply.is_condemned(self.digest)

    def _check_size(self, step_bytes: int) -> None:
        """Raise UsageError where one more step of this size would not fit into a request any more."""
        max_body = MAX_BODY if self._supply is None else self._supply.max_body
        self._most_steps = max(0, (max_body - _BESIDE) // step_bytes - 1)
        if self._t >= self._most_steps:
            raise UsageError(
                f"Episode {self.id!r} has {self._t:,} steps, and no more of them go into one request of at most "
                f"{max_body:,} bytes (deploy.max_body): end it with truncated=True, and begin another one."
            )

    def _known(self) -> float | None:
        """Return the reward of the action before, None where it isn't known."""
        if math.isinf(self._reward):
            raise UsageError("A reward is infinite: nothing was kept. Leave out (NaN) what isn't known.")
        return None if math.isnan(self._reward) else self._reward

    def _abandon(self) -> None:
        self._spool.leave(self.id)


def _told(found: Kept) -> dict[str, Any]:
    """Return an episode as POST /v1/episodes takes it; one without an end is cut off at its last observation."""
    steps, end = (found.steps, found.end) if found.end is not None else (found.steps[:-1], found.steps[-1])
    return {
        **{name: found.head[name] for name in ("episode", "digest", "given_at", "seal", "started_at")},
        "ended_at": end.get("ended_at", end.get("at", found.changed_at)),
        "observations": [row["observation"] for row in (*steps, end)],
        "raw_actions": [row["action"] for row in steps],
        "rewards": [row["reward"] for row in (*steps[1:], end)],
        "terminated": end.get("terminated", False),
        "truncated": end.get("truncated", True),
    }


def packed(value: Any) -> int:
    """Return how many bytes a plain value takes in msgpack at most."""
    if isinstance(value, list):
        return 5 + sum(map(packed, value))
    if isinstance(value, dict):
        return 5 + sum(5 + len(name.encode()) + packed(part) for name, part in value.items())
    return 9
