"""The tables of a store's log, and how an episode gets into them."""

from __future__ import annotations

from flywheel.records import SCHEMA_VERSION
from flywheel.store import excluded, late

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (schema_version INTEGER NOT NULL);
INSERT INTO meta SELECT {SCHEMA_VERSION} WHERE NOT EXISTS (SELECT 1 FROM meta);
CREATE TABLE IF NOT EXISTS episodes (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content BLOB NOT NULL, origin TEXT NOT NULL, task TEXT NOT NULL,
    digest TEXT NOT NULL, "end" TEXT NOT NULL, failed INTEGER NOT NULL, num_steps INTEGER NOT NULL, total REAL NOT NULL,
    started_at REAL NOT NULL, ended_at REAL NOT NULL, body BLOB NOT NULL) STRICT;
DROP INDEX IF EXISTS by_start;
CREATE INDEX IF NOT EXISTS by_outcome ON episodes (
    origin, started_at, id, ended_at, digest, "end", failed, total, num_steps);
CREATE INDEX IF NOT EXISTS by_digest ON episodes (digest, started_at, id);
CREATE TABLE IF NOT EXISTS quarantine (
    id TEXT NOT NULL, content BLOB NOT NULL, started_at REAL NOT NULL, ended_at REAL NOT NULL, body BLOB NOT NULL,
    UNIQUE (id, content)) STRICT;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
{late.SCHEMA}{excluded.SCHEMA}"""
INSERT = """
INSERT INTO episodes (id, content, origin, task, digest, "end", failed, num_steps, total, started_at, ended_at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET content = excluded.content, digest = excluded.digest, "end" = excluded."end",
    failed = excluded.failed, num_steps = excluded.num_steps, total = excluded.total,
    started_at = excluded.started_at, ended_at = excluded.ended_at, body = excluded.body, segment = NULL
"""
