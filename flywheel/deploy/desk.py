"""What a replica does beside deciding: late rewards, episodes that clients act in by themselves, policies, rollback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from flywheel import verdicts
from flywheel.config import DeployConfig
from flywheel.deploy import columns
from flywheel.deploy.admission import Served
from flywheel.deploy.leases import begun, is_given, prove
from flywheel.deploy.lines import Line
from flywheel.deploy.links import AwayError, ObserverLink, RegistryLink, Secrets, within
from flywheel.deploy.outbox import size
from flywheel.deploy.session import Session
from flywheel.deploy.wire import (
    EpisodesAnswer,
    EpisodesRequest,
    KeyAnswer,
    Lease,
    PolicyAnswer,
    RejectedError,
    RewardsRequest,
    RollbackAnswer,
    RollbackRequest,
)
from flywheel.errors import Refused
from flywheel.records import Episode, Reward, Steps

ALIASES = ("@champion", "@challenger", "@previous")


class Desk:
    """The part of a Service that decides nothing."""

    config: DeployConfig
    clock: Callable[[], float]
    _registry: RegistryLink
    _observer: ObserverLink
    _secrets: Secrets | None
    _shadowed: list[Steps | Line]
    _filled: asyncio.Event

    # Late rewards

    async def reward(self, request: RewardsRequest) -> int:
        """Return how many late rewards are durable now, which is all of them.

        Raises RejectedError: 422 naming the wrong field, and then none is kept; 409 naming the first whose step has
        another one, or 404 the first whose step nobody knows, and then the others are kept; 503.
        """
        rows, now = request.rewards, self.clock()
        if len(rows) > self.config.max_batch:
            raise RejectedError(422, f"rewards: At most {self.config.max_batch} a request, got {len(rows)}.", "rewards")
        for i, row in enumerate(rows):
            columns.finite(row.reward, f"rewards[{i}].reward")
        rewards = [Reward(episode=row.episode, t=row.t, reward=row.reward, seen_at=now) for row in rows]
        with _or_503("Rewards can't be made durable now"):
            await self._flush()  # the observer may have heard nothing of these steps yet
            answers = await within(self._observer.reward(rewards))
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            if answer == "conflict":
                field = f"rewards[{i}].reward"
                sentence = f"Step {row.t} of episode {row.episode!r} has another reward; this one was set aside."
                raise RejectedError(409, f"{field}: {sentence}", field)
            if answer == "unknown":
                field = f"rewards[{i}].episode"
                raise RejectedError(
                    404, f"{field}: Nobody here knows a step {row.t} of an episode {row.episode!r}.", field
                )
        return len(rows)

    # Episodes that clients act in by themselves

    def lease(self, num: int) -> list[Lease]:
        """Return so many episodes that a client may act in by itself; RejectedError (503) without a policy."""
        return self._live().lease([uuid.uuid4().hex for _ in range(num)], self.clock())

    async def upload(self, request: EpisodesRequest[Any]) -> EpisodesAnswer:
        """Return which whole episodes are durable now, and why each of the others is refused.

        What runs holds its place from now on, before anything else is done. Raises RejectedError: 422 naming the wrong
        field, and then nothing is kept; 503.
        """
        session, secrets, refused = self._live(), self._keys(), dict[str, str]()
        told, proven = session.told(request.episodes), []

        def settled_at() -> float:
            return session.admission.changed_at + self.config.settle_s

        with _or_503("Episodes can't be made durable now"):
            if running := begun(request.running, secrets.run, self.clock(), settled_at()):
                await within(self._observer.begun(running))
            for each in told:
                if is_given(each.row, secrets.run):  # else nothing is loaded for it
                    await self._prepare(session, EpisodesRequest([each.row]))
                policy, now = session.policy(each.row.digest), self.clock()
                given = (policy, secrets.run, secrets.task, now, settled_at())
                try:  # in a thread: thousands of steps may be computed again, and others wait for decisions
                    proven.append(await asyncio.to_thread(prove, each, *given))
                except Refused as error:
                    refused[each.row.episode] = str(error)
            answers = await within(self._observer.upload(proven)) if proven else {}
        self._shadow(session, [each for each in proven if answers[each.id] == "stored"])
        for episode, answer in answers.items():
            if answer == "conflict":
                refused[episode] = "There is an episode of this id with other content; this one was set aside."
        return EpisodesAnswer([episode for episode in answers if episode not in refused], refused)

    def _shadow(self, session: Session, episodes: Iterable[Episode]) -> None:
        """Let a challenger in the shadow act on what the champion did in clients, too: max_batch decisions at once."""
        for episode in episodes if session.is_shadowing else ():
            room = self.config.max_batch - sum(map(size, self._shadowed))
            if room > 0 and episode.digests[:1] == (session.champion,):
                self._shadowed.append(_decisions(episode, room))
                self._filled.set()

    def key(self) -> KeyAnswer:
        """Return what verdicts are proven with. Raises RejectedError (503)."""
        secrets = self._keys()
        return KeyAnswer(secrets.public.hex(), secrets.task)

    async def policy(self, name: str) -> PolicyAnswer:
        """Return a policy that was ever released or tried, by its digest or an alias.

        Raises RejectedError: 404 where there is none, 410 where it is condemned, 503.
        """
        session = self._live()
        with _or_503("The registry is away"):
            if name not in ALIASES and name not in session.admission.known:
                await self.reload()
            found = session.admission
            aliases = dict(zip(ALIASES, (found.champion, found.challenger, found.previous), strict=True))
            digest = aliases.get(name, name)
            if digest is None or digest not in found.known:
                known = ", ".join(alias for alias, named in aliases.items() if named)
                known = f"{known}, or a digest that ever answered" if known else "none, until one is in service"
                raise RejectedError(404, f"There is no policy {name[:64]!r} to be had. Known: {known}.")
            if digest in found.condemned:
                raise RejectedError(410, f"Policy {digest[:12]} may not act any more: {found.condemned[digest]}.")
            policy, verdict = await within(self._registry.papers(digest))
        if verdict is None:
            raise Refused(f"The verdict on policy {digest[:12]} is gone from the registry.")
        return PolicyAnswer(dataclasses.asdict(policy.artifact), dict(policy.files), verdicts.encode(verdict))

    # Operating

    async def served(self, at: float) -> Served:
        """Return who answered at a time. Raises RejectedError (503)."""
        with _or_503("The registry is away"):
            return await within(self._registry.served(at))

    async def rollback(self, request: RollbackRequest) -> RollbackAnswer:
        """Roll the policy in service back: here at once, at other replicas when they look at the registry next.

        Raises RejectedError: 409 where there is nothing to go back to, or another policy serves than the one that is
        meant; 503, after which only a request that names the digest can be sent again without harm.
        """
        with _or_503("The registry is away"):
            try:
                release = await within(self._registry.rollback(request.reason, request.digest))
            except Refused as error:
                raise RejectedError(409, str(error)) from error
        with contextlib.suppress(AwayError):  # the next look will do
            await self.reload()
        return RollbackAnswer(request.digest or str(release.previous), release.digest)

    def _keys(self) -> Secrets:
        if self._secrets is None:
            raise RejectedError(503, "This replica is starting. Try again in a moment.")
        return self._secrets

    # What the Service has

    def _live(self) -> Session:
        raise NotImplementedError

    async def reload(self) -> dict[str, Any]:
        """Follow the registry now, and return `status()`."""
        raise NotImplementedError

    async def _flush(self) -> None:
        raise NotImplementedError

    async def _prepare(self, session: Session, request: EpisodesRequest[Any]) -> None:
        raise NotImplementedError


def _decisions(episode: Episode, most: int) -> Steps:
    """Return an episode's first decisions, as if they had been asked for one by one."""
    num = min(episode.num_steps, most)
    raw_actions = episode.raw_actions[:num]
    return Steps(
        episodes=(episode.id,) * num,
        t=np.arange(num),
        digests=tuple(episode.digests[:num]),
        observations=episode.observations[:num],
        raw_actions=raw_actions,
        logps=episode.logps[:num],
        draw_keys=np.full(num, episode.draw_key, dtype=np.uint64),
        rewards=np.full(num, np.nan),
        ends=tuple("no" for _ in range(num)),
        seen_at=np.full(num, episode.started_at),
        repeated_digests=("",) * num,
        repeated_actions=np.zeros_like(raw_actions),
    )


@contextlib.contextmanager
def _or_503(what: str) -> Iterator[None]:
    """Raise RejectedError (503) in place of AwayError; `what` can't be done now, as a clause."""
    try:
        yield
    except AwayError as error:
        raise RejectedError(503, f"{what} ({error}). Send the same request again.") from error
