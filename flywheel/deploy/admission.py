"""What may be served: a digest with a passing, signed verdict, proven again by every process that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flywheel.deploy.verdicts import verify
from flywheel.errors import Refused
from flywheel.policy import Bundle, Policy, load
from flywheel.records import Verdict
from flywheel.tokens import Token


@dataclass(frozen=True, slots=True)
class Admission:
    """The registry's word on who answers clients, and which clients."""

    champion: str | None
    """The digest in service; None before the first promotion."""
    admissible: tuple[str, ...]
    """Digests that may answer: the champion, the challenger, and former ones that were not rolled back or condemned."""
    known: frozenset[str]
    """Every digest that was ever released or tried: only these can be repeated by a client."""
    tokens: tuple[Token, ...] = ()
    """Those in force."""
    challenger: str | None = None
    """The digest that is being tried beside the champion; None where none is."""
    share: float = 0.0
    """Share of new episodes that the challenger is given; at 0 it is in the shadow: it acts, and is not heard."""
    since: float = 0.0
    """When that share came into force; 0 where there is no challenger."""
    previous: str | None = None
    """The digest that a rollback would put into service."""
    condemned: Mapping[str, str] = field(default_factory=dict)
    """Digests that may not come back, and why."""


@dataclass(frozen=True, slots=True)
class Served:
    """Who answered at a time."""

    at: float
    champion: str | None
    """None before the first promotion."""
    challenger: str | None
    """The digest that was tried beside it; None where none was."""
    share: float
    """Share of new episodes that the challenger was given; 0 in the shadow, and where there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a replica saw of a challenger since it last said so."""

    digest: str
    num_shadowed: int = 0
    """Decisions that it made well in the shadow."""
    num_same: int = 0
    """Those of them that were the champion's."""
    trouble: str = ""
    """How it broke, as a clause: then this replica lets the champion answer for it; "" where it did not."""


def check_verdict(verdict: Verdict, digest: str, task: str, public: bytes) -> None:
    """Return when the verdict is signed, passed and is about this digest and task; raise Refused otherwise.

    The date is not looked at: validity is checked at promotion, so that a replica can start at three in the morning.
    """
    verify(verdict, public)
    if verdict.digest != digest:
        raise Refused(f"The verdict is about policy {verdict.digest[:12]}, not about {digest[:12]}.")
    if verdict.task != task:
        raise Refused(
            f"The verdict on policy {digest[:12]} was made for another task (digest {verdict.task[:12]}, "
            f"here {task[:12]}): let the gate judge it for this one."
        )
    if verdict.outcome != "pass":
        raise Refused(
            f"The gate's verdict on policy {digest[:12]} is {verdict.outcome!r}, so it can't be served: "
            "only a policy that passed is."
        )


def admit(policy: Bundle, verdict: Verdict, task: str, public: bytes) -> Policy:
    """Return the policy, ready to act, when its verdict and its files are proven; raise Refused otherwise.

    Proven is: signature, outcome, digest and task of the verdict; sha256 of every file; golden vectors.
    """
    check_verdict(verdict, policy.artifact.digest, task, public)
    return load(policy)
