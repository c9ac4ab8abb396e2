"""What a decision was made from, whole and as plain values: it is in the journal, so anybody can make it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from flywheel.config import AnalyzeConfig, canonical
from flywheel.errors import FlywheelError
from flywheel.records import Calibration, Correction, Outcome, Parameters, Plan, Signal, Turn

Ranges = Mapping[str, tuple[float, float]]
Blame = Literal["policy", "world", "unknown"]
DAY_S = 86_400.0
"""Seconds over which rounds of training are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the journal says of the turns before this one, as far as a rule asks."""

    plan: Plan | None = None
    """The last turn's plan, as it was carried out."""
    candidate: str | None = None
    """Digest of the candidate that the gate judged in the last turn, None where it judged none."""
    outcome: Outcome | None = None
    """What the gate said of it."""
    failing: tuple[str, ...] = ()
    """Names of the checks that it did not pass."""
    refusals: int = 0
    """Turns in a row, up to the last one, whose candidate the gate did not pass."""
    parameters: Ranges = field(default_factory=dict)
    """The worlds that were trained in last: the simulator's parameters of the newest plan that names some."""
    released: Ranges = field(default_factory=dict)
    """The same of the newest plan that led to a release."""
    correction: Correction | None = None
    """What the last plan's worlds correct."""
    corrected: Correction | None = None
    """The same of the newest plan that led to a release."""
    is_champion_known: bool = False
    """Whether the journal has the release of the policy in service; a crash may have kept it out."""
    accused: tuple[str, ...] = ()
    """Digests that an earlier plan's alarms were about, sorted."""
    incident: int = 0
    """Number of the turn after which the open incident began, or in which it did; 0 where none is open. An incident is
    open from its first alarm until production is good again."""
    rollbacks: int = 0
    """Rollbacks in that incident."""
    rounds: int = 0
    """Rounds of training that began in the last day."""
    cause: str = ""
    """What the last alarms that were acted on were about (`cause_of`), "" where there were none."""
    acted_at: float = 0.0
    """UTC epoch seconds at which a plan for that cause ended in a release, or was to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a decision depends on: the same facts always give the same plan."""

    number: int
    """The turn that begins."""
    now: float
    """UTC epoch seconds."""
    champion: str | None
    """Digest in service."""
    previous: str | None = None
    """Digest that a rollback would put back into service."""
    condemned: tuple[str, ...] = ()
    """Digests that were rolled back, sorted."""
    signals: tuple[Signal, ...] = ()
    """Open alarms: about the policy in service, and answered by no release."""
    past: Past = field(default_factory=Past)
    """What the journal says."""
    calibration: Calibration | None = None
    """The simulator's parameters as the changed episodes show them."""
    obstacle: str = ""
    """Why there is no calibration, as a phrase; "" if there is one, or nobody asked."""
    correction: Correction | None = None
    """What production does otherwise than the simulator, where no parameter explains it; one that corrects nothing: it
    does what the simulator does. None where it is not known, or nobody asked."""
    no_correction: str = ""
    """Why it is not known, as a phrase; "" if it is, or nobody asked."""
    nominal: Parameters = field(default_factory=dict)
    """The task's own parameters, where training was so far if no plan says otherwise."""
    served: Ranges | None = None
    """Ranges that the policy in service was trained in; None where nobody knows."""
    served_correction: Correction | None = None
    """What was corrected in its worlds."""
    elsewhere: tuple[str, ...] = ()
    """Digests, among those training might start from, that were trained elsewhere and have no weights to train on."""
    is_spent: bool = False
    """Whether the gate's error budget is spent, so that no candidate could pass."""
    contradiction: str = ""
    """How production contradicts the gate, and what cures that, as a phrase; "" where its predictions hold."""
    blame: Blame = "unknown"
    """Whether the new policy or the world made outcomes worse, as the control group shows."""
    blame_words: str = ""
    """How it shows that, as a phrase."""
    cause: Mapping[str, Any] | None = None
    """The diagnosis as plain values, None where there is none: `kind` is one of policy, dynamics, initial_states,
    sensors, reward, logging, nothing, unknown; `sentences` say it in words, the shortest telling first."""
    algorithm: str = ""
    """What trains, as `train.algorithm` has it; "" in journals from before it was told."""
    held: str = ""
    """Why a person holds the wheel (`flywheel decide --hold`); "" where nobody does."""
    config: AnalyzeConfig = field(default_factory=AnalyzeConfig)
    """When a calibration is believed, how far training strays from it, cooldown and budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where what a decision rests on can be looked at: ids of records that other files hold."""

    episodes: tuple[str, ...] = ()
    """Where each alarm's evidence begins, and the episode that raised it; those that the diagnosis names."""
    verdicts: tuple[str, ...] = ()
    """Digests whose verdicts were looked at."""
    turns: tuple[int, ...] = ()
    """Earlier turns that decided: the last one, and that in which the open incident began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided in a turn, by which rules and from what."""

    facts: Facts
    plan: Plan
    """As it was decided; the turn's own may say more (`no candidate was worth a verdict`)."""
    by: tuple[str, ...]
    """Names of the rules that made the plan, the first one's first."""
    rules: str
    """Version of all rules, by their source."""
    evidence: Evidence


def plain(decision: Decision) -> dict[str, Any]:
    """Return a decision as plain values for a Turn, the same before and after they are written as JSON."""
    return _as_json(decision)


def differing(one: Past | Plan, other: Past | Plan) -> tuple[str, ...]:
    """Return the names of the fields in which two records of one kind differ, as JSON has them; () if in none."""
    mine, its = _as_json(one), _as_json(other)
    return tuple(name for name in mine if canonical(mine[name]) != canonical(its[name]))


def _as_json(record: Decision | Past | Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(canonical(dataclasses.asdict(record)))
    return found


def decision_of(turn: Turn) -> Decision | None:
    """Return the decision that a turn of the journal holds; None for a turn of a time before they were kept.

    Raises FlywheelError where it is damaged.
    """
    if not turn.decision:
        return None
    try:
        return msgspec.convert(turn.decision, Decision)
    except msgspec.ValidationError as error:
        raise FlywheelError(
            f"The decision of turn {turn.number} in the journal can't be read ({error}): put a copy of the journal "
            "back, or make it {} there, and the turn counts as one from before decisions were kept."
        ) from error


def evidence_of(facts: Facts) -> Evidence:
    """Return the ids of what the facts rest on."""
    found = facts.cause or {}
    episodes = [each for signal in facts.signals for each in (signal.since_episode, signal.at_episode)]
    episodes += [str(each) for each in (found.get("since_episode", ""), *found.get("examples_after", ()))]
    judged = [each for each in (facts.past.candidate, facts.champion, facts.previous) if each is not None]
    turns = {each for each in (facts.number - 1, facts.past.incident) if 0 < each < facts.number}
    return Evidence(
        episodes=tuple(dict.fromkeys(each for each in episodes if each)),
        verdicts=tuple(dict.fromkeys(judged)),
        turns=tuple(sorted(turns)),
    )


def cause_of(facts: Facts) -> str:
    """Return in a word what the open alarms are about, "" where there are none: two of one word have one cause."""
    if not facts.signals:
        return ""
    kind = str((facts.cause or {}).get("kind", "unknown"))
    return kind if kind not in ("nothing", "unknown") else "+".join(sorted({signal.kind for signal in facts.signals}))
