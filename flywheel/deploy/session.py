"""Requests of clients to decisions: which policy answers, what it says, and what is logged. Pure.

A decision is a function of (digest, observation, episode, t), so any replica can answer any step of any episode, and
answer it again. What a Session remembers of the last step of an episode only makes a retry exact (same answer even
if the policy in service changed in between) and lets it see that a client changed its story.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flywheel.deploy import columns, lines
from flywheel.deploy.admission import Admission, Tally, Tried
from flywheel.deploy.leases import Told, give, read
from flywheel.deploy.lines import Line
from flywheel.deploy.proof import answers, differs, gave
from flywheel.deploy.wire import ActRow, Decision, EndRow, EpisodeRow, Lease, RejectedError, ResentRow, Wire, wire
from flywheel.draws import CONTROL, bucket, draw_key, draws
from flywheel.errors import Refused
from flywheel.policy import Policy, to_env
from flywheel.records import Array, Spec, Steps
from flywheel.single import Single

REMEMBERED = 16_384
"""Episodes whose last answer is remembered; beyond it the one that was silent longest is forgotten."""
LOADED = 32
"""Policies kept ready; former ones are loaded again when an episode that began on them asks."""
Named = ActRow[Any] | ResentRow[Any] | EndRow[Any] | EpisodeRow[Any]
"""What may name a policy."""


class _Last(msgspec.Struct, frozen=True, gc=False):
    row: ActRow[Any]
    decision: Decision


class Session:
    """Holds the loaded policies and answers requests; `now` and policies come from outside."""

    def __init__(self, run_key: bytes, max_batch: int = 1024) -> None:
        """Begin without a policy: everything is answered by RejectedError (503) until `adopt`."""
        self._run_key = run_key
        self._max_batch = max_batch
        self._admission = Admission(champion=None, admissible=(), known=frozenset())
        self._policies: OrderedDict[str, Policy] = OrderedDict()
        self._singles: dict[str, Single | None] = {}
        self._last: OrderedDict[str, _Last] = OrderedDict()
        self.broken: dict[str, str] = {}
        """Digests that don't answer any more, and why."""
        self._tally = Tally()

    # Policies

    @property
    def champion(self) -> str | None:
        """The digest that answers new episodes."""
        return self._admission.champion

    @property
    def admission(self) -> Admission:
        """The registry's word that this session acts on."""
        return self._admission

    def policy(self, digest: str) -> Policy | None:
        """Return a policy that is ready to answer, None where it isn't."""
        return self._policies.get(digest)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Digests that are ready to answer."""
        return tuple(self._policies)

    @property
    def wire(self) -> Wire:
        """How requests are read; RejectedError (503) without a policy, for what it observes isn't known then."""
        return wire(self._spec().observation_leaves)

    def adopt(self, admission: Admission) -> None:
        """Act on the registry's word from now on; its champion must be held already."""
        if admission.champion not in self._policies:
            raise Refused(f"The policy in service {admission.champion!r} is not loaded.")
        self._admission = admission

    def hold(self, policy: Policy) -> None:
        """Keep a proven policy ready to answer."""
        self._policies[policy.digest] = policy
        self._policies.move_to_end(policy.digest)
        self._singles[policy.digest] = lines.single(policy)
        kept = (self.champion, self._admission.challenger, self._admission.control, policy.digest)
        for digest in [d for d in self._policies if d not in kept]:
            if len(self._policies) > LOADED:
                del self._policies[digest], self._singles[digest]

    def unknown(self, rows: Iterable[Named]) -> set[str]:
        """Return digests that rows name and that this session never heard of."""
        return {row.digest for row in rows if row.digest is not None} - self._admission.known

    def wanted(self, acting: Iterable[Named], resent: Iterable[Named] = ()) -> set[str]:
        """Return digests to be held for these rows that aren't: admissible ones to act, known ones to recompute."""
        held = self._policies.keys()
        act = {row.digest for row in acting if row.digest is not None} - held
        again = {row.digest for row in resent if row.digest is not None} - held
        return act.intersection(self._admission.admissible) | (again & self._admission.known)

    def _spec(self) -> Spec:
        return self._policies[self._in_service()].spec

    def _in_service(self) -> str:
        if self.champion is None:
            raise RejectedError(503, "No policy is in service yet: none has passed the gate. Try again later.")
        return self.champion

    def _check_known(self, rows: Sequence[ActRow[Any] | ResentRow[Any] | EndRow[Any]], where: str) -> None:
        for i, row in enumerate(rows):
            if row.digest is not None and row.digest not in self._admission.known:
                field = f"{where}[{i}].digest"
                raise RejectedError(409, f"{field}: Policy {row.digest[:12]} never answered here.", field)

    def _check_size(self, rows: Sequence[object], where: str) -> None:
        if len(rows) > self._max_batch:
            raise RejectedError(422, f"{where}: At most {self._max_batch} rows a request, got {len(rows)}.", where)

    # Acting

    def decide(self, rows: Sequence[ActRow[Any]], now: float) -> tuple[list[Decision], Steps | Line | None]:
        """Return a decision for each row and what to log (None when every row was a retry).

        Raises RejectedError: 422 naming the wrong field, 409 when the same step was told otherwise before, 503
        without a policy. Nothing is remembered then.
        """
        if len(rows) == 1 and (line := self._alone(rows[0], now)) is not None:
            self._remember(line.row, line.decision)
            return [line.decision], line
        return self._decide(rows, now)

    def _alone(self, row: ActRow[Any], now: float) -> Line | None:
        """Return the decision on a request's only row; None where it takes the way of many rows, which says why."""
        last = self._last.get(row.episode)
        if (last is not None and last.row.t == row.t) or (row.digest and row.digest not in self._admission.known):
            return None
        digest = self._release(row)
        try:
            line = lines.decided(row, digest, self._singles[digest], draw_key(self._run_key, row.episode), now)
        except Exception:  # a policy may do anything; the other way meets it again, and knows what to do
            return None
        if line is not None:
            self._check_story(row, last, "steps[0]")
        return line

    def _decide(self, rows: Sequence[ActRow[Any]], now: float) -> tuple[list[Decision], Steps | None]:
        self._check_size(rows, "steps")
        spec = self._spec()
        observations = columns.observations(rows, spec, "steps")
        rewards = columns.rewards(rows, "steps")
        repeated = columns.repeated(rows, spec)
        self._check_known(rows, "steps")
        answers = [self._retry(row, i) for i, row in enumerate(rows)]
        fresh = [i for i, answer in enumerate(answers) if answer is None]
        steps = None
        if fresh:
            if len(fresh) < len(rows):
                rows = [rows[i] for i in fresh]
                observations, rewards, repeated = observations[fresh], rewards[fresh], repeated[fresh]
            digests = [self._release(row) for row in rows]
            steps = self._act(rows, digests, observations, rewards, now, repeated)
            for i, row, decision in zip(fresh, rows, self._decisions(steps), strict=True):
                answers[i] = decision
                self._remember(row, decision)
        return [answer for answer in answers if answer is not None], steps

    def _retry(self, row: ActRow[Any], i: int) -> Decision | None:
        """Return the answer this very row got before, None if it is new; RejectedError (409) if it contradicts it."""
        last = self._last.get(row.episode)
        if last is None or last.row.t != row.t:
            self._check_story(row, last, f"steps[{i}]")
            return None
        if last.row != row:
            where = f"steps[{i}]"
            raise RejectedError(409, f"{where}: Step {row.t} of this episode came before with other content.", where)
        return last.decision

    def _check_story(self, row: ActRow[Any] | EndRow[Any], last: _Last | None, where: str) -> None:
        """Raise RejectedError (409) when a row repeats the answer before otherwise than it was.

        Another digest is fine: another replica may have answered a retry, and the repeated one counts.
        """
        before = None if last is None else last.decision
        if before and before.t == row.t - 1 and before.digest == row.digest and before.raw_action != row.action:
            raise RejectedError(
                409, f"{where}.action: The answer before was {before.raw_action}, not {row.action}.", f"{where}.action"
            )

    def _release(self, row: ActRow[Any]) -> str:
        """Return whose the answer is: the policy's that the row names, at its episode's start the bucket's."""
        return self._begins(row.episode) if row.digest is None else self._or_champion(row.digest)

    def _begins(self, episode: str) -> str:
        """Return whose the answer to step 0 of an episode is."""
        found = self._admission
        is_tried = found.challenger is not None and bucket(self._run_key, episode) < found.share
        stays = found.control is not None and bucket(self._run_key, episode, CONTROL) < found.control_share
        return self._or_champion(found.challenger if is_tried else found.control if stays else None)

    def _or_champion(self, digest: str | None) -> str:
        """Return the digest where it may answer and can, else the champion."""
        is_ready = digest in self._policies and digest not in self.broken
        return digest if digest and is_ready and digest in self._admission.admissible else self._in_service()

    def _remember(self, row: ActRow[Any], decision: Decision) -> None:
        last = self._last.get(row.episode)
        if last is None or last.row.t < row.t:
            self._last[row.episode] = _Last(row, decision)
            self._last.move_to_end(row.episode)
            if len(self._last) > REMEMBERED:
                self._last.popitem(last=False)

    def _act(
        self,
        rows: Sequence[ActRow[Any]],
        digests: Sequence[str],
        observations: Array,
        rewards: NDArray[np.float64],
        now: float,
        repeated: Array,
    ) -> Steps:
        """Return what the policies say, as Steps; the champion answers for a policy that can't."""
        keys, times = self._keys(rows), columns.times(rows)
        names, raw_actions, logps = self._heard(digests, observations, draws(keys, times, self._spec().num_draws))
        return columns.steps(rows, keys, names, observations, raw_actions, logps, rewards, now, repeated)

    def _keys(self, rows: Sequence[Named]) -> NDArray[np.uint64]:
        return np.array([draw_key(self._run_key, row.episode) for row in rows], dtype=np.uint64)

    def _heard(
        self, digests: Sequence[str], observations: Array, uniform: NDArray[np.float64]
    ) -> tuple[Sequence[str], Array, NDArray[np.float64]]:
        """Return who answered each row, with what raw actions and log probabilities."""
        first, *others = dict.fromkeys(digests)
        if not others and first == self.champion:  # hardly ever otherwise
            return digests, *self._answer(first, observations, uniform)
        spec, names = self._spec(), list(digests)
        raw_actions = np.zeros((len(names), *spec.action_shape), dtype=spec.action_dtype)
        logps = np.zeros(len(names))
        for digest in (first, *others):
            some = [i for i, name in enumerate(digests) if name == digest]
            try:
                raw_actions[some], logps[some] = self._answer(digest, observations[some], uniform[some])
            except Exception as error:  # a policy may do anything
                if self.champion is None or digest == self.champion:
                    raise
                self.break_(digest, _how(error))
                raw_actions[some], logps[some] = self._answer(self.champion, observations[some], uniform[some])
                for i in some:
                    names[i] = self.champion
        return names, raw_actions, logps

    def _answer(
        self, digest: str, observations: Array, uniform: NDArray[np.float64]
    ) -> tuple[Array, NDArray[np.float64]]:
        """Return a policy's raw actions and log probabilities; raise what it raises, or what isn't finite."""
        raw_actions, logps = answers(self._policies[digest], observations, uniform)
        if digest != self.champion and not (np.isfinite(raw_actions).all() and not np.isnan(logps).any()):
            raise Refused(f"Policy {digest[:12]} answered with a number that is not finite.")
        return raw_actions, logps

    def _decisions(self, steps: Steps) -> list[Decision]:
        actions = to_env(self._spec(), steps.raw_actions).tolist()
        shape = () if self._spec().action_kind == "discrete" else (-1,)
        flat = steps.raw_actions.reshape(len(steps.t), *shape).tolist()
        rows = zip(steps.episodes, steps.t.tolist(), steps.digests, actions, flat, steps.logps.tolist(), strict=True)
        return [Decision(*values) for values in rows]

    # Challengers

    def break_(self, digest: str, how: str) -> None:
        """Let the champion answer in place of a policy from now on; `how` it broke is a clause."""
        if digest not in self.broken:
            self.broken[digest] = how
            self._tally.add(Tried(digest=digest, trouble=how))

    @property
    def is_shadowing(self) -> bool:
        """True while there is a challenger that acts and is not heard."""
        digest = self._admission.challenger
        return digest in self._policies and digest not in self.broken and not self._admission.share

    def shadow(self, steps: Steps) -> None:
        """Let a challenger in the shadow act on what the champion answered, with the same draws, and count it.

        What it would have done can be computed again at any time: the store keeps observations and draw keys.
        """
        digest, rows = self._admission.challenger, np.flatnonzero(np.array(steps.digests) == self.champion)
        if digest is None or not self.is_shadowing or not len(rows):
            return
        uniform = draws(steps.draw_keys[rows], steps.t[rows], self._spec().num_draws)
        try:
            actions, _ = self._answer(digest, steps.observations[rows], uniform)
        except Exception as error:  # whatever it does, it is not the clients' affair
            self.break_(digest, _how(error))
            return
        same = ~differs(actions, steps.raw_actions[rows])
        self._tally.add(Tried(digest=digest, num_shadowed=len(rows), num_same=int(same.sum())))

    def take_tried(self) -> list[Tried]:
        """Return what was seen of challengers since the last call."""
        return self._tally.take()

    def untold(self, tried: Tried) -> None:
        """Put back what could not be told to the registry."""
        self._tally.add(tried)

    # Ending

    def end(self, rows: Sequence[EndRow[Any]], now: float) -> Steps:
        """Return the rows that tell the observer that episodes are over.

        Raises RejectedError: 422 naming the wrong field, 409 when it contradicts an answer, 503 without a policy.
        """
        self._check_size(rows, "episodes")
        spec = self._spec()
        observations = columns.observations(rows, spec, "episodes")
        rewards = columns.rewards(rows, "episodes")
        raw_actions = columns.raw_actions(rows, spec, "episodes").reshape(len(rows), *spec.action_shape)
        self._check_known(rows, "episodes")
        for i, row in enumerate(rows):
            if not (row.terminated or row.truncated):
                field = f"episodes[{i}].terminated"
                raise RejectedError(422, f"{field}: An episode that is over was either terminated or truncated.", field)
            last = self._last.get(row.episode)
            if last is not None:
                self._check_story(row, last, f"episodes[{i}]")
                if last.row.t >= row.t:
                    field = f"episodes[{i}].t"
                    sentence = f"Step {last.row.t} was answered, so it has more than {row.t} steps."
                    raise RejectedError(409, f"{field}: {sentence}", field)
        digests, logps = tuple(row.digest for row in rows), np.full(len(rows), np.nan)
        return dataclasses.replace(
            columns.steps(rows, self._keys(rows), digests, observations, raw_actions, logps, rewards, now),
            ends=tuple("terminated" if row.terminated else "truncated" for row in rows),
            repeated_digests=digests,
            repeated_actions=raw_actions,
        )

    def resend(self, rows: Sequence[ResentRow[Any]], now: float) -> Steps | None:
        """Return lost steps as they were, draws and logp computed again; None for no rows.

        Raises RejectedError: 422 naming the wrong field, 409 when the policy that is named never said that action.
        """
        if not rows:
            return None
        self._check_size(rows, "resend")
        spec = self._spec()
        observations = columns.observations(rows, spec, "resend")
        rewards = columns.rewards(rows, "resend")
        told = columns.raw_actions(rows, spec, "resend").reshape(len(rows), *spec.action_shape)
        self._check_known(rows, "resend")
        for i, row in enumerate(rows):
            if row.digest not in self._policies:
                field = f"resend[{i}].digest"
                raise RejectedError(
                    409, f"{field}: Policy {row.digest[:12]} can't be loaded to prove this step.", field
                )
        keys, times, logps = self._keys(rows), columns.times(rows), np.zeros(len(rows))
        same = np.zeros(len(rows), dtype=np.bool_)
        digests = [row.digest for row in rows]
        for digest in dict.fromkeys(digests):
            some = [i for i, name in enumerate(digests) if name == digest]
            policy = self._policies[digest]
            same[some], logps[some] = gave(policy, observations[some], keys[some], times[some], told[some])
        if not same.all():
            field = f"resend[{int(np.flatnonzero(~same)[0])}].action"
            raise RejectedError(409, f"{field}: The policy that is named never gave this action there.", field)
        return columns.steps(rows, keys, digests, observations, told, logps, rewards, now)

    # Episodes that clients act in by themselves

    def lease(self, episodes: Iterable[str], now: float) -> list[Lease]:
        """Return a lease for each of these fresh ids; RejectedError (503) without a policy."""
        return [give(self._run_key, episode, self._begins(episode), now) for episode in episodes]

    def told(self, rows: Sequence[EpisodeRow[Any]]) -> list[Told]:
        """Return whole episodes as arrays; RejectedError: 422 naming the wrong field, 503 without a policy."""
        return read(rows, self._spec())

    def forget(self, episodes: Iterable[str]) -> None:
        """Drop what is remembered of episodes that are over and durable."""
        for episode in episodes:
            self._last.pop(episode, None)


def _how(error: Exception) -> str:
    return f"it could not answer: {error}" if isinstance(error, Refused) else f"it crashed with {error!r}"
