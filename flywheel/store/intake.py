"""The durable log of episodes: one SQLite file, one process that writes it, any number that read."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flywheel import sqlite
from flywheel.errors import FlywheelError, UsageError
from flywheel.records import End, Episode, Origin, Reward
from flywheel.store import excluded, late, query, sealed, sealing
from flywheel.store.encode import Entry, content, decode, encode, is_alike
from flywheel.store.excluded import Exclusion
from flywheel.store.late import Changed, RewardAnswer
from flywheel.store.query import Wanted
from flywheel.store.schema import INSERT, SCHEMA
from flywheel.store.sealed import Sealed
from flywheel.store.sealer import Sealer

FILE = "store.sqlite"
Answer = Literal["stored", "same", "conflict"]
_WORST = ("same", "stored", "conflict")

_COLUMNS = 'id, started_at, ended_at, digest, "end", failed, total, num_steps, origin'
_WHOLE = "id, body, started_at, ended_at, failed"
_HOW = {"failed": "failed", "fine": "NOT failed AND \"end\" <> 'lost'", "lost": "\"end\" = 'lost'"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an episode came out: what the store knows of it without decoding its steps."""

    id: str
    started_at: float
    ended_at: float
    digest: str
    """Policy that gave its first action."""
    end: End
    failed: bool
    total: float
    num_steps: int
    origin: Origin = "production"


class Reader(sqlite.Reader):
    """Reads the episodes of a store."""

    what = "The store was"
    newest = sealing.FORMAT

    def __init__(self, connection: sqlite3.Connection, directory: Path) -> None:
        """Read a store through this connection, and the segments of its run directory."""
        super().__init__(connection)
        self._directory = directory / sealing.DIRECTORY
        self._sealed = Sealed(connection, self._directory)

    def read(self, ids: Sequence[str]) -> list[Episode]:
        """Return the episodes of these ids in their order; UsageError names one that the store does not hold."""
        query = f"SELECT {_WHOLE} FROM episodes WHERE id = ?"
        found = []
        for id_ in ids:
            row = self._connection.execute(query, (id_,)).fetchone()
            if row is None:
                raise UsageError(f"The store holds no episode {id_!r}: it was not acknowledged here, or was deleted.")
            found.append(self._episode(row))
        return found

    def _episode(self, row: tuple[Any, ...]) -> Episode:
        """Return an episode as it is known now, by its late rewards, too."""
        id_, body, started_at, ended_at, failed = row
        entry = None if body else self._sealed.entry(id_)
        episode = decode(entry.body if entry else body, started_at, ended_at)
        inclusion = entry.inclusion if entry else episode.inclusion
        if (episode.failed, episode.inclusion) != (bool(failed), inclusion):
            episode = dataclasses.replace(episode, failed=bool(failed), inclusion=inclusion)
        return late.join(self._connection, episode)

    def verify(self) -> list[str]:
        """Return a sentence for each thing that is not as it was written; all bytes are read."""
        from flywheel.store.verify import verify  # a slow import, for the few that need it

        return verify(self._connection, self._directory)

    def entry(self, id_: str) -> Entry:
        """Return an episode as it was told, with what is known beside it, for another file of episodes."""
        return sealed.entry(self._connection, self._sealed, id_)

    def where(self, condition: str, limit: int | None = None) -> list[str]:
        """Return the ids of the episodes for which `query.find`'s condition is true, newest first."""
        return query.find(self._connection, condition, limit)

    def _kept(self) -> str:
        """Return what is true, in SQL, of an episode whose steps are held."""
        return "segment IS NOT 0" if sealing.has_segments(self._connection) else "1"

    def kept(self, ids: Iterable[str]) -> list[str]:
        """Return those of the ids whose steps the store holds: an old episode may have its outcome alone."""
        query = f"SELECT 1 FROM episodes WHERE id = ? AND {self._kept()}"
        return [id_ for id_ in ids if self._connection.execute(query, (id_,)).fetchone()]

    def recent(
        self,
        n: int,
        since: str | None = None,
        digest: str | None = None,
        origin: Origin | None = "production",
        learnable: bool = False,
        readable: bool = False,
    ) -> list[Episode]:
        """Return the n episodes that started last, of those whose steps are kept, in order of start.

        Of a thinned time fewer: an even sample, with no larger a share of those that failed than of the others. `since`
        leaves out those that started before that episode (UsageError when the store does not hold it), `digest` those
        whose first action another policy gave, `origin` (None reads all) those made elsewhere, `learnable` those that
        are excluded from training, `readable` damaged ones, which raise FlywheelError otherwise.
        """
        where, values = self._where(digest, origin)
        if learnable and self.excluded():
            where = f"{where} AND {excluded.LEARNABLE}"
        if since is not None:
            start = self._connection.execute("SELECT started_at, id FROM episodes WHERE id = ?", (since,)).fetchone()
            if start is None:
                raise UsageError(f"The store holds no episode {since!r} to read from: name one that it holds.")
            where, values = f"{where} AND (started_at, id) >= (?, ?)", [*values, *start]
        rows = self._connection.execute(
            f"SELECT {_WHOLE} FROM episodes WHERE {where} AND {self._kept()} ORDER BY started_at DESC, id DESC LIMIT ?",
            [*values, n],
        ).fetchall()
        return self._even([row for row in reversed(rows) if not readable or row[1] or self._sealed.told(row[0])])

    def following(self, digest: str, started_at: float, id_: str = "", n: int = 500) -> list[Episode]:
        """Return a page of a digest's production episodes: the next n after (started_at, id) in order of start.

        Those whose steps are kept no more are left out; of a thinned time there is an even sample, as in `recent`.
        """
        rows = self._connection.execute(
            f"SELECT {_WHOLE} FROM episodes WHERE digest = ? AND origin = 'production' "
            f"AND (started_at, id) > (?, ?) AND {self._kept()} ORDER BY started_at, id LIMIT ?",
            (digest, started_at, id_, n),
        ).fetchall()
        return self._even(rows)

    def _even(self, rows: Iterable[tuple[Any, ...]]) -> list[Episode]:
        return [self._episode(row) for row in rows if row[1] or self._sealed.is_even(row[0])]

    def again(self, digest: str, started_at: float, id_: str = "", n: int = 500) -> list[Episode | Outcome]:
        """Return a page of a digest's production as `following`, with nobody left out.

        An Outcome stands for an episode that is kept no more, or is damaged; and for those of a thinned time that are
        kept because they failed: what is left as Episodes is an even sample.
        """
        found = list[Episode | Outcome]()
        for row in self.settled([digest], (started_at, id_), (math.inf, ""), n):
            try:
                found += self.read([row.id]) if self._sealed.is_even(row.id) else [row]
            except FlywheelError:
                found.append(row)
        return found

    def holds(self, id_: str) -> bool:
        """Say whether the store holds an episode of this id."""
        return self._connection.execute("SELECT 1 FROM episodes WHERE id = ?", (id_,)).fetchone() is not None

    def whole(self, ids: Iterable[str]) -> list[str]:
        """Return those of the ids that the store holds as whole episodes."""
        query = "SELECT 1 FROM episodes WHERE id = ? AND \"end\" <> 'lost'"
        return [id_ for id_ in ids if self._connection.execute(query, (id_,)).fetchone()]

    def ended(self, since: float) -> list[str]:
        """Return the ids of production's episodes that ended after a time and are kept, in order of start."""
        rows = self._connection.execute(
            f"SELECT id FROM episodes WHERE origin = 'production' AND ended_at > ? AND {self._kept()} "
            "ORDER BY started_at, id",
            (since,),
        )
        return [id_ for (id_,) in rows]

    def ids(self, digest: str | None = None, origin: Origin | None = None) -> list[str]:
        """Return the ids of the episodes in order of start."""
        where, values = self._where(digest, origin)
        rows = self._connection.execute(f"SELECT id FROM episodes WHERE {where} ORDER BY started_at, id", values)
        return [id_ for (id_,) in rows]

    def count(self, digest: str | None = None, origin: Origin | None = None) -> int:
        """Return the number of episodes."""
        where, values = self._where(digest, origin)
        (count,) = self._connection.execute(f"SELECT count(*) FROM episodes WHERE {where}", values).fetchone()
        return int(count)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return by digest the production's numbers of episodes, of failed and of lost ones, and the sum of returns."""
        rows = self._connection.execute(
            "SELECT digest, count(*), sum(failed), sum(\"end\" = 'lost'), sum(total) FROM episodes "
            "WHERE origin = 'production' GROUP BY digest"
        )
        return {row[0]: dict(zip(("episodes", "failed", "lost", "total"), row[1:], strict=True)) for row in rows}

    def outcomes(self, origin: Origin | None = None, last: int = -1) -> list[Outcome]:
        """Return how the episodes came out, in order of start, of all or of the `last` so many; no steps are read."""
        where, values = self._where(None, origin)
        order = "ORDER BY started_at DESC, id DESC LIMIT ?"
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM episodes WHERE {where} {order}", [*values, last])
        return [_outcome(row) for row in rows][::-1]

    def came_out(self, ids: Iterable[str]) -> list[Outcome]:
        """Return how the episodes of these ids came out, in their order."""
        query = f"SELECT {_COLUMNS} FROM episodes WHERE id = ?"
        return [_outcome(row) for id_ in ids for row in self._connection.execute(query, (id_,))]

    def settled(
        self, digests: Sequence[str], after: tuple[float, str], until: tuple[float, str], n: int = 2000
    ) -> list[Outcome]:
        """Return the next n outcomes of production with these policies between two (start, id), in order of start."""
        marks = ", ".join("?" * len(digests))
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM episodes WHERE origin = 'production' AND digest IN ({marks}) "
            "AND (started_at, id) > (?, ?) AND (started_at, id) < (?, ?) ORDER BY started_at, id LIMIT ?",
            [*digests, *after, *until, n],
        )
        return [_outcome(row) for row in rows]

    def page(self, wanted: Wanted) -> list[Outcome]:
        """Return a page of a list of outcomes; one index holds all that it reads, and no episode's steps are read."""
        # a plus keeps SQLite from the index on digest, which lacks the other columns
        arrow, order = ("<", "DESC") if wanted.descending else (">", "ASC")
        parts: dict[str, list[float | str]] = {
            "origin = ?": [wanted.origin],
            "+digest = ?": [wanted.digest] if wanted.digest else [],
            "id >= ? AND id < ?": [wanted.begins, wanted.begins + chr(0x10FFFF)] if wanted.begins else [],
            "started_at >= ?": [] if wanted.since is None else [wanted.since],
            "started_at < ?": [] if wanted.until is None else [wanted.until],
            f"({wanted.by}, id) {arrow} (?, ?)": [] if wanted.after is None else [*wanted.after],
        }
        where = [text for text, values in parts.items() if values] + ([_HOW[wanted.how]] if wanted.how else [])
        where += [self._kept()] if wanted.with_steps else []
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM episodes WHERE {' AND '.join(where)} "
            f"ORDER BY {wanted.by} {order}, id {order} LIMIT ?",
            [*(value for values in parts.values() for value in values), wanted.limit],
        )
        return [_outcome(row) for row in rows]

    def version(self) -> int:
        """Return a number that changes whenever another connection has changed the store."""
        (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(number)

    def conflicts(self) -> list[str]:
        """Return the ids that came a second time with other content; that content is in quarantine."""
        return [id_ for (id_,) in self._connection.execute("SELECT DISTINCT id FROM quarantine ORDER BY id")]

    def noted(self, name: str) -> str | None:
        """Return the text last noted under a name, None if there is none."""
        row = self._connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def exclusions(self) -> list[Exclusion]:
        """Return all that is or was excluded from training, oldest first."""
        return excluded.history(self._connection)

    def excluded(self) -> dict[tuple[str, str], str]:
        """Return what is excluded from training now: (kind, name) → why."""
        return excluded.present(self._connection)

    @staticmethod
    def _where(digest: str | None, origin: Origin | None) -> tuple[str, list[str | float]]:
        wanted = {"digest": digest, "origin": origin}
        named = {name: value for name, value in wanted.items() if value is not None}
        return " AND ".join(f"{name} = ?" for name in named) or "1", list(named.values())


class Intake(Reader):
    """The one writer of a run directory's store; whatever a method returned is on the disk."""

    def __init__(self, run_dir: str | Path) -> None:
        """Open (or make) the store; UsageError when another process writes it."""
        directory = Path(run_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._files = (directory / FILE, directory / f"{FILE}-wal")
        refusal = f"The store in {directory} has a writer already: end that run first, or open it with open_readonly."
        super().__init__(sqlite.owned(directory / FILE, sealing.made_with(SCHEMA), refusal), directory)
        self.sealer = Sealer(self._connection, self._directory)

    @property
    def num_bytes(self) -> int:
        """Size of the store's files."""
        files = sum(path.stat().st_size for path in self._files if path.exists())
        return files + sealing.num_sealed_bytes(self._connection)

    def append(self, episodes: Sequence[Episode]) -> dict[str, Answer]:
        """Make the episodes durable in one commit and return what became of each id.

        "stored" is new, "same" was held already with equal content (log probabilities within 1e-5, since another kind
        of CPU may have computed them). A "conflict" was held with other content, stays as it was, and the newcomer goes
        to quarantine. A lost episode gives way to the whole one, never the reverse.
        """
        answers: dict[str, Answer] = {}
        with sqlite.transaction(self._connection):
            for episode in episodes:
                answer = self._put(episode)
                answers[episode.id] = max(answer, answers.get(episode.id, answer), key=_WORST.index)
        return answers

    def reward(
        self, rewards: Sequence[Reward], told: Sequence[float | None]
    ) -> tuple[list[RewardAnswer], list[Changed]]:
        """Make late rewards durable in one commit; return what became of each, and the stored episodes they are of.

        "stored" is new, "same" was known already. A "conflict" was known otherwise, stays as it was, and the newcomer
        is set aside. `told` says of steps of open episodes, which aren't stored, what reward came with them, NaN where
        none did; where that is None, and no stored episode has the step, it is "unknown".
        """
        held: dict[str, tuple[Episode, float] | None] = {}
        answers = list[RewardAnswer]()
        with sqlite.transaction(self._connection):
            for reward, open_told in zip(rewards, told, strict=True):
                if reward.episode not in held:
                    held[reward.episode] = self._held(reward.episode)
                found = held[reward.episode]
                is_stored = found is not None and reward.t < found[0].num_steps
                known = float(found[0].rewards[reward.t]) if found is not None and is_stored else open_told
                answers.append(late.keep(self._connection, reward, known))
            changed = [Changed(self.read([each.id])[0], total) for each, total in filter(None, held.values())]
            for each in changed:
                self._connection.execute(
                    "UPDATE episodes SET total = ? WHERE id = ?", (each.episode.total, each.episode.id)
                )
        return answers, changed

    def _held(self, id_: str) -> tuple[Episode, float] | None:
        """Return a stored episode as it was told, and its return as it is known now; None where its steps are gone."""
        query = "SELECT body, started_at, ended_at, total FROM episodes WHERE id = ?"
        row = self._connection.execute(query, (id_,)).fetchone()
        body = b"" if row is None else row[0] or self._sealed.told(id_)
        return (decode(body, *row[1:3]), row[3]) if body else None

    def judge(self, failed: Mapping[str, bool]) -> None:
        """Say of stored episodes, by id, whether they failed as their late rewards show them."""
        with sqlite.transaction(self._connection):
            for id_, has_failed in failed.items():
                self._connection.execute("UPDATE episodes SET failed = ? WHERE id = ?", (int(has_failed), id_))

    def note(self, name: str, value: str) -> None:
        """Keep a text durably under a name, in place of an earlier one."""
        self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def exclude(self, what: str, why: str, now: float) -> Exclusion:
        """As `excluded.exclude`."""
        return excluded.exclude(self._connection, what, why, now)

    def readmit(self, what: str, now: float) -> Exclusion:
        """As `excluded.readmit`."""
        return excluded.readmit(self._connection, what, now)

    def _put(self, episode: Episode) -> Answer:
        body = encode(episode)
        mark = content(body)
        query = 'SELECT content, "end", body FROM episodes WHERE id = ?'
        held = self._connection.execute(query, (episode.id,)).fetchone()
        if held is not None:
            if held[0] == mark or (episode.end == "lost" and held[1] != "lost"):
                return "same"
            if held[1] != "lost" or episode.end == "lost":
                told = held[2] or self._sealed.told(episode.id)
                if told and is_alike(told, body):
                    return "same"
                self._connection.execute(
                    "INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?, ?)",
                    (episode.id, mark, episode.started_at, episode.ended_at, body),
                )
                return "conflict"
        first, total = episode.digests[0] if episode.digests else "", late.settle(self._connection, episode)
        self._connection.execute(
            INSERT,
            (episode.id, mark, episode.origin, episode.task, first, episode.end, int(episode.failed), episode.num_steps,
             total, episode.started_at, episode.ended_at, body),
        )  # fmt: skip
        return "stored"


def _outcome(row: tuple[Any, ...]) -> Outcome:
    return Outcome(*(*row[:5], bool(row[5]), *row[6:]))


def open_readonly(path: str | Path) -> Reader:
    """Return a Reader of a store file (or of the run directory it is in) that can't change it.

    It may be open while its owner writes; each call sees what was committed before it. A store whose owner was killed
    before it had made the tables is an empty one. UsageError without a store.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.exists():
        raise UsageError(f"There is no store at {file}: name a run directory that holds {FILE}.")
    return Reader(sqlite.reading_or_empty(file, SCHEMA), file.parent)
