"""The run's secrets: made once, each in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flywheel.errors import UsageError
from flywheel.tokens import Scope, Token, fresh, hash_of

DIRECTORY = "keys"
CLIENT, PAGE, OPERATE = "client", "page", "operate"
EVERYDAY: Mapping[str, tuple[Scope, ...]] = {CLIENT: ("act",), PAGE: ("read",), OPERATE: ("read", "operate")}
"""Tokens that a run has from its first start on, by name: each stands in a file, for whoever is on the machine."""
_RUN, _SIGNING, _PUBLIC, _COOKIES = "run.key", "signing.key", "signing.pub", "page.key"


@dataclass(frozen=True, slots=True)
class Keys:
    """What signs verdicts and draws actions; `signing` and `run` never leave the cluster."""

    signing: bytes
    """Ed25519 private key, 32 bytes."""
    public: bytes
    """Ed25519 public key, 32 bytes: clients may have it."""
    run: bytes
    """Key of the hash that turns an episode's id into its draw key, 32 bytes."""

    def __repr__(self) -> str:
        return f"Keys(public={self.public.hex()})"


def open_keys(run_dir: Path) -> Keys:
    """Return the keys of a run directory, made and written (0600) where they are missing.

    Raises UsageError when a key file is damaged.
    """
    directory = _directory(run_dir)
    signing = _secret(directory / _SIGNING, secrets.token_hex(32))
    public = Ed25519PrivateKey.from_private_bytes(_bytes(directory / _SIGNING, signing)).public_key().public_bytes_raw()
    _secret(directory / _PUBLIC, public.hex(), mode=0o644)
    return Keys(
        signing=_bytes(directory / _SIGNING, signing),
        public=public,
        run=_bytes(directory / _RUN, _secret(directory / _RUN, secrets.token_hex(32))),
    )


def cookie_key(run_dir: Path) -> bytes:
    """Return what the page's cookies are made with, made and written (0600) where it is missing."""
    return _secret(_directory(run_dir) / _COOKIES, fresh()).encode()


def token_file(run_dir: Path, name: str) -> Path:
    """Return the file of an everyday token."""
    return run_dir / DIRECTORY / f"{name}.token"


def keep_token(run_dir: Path, name: str, secret: str) -> str:
    """Return an everyday token: what stands in its file, which is written (0600) with `secret` where it is missing."""
    _directory(run_dir)
    return _secret(token_file(run_dir, name), secret)


def kept_tokens(run_dir: Path) -> tuple[Token, ...]:
    """Return the everyday tokens whose files are there."""
    found = []
    for name, scopes in EVERYDAY.items():
        path = token_file(run_dir, name)
        if path.exists() and (secret := path.read_text().strip()):
            found.append(Token(name=name, hash=hash_of(secret), scopes=scopes, made_at=path.stat().st_mtime))
    return tuple(found)


def _directory(run_dir: Path) -> Path:
    directory = run_dir / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _secret(path: Path, fresh: str, mode: int = 0o600) -> str:
    """Return the file's text; a missing file is first linked into place whole, so that no reader sees half a key."""
    if not path.exists():
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(fresh)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was first: its key counts
        finally:
            temporary.unlink()
    return path.read_text().strip()


def _bytes(path: Path, text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UsageError(
            f"The key file {path} is damaged: it should hold 64 hexadecimal digits. Put it back from a backup; without "
            "it this run's verdicts can't be proven, and a new run directory is needed."
        )
    return key
