"""Joins answers with verdicts by a run's files alone: sqlite3, json, sha256 and Ed25519, and nothing of Flywheel's."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from experiments.serve_callers import Answers


def proven(run_dir: Path) -> dict[str, float]:
    """Return since when each digest has a passing verdict that the run's own key signed, by the file alone."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex((run_dir / "keys" / "signing.pub").read_text().strip()))
    found: dict[str, float] = {}
    with closing(sqlite3.connect(f"file:{run_dir / 'registry.sqlite'}?mode=ro", uri=True)) as db:
        (task,) = db.execute("SELECT task FROM meta").fetchone()
        for digest, text in db.execute("SELECT digest, record FROM verdicts ORDER BY id"):
            verdict = json.loads(text)
            signature = verdict["signature"]
            try:  # it covers the text as it is, but for itself
                public.verify(bytes.fromhex(signature), text.replace(f'"{signature}"', '""').encode())
            except InvalidSignature:
                continue
            manifest = (run_dir / "policies" / digest / "manifest.json").read_bytes()
            is_its = verdict["digest"] == digest == hashlib.sha256(manifest).hexdigest() and verdict["task"] == task
            if is_its and verdict["outcome"] == "pass":
                found.setdefault(digest, verdict["judged_at"])
    return found


def unproven(answers: Answers, since: dict[str, float]) -> int:
    """Return how many answers are of a policy that had no passing verdict when they were given."""
    begun = np.array([since.get(digest, np.inf) for digest in answers.digests])
    return int((answers.at < begun[answers.digest]).sum())
