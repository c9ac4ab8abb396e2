"""One decision alone, which most requests ask for: the same as among many rows, in a fraction of the calls. Pure.

It is kept as it was asked and answered, and becomes a row of arrays with all others that wait for the observer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from flywheel.deploy import columns
from flywheel.deploy.wire import ActRow, Decision
from flywheel.draws import draws_of
from flywheel.errors import Refused
from flywheel.policy import Policy
from flywheel.records import Spec, Steps
from flywheel.single import Single

_LARGEST = float(np.finfo(np.float32).max)


class Line(msgspec.Struct, frozen=True, gc=False):
    """One decision, which is to be a row of Steps."""

    row: ActRow[Any]
    decision: Decision
    key: int
    """The episode's draw key."""
    seen_at: float
    spec: Spec


def single(policy: Policy) -> Single | None:
    """Return what decides by a policy on one row alone; None where only arrays of rows will do."""
    spec = policy.spec
    if spec.observation_leaves or spec.observation_dtype not in ("float32", "float64"):
        return None
    try:
        return Single(policy)
    except Refused:  # said to who asks for an answer
        return None


def decided(row: ActRow[Any], digest: str, by: Single | None, key: int, now: float) -> Line | None:
    """Return the decision on a row; None where anything about it is unusual.

    Raises RejectedError (422) for an action before that is none, and what the policy raises.
    """
    if by is None:
        return None
    spec, seen, is_first = by.spec, by.seen[0], row.t == 0
    if len(row.observation) != len(seen) or not sum(map(abs, row.observation)) <= _LARGEST:
        return None
    if (row.digest is None) != is_first or (row.action is None) != is_first:
        return None
    if row.reward is not None and (is_first or not math.isfinite(row.reward)):
        return None
    if not is_first:
        columns.raw_action(row.action, spec, "steps[0].action")
    seen[:] = row.observation
    uniform = draws_of(key, row.t, spec.num_draws)
    (drawn,) = by.drawn(np.array([uniform])) if spec.rule.kind == "gaussian" else (uniform,)
    raw_action, logp_of = by.act(drawn)
    logp = logp_of()
    action = by.to_env(raw_action)
    if spec.action_kind != "discrete":
        action = action.tolist()
        raw_action = raw_action if spec.action_kind == "multi_discrete" else raw_action.tolist()
        if not math.isfinite(sum(raw_action)):
            return None
    if math.isnan(logp):
        return None
    return Line(row, Decision(row.episode, row.t, digest, action, raw_action, logp), key, now, spec)


def steps(lines: Sequence[Line]) -> Steps:
    """Return one or more decisions as the rows of Steps, in their order."""
    spec, rows, decisions = lines[0].spec, [line.row for line in lines], [line.decision for line in lines]
    shape, dtype = (len(lines), *spec.action_shape), spec.action_dtype
    blank: Any = 0 if spec.action_kind == "discrete" else [0] * math.prod(spec.action_shape)
    repeated = [blank if row.action is None else row.action for row in rows]
    return Steps(
        episodes=tuple([row.episode for row in rows]),
        t=columns.times(rows),
        digests=tuple([decision.digest for decision in decisions]),
        observations=np.array([row.observation for row in rows], dtype=spec.observation_dtype),
        raw_actions=np.array([decision.raw_action for decision in decisions], dtype=dtype).reshape(shape),
        logps=np.array([decision.logp for decision in decisions], dtype=np.float64),
        draw_keys=np.array([line.key for line in lines], dtype=np.uint64),
        rewards=np.array([math.nan if row.reward is None else row.reward for row in rows], dtype=np.float64),
        ends=tuple("no" for _ in rows),
        seen_at=np.array([line.seen_at for line in lines], dtype=np.float64),
        repeated_digests=tuple([row.digest or "" for row in rows]),
        repeated_actions=np.array(repeated, dtype=dtype).reshape(shape),
    )
