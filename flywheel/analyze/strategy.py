"""What to do next, and why: one Plan for each turn, from rules that a person can check by hand.

The first rule that answers makes the plan. Their order is the order of what they cure: what a person says comes
first, then what must not be trained on, then a bad release. A changed world outranks a bad outcome, because a rollback
is no cure for it; an old alarm whose cure the gate refused asks for more exploration, a new one for a new answer.
Then each veto may turn the plan into one that holds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flywheel.analyze import past, remedies
from flywheel.analyze.past import key
from flywheel.analyze.remedies import QUIET, is_degraded
from flywheel.facts import Decision, Facts, cause_of, evidence_of
from flywheel.records import Plan

Rule = Callable[[Facts], Plan | None]
Veto = Callable[[Facts, Plan], str]


def held(facts: Facts) -> Plan | None:
    """A person holds the wheel: nothing is trained, released or rolled back by itself."""
    if not facts.held:
        return None
    return remedies.hold(facts, f"a person holds the wheel: {facts.held}", "`flywheel decide --go` lets it turn again")


def hacked(facts: Facts) -> Plan | None:
    """The reward rose while what it stands for did not: training for it would make that worse."""
    if is_degraded(facts) or not any(signal.kind == "reward_hacking" for signal in facts.signals):
        return None
    why = "training for this reward would teach more of it: look at it first"
    return remedies.hold(facts, *remedies.told(facts), why)


def broken(facts: Facts) -> Plan | None:
    """Logging, a sensor or the reward broke, and the policy does its work: training on broken data is worse than none.

    A policy that fails outright is cured as any other, without these data.
    """
    is_worse = is_degraded(facts) and not remedies.is_paid_otherwise(facts)
    if not facts.signals or is_worse or not remedies.is_broken(facts):
        return None
    return remedies.hold(facts, *remedies.told(facts), remedies.REPAIRS[remedies.cause_kind(facts)])


def bad_release(facts: Facts) -> Plan | None:
    """The policy in service is to blame for worse outcomes, as the control group shows: it is taken back."""
    if facts.blame == "policy" and is_degraded(facts) and not remedies.no_way_back(facts):
        return remedies.degraded(facts)
    return None


def refused(facts: Facts) -> Plan | None:
    """The gate did not pass the last candidate, and no alarm since then asks for another answer: explore more."""
    known = set() if facts.past.plan is None else {key(signal) for signal in facts.past.plan.signals}
    fresh = [signal for signal in facts.signals if key(signal) not in known]
    is_shifted = any(signal.kind == "shift_detected" for signal in facts.signals)
    is_answered = not any(s.kind == "shift_detected" for s in fresh) and (is_shifted or not fresh)
    is_refused = facts.past.outcome not in (None, "pass")
    return remedies.explore(facts) if is_refused and is_answered else None


def first(facts: Facts) -> Plan | None:
    """No policy is in service yet: one is trained."""
    if facts.champion is not None:
        return None
    reasons = ("no policy is in service yet",)
    worlds = remedies.worlds(facts)
    return Plan(strategy="continue_training", reasons=reasons, parameters=worlds, correction=remedies.in_force(facts))


def changed_world(facts: Facts) -> Plan | None:
    """Production shows other parameters than were trained in: train there, whatever else is wrong."""
    names = remedies.moved(facts) if facts.signals or facts.contradiction else ()
    return remedies.calibrated(facts, names) if names else None


def corrected(facts: Facts) -> Plan | None:
    """Production's world acts as no parameter makes the simulator act, and it is known how: train in such worlds."""
    is_asked = is_degraded(facts) or (facts.contradiction and not facts.signals)
    is_fit = remedies.is_corrected(facts) and (remedies.acts_otherwise(facts) or not remedies.is_broken(facts))
    return remedies.retrained(facts) if is_asked and is_fit else None


def quiet(facts: Facts) -> Plan | None:
    """No alarm is open: train on, for a policy that is better still."""
    if facts.signals:
        return None
    return dataclasses.replace(
        QUIET, parameters=remedies.worlds(facts), warm_start=facts.champion, correction=remedies.in_force(facts)
    )


def degraded(facts: Facts) -> Plan | None:
    """Outcomes got worse and the world is not known to have changed: roll back, once, or train another policy."""
    found = facts.calibration
    is_unchanged = found is not None and remedies.believed(found, facts.config)
    is_shifted = any(signal.kind == "shift_detected" for signal in facts.signals)
    blame = remedies.to_blame(facts)
    is_policys = blame == "policy" or (blame == "unknown" and (is_unchanged or not is_shifted))
    is_broken = remedies.is_broken(facts)
    return remedies.degraded(facts) if is_degraded(facts) and (is_policys or is_broken) else None


def unexplained(facts: Facts) -> Plan | None:
    """The world changed, and no parameter says how: hold while the policy does its work, else train by the store."""
    return remedies.unexplained(facts)


RULES: tuple[Rule, ...] = (
    held, hacked, broken, bad_release, refused, first, changed_world, corrected, quiet, degraded, unexplained,
)  # fmt: skip
"""In the order in which they are asked; the last one always answers."""


def spent(facts: Facts, plan: Plan) -> str:
    """The gate's error budget is spent: no candidate could pass."""
    why = "the gate's error budget is spent, so no candidate could pass: fill it by `flywheel budget --refill REASON`"
    return why if facts.is_spent else ""


def contradicted(facts: Facts, plan: Plan) -> str:
    """Production contradicts the gate, and no calibration knows better: its verdicts stay open."""
    if not facts.contradiction or remedies.moved(facts) or remedies.is_corrected(facts):
        return ""
    return f"no candidate could pass: {facts.contradiction}"


def overworked(facts: Facts, plan: Plan) -> str:
    """The day had its rounds of training; quiet ones may take half of them, the rest is for incidents."""
    most = facts.config.most_rounds if plan.signals else facts.config.most_rounds // 2
    why = f"{facts.past.rounds:,} rounds of training in a day are enough (analyze.most_rounds)"
    return why if facts.past.rounds >= most > 0 else ""


def cooling(facts: Facts, plan: Plan) -> str:
    """Something was done about this cause a moment ago: let it show first, unless outcomes get worse meanwhile."""
    left = facts.past.acted_at + facts.config.cooldown_s - facts.now
    is_other = cause_of(facts) != facts.past.cause or plan.strategy == "increase_exploration"
    if not facts.signals or is_other or is_degraded(facts) or left <= 0:
        return ""
    return f"something was done about this a moment ago: wait for another {left:.0f} s (analyze.cooldown_s)"


VETOES: tuple[Veto, ...] = (spent, contradicted, overworked, cooling)
"""Each may say why a plan that trains must not be carried out; a rollback goes on, as it needs no verdict."""


def decide(facts: Facts) -> Plan:
    """Return the plan of the turn that begins; the same facts always give the same plan."""
    return _ruled(facts)[0]


def decision(facts: Facts) -> Decision:
    """Return the plan together with what it was made from and by, for the journal."""
    plan, by = _ruled(facts)
    return Decision(facts=facts, plan=plan, by=by, rules=version(), evidence=evidence_of(facts))


def _ruled(facts: Facts) -> tuple[Plan, tuple[str, ...]]:
    name, plan = next((rule.__name__, found) for rule in RULES if (found := rule(facts)) is not None)
    by = [name]
    if plan.strategy not in ("hold", "rollback_and_retrain"):
        for veto in VETOES:
            if why := veto(facts, plan):
                plan = remedies.vetoed(plan, why)
                by.append(veto.__name__)
                break
    return _startable(facts, plan), tuple(by)


def _startable(facts: Facts, plan: Plan) -> Plan:
    """Start from fresh weights where the policy to start from was trained elsewhere: its network isn't training's."""
    start = plan.warm_start
    if start is None or start not in facts.elsewhere:
        return plan
    why = f"policy {start[:8]} was trained elsewhere and has no weights to train on, so training starts afresh"
    return dataclasses.replace(plan, warm_start=None, reasons=(*plan.reasons, why))


@functools.cache
def version() -> str:
    """Return the first 12 digits of the sha256 of the rules' source: it changes whenever a rule does."""
    files = [Path(__file__), Path(str(remedies.__file__)), Path(str(past.__file__))]
    return hashlib.sha256(b"\n".join(path.read_bytes() for path in files)).hexdigest()[:12]


def sentences() -> Mapping[str, str]:
    """Return by the name of each rule and veto what it says."""
    rules: tuple[Any, ...] = (*RULES, *VETOES)
    return {rule.__name__: str(rule.__doc__).splitlines()[0] for rule in rules}
