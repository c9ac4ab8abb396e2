"""The registry's tables: each step of the schema makes an older file one that this version writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from flywheel.sqlite import has_table

_FIRST = """
CREATE TABLE meta (schema_version INTEGER NOT NULL, task TEXT NOT NULL);
CREATE TABLE artifacts (digest TEXT PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL);
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES artifacts, outcome TEXT NOT NULL, judged_at REAL NOT NULL,
    record TEXT NOT NULL);
CREATE INDEX verdicts_digest ON verdicts (digest, id);
CREATE TABLE releases (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES artifacts, stage TEXT NOT NULL, share REAL NOT NULL,
    previous TEXT, released_at REAL NOT NULL);
CREATE TABLE condemned (
    digest TEXT PRIMARY KEY REFERENCES artifacts, reason TEXT NOT NULL, condemned_at REAL NOT NULL);
CREATE TRIGGER released_means_judged BEFORE INSERT ON releases
WHEN (SELECT outcome FROM verdicts WHERE digest = NEW.digest ORDER BY id DESC LIMIT 1) IS NOT 'pass'
BEGIN SELECT RAISE(ABORT, 'no passing verdict'); END;
"""
_SCENARIOS = """
CREATE TABLE scenarios (name TEXT PRIMARY KEY, saved_at REAL NOT NULL, record TEXT NOT NULL);
"""
_BUDGET = """
CREATE TABLE budget (id INTEGER PRIMARY KEY, at REAL NOT NULL, digest TEXT, reason TEXT);
"""
_GROWTH = """
CREATE TABLE failures (
    episode TEXT NOT NULL, simulator TEXT NOT NULL, scenario TEXT NOT NULL, looked_at REAL NOT NULL,
    PRIMARY KEY (episode, simulator));
CREATE TABLE dropped (name TEXT NOT NULL, record TEXT NOT NULL);
"""
_TERMS = """
CREATE TABLE terms (id INTEGER PRIMARY KEY, at REAL NOT NULL, config TEXT NOT NULL, simulator TEXT NOT NULL);
"""
_TOKENS = """
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL, made_at REAL NOT NULL,
    revoked_at REAL, quota REAL);
CREATE UNIQUE INDEX tokens_name ON tokens (name) WHERE revoked_at IS NULL;
"""
_CANARIES = """
CREATE TABLE canaries (
    id INTEGER PRIMARY KEY, challenger TEXT NOT NULL REFERENCES artifacts, champion TEXT NOT NULL REFERENCES artifacts,
    state TEXT NOT NULL, begun_at REAL NOT NULL, record TEXT NOT NULL);
CREATE TRIGGER tried_means_judged BEFORE INSERT ON canaries
WHEN (SELECT outcome FROM verdicts WHERE digest = NEW.challenger ORDER BY id DESC LIMIT 1) IS NOT 'pass'
BEGIN SELECT RAISE(ABORT, 'no passing verdict'); END;
"""
_CONTROLS = """
CREATE TABLE controls (
    id INTEGER PRIMARY KEY, policy TEXT NOT NULL REFERENCES artifacts, champion TEXT NOT NULL REFERENCES artifacts,
    share REAL NOT NULL, begun_at REAL NOT NULL, settled_at REAL, ended_at REAL, reason TEXT NOT NULL);
CREATE UNIQUE INDEX controls_running ON controls ((1)) WHERE ended_at IS NULL;
CREATE TRIGGER controls_means_judged BEFORE INSERT ON controls
WHEN (SELECT outcome FROM verdicts WHERE digest = NEW.policy ORDER BY id DESC LIMIT 1) IS NOT 'pass'
OR NEW.policy IN (SELECT digest FROM condemned)
BEGIN SELECT RAISE(ABORT, 'no passing verdict, or condemned'); END;
"""
STEPS = (_FIRST, _SCENARIOS, _BUDGET, _TERMS, _GROWTH, _TOKENS, _CANARIES, _CONTROLS)
"""What each version added; the last one is VERSION."""
VERSION = len(STEPS)
"""Version of the registry's file; a reader takes all up to it."""


def migrate(db: sqlite3.Connection, task: str) -> None:
    """Give a registry the tables that it lacks, all of them if it is new; inside a transaction of the caller's.

    A file of a newer version is left as it is.
    """
    begun = has_table(db, "meta")
    (version,) = db.execute("SELECT schema_version FROM meta").fetchone() if begun else (0,)
    # executescript would commit first, so that half a schema could be left behind
    for step in STEPS[version:]:
        for statement in _statements(step):
            db.execute(statement)
    if not begun:
        db.execute("INSERT INTO meta VALUES (?, ?)", (VERSION, task))
    elif version < VERSION:
        db.execute("UPDATE meta SET schema_version = ?", (VERSION,))


def _statements(script: str) -> Iterator[str]:
    part = ""
    for piece in script.split(";"):
        part += piece + ";"
        if sqlite3.complete_statement(part):
            if part.strip() != ";":
                yield part
            part = ""
