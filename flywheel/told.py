"""What happened, in one line a person reads: an iteration, a verdict, a look at production, what a task lacks."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel.arms import Control
from flywheel.challenge import Challenge
from flywheel.config import Config
from flywheel.deploy.admission import Served
from flywheel.deploy.canary import Canary
from flywheel.errors import UsageError
from flywheel.gate.grow import obstacle
from flywheel.moments import utc
from flywheel.records import Check, Probe, Progress, Signal, Verdict
from flywheel.tapes import INTERVAL
from flywheel.task import Task


def probed(probe: Probe, needed: float = math.nan) -> str:
    """Return how a probe went, beside the return that is `needed`, where one is."""
    names = [name for name in probe.edge_failed if name != INTERVAL]  # of those worlds the note says more
    edges = f"; edge cases failed: {', '.join(names) if len(names) < 3 else len(names)}" if names else ""
    climbed = f", return {_number(probe.mean_return)} of {_number(needed)} needed" if math.isfinite(needed) else ""
    return f"{probe.num_failed} of {probe.num_episodes} failed{climbed}{edges}"


def progress(progress: Progress, probe: Probe, needed: float = math.nan) -> str:
    """Return how far training is and how its probe went, beside the return that is `needed`, where one is."""
    mean = "no return yet" if math.isnan(progress.mean_return) else f"return {progress.mean_return:.0f}"
    notes = "".join(f"; {note}" for note in (probe.note, progress.note) if note)
    pace = f" at {progress.steps_per_s:,.0f}/s" if progress.steps_per_s > 0 else ""
    left = "" if progress.left_s is None else f", at most {duration(progress.left_s)} left"
    return f"{progress.num_steps:,} steps{pace}, {mean}{left}; probe: {probed(probe, needed)}{notes}"


def duration(seconds: float) -> str:
    """Return a time in its largest unit that fits, rounded up."""
    size, unit = 86_400, "days"
    for number, name, most in ((1, "s", 90), (60, "min", 90), (3600, "h", 72)):
        if seconds <= most * number:
            size, unit = number, name
            break
    return f"{math.ceil(max(0.0, seconds) / size)} {unit}"


def numbers(progress: Progress, probe: Probe) -> dict[str, float]:
    """Return what `progress` says, as numbers; a return that is not known yet is left out."""
    found = {"steps": progress.num_steps, "failed": probe.num_failed, "probed": probe.num_episodes}
    known = {} if math.isnan(progress.mean_return) else {"return": progress.mean_return}
    pace = {"steps_per_s": progress.steps_per_s} if progress.steps_per_s > 0 else {}
    left = {} if progress.left_s is None else {"left_s": progress.left_s}
    return {**found, **known, **pace, **left}


def verdict(verdict: Verdict) -> str:
    """Return a verdict with the answer to each of its questions."""
    checks = "; ".join(_check(check) for check in verdict.checks)
    return f"{verdict.outcome}: policy {verdict.digest[:8]} after {verdict.num_simulations:,} simulations: {checks}"


def _check(check: Check) -> str:
    answer = {True: "passed", False: "FAILED", None: "open"}[check.passed]
    name = check.name.replace("_", " ")
    return f"{name} {answer}{f' ({check.note})' if check.note else ''}"


def checks(verdict: Verdict, name: str, width: int) -> str:
    """Return a verdict on the policy called `name`, a line of at most `width` characters for each question."""
    seconds = f"{verdict.cost_s:.1f} s"
    head = f"{verdict.outcome}: {name} after {verdict.num_simulations:,} simulations, seed {verdict.seed}, {seconds}"
    lines = [textwrap.fill(head, width, subsequent_indent="  ")]
    for check in verdict.checks:
        answer = {True: "passed", False: "FAILED", None: "open"}[check.passed]
        text = f"{check.name.replace('_', ' '):<13} {answer:<7} {check.note}"
        lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def budget(history: Sequence[tuple[float, str | None, str | None]], tries: int, error: float, is_spent: bool) -> str:
    """Return what became of the gate's error budget: who spent of it and why it was filled, and what is left.

    `history` has (epoch seconds, digest of a candidate or None, reason or None), oldest first.
    """
    lines = []
    for at, digest, reason in history:
        what = f"policy {digest[:8]} was judged" if digest else f"filled: {reason}"
        lines.append(f"{utc(at)}  {what}")
    since = f"{tries} candidate{'' if tries == 1 else 's'} judged since it was filled"
    left = "it is spent: no candidate can pass" if is_spent else f"the next one may pass with an error of {error:.2g}"
    return "\n".join([*lines, f"{since}; {left}."])


def signal(signal: Signal) -> str:
    """Return an alarm in words."""
    return (
        f"{signal.kind} by the {signal.monitor} monitor at episode {signal.at_episode} on policy {signal.digest[:8]} "
        f"(evidence {signal.value:,.0f} of {signal.threshold:,.0f}, since episode {signal.since_episode})"
        + (f": {signal.evidence['words']}" if "words" in signal.evidence else "")
    )


def production(found: Mapping[str, Any], signals: Sequence[Signal], digest: str, known: Sequence[Signal] = ()) -> str:
    """Return why a look at production is over; `known` are all open alarms, those that its turn holds for, too."""
    mean = "" if found["mean_return"] is None else f", mean return {_number(found['mean_return'])}"
    so_far = f"{found['episodes']} episodes on policy {digest[:8]}{mean}"
    if signals:
        return f"{_alarms(signals)}; {so_far}"
    if found["recovered"] and known:
        return f"production's return is good again, but what was raised stays open ({_alarms(known)}): {so_far}"
    if found["recovered"]:
        return f"production is good again: {so_far}"
    if "needed" in found:
        return f"production is not good again: {so_far}, and {_number(found['needed'])} was needed"
    return so_far


def _alarms(signals: Sequence[Signal]) -> str:
    return ", ".join(f"{s.kind} by the {s.monitor} monitor" for s in signals)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def canary(canary: Canary) -> str:
    """Return how a challenger fares beside the champion."""
    who, test = f"policy {canary.challenger[:8]}", canary.test
    if canary.state == "shadow":
        return f"{who} is in the shadow: {canary.num_shadowed:,} decisions, {canary.num_same:,} as the champion's"
    if canary.state != "canary":
        return f"{who} is {canary.state.replace('_', ' ')}: {canary.reason}"
    its, others = (f"{k:,} of {n:,}" for k, n in zip(test.num_failed[::-1], test.num[::-1], strict=True))
    return f"{who} has {canary.share:.0%} of new episodes: {its} failed, {others} of the champion's"


def tried(found: Canary, run_dir: Path) -> str:
    """Return how a challenger fares, and how to follow it."""
    return (
        f"{canary(found)}. Policy {found.champion[:8]} stays in service meanwhile; "
        f"`flywheel canary --run-dir {shlex.quote(str(run_dir))}` shows how far it is."
    )


def served(found: Served) -> str:
    """Return who answered at a time."""
    if found.champion is None:
        return f"{utc(found.at)}  no policy was in service yet"
    with_share = f"with {found.share:.0%} of new episodes" if found.share else "in the shadow"
    beside = f"; policy {found.challenger[:8]} was tried beside it, {with_share}" if found.challenger else ""
    if found.control:
        beside = f"; {found.control_share:.0%} of new episodes stayed on policy {found.control[:8]}, as its control"
    return f"{utc(found.at)}  policy {found.champion[:8]} answered{beside}"


def beside(found: Control) -> str:
    """Return that a share of new episodes stays on a policy, and since when."""
    return (
        f"policy {found.policy[:8]} keeps {found.share:.0%} of new episodes since {utc(found.begun_at)}, as the "
        f"control of policy {found.champion[:8]}"
    )


def control(found: Control) -> str:
    """Return where a policy is that a share of new episodes stay on."""
    return f"control, {found.share:.0%}"


def seconds(text: str) -> float:
    """Return the UTC epoch seconds that a text names: as such, or as a date and a time (ISO 8601).

    A zone that isn't named is UTC. Raises UsageError where it is neither.
    """
    if re.fullmatch(r"\d{1,10}(\.\d*)?", text):
        return float(text)
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no time: give UTC epoch seconds, or a date and a time such as 2026-11-26T03:00:00."
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def place(canary: Canary) -> str:
    """Return where a challenger is, or how it ended, in a word or two."""
    if canary.state == "canary":
        return f"challenger, {canary.share:.0%}"
    return "challenger, shadow" if canary.state == "shadow" else canary.state.replace("_", " ")


def challenges(found: Sequence[Challenge], width: int) -> str:
    """Return how the challenger on its way fares, and what became of the others, in lines of at most `width`."""
    lines = [] if found and not found[-1].is_over else ["No challenger is on its way."]
    for each in reversed(found):
        end = f"policy {each.challenger[:8]} {each.state.replace('_', ' ')} {utc(each.changed_at)}: {each.reason}"
        lines += [end] if each.is_over else _on_its_way(each)
    return "\n".join(textwrap.fill(line, width, subsequent_indent="    ", break_on_hyphens=False) for line in lines)


def _on_its_way(each: Challenge) -> list[str]:
    (others, its), (others_failed, its_failed) = each.num, each.num_failed
    given = f"has {each.share:.0%} of new episodes"
    where = {"shadow": "is in the shadow", "frozen": "is frozen"}.get(each.state, given)
    lines = [
        f"policy {each.challenger[:8]} {where} since {utc(each.changed_at)}, beside policy {each.champion[:8]}",
        f"  shadow    {each.num_same:,} of {each.num_shadowed:,} decisions were the champion's",
        f"  outcomes  {_of(its_failed, its)} failed, {each.num_lost[1]:,} lost; the champion's "
        f"{_of(others_failed, others)}, {each.num_lost[0]:,} lost",
    ]
    for name, found in zip(("worse", "good", "uneven"), each.evidence, strict=True):
        lines.append(f"  {name:<9} evidence {found.value:.3g} that {found.claim}; at {found.acts_at:,.0f} {found.then}")
    reason = [f"  frozen    because {each.reason}"] if each.state == "frozen" else []
    until = "" if each.ends_at is None else f"; if nothing is certain by {utc(each.ends_at)}, the champion stays"
    return [*lines, *reason, f"  next      {each.next}{until}"]


def _of(some: int, of: int) -> str:
    return f"{some:,} of {of:,}" + (f" ({some / of:.1%})" if of else "")


def stays(living: Mapping[str, Any], config: Config, run_dir: Path) -> str:
    """Return which settings of rooms that are up are other ones than this start asks for, "" if none is.

    `living` are their configurations by the names that Config has for them, None for a room that can't be asked.
    """
    kept = [
        f"{room}.{field.name} {value} (not {asked})"
        for room, has in living.items()
        for field in (() if has is None else dataclasses.fields(has))
        if (value := getattr(has, field.name)) != (asked := getattr(getattr(config, room), field.name))
        and (room, field.name, asked) != ("deploy", "port", 0)  # 0 is any
    ]
    if not kept:
        return ""
    return (
        f"what was up already keeps its settings: {', '.join(kept)}; to change them, end it by "
        f"`flywheel down --run-dir {shlex.quote(str(run_dir))}`, then start again"
    )


def losses(task: Task) -> str:
    """Return what this task can't do, "" if nothing is missing."""
    states = bool(task.set_state and task.observed_state) or not task.parameters
    missing = {
        "parameters (the simulator can't be calibrated)": task.parameters,
        "set_state or observed_state (calibrated from whole episodes, which takes more of them)": states,
        "set_state and observed_state (no failure of production becomes a scenario of the gate)": not obstacle(task),
        "edge_cases (none are tried)": task.edge_cases,
        "vector (worlds are stepped one by one, which is slower)": task.vector,
        "return_range (no monitor of the return; recovery goes by the returns that were seen)": task.return_range,
    }
    return ", ".join(name for name, given in missing.items() if not given)
