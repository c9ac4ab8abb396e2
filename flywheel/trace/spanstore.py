"""The embedded store of spans: one SQLite file, one process that writes it, any number that read.

What goes when there are too many, the oldest first: spans that were kept by chance; then those of failed and lost
episodes; then those around a signal; then those of the loop's turns. A view may forget: the episodes themselves are
in the replay store.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from flywheel import sqlite
from flywheel.errors import UsageError
from flywheel.records import SCHEMA_VERSION
from flywheel.trace.context import STEP, TURN, trace_of
from flywheel.trace.row import Metric, Row, Source, Value, Why, packed, unpacked

FILE = "traces.sqlite"
SPOOL = "spans"
"""Directory where spans wait for the owner of the file."""
SLACK = 0.05
"""Share of all spans that goes at once when there are too many."""
log = logging.getLogger(__name__)
_WHY: tuple[Why, ...] = get_args(Why)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (schema_version INTEGER NOT NULL);
INSERT INTO meta SELECT {SCHEMA_VERSION} WHERE NOT EXISTS (SELECT 1 FROM meta);
CREATE TABLE IF NOT EXISTS spans (
    seq INTEGER PRIMARY KEY, trace BLOB NOT NULL, id BLOB NOT NULL, source TEXT NOT NULL, parent BLOB NOT NULL,
    name TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL NOT NULL, turn INTEGER, body BLOB NOT NULL,
    UNIQUE (trace, id, source)) STRICT;
CREATE INDEX IF NOT EXISTS by_name ON spans (name);
CREATE INDEX IF NOT EXISTS by_turn ON spans (turn) WHERE turn IS NOT NULL;
CREATE TABLE IF NOT EXISTS links (
    seq INTEGER NOT NULL REFERENCES spans ON DELETE CASCADE, trace BLOB NOT NULL, id BLOB NOT NULL,
    PRIMARY KEY (seq, trace, id)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_linked ON links (trace);
CREATE TABLE IF NOT EXISTS kept (seq INTEGER PRIMARY KEY, trace BLOB NOT NULL UNIQUE, why INTEGER NOT NULL) STRICT;
"""
_COLUMNS = "seq, trace, id, source, parent, name, started_at, ended_at, body"


class _Body(msgspec.Struct, array_like=True, gc=False):
    attributes: dict[str, Value]
    metrics: tuple[Metric, ...]
    error: str


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A span as it is read: `depth` spans are above it in what it was read with."""

    trace: str
    id: str
    parent: str
    depth: int
    name: str
    source: Source
    started_at: float
    ended_at: float
    attributes: dict[str, Value]
    metrics: tuple[Metric, ...]
    links: tuple[tuple[str, str], ...]
    error: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at


class SpanReader(sqlite.Reader):
    """Reads the spans of a run directory: a span before those under it, which are in order of their beginning."""

    what = "The traces were"

    def of_trace(self, trace: str) -> list[Stored]:
        """Return the spans of a trace (32 hexadecimal digits; UsageError for anything else)."""
        return self._read("trace = ?", (_bytes(trace),))

    def of_episode(self, episode: str) -> list[Stored]:
        """Return the spans of an episode, and behind them those of other traces that were linked to it."""
        trace = bytes.fromhex(trace_of(episode))
        linked = "seq IN (SELECT seq FROM links WHERE trace = ?)"
        return self._read("trace = ?", (trace,)) + self._read(f"trace <> ? AND {linked}", (trace, trace))

    def of_step(self, episode: str, t: int) -> list[Stored]:
        """Return the spans of one step of an episode."""
        return [span for span in self.of_trace(trace_of(episode)) if span.attributes.get(STEP) == t]

    def of_turn(self, number: int) -> list[Stored]:
        """Return the spans of one turn of the wheel: its stages, and the iterations of its training."""
        return self._read("turn = ?", (number,))

    def named(self, name: str, n: int = 100) -> list[Stored]:
        """Return the last n spans of a name that were stored, in order of their beginning."""
        last = "SELECT seq FROM spans WHERE name = ? ORDER BY seq DESC LIMIT ?"
        return self._read(f"seq IN ({last})", (name, n))

    def why(self, trace: str) -> Why:
        """Return why a trace is kept beyond its time, "" if it isn't."""
        row = self._connection.execute("SELECT why FROM kept WHERE trace = ?", (_bytes(trace),)).fetchone()
        return _WHY[row[0]] if row else ""

    def count(self) -> int:
        """Return the number of spans."""
        (count,) = self._connection.execute("SELECT count(*) FROM spans").fetchone()
        return int(count)

    def _read(self, where: str, values: Sequence[object]) -> list[Stored]:
        query = f"SELECT {_COLUMNS} FROM spans WHERE {where} ORDER BY started_at, seq"
        return _in_order([self._stored(*row) for row in self._connection.execute(query, values).fetchall()])

    def _stored(
        self, seq: int, trace: bytes, id_: bytes, source: Source, parent: bytes, name: str,
        started_at: float, ended_at: float, body: bytes,
    ) -> Stored:  # fmt: skip
        found = _DECODER.decode(body)
        links = self._connection.execute("SELECT trace, id FROM links WHERE seq = ?", (seq,)).fetchall()
        return Stored(
            trace=trace.hex(), id=id_.hex(), parent=parent.hex(), depth=0, name=name, source=source,
            started_at=started_at, ended_at=ended_at, attributes=found.attributes, metrics=found.metrics,
            links=tuple((to.hex(), span.hex()) for to, span in links), error=found.error,
        )  # fmt: skip


def _in_order(spans: Sequence[Stored]) -> list[Stored]:
    """Return spans in order of beginning with those under each behind it; one whose parent isn't there stands alone."""
    under: dict[tuple[str, str], list[Stored]] = {}
    known = {(span.trace, span.id) for span in spans}
    roots = []
    for span in spans:
        parent = (span.trace, span.parent)
        if parent in known and span.parent != span.id:
            under.setdefault(parent, []).append(span)
        else:
            roots.append(span)
    found: list[Stored] = []
    waiting = [(span, 0) for span in reversed(roots)]
    while waiting:
        span, depth = waiting.pop()
        found.append(_at(span, depth))
        waiting += [(child, depth + 1) for child in reversed(under.pop((span.trace, span.id), []))]
    return found + [_at(span, 0) for circle in under.values() for span in circle]


def _at(span: Stored, depth: int) -> Stored:
    return span if depth == span.depth else dataclasses.replace(span, depth=depth)


class SpanStore(SpanReader):
    """The one writer of a run directory's spans; whatever a method returned is on the disk."""

    def __init__(self, run_dir: str | Path, max_spans: int, wait_s: float = 0.0) -> None:
        """Open (or make) the file, and take in what waits for its owner.

        Raises UsageError when another process still writes it after `wait_s` seconds: programs write their own spans
        for some milliseconds each time where nobody owns the file, and a run's owner keeps it.
        """
        self._run_dir, self._max_spans = Path(run_dir), max_spans
        self._run_dir.mkdir(parents=True, exist_ok=True)
        refusal = f"The spans in {run_dir} have a writer already: end that run first, or open them with open_readonly."
        super().__init__(sqlite.owned(self._run_dir / FILE, sqlite.tables(_SCHEMA), refusal, wait_s))
        self._num_spans = super().count()
        self.collect()

    def count(self) -> int:
        """As SpanReader, without looking."""
        return self._num_spans

    def append(self, rows: Sequence[Row]) -> None:
        """Make spans durable in one commit; those that are there already change nothing, so that one may ask again."""
        if not rows:
            return
        with sqlite.transaction(self._connection):
            added = sum(self._put(row) for row in rows)
            gone = self._make_room(self._num_spans + added)
        self._num_spans += added - gone

    def collect(self) -> int:
        """Take in what programs left for the owner, and return how many spans that was."""
        found = 0
        for path in sorted((self._run_dir / SPOOL).glob("*.spans")):
            try:
                rows = unpacked(path.read_bytes())
            except msgspec.DecodeError as error:  # nobody can read it, now or later
                log.warning("The spans in %s are lost: %s", path, error)
                rows = []
            self.append(rows)
            path.unlink()
            found += len(rows)
        return found

    def _put(self, row: Row) -> int:
        trace = bytes.fromhex(row.trace)
        turn = row.attributes.get(TURN)
        body = _ENCODER.encode(_Body(row.attributes, row.metrics, row.error))
        added = self._connection.execute(
            "INSERT OR IGNORE INTO spans VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (trace, bytes.fromhex(row.id), row.source, bytes.fromhex(row.parent), row.name, row.started_at,
             row.ended_at, turn if isinstance(turn, int) else None, body),
        )  # fmt: skip
        if added.rowcount and row.links:
            links = {(added.lastrowid, bytes.fromhex(to), bytes.fromhex(span)) for to, span in row.links}
            self._connection.executemany("INSERT INTO links VALUES (?, ?, ?)", links)
        if row.why:
            self._connection.execute(
                "INSERT INTO kept VALUES (NULL, ?, ?) ON CONFLICT (trace) DO UPDATE SET why = max(why, excluded.why)",
                (trace, _WHY.index(row.why)),
            )
        return added.rowcount

    def _make_room(self, num_spans: int) -> int:
        """Delete the oldest of what may go first until there are few enough, and return how many went."""
        wanted = 0 if num_spans <= self._max_spans else num_spans - int(self._max_spans * (1 - SLACK))
        gone = 0
        for why, _ in enumerate(_WHY):
            if gone >= wanted:
                break
            of_it = "coalesce((SELECT why FROM kept WHERE kept.trace = spans.trace), 0) = ?"
            oldest = f"SELECT seq FROM spans WHERE {of_it} ORDER BY seq LIMIT ?"
            sql = f"DELETE FROM spans WHERE seq IN ({oldest})"
            gone += self._connection.execute(sql, (why, wanted - gone)).rowcount
        if gone:
            self._connection.execute("DELETE FROM kept WHERE trace NOT IN (SELECT trace FROM spans)")
        return gone


def leave(run_dir: Path, rows: Sequence[Row], name: str) -> None:
    """Leave spans in a run directory, whole, for its owner, who takes them in within seconds."""
    directory = run_dir / SPOOL
    directory.mkdir(exist_ok=True)
    temporary = directory / f".{name}.new"
    temporary.write_bytes(packed(rows))
    temporary.replace(directory / f"{name}.spans")


def open_readonly(path: str | Path) -> SpanReader:
    """Return a reader of a run directory's spans that can't change them; there may be none yet.

    It may be open while their owner writes; each call sees what was committed before it.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    return SpanReader(sqlite.reading_or_empty(file, _SCHEMA))


def _bytes(trace: str) -> bytes:
    try:
        return bytes.fromhex(trace)
    except ValueError as error:
        raise UsageError(f"{trace!r} is no trace: give its 32 hexadecimal digits.") from error
