"""Records as JSON has them for the page: plain values, NaN as null, no more digits than anybody reads. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.arms import Control
from flywheel.challenge import Challenge
from flywheel.errors import FlywheelError
from flywheel.page.source import About, Listed, Policies
from flywheel.records import Array, Episode, Leaf, Parameters, Signal, Told, Turn, Verdict
from flywheel.simulate.corrected import correction_of
from flywheel.tapes import NOMINAL, Difference, Scenario, Standing
from flywheel.task import Task
from flywheel.trace.effect import Rate
from flywheel.trace.result import Result
from flywheel.trace.spanstore import Stored

MOST_COLUMNS = 24
"""Numbers of an observation that are shown; more are named as left out."""


def plain(value: Any) -> Any:
    """Return dataclasses as dicts, and NaN and infinity, for which JSON has no word, as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | frozenset):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def story_line(offset: int, told: Told) -> dict[str, Any]:
    """Return a sentence of the story."""
    return {"id": offset, **plain(told)}


def wheel(about: About, told: Sequence[tuple[int, Told]], draft: Turn | None) -> dict[str, Any]:
    """Return which stage is turning, since when and with what word; stage "" where the wheel stands still."""
    lines = [each for _, each in told]
    last = lines[-1] if lines else None
    number = draft.number if draft is not None else max((line.turn for line in lines), default=0)
    seconds: dict[str, float] = {}
    since = last.at if last else 0.0
    for before, line in itertools.pairwise(lines):
        # a sentence tells of what its stage did since the one before
        if line.turn == number and line.stage not in ("start", "end"):
            seconds[line.stage] = seconds.get(line.stage, 0.0) + max(0.0, line.at - before.at)
    for line in reversed(lines):
        if last is None or line.stage != last.stage or line.turn != last.turn:
            break
        since = line.at
    turning = about.living and last is not None and last.stage != "end"
    return {
        "stage": last.stage if turning and last else "",
        "turn": number,
        "text": last.text if last else "",
        "since": since,
        "at": last.at if last else 0.0,
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }


def verdict(each: Verdict) -> dict[str, Any]:
    """Return a verdict with its checks, its trials, failing ones first, and in words what its worlds corrected."""
    trials = sorted(each.trials, key=lambda t: (not t.failed, t.scenario, t.total))
    fields = ("digest", "baseline", "outcome", "seed", "cost_s", "judged_at", "valid_until")
    return {
        **{name: plain(getattr(each, name)) for name in fields},
        "corrected": "" if each.correction is None else f"{each.correction}",
        "checks": plain(each.checks),
        "num_trials": len(trials),
        "num_failed": sum(t.failed for t in trials),
        "trials": plain(trials),
    }


def policies(known: Policies, tally: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return every policy, newest first: what it was trained on, by whom it was judged, where and when it served."""
    served, shadowed = _served(known)
    order = sorted(served, key=lambda digest: float(served[digest][0]["from"]))
    tried = {each.challenger: each for each in known.challenges}
    found = []
    for artifact in known.artifacts:
        digest = artifact.digest
        verdicts = known.verdicts.get(digest, ())
        last = verdicts[-1] if verdicts else None
        nominal = [trial for trial in last.trials if trial.scenario == NOMINAL] if last else []
        row = tally.get(digest, {})
        whole = row.get("episodes", 0) - row.get("lost", 0)
        reason, condemned_at = known.condemned.get(digest, ("", None))
        found.append(
            {
                "digest": digest,
                "version": artifact.version,
                "parent": artifact.parent,
                "made_at": artifact.made_at,
                "trained_on": plain(artifact.trained_on),
                "corrected": corrected(artifact.trained_on),
                "rule": plain(artifact.spec.rule),
                "state": _state(digest, known, tried.get(digest)),
                "condemned": {"reason": reason, "at": condemned_at} if reason else None,
                "place": order.index(digest) if digest in order else None,
                "outcome": last.outcome if last else None,
                "num_verdicts": len(verdicts),
                "num_trials": len(nominal),
                "num_failed": sum(trial.failed for trial in nominal),
                "served": served.get(digest, []),
                "shadowed": shadowed.get(digest, []),
                "episodes": int(row.get("episodes", 0)),
                "failed": int(row.get("failed", 0)),
                "lost": int(row.get("lost", 0)),
                "mean_return": row["total"] / whole if whole else None,
            }
        )
    return found[::-1]


def corrected(trained_on: Mapping[str, Any]) -> str:
    """Return in words what the worlds did that a policy was trained in and the task's simulator doesn't; "": nothing.

    One that can't be read, as a later version wrote it, is said to be there.
    """
    try:
        found = correction_of(trained_on)
    except FlywheelError as error:
        return f"{error}"
    return "" if found is None else f"{found}"


def _state(digest: str, known: Policies, tried: Challenge | None) -> str:
    if known.releases and digest == known.releases[-1].digest:
        return "in service"
    if tried is not None and not tried.is_over:
        return "frozen" if tried.state == "frozen" else "challenger"
    ended = "" if tried is None else tried.state.replace("_", " ")
    if any(control.policy == digest and control.ended_at is None for control in known.controls):
        return "control"
    if digest in known.condemned:
        return ended if ended == "rolled back" else "condemned"
    return "former" if digest in {release.digest for release in known.releases} else ended or "candidate"


Spans = dict[str, list[dict[str, Any]]]


def _served(known: Policies) -> tuple[Spans, Spans]:
    """Return by digest the spans in which it answered, all or a share, and in which it was in the shadow, in order.

    Those of now have no end.
    """
    served: Spans = {}
    shadowed: Spans = {}
    for each in known.challenges:
        for span in each.spans:
            found = shadowed if span.stage == "shadow" else served
            found.setdefault(each.challenger, []).append(_span(span.begin, span.end, span.stage, span.share))
    for release, after in zip(known.releases, [*known.releases[1:], None], strict=False):
        until = None if after is None else after.released_at
        control = next((c for c in known.controls if c.begun_at == release.released_at), None)
        if control is not None:
            beside = (release.released_at, control.ended_at, release.stage)
            served.setdefault(control.policy, []).append(_span(*beside, control.share))
            served.setdefault(release.digest, []).append(_span(*beside, 1.0 - control.share))
            if control.ended_at is None or control.ended_at == until:
                continue
        begun = release.released_at if control is None or control.ended_at is None else control.ended_at
        served.setdefault(release.digest, []).append(_span(begun, until, release.stage, release.share))
    return {digest: sorted(spans, key=lambda span: float(span["from"])) for digest, spans in served.items()}, shadowed


def _span(begin: float, until: float | None, stage: str, share: float) -> dict[str, Any]:
    return {"from": begin, "to": until, "stage": stage, "share": share}


def control(each: Control) -> dict[str, Any]:
    """Return a control group."""
    found: dict[str, Any] = plain(each)
    return found


def challenge(each: Challenge) -> dict[str, Any]:
    """Return a challenger on its way, or what became of it."""
    found: dict[str, Any] = plain(each)
    return found


def listed(each: Listed) -> dict[str, Any]:
    """Return an episode's line of a list."""
    names = ("id", "origin", "started_at", "ended_at", "digest", "end", "failed", "total", "num_steps")
    return {name: plain(getattr(each, name)) for name in names}


def signal(each: Signal) -> dict[str, Any]:
    """Return an alarm."""
    found: dict[str, Any] = plain(each)
    return found


def episode(each: Episode, leaves: Sequence[Leaf] = ()) -> dict[str, Any]:
    """Return an episode in columns, T + 1 observations and T of everything else."""
    observations = each.observations.reshape(len(each.observations), -1)
    actions = each.raw_actions.reshape(each.num_steps, -1) if each.num_steps else np.zeros((0, 1))
    digests = list(dict.fromkeys(each.digests))
    return {
        "id": each.id,
        "origin": each.origin,
        "started_at": each.started_at,
        "ended_at": each.ended_at,
        "digests": digests,
        "digest_at": [digests.index(digest) for digest in each.digests] if len(digests) > 1 else [],
        "end": each.end,
        "failed": bool(each.failed),
        "total": plain(each.total),
        "num_steps": each.num_steps,
        "scenario": each.scenario,
        "seed": each.seed,
        "parameters": plain(each.parameters),
        "edits": list(each.edits),
        "parent": list(each.parent) if each.parent else None,
        "num_columns": observations.shape[1],
        "names": names(leaves, observations.shape[1])[:MOST_COLUMNS],
        "observations": [column(observations[:, i]) for i in range(min(observations.shape[1], MOST_COLUMNS))],
        "actions": [column(actions[:, i]) for i in range(actions.shape[1])],
        "discrete": bool(np.issubdtype(each.raw_actions.dtype, np.integer)),
        "rewards": column(each.rewards),
        "probabilities": column(np.exp(each.logps)),
    }


def column(values: Array) -> list[float | None]:
    """Return six digits of each number."""
    numbers: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in numbers.tolist()]


def names(leaves: Sequence[Leaf], size: int) -> list[str]:
    """Return what each number of a flat observation is called: by its place, and the name of the part it is of."""
    found: list[str] = []
    for leaf in leaves:
        word = ".".join(str(key) for key in leaf.path)
        count = sum(leaf.nvec) or int(np.prod(leaf.shape))
        found += [word if count == 1 else f"{word}[{i}]" for i in range(count)] if word else []
    return found if len(found) == size else [f"obs[{i}]" for i in range(size)]


def difference(each: Difference | None) -> dict[str, Any] | None:
    """Return where two courses part."""
    return None if each is None else plain(each)


def forked(each: Result, leaves: Sequence[Leaf] = ()) -> dict[str, Any]:
    """Return a fork with both courses; the one without edits is told only where it isn't the original."""
    effect = each.effect
    return {
        "at": each.at,
        "edits": list(each.edits),
        "exact": each.exact,
        "world": plain(each.world),
        "original": episode(each.original, leaves),
        "unedited": None if each.exact else episode(each.unedited, leaves),
        "fork": episode(each.fork, leaves),
        "difference": difference(each.difference),
        "effect": None
        if effect is None
        else {
            "num_pairs": effect.num_pairs,
            "is_drawn": effect.is_drawn,
            "mean": plain(effect.mean),
            "interval": plain(effect.interval),
            "means": plain(effect.means),
            "unedited": _rate(effect.unedited),
            "edited": _rate(effect.edited),
        },
    }


def _rate(each: Rate) -> dict[str, Any]:
    return {"num_failed": each.num_failed, "num": each.num, "interval": plain(each.interval)}


def editable(task: Task, each: Episode, at: int, known: Policies, world: Parameters) -> list[dict[str, Any]]:
    """Return what a fork at a step can change: name, kind, what it is now, and what it may be."""
    spans = {parameter.name: (parameter.low, parameter.high) for parameter in task.parameters}
    found: list[dict[str, Any]] = [
        {"name": name, "kind": "world", "now": world[name], "low": spans[name][0], "high": spans[name][1]}
        for name in spans
    ]
    acted = each.digests[at] if at < len(each.digests) else ""
    spec = next((artifact.spec for artifact in known.artifacts if artifact.digest == acted), None)
    if spec is None:
        return found
    if spec.rule.kind != "gaussian":
        found.append(
            {"name": "exploration_rate", "kind": "rule", "now": spec.rule.exploration_rate, "low": 0, "high": 1}
        )
    found += [
        {"name": "temperature", "kind": "rule", "now": spec.rule.temperature, "low": 0, "high": None},
        {"name": "greedy", "kind": "rule", "now": spec.rule.greedy, "choices": ["true", "false"]},
        {"name": "policy", "kind": "policy", "now": acted, "choices": [a.digest for a in known.artifacts]},
        {"name": "action", "kind": "action", "now": column(np.ravel(each.raw_actions[at])),
         "choices": [str(a) for a in range(spec.num_actions)] if 0 < spec.num_actions <= 50 else []},
        {"name": "reward_scale", "kind": "reward", "now": 1.0, "low": None, "high": None},
        {"name": "reward_offset", "kind": "reward", "now": 0.0, "low": None, "high": None},
    ]  # fmt: skip
    return found


def scenario(each: Scenario, standing: Standing | None) -> dict[str, Any]:
    """Return a scenario of the gate's suite; None stands for one that was saved just now."""
    standing = standing or Standing()
    return {
        "name": each.name,
        "parameters": plain(each.parameters),
        "episode": each.fork[0],
        "step": each.fork[1],
        "edits": list(each.edits),
        "saved_at": each.saved_at,
        "origin": each.origin,
        "state": "open" if standing.is_open else "closed",
        "last": standing.last,
        "begins": "a state" if each.state is not None else f"{len(each.actions)} actions from seed {each.seed}",
    }


MOST_SPANS = 500
"""Spans that are shown of one episode or turn."""


def spans(found: Sequence[Stored]) -> dict[str, Any]:
    """Return spans in the order of a tree, and how many more there are."""
    shown = [
        {
            **plain({name: getattr(each, name) for name in ("trace", "id", "depth", "name", "source", "error")}),
            "started_at": each.started_at,
            "seconds": plain(each.seconds),
            "attributes": plain(each.attributes),
            "metrics": [[name, plain(value)] for name, value, _ in each.metrics],
        }
        for each in found[:MOST_SPANS]
    ]
    return {"spans": shown, "left_out": max(0, len(found) - MOST_SPANS)}
