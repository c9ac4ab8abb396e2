"""The registry: artifacts, verdicts and who is in service, in one SQLite file with one writer.

Nothing is put into service unless its verdict passed: checked here, and again by a trigger in the file itself.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from flywheel import sqlite, verdicts
from flywheel.config import canonical
from flywheel.deploy import schema
from flywheel.deploy.admission import Admission
from flywheel.deploy.challenges import Challenges
from flywheel.deploy.keys import Keys, open_keys
from flywheel.deploy.tokens import Tokens
from flywheel.errors import Refused, UsageError
from flywheel.policy import Bundle, Files, bundle, read_artifact, read_files, write_files
from flywheel.records import Artifact, Release, Verdict
from flywheel.verdicts import check_verdict

FILE = "registry.sqlite"
POLICIES = "policies"


class Registry(Challenges, Tokens):
    """Owns `registry.sqlite` and the run's keys; every change is durable when its method returns.

    One process holds one of these; others open the file read-only.
    """

    def __init__(self, run_dir: Path, task: str) -> None:
        """Open the registry of a run directory, made where it is missing. `task` is the task's digest.

        Raises UsageError when the registry is another task's or was written by a newer version.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.task = task
        refusal = (
            f"The registry in {run_dir} has a writer already: talk to the wheel that is up there, or end it first "
            "(Ctrl-C; on a cluster `flywheel down`)."
        )
        self.keys: Keys
        self._rewards: dict[str, Any] = {}
        self._db = sqlite.owned(run_dir / FILE, self._make, refusal)

    def _make(self, db: sqlite3.Connection) -> None:
        with sqlite.transaction(db):
            schema.migrate(db, self.task)
        task = _check_version(db, self.run_dir)
        if task != self.task:
            raise UsageError(
                f"The registry in {self.run_dir} belongs to another task (digest {task[:12]}, not {self.task[:12]}): "
                "its verdicts mean nothing here. Give another --run-dir."
            )
        self.keys = open_keys(self.run_dir)
        with sqlite.transaction(db):
            self._enroll(db)

    def close(self) -> None:
        """Close the file; every change was durable already."""
        self._db.close()

    # Artifacts and verdicts

    def add(self, artifact: Artifact) -> None:
        """Register an artifact after hashing its files; one that is registered already is left alone.

        Raises Refused when a file doesn't have the sha256 that the manifest states.
        """
        found = read_artifact(Path(artifact.uri))
        if found.digest != artifact.digest:
            raise Refused(f"{artifact.uri} holds policy {found.digest[:12]}, not {artifact.digest[:12]}.")
        self._db.execute(
            "INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?)",
            (artifact.digest, artifact.version, canonical(dataclasses.asdict(self._relative(artifact)))),
        )

    def write(self, digest: str, files: Files) -> Artifact:
        """Write a new policy's files to the run directory, register it and return its Artifact.

        Raises Refused, writing nothing, when a file doesn't have the sha256 that the manifest states.
        """
        artifact = write_files(self.run_dir / POLICIES, digest, files)
        self.add(artifact)
        return artifact

    def bundle(self, digest: str) -> Bundle:
        """Return a registered artifact with the files that acting needs, each hashed again."""
        return bundle(self.artifact(digest))

    def files(self, digest: str) -> Files:
        """Return all files of a registered artifact."""
        return read_files(Path(self.artifact(digest).uri))

    def _relative(self, artifact: Artifact) -> Artifact:
        path, run_dir = Path(artifact.uri).resolve(), self.run_dir.resolve()
        uri = path.relative_to(run_dir) if path.is_relative_to(run_dir) else path
        return dataclasses.replace(artifact, uri=str(uri))

    def artifact(self, digest: str) -> Artifact:
        """Return a registered artifact, its uri absolute; raise Refused if there is none of this digest."""
        row = self._db.execute("SELECT record FROM artifacts WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise Refused(f"The registry knows no policy {digest[:12]}: add its artifact first.")
        artifact = msgspec.convert(json.loads(row[0]), Artifact)
        return dataclasses.replace(artifact, uri=str(self.run_dir.resolve() / artifact.uri))

    def artifacts(self) -> list[Artifact]:
        """Return every registered artifact, oldest version first."""
        rows = self._db.execute("SELECT digest FROM artifacts ORDER BY version, digest").fetchall()
        return [self.artifact(digest) for (digest,) in rows]

    def next_version(self) -> int:
        """Return the version of the next artifact: one more than the highest, 1 for the first."""
        (highest,) = self._db.execute("SELECT max(version) FROM artifacts").fetchone()
        return int(highest or 0) + 1

    def record(self, verdict: Verdict) -> Verdict:
        """Sign and keep a verdict, whatever its outcome; return the signed one. The newest of a digest counts."""
        self.artifact(verdict.digest)
        signed = verdicts.sign(verdict, self.keys.signing)
        self._db.execute(
            "INSERT INTO verdicts (digest, outcome, judged_at, record) VALUES (?, ?, ?, ?)",
            (signed.digest, signed.outcome, signed.judged_at, verdicts.encode(signed)),
        )
        return signed

    def verdict(self, digest: str) -> Verdict | None:
        """Return the newest verdict on a digest, signed, or None."""
        row = self._db.execute(
            "SELECT record FROM verdicts WHERE digest = ? ORDER BY id DESC LIMIT 1", (digest,)
        ).fetchone()
        return verdicts.decode(row[0]) if row else None

    def verdicts(self, digest: str | None = None, last: int = -1) -> list[Verdict]:
        """Return every verdict (on a digest), or the `last` so many, signed, oldest first."""
        query = "SELECT record FROM verdicts WHERE digest = ifnull(?, digest) ORDER BY id DESC LIMIT ?"
        return [verdicts.decode(text) for (text,) in self._db.execute(query, (digest, last))][::-1]

    # The gate's error budget

    def spend(self, digest: str, now: float) -> int:
        """Note that a candidate is about to be judged; return how many were since the budget was last filled."""
        with sqlite.transaction(self._db):
            tries = self.tries()
            self._db.execute("INSERT INTO budget (at, digest) VALUES (?, ?)", (now, digest))
        return tries

    def refill(self, reason: str, now: float) -> None:
        """Fill the budget, for a reason that is kept; UsageError without one."""
        if not reason.strip():
            raise UsageError("The gate's budget is filled for a reason, which is kept: give one.")
        self._db.execute("INSERT INTO budget (at, reason) VALUES (?, ?)", (now, reason))

    def budget(self) -> list[tuple[float, str | None, str | None]]:
        """Return when a candidate spent of the budget (its digest), or it was filled (the reason), oldest first."""
        if not sqlite.has_table(self._db, "budget"):
            return []
        return list(self._db.execute("SELECT at, digest, reason FROM budget ORDER BY id"))

    def tries(self) -> int:
        """Return how many candidates were judged since the budget was last filled; 0 in a file from before it."""
        if not sqlite.has_table(self._db, "budget"):
            return 0
        last = "(SELECT ifnull(max(id), 0) FROM budget WHERE digest IS NULL)"
        return int(self._db.execute(f"SELECT count(*) FROM budget WHERE id > {last}").fetchone()[0])

    # What verdicts must have been made by

    def set_terms(self, config: str, simulator: str, now: float) -> None:
        """Let only verdicts by this gate's configuration and simulator (both digests) allow a promotion from now on.

        A rollback asks for none: what was promoted once was judged by the terms of its time.
        """
        if self._terms() != (config, simulator):
            self._db.execute("INSERT INTO terms (at, config, simulator) VALUES (?, ?, ?)", (now, config, simulator))

    def _terms(self) -> tuple[str, str] | None:
        found: tuple[str, str] | None = self._db.execute(
            "SELECT config, simulator FROM terms ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return found

    # Who is in service

    def promote(self, digest: str, now: float, control_share: float = 0.0) -> Release:
        """Put a digest into service and return its Release; the digest in service already keeps its own.

        `control_share` of new episodes stays on the one before it, for a release that answers no alarm.
        Raises Refused, changing nothing, unless the digest's newest verdict is signed, passed, valid at `now`, about
        this digest and this task, made by the present terms and against the policy in service, and the digest was
        never condemned.
        """
        with sqlite.transaction(self._db):
            present = self._present()
            if present is not None and present.digest == digest:
                return present
            self.check_promotable(digest, now)
            self.end_canary(digest, now)
            release = self._release(digest, now)
            self._begin_control(release, control_share)
            return release

    def check_promotable(self, digest: str, now: float) -> None:
        """Return when a digest may be put into service at `now`; raise Refused, as `promote`, otherwise."""
        self.artifact(digest)
        champion, verdict = self.champion(), self.verdict(digest)
        if verdict is None:
            raise Refused(f"Policy {digest[:12]} was never judged, so it can't be served: let the gate judge it.")
        check_verdict(verdict, digest, self.task, self.keys.public)
        if not verdict.judged_at <= now <= verdict.valid_until:
            raise Refused(
                f"The verdict on policy {digest[:12]} is not valid now (it was for {verdict.judged_at:.0f} to "
                f"{verdict.valid_until:.0f}, now is {now:.0f}): let the gate judge it again."
            )
        self._refuse_condemned(digest)
        self._refuse_other_terms(verdict)
        if verdict.baseline != champion:
            raise Refused(
                f"Policy {digest[:12]} was not judged against the policy that is in service now "
                f"({champion[:12] if champion else 'none'}): let the gate judge it again."
            )

    def rollback(self, now: float, reason: str = "rolled back", digest: str | None = None) -> Release:
        """Condemn the digest in service, for a reason, and put the one before it back; return that Release.

        `digest` says which one is meant, so that the same call again does no harm: where it is condemned already the
        present Release is returned. Raises Refused, changing nothing, when there is no former digest that isn't
        condemned, or another one than `digest` is in service.
        """
        with sqlite.transaction(self._db):
            previous, present = self.previous(), self._present()
            champion = present.digest if present else None
            if present is not None and digest is not None and digest != champion:
                if digest in self.condemned():
                    return present
                raise Refused(f"Policy {digest[:12]} is not in service, {present.digest[:12]} is: nothing was changed.")
            if previous is None or champion is None:
                raise Refused(
                    "There is nothing to roll back to: no former policy is admissible. "
                    "The present one stays in service; train another."
                )
            verdict = self.verdict(previous)
            if verdict is None:
                raise Refused(f"The verdict on policy {previous[:12]} is gone from the registry.")
            check_verdict(verdict, previous, self.task, self.keys.public)
            self._condemn(champion, reason, now)
            self.end_canary(previous, now)
            return self._release(previous, now)

    def _condemn(self, digest: str, reason: str, now: float) -> None:
        """Bar a digest from being promoted or rolled back to, for good; the first reason stays."""
        self._db.execute("INSERT OR IGNORE INTO condemned VALUES (?, ?, ?)", (digest, reason, now))
        self.end_control(f"it was condemned: {reason}", now, digest)

    def _refuse_condemned(self, digest: str) -> None:
        row = self._db.execute("SELECT reason FROM condemned WHERE digest = ?", (digest,)).fetchone()
        if row:
            raise Refused(f"Policy {digest[:12]} was condemned ({row[0]}) and is never served again: train another.")

    def _refuse_other_terms(self, verdict: Verdict) -> None:
        terms = self._terms()
        for what, judged, wanted in zip(
            ("gate's configuration is another", "simulator was calibrated anew"),
            (verdict.config, verdict.simulator),
            terms or (verdict.config, verdict.simulator),
            strict=True,
        ):
            if judged != wanted:
                raise Refused(
                    f"The {what} since policy {verdict.digest[:12]} was judged ({judged[:12]} then, {wanted[:12]} "
                    "now): let the gate judge it again."
                )

    def _release(self, digest: str, now: float) -> Release:
        before = self.champion()
        self.end_control(f"policy {digest[:12]} was put into service", now)
        self._db.execute(
            "INSERT INTO releases (digest, stage, share, previous, released_at) VALUES (?, ?, ?, ?, ?)",
            (digest, "full", 1.0, before, now),
        )
        return self.releases()[-1]

    def releases(self) -> list[Release]:
        """Return every release, oldest first."""
        rows = self._db.execute(
            "SELECT digest, stage, share, previous, released_at FROM releases ORDER BY id"
        ).fetchall()
        return [
            Release(
                digest=digest, stage=stage, share=share, previous=before, released_at=at,
                pays_otherwise=before is not None and self.pays_otherwise(digest, before),
            )
            for digest, stage, share, before, at in rows
        ]  # fmt: skip

    def pays_otherwise(self, digest: str, before: str) -> bool:
        """Say whether a policy was trained for another reward than one before it."""
        for each in {digest, before} - self._rewards.keys():  # this is asked each second
            self._rewards[each] = (self.artifact(each).trained_on.get("correction") or {}).get("reward")
        return bool(self._rewards[digest] != self._rewards[before])

    def _present(self) -> Release | None:
        return releases[-1] if (releases := self.releases()) else None

    def champion(self) -> str | None:
        """Return the digest in service, None before the first promotion."""
        present = self._present()
        return present.digest if present else None

    def condemned(self) -> frozenset[str]:
        """Return the digests that may not come back."""
        return frozenset(digest for (digest,) in self._db.execute("SELECT digest FROM condemned"))

    def reasons(self) -> dict[str, tuple[str, float]]:
        """Return by digest why and when it was condemned."""
        rows = self._db.execute("SELECT digest, reason, condemned_at FROM condemned")
        return {digest: (reason, at) for digest, reason, at in rows}

    def version(self) -> int:
        """Return a number that changes whenever another connection has changed the registry."""
        (number,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(number)

    def admissible(self) -> list[str]:
        """Return the digests that may answer: the one in service first, then former ones that aren't condemned."""
        champion, condemned = self.champion(), self.condemned()
        latest_first = dict.fromkeys(release.digest for release in reversed(self.releases()))
        return [digest for digest in latest_first if digest == champion or digest not in condemned]

    def previous(self) -> str | None:
        """Return the digest that a rollback would put into service, None when there is none."""
        for digest in self.admissible()[1:]:
            row = self._db.execute(
                "SELECT outcome FROM verdicts WHERE digest = ? ORDER BY id DESC LIMIT 1", (digest,)
            ).fetchone()  # a later look at it may not have passed
            if row == ("pass",):
                return digest
        return None

    def served_at(self, t: float) -> str | None:
        """Return the digest that was in service at `t`, None if none was."""
        row = self._db.execute(
            "SELECT digest FROM releases WHERE released_at <= ? ORDER BY id DESC LIMIT 1", (t,)
        ).fetchone()
        return None if row is None else str(row[0])

    def admission(self) -> Admission:
        """Return what replicas need to know: who answers, who is tried, whom clients may still name, who may call."""
        canary, tried, condemned = self.canary(), self.tried(), self.reasons()
        may = [digest for digest, is_free in tried.items() if is_free and digest not in condemned]
        release, control = None if canary is None or canary.is_over else canary.release, self.control()
        return Admission(
            champion=self.champion(),
            admissible=tuple(dict.fromkeys([*self.admissible(), *may])),
            known=frozenset([*(r.digest for r in self.releases()), *tried]),
            tokens=self.in_force(),
            challenger=None if release is None else release.digest,
            share=0.0 if release is None else release.share,
            since=0.0 if release is None else release.released_at,
            previous=self.previous(),
            condemned={digest: reason for digest, (reason, _) in condemned.items()},
            control=None if control is None else control.policy,
            control_share=0.0 if control is None else control.share,
            control_since=0.0 if control is None else control.begun_at,
        )


def open_readonly(run_dir: Path) -> Registry:
    """Return a run directory's registry for its reading methods only; its owner may be up and write.

    Raises UsageError where there is no registry, or its owner has not made the tables yet.
    """
    path = run_dir / FILE
    if not sqlite.is_made(path):
        raise UsageError(f"There is no registry in {run_dir}: no policy was ever added there. Name another --run-dir.")
    registry = Registry.__new__(Registry)
    registry.run_dir, registry._db, registry._rewards = run_dir, sqlite.reading(path), {}
    _check_version(registry._db, run_dir)
    return registry


def _check_version(db: sqlite3.Connection, run_dir: Path) -> str:
    """Return the digest of the task whose registry this is; raise UsageError for one of a newer version."""
    version, task = db.execute("SELECT schema_version, task FROM meta").fetchone()
    if version > schema.VERSION:
        raise UsageError(
            f"{run_dir / FILE} has schema version {version}, this Flywheel reads up to {schema.VERSION}: "
            "install a newer one."
        )
    return str(task)
