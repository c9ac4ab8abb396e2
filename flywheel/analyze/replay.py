"""Past decisions made again from the journal: by the present rules, to prove them, or by others, to try those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flywheel.analyze.past import Memory
from flywheel.analyze.strategy import decide
from flywheel.errors import FlywheelError
from flywheel.facts import Decision, Facts, decision_of, differing
from flywheel.records import Plan, Turn

Deciding = Callable[[Facts], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A turn's decision, made again."""

    number: int
    decision: Decision | None
    """As the journal has it; None for a turn from before decisions were kept."""
    plan: Plan | None = None
    """What is decided now of the same facts; None where there are none."""
    fields: tuple[str, ...] = ()
    """Names of the plan's fields that came out otherwise."""
    past: tuple[str, ...] = ()
    """What the journal's turns before it say otherwise than it was decided from; () where others' rules are tried."""

    @property
    def is_same(self) -> bool:
        """Whether it was decided from what the journal says, and came out the same."""
        return not self.fields and not self.past


def replayed(turns: Sequence[Turn]) -> list[Again]:
    """Return every turn's decision made again by the present rules, from its facts and the turns before it."""
    found, memory = [], Memory()
    for turn in turns:
        made = decision_of(turn)
        if made is None:
            found.append(Again(number=turn.number, decision=None))
        else:
            plan, facts = decide(made.facts), made.facts
            past = differing(facts.past, memory.past(facts.champion, facts.now))
            fields = differing(made.plan, plan)
            found.append(Again(number=turn.number, decision=made, plan=plan, fields=fields, past=past))
        memory.add(turn)
    return found


def tried(turns: Sequence[Turn], rules: Deciding) -> list[Again]:
    """Return what other rules would have decided, each time on the facts as they came of what was really done.

    Reasons and alarms of a plan are not compared: other rules have other words. Raises FlywheelError where the rules
    fail on some turn's facts, or return something else than a Plan.
    """
    found = []
    for turn in turns:
        made = decision_of(turn)
        if made is None:
            found.append(Again(number=turn.number, decision=None))
            continue
        plan = _asked(rules, made.facts)
        fields = tuple(name for name in differing(made.plan, plan) if name not in ("reasons", "signals"))
        found.append(Again(number=turn.number, decision=made, plan=plan, fields=fields))
    return found


def _asked(rules: Deciding, facts: Facts) -> Plan:
    try:
        plan = rules(facts)
    except Exception as error:  # a person's function may do anything
        raise FlywheelError(
            f"These rules fail on turn {facts.number} ({type(error).__name__}: {error}): repair them and try again."
        ) from error
    if not isinstance(plan, Plan):
        raise FlywheelError(f"On turn {facts.number} these rules return {type(plan).__name__}, not a records.Plan.")
    return plan
