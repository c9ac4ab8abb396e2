"""Episodes that clients act in by themselves: what they are given to begin one, and the proof when it comes back. Pure.

A lease fixes whose an episode is and how it is drawn, as step 0 would. Nothing is kept of it here: a keyed hash proves
it, so that any replica takes back what any other gave, also after a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.deploy import columns
from flywheel.deploy.proof import gave
from flywheel.deploy.wire import EpisodeRow, Lease, RejectedError, RunningRow
from flywheel.draws import draw_key
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Array, Episode, Spec


def give(run_key: bytes, episode: str, digest: str, now: float) -> Lease:
    """Return the lease of a fresh episode that this digest would answer step 0 of now."""
    return Lease(episode, digest, draw_key(run_key, episode), now, seal(run_key, episode, digest, now))


def seal(run_key: bytes, episode: str, digest: str, given_at: float) -> str:
    """Return what proves that this run gave out a lease: HMAC-SHA256, hex, of another salt than draws and buckets."""
    text = b"\x00".join((b"lease", episode.encode(), digest.encode(), struct.pack(">d", given_at)))
    return hmac.digest(run_key, text, hashlib.sha256).hex()


def is_given(row: EpisodeRow[Any] | RunningRow, run_key: bytes) -> bool:
    """Say whether an episode carries a lease of this run as it was given."""
    return hmac.compare_digest(row.seal, seal(run_key, row.episode, row.digest, row.given_at))


def begun(rows: Iterable[RunningRow], run_key: bytes, now: float, settled_at: float) -> dict[str, float]:
    """Return by id when running episodes began, by this machine's clock; one without a lease of this run is left out.

    One whose lease was given before `settled_at` begins with its lease, as for `prove`.
    """
    given = [row for row in rows if is_given(row, run_key)]
    return {row.episode: _start(row.given_at, now - row.age_s, now, settled_at) for row in given}


def _start(given_at: float, told: float, now: float, settled_at: float) -> float:
    return min(given_at if given_at < settled_at else max(told, given_at), now)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a client tells of an episode, as arrays that fit the Spec."""

    row: EpisodeRow[Any]
    observations: Array
    """dtype[T + 1, *o]"""
    raw_actions: Array
    """dtype[T, *a]"""
    rewards: NDArray[np.float64]
    """float64[T], NaN where not known"""


def read(rows: Sequence[EpisodeRow[Any]], spec: Spec) -> list[Told]:
    """Return the rows of a request as arrays; raise RejectedError (422) naming the first field that doesn't fit."""
    seen: set[str] = set()
    found = []
    for i, row in enumerate(rows):
        if row.episode in seen:
            raise _wrong(i, "episode", "It is in this request twice.")
        seen.add(row.episode)
        if row.terminated == row.truncated:
            raise _wrong(i, "terminated", "An episode that is over was either terminated or truncated.")
        num_steps = len(row.raw_actions)
        for name, size in (("observations", num_steps + 1), ("rewards", num_steps)):
            if (got := len(getattr(row, name))) != size:
                raise _wrong(i, name, f"Expected {size} of them for {num_steps} raw actions, got {got}.")
        where = f"episodes[{i}]"
        raw_actions = [columns.raw_action(a, spec, f"{where}.raw_actions[{t}]") for t, a in enumerate(row.raw_actions)]
        found.append(
            Told(
                row,
                columns.observed(row.observations, spec, ("episodes", i, "observations")),
                np.array(raw_actions, dtype=spec.action_dtype).reshape(num_steps, *spec.action_shape),
                columns.known(row.rewards, f"{where}.rewards"),
            )
        )
    return found


def _wrong(i: int, name: str, sentence: str) -> RejectedError:
    field = f"episodes[{i}].{name}"
    return RejectedError(422, f"{field}: {sentence}", field)


def prove(told: Told, policy: Policy | None, run_key: bytes, task: str, now: float, settled_at: float = 0.0) -> Episode:
    """Return the episode that was acted under a lease, with its draws and log probabilities computed again.

    Whether it failed is not judged yet. Times that are not between the lease's and `now` are moved there, as clocks
    differ. One whose lease was given before `settled_at` begins with its lease: whoever reads outcomes by the share of
    episodes that a challenger had at their start reads by the share that drew it.
    Raises Refused when the seal is not of this lease, there is no `policy` to prove it by (None), or an action is one
    that the policy didn't give there.
    """
    row, num_steps = told.row, len(told.raw_actions)
    if not is_given(row, run_key):
        raise Refused(
            "It was not begun under a lease of this run: send episode, digest, given_at and seal back as POST "
            "/v1/leases gave them."
        )
    if policy is None:
        raise Refused(f"Policy {row.digest[:12]} can't be loaded to prove its actions.")
    key = draw_key(run_key, row.episode)
    keys = np.full(num_steps, key, dtype=np.uint64)
    try:
        same, logps = gave(policy, told.observations[:-1], keys, np.arange(num_steps), told.raw_actions)
    except Exception as error:  # a policy may do anything
        raise Refused(f"Policy {row.digest[:12]} could not be asked for its actions again: {error}") from error
    if not same.all():
        t = int(np.flatnonzero(~same)[0])
        raise Refused(f"raw_actions[{t}]: Policy {row.digest[:12]} never gave this action there.")
    started_at = _start(row.given_at, row.started_at, now, settled_at)
    return Episode(
        id=row.episode,
        origin="production",
        task=task,
        parameters={},
        draw_key=key,
        digests=(row.digest,) * num_steps,
        observations=told.observations,
        raw_actions=told.raw_actions,
        rewards=told.rewards,
        logps=logps,
        end="terminated" if row.terminated else "truncated",
        failed=False,
        started_at=started_at,
        ended_at=min(max(row.ended_at, started_at), now),
    )
