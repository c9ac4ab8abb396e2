"""Verdicts as signed text: canonical JSON, Ed25519 (RFC 8032). Pure."""

from __future__ import annotations

import dataclasses
import json

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flywheel.config import canonical
from flywheel.errors import Refused
from flywheel.records import Verdict


def encode(verdict: Verdict) -> str:
    """Return the verdict as canonical JSON; NaN and infinity as Python's json spells them.

    A trial without a chain, and a verdict without tries, rivals or count, are written without the word, so that
    signatures from before there were any stay valid.
    """
    plain = dataclasses.asdict(verdict)
    for name in ("tries", "rivals", "num_played"):
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
