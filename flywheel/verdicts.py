"""Verdicts as signed text (canonical JSON, Ed25519, RFC 8032), and what they allow: each process that acts asks again.

Replicas and clients that act of themselves take nothing but what is proven here.
"""

from __future__ import annotations

import dataclasses
import json

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flywheel.config import canonical
from flywheel.errors import Refused
from flywheel.policy import Bundle, Policy, load
from flywheel.records import Verdict


def encode(verdict: Verdict) -> str:
    """Return the verdict as canonical JSON; NaN and infinity as Python's json spells them.

    A trial without a chain, and a verdict without tries, rivals, count or correction, are written without the word, so
    that signatures from before there were any stay valid.
    """
    plain = dataclasses.asdict(verdict)
    for name in ("tries", "rivals", "num_played", "correction"):
        if not plain[name]:
            del plain[name]
    for trial in plain["trials"]:
        if not trial["chain"]:
            del trial["chain"]
    return canonical(plain)


def decode(text: str) -> Verdict:
    """Return the verdict of a canonical JSON text."""
    return msgspec.convert(json.loads(text), Verdict)


def sign(verdict: Verdict, signing: bytes) -> Verdict:
    """Return the verdict with its signature, which covers every other field. `signing` is the private key, 32 bytes."""
    plain = decode(encode(dataclasses.replace(verdict, signature="")))
    signature = Ed25519PrivateKey.from_private_bytes(signing).sign(encode(plain).encode())
    return dataclasses.replace(plain, signature=signature.hex())


def verify(verdict: Verdict, public: bytes) -> None:
    """Return when the owner of the public key (32 bytes) signed the verdict as it is; raise Refused otherwise."""
    message = encode(decode(encode(dataclasses.replace(verdict, signature="")))).encode()
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(verdict.signature), message)
    except (InvalidSignature, ValueError) as error:
        what = "carries no signature" if not verdict.signature else "carries a signature that does not fit"
        raise Refused(
            f"The verdict on policy {verdict.digest[:12]} {what}, so nobody vouches for it: let the gate judge again."
        ) from error


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
