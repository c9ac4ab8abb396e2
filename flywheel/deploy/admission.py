"""What may be served: a digest with a passing, signed verdict, proven again by every process that loads it."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Digests that may answer: the champion, and former ones that were not rolled back or condemned."""
    known: frozenset[str]
    """Every digest that was ever released: only these can be repeated by a client."""
    tokens: tuple[Token, ...] = ()
    """Those in force."""


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
