"""One replica's work without Ray: answer requests, keep up with the registry, hand Steps to the observer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flywheel.config import DeployConfig
from flywheel.deploy.desk import Desk
from flywheel.deploy.lines import Line
from flywheel.deploy.links import AwayError, ObserverLink, RegistryLink, Secrets, within
from flywheel.deploy.outbox import Outbox, join
from flywheel.deploy.rules import Rules
from flywheel.deploy.session import Session
from flywheel.deploy.traces import Call, Traces
from flywheel.deploy.wire import (
    ActAnswer,
    ActRequest,
    EndAnswer,
    EndRequest,
    EpisodesRequest,
    RejectedError,
    Wire,
)
from flywheel.errors import Refused
from flywheel.records import Spec, Steps
from flywheel.verdicts import admit

log = logging.getLogger(__name__)


class Service(Desk):
    """Answers clients; the door turns HTTP into calls of this."""

    def __init__(
        self,
        config: DeployConfig,
        registry: RegistryLink,
        observer: ObserverLink,
        clock: Callable[[], float],
        traces: Traces | None = None,
    ) -> None:
        """Begin without keys and policy: nothing is answered until `start`. Without `traces` nothing is traced."""
        self.config, self.traces, self.clock = config, traces, clock
        self.rules = Rules(config.quota, config.quota_burst_s)
        self._registry, self._observer = registry, observer
        self._outbox = Outbox(config.max_queue)
        self._sending, self._loading = asyncio.Lock(), asyncio.Lock()
        self._filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._session: Session | None = None
        self._secrets: Secrets | None = None
        self._trouble = ""
        self._versions: dict[str, int] = {}
        self._num_decisions = 0
        self._id = uuid.uuid4().hex
        self._shadowed: list[Steps | Line] = []

    async def start(self) -> None:
        """Fetch keys and policy, and keep up with the registry and the observer from now on. Raises AwayError."""
        self._secrets = await within(self._registry.secrets())
        self._session = Session(self._secrets.run, self.config.max_batch)
        await self.reload()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._send_always())]

    async def stop(self) -> None:
        """Hand over what can be handed over, and end the background work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(AwayError):  # what can't be sent now is named as missing when its episode ends
            await self._flush()
        if self.traces is not None:
            self.traces.make()
            await asyncio.to_thread(self.traces.flush, 0.5)

    @property
    def is_started(self) -> bool:
        """True once keys are there."""
        return self._session is not None

    # Policies

    async def reload(self) -> dict[str, Any]:
        """Follow the registry now, and return `status()`.

        A policy that can't be proven changes nothing: the old one goes on answering and `trouble` says why.
        """
        async with self._loading:
            session = self._live()
            acts_by = None if session.champion is None else session.admission.changed_at
            admission = await within(self._registry.admission(self._id, acts_by))
            self.rules.adopt(admission.tokens)
            if admission.champion is not None and admission != session.admission:
                try:
                    await self._hold({admission.champion} - set(session.loaded))
                    await self._hold_beside(admission.challenger)
                    await self._hold_beside(admission.control)
                    session.adopt(admission)
                    self._trouble = ""
                except Refused as error:
                    if self._trouble != str(error):
                        log.error("Policy %s is not served: %s", admission.champion[:12], error)
                    self._trouble = str(error)
        return self.status()

    async def _hold(self, digests: Iterable[str]) -> None:
        assert self._secrets is not None
        for digest in digests:
            found, verdict = await within(self._registry.papers(digest))
            if verdict is None:
                raise Refused(f"Policy {digest[:12]} has no verdict.")
            policy = await asyncio.to_thread(admit, found, verdict, self._secrets.task, self._secrets.public)
            self._live().hold(policy)
            self._versions[digest] = found.artifact.version

    async def _hold_beside(self, digest: str | None) -> None:
        """Load a challenger or a control; one that can't be is broken, and the champion goes on alone."""
        session = self._live()
        if digest is None or digest in session.loaded or digest in session.broken:
            return
        try:
            await self._hold([digest])
        except AwayError:
            raise
        except Exception as error:  # whatever it does when it is loaded, the registry is followed
            if not isinstance(error, Refused):
                log.exception("Policy %s can't be loaded.", digest[:12])
            session.break_(digest, f"it can't be loaded: {error}")

    async def _tell_tried(self) -> None:
        """Tell the registry what was seen of challengers; what it can't be told now is told later."""
        session = self._live()
        for tried in session.take_tried():
            try:
                if tried.trouble:
                    log.error("Policy %s is dropped for the champion: %s", tried.digest[:12], tried.trouble)
                await within(self._registry.tried(tried))
            except AwayError:
                session.untold(tried)

    async def _prepare(
        self, session: Session, request: ActRequest[Any] | EndRequest[Any] | EpisodesRequest[Any]
    ) -> None:
        """Load what a request names and this replica doesn't hold; what can't be proven is left out."""
        acting = request.steps if isinstance(request, ActRequest) else []
        resent = request.resend if isinstance(request, EndRequest) else []
        ended = [] if isinstance(request, ActRequest) else request.episodes
        proven = request.episodes if isinstance(request, EpisodesRequest) else resent
        if session.unknown([*acting, *resent, *ended]):
            await self.reload()
        for digest in session.wanted(acting, proven):
            try:
                async with self._loading:
                    await self._hold([digest])
            except Refused as error:
                log.error("Policy %s is not loaded: %s", digest[:12], error)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.config.poll_s)
            try:
                await self._tell_tried()
                await self.reload()
            except AwayError as error:
                log.warning("The registry is away, so the policy in service stays: %s", error)
            except Exception:  # a rollback must reach this replica whatever went wrong with one look
                log.exception("The registry could not be followed: this replica looks again.")

    # Steps

    async def _send_always(self) -> None:
        while True:
            await self._filled.wait()
            await asyncio.sleep(self.config.flush_s)
            self._filled.clear()
            self._act_in_shadow()
            try:
                await self._flush()
            except Exception as error:  # steps must go on, or nothing is observed any more
                if isinstance(error, AwayError):
                    log.warning("The observer is away, %d steps wait: %s", len(self._outbox), error)
                else:
                    log.exception("Steps could not be sent, %d wait.", len(self._outbox))
                self._filled.set()
                await asyncio.sleep(self.config.poll_s)

    async def _flush(self) -> None:
        """Return when everything logged so far was handed over; raise AwayError, keeping it, otherwise.

        What is logged meanwhile is the next one's affair: under load there would always be more of it to wait for.
        """
        outbox, logged = self._outbox, self._outbox.num_put
        async with self._sending:
            while outbox.num_gone < logged and (steps := outbox.take()) is not None:
                try:
                    await within(self._observer.append(steps))
                except BaseException:
                    self._outbox.put_back(steps)
                    raise
                self._outbox.sent(steps)

    def _act_in_shadow(self) -> None:
        """Let the challenger act on what was answered meanwhile, beside the requests, which don't wait for it."""
        pieces, self._shadowed = self._shadowed, []
        if not pieces:
            return
        try:
            self._live().shadow(join(pieces))
        except Exception:  # the steps themselves are on their way, and what comes next may do
            log.exception("A challenger could not act in the shadow.")

    # Requests

    def _live(self) -> Session:
        if self._session is None:
            raise RejectedError(503, "This replica is starting. Try again in a moment.")
        return self._session

    @property
    def spec(self) -> Spec | None:
        """What the policy in service reads and gives; None where there is none yet."""
        session = self._session
        policy = None if session is None else session.policy(session.champion or "")
        return None if policy is None else policy.spec

    @property
    def wire(self) -> Wire:
        """As Session.wire."""
        return self._live().wire

    async def act(self, request: ActRequest[Any], call: Call | None = None) -> ActAnswer:
        """Return a decision for each step. Raises RejectedError, and then nothing was decided or logged.

        `call` is told what happens when, as that of `end` is.
        """
        session = self._live()
        try:
            await self._prepare(session, request)
        except AwayError as error:
            raise RejectedError(503, f"The registry is away ({error}). Send the same request again.") from error
        now = self.clock()
        decisions, piece = session.decide(request.steps, now)
        if call is not None:
            call.decided_from, call.decided_at = now, self.clock()
        if piece is not None:
            self._outbox.put(piece)
            if session.is_shadowing:
                self._shadowed.append(piece)
            self._filled.set()
        self._num_decisions += len(decisions)
        return ActAnswer(decisions)

    async def end(self, request: EndRequest[Any], call: Call | None = None) -> EndAnswer:
        """Return which episodes are durable now and what is missing of the others.

        Raises RejectedError; after a 503 the same request can be sent again.
        """
        session = self._live()
        try:
            await self._prepare(session, request)
            now = self.clock()
            ended, resent = session.end(request.episodes, now), session.resend(request.resend, now)
            if resent is not None:
                self._outbox.put(resent)
            await self._flush()
            found = await within(self._observer.end(ended)) if request.episodes else {}
        except AwayError as error:
            raise RejectedError(
                503, f"The end can't be made durable now ({error}). Send the same request again."
            ) from error
        if call is not None:
            call.decided_from, call.decided_at = now, self.clock()
        acknowledged = [episode for episode, missing in found.items() if not missing]
        session.forget(acknowledged)
        return EndAnswer(acknowledged, {episode: list(missing) for episode, missing in found.items() if missing})

    def status(self) -> dict[str, Any]:
        """Return who answers here: digest (or None), version, admissible, trouble, and numbers of steps."""
        session = self._live()
        return {
            "digest": session.champion,
            "version": self._versions.get(session.champion or "", 0),
            "admissible": list(session.admission.admissible),
            "challenger": session.admission.challenger,
            "share": session.admission.share,
            "control": session.admission.control,
            "control_share": session.admission.control_share,
            "trouble": self._trouble,
            "decisions": self._num_decisions,
            "waiting": len(self._outbox),
            "dropped": self._outbox.dropped,
        }
