"""The command `flywheel decide`: why the wheel does what it does, whether it would again, and a switch to hold it."""

from __future__ import annotations

import importlib
import json
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel import console
from flywheel.errors import FlywheelError, UsageError
from flywheel.moments import utc

if TYPE_CHECKING:
    from flywheel.analyze.replay import Again, Deciding
    from flywheel.facts import Decision
    from flywheel.records import Plan, Turn


def decide(*, run_dir: Path, replay: bool = False, rules: str = "", hold: str | None = None, go: bool = False) -> int:
    """Show the last decision with its evidence; make past ones again; hold the wheel, or let it turn again.

    While it is held a challenger on its way is frozen, clients are answered on, and `flywheel rollback` stays possible.

    Args:
        run_dir: directory of the run
        replay: make every past decision again from the journal; exit code 1 where one comes out otherwise
        rules: module:function that takes flywheel.facts.Facts and returns a Plan: where it would have decided otherwise
        hold: why the wheel holds from now on: it trains, releases and rolls back nothing by itself until --go
        go: let it turn again
    """
    from flywheel import archive

    if (hold is not None) + go + replay + bool(rules) > 1:
        raise UsageError("--replay, --rules, --hold and --go are asked for one at a time.")
    if hold is not None:
        archive.hold(run_dir, hold, time.time())
        _line("", "The wheel is held: it changes nothing by itself until `flywheel decide --go`.")
        _freeze(run_dir, hold)
        return 0
    if go:
        _line("", "The wheel may turn again." if archive.go(run_dir) else "Nobody held the wheel: it turns as before.")
        return 0
    archive.read_config(run_dir)  # said where it is no run directory
    if replay:
        return _replay(archive.read_turns(run_dir))
    if rules:
        return _try(archive.read_turns(run_dir), rules)
    return _show(run_dir)


def _show(run_dir: Path) -> int:
    from flywheel import archive
    from flywheel.facts import decision_of

    if held := archive.held(run_dir):
        _line("held", f"a person holds the wheel: {held}")
    turns, draft = archive.read_turns(run_dir), archive.read_draft(run_dir)
    if draft is not None and (not turns or draft.number > turns[-1].number):
        turns.append(draft)
    if not turns:
        _line("", "Nothing was decided yet: no turn has begun.")
        return 0
    made = decision_of(turns[-1])
    if made is None:
        last = turns[-1]
        _line("", f"turn {last.number} is {last.plan.strategy}; it is from before decisions were kept")
        for reason in last.plan.reasons:
            _line("because", reason)
        return 0
    _tell(made, turns[-1])
    return 0


def _tell(made: Decision, turn: Turn) -> None:
    """Print a decision with all that it rests on."""
    from flywheel import told
    from flywheel.analyze.strategy import sentences, version

    facts, plan = made.facts, made.plan
    _line("", f"turn {facts.number} is {plan.strategy}, decided {utc(facts.now)}")
    for name in made.by:
        _line("rule", f"{name}: {sentences().get(name, 'a rule that is no more')}")
    for reason in plan.reasons:
        _line("because", reason)
    for reason in turn.plan.reasons[len(plan.reasons) :]:
        _line("then", reason)
    champion = "no policy" if facts.champion is None else f"policy {facts.champion[:8]}"
    before = "" if facts.previous is None else f"; policy {facts.previous[:8]} could come back"
    _line("service", f"{champion} in service{before}")
    for signal in facts.signals:
        _line("alarm", told.signal(signal))
    if facts.past.incident:
        rollbacks = f"{facts.past.rollbacks} rollback{'' if facts.past.rollbacks == 1 else 's'} so far"
        _line("incident", f"open since turn {facts.past.incident}, {rollbacks}")
    names = [f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in plan.parameters.items()]
    if names:
        _line("worlds", ", ".join(names))
    if plan.correction is not None:
        _line("corrected", str(plan.correction))
    evidence = {
        "episodes": ", ".join(made.evidence.episodes),
        "verdicts": ", ".join(digest[:8] for digest in made.evidence.verdicts),
        "turns": ", ".join(map(str, made.evidence.turns)),
    }
    for name, ids in evidence.items():
        if ids:
            _line(name, ids)
    _line("rules", made.rules if made.rules == version() else f"{made.rules}, which are other ones than the present")


def _replay(turns: Sequence[Turn]) -> int:
    """Print what became of each decision; 1 where one came out otherwise."""
    from flywheel.analyze.replay import replayed
    from flywheel.analyze.strategy import version

    found = replayed(turns)
    for each in found:
        _compare(each, "the same" if each.is_same else "OTHERWISE")
        if each.past:
            _line("journal", f"says other things of the turns before it: {', '.join(each.past)}", deep=True)
    made = [each for each in found if each.decision is not None]
    num_same = sum(each.is_same for each in made)
    _line("", f"{num_same} of {len(made)} the same")
    others = sum(each.decision is not None and each.decision.rules != version() for each in made)
    if others:
        _line("", f"{others} of them were made by other rules than the present ones ({version()})")
    return int(num_same < len(made))


def _try(turns: Sequence[Turn], reference: str) -> int:
    """Print where other rules would have decided otherwise."""
    from flywheel.analyze.replay import tried

    found = [each for each in tried(turns, _rules(reference)) if each.decision is not None]
    for each in found:
        if each.fields:
            _compare(each, "otherwise")
    num = sum(bool(each.fields) for each in found)
    _line("", f"{reference} decides otherwise in {num} of {len(found)}, on the facts as they came of what was done")
    return 0


def _compare(each: Again, word: str) -> None:
    """Print a turn's strategy, and the fields of its plan that came out otherwise."""
    if each.decision is None or each.plan is None:
        _line(f"turn {each.number}", "has no decision: it is from before they were kept")
        return
    _line(f"turn {each.number}", f"{each.decision.plan.strategy}: {word}")
    for name in each.fields:
        _line(name, f"{_value(each.decision.plan, name)} -> {_value(each.plan, name)}", deep=True)


def _value(plan: Plan, name: str) -> str:
    value = getattr(plan, name)
    if name == "signals":
        return f"{len(value)} alarms"
    return "; ".join(value) if name == "reasons" else json.dumps(value)


def _rules(reference: str) -> Deciding:
    """Return the function `module:function`; UsageError where there is none."""
    module, _, name = reference.partition(":")
    try:
        found: Deciding = getattr(importlib.import_module(module), name)
    except Exception as error:  # a person's module may do anything when it is imported
        raise UsageError(
            f"--rules is {reference!r}, and there is no such function ({error}): give module:function, as found from "
            "here."
        ) from error
    return found


def _freeze(run_dir: Path, reason: str) -> None:
    """Give the challenger on its way no more episodes, as it would be promoted otherwise; raise where that can't be."""
    from contextlib import closing

    from flywheel import owner, sqlite, told
    from flywheel.deploy.registry import FILE, open_readonly

    if not sqlite.is_made(run_dir / FILE):
        return
    with closing(open_readonly(run_dir)) as registry:
        canary = registry.canary()
    if canary is None or canary.is_over or canary.state == "frozen":
        return
    try:
        with owner.writing(run_dir) as writer:
            _line("", f"{told.canary(writer.decide('freeze', reason, canary.challenger))}.")
    except FlywheelError as error:  # it may be over by now, or nobody who could freeze it can be reached
        raise FlywheelError(
            f"The wheel is held, but policy {canary.challenger[:8]} may still be tried and promoted: {error} Look by "
            "`flywheel canary`, and freeze it by `flywheel canary freeze --reason REASON`."
        ) from error


def _line(head: str, text: str, deep: bool = False) -> None:
    """Print what stands behind a word; words aren't cut, so that an id can be copied."""
    indent = "    " if deep else "  " if head else ""
    print(textwrap.fill(
        f"{head:<9} {text}" if head else text, console.width(), initial_indent=indent,
        subsequent_indent=indent + ("    " if head else "  "), break_long_words=False, break_on_hyphens=False,
    ))  # fmt: skip
