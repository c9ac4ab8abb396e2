"""The commands of what is kept: what `flywheel episodes` and `verify` print."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flywheel.errors import UsageError
from flywheel.moments import WIDTH, column
from flywheel.sampling import Barred

if TYPE_CHECKING:
    from flywheel.store.intake import Outcome
    from flywheel.trace.contract import Row


def episodes(
    words: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    run_dir: Path,
    where: str = "",
    limit: int | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    export: Path | None = None,
    form: Annotated[Literal["parquet", "rllib", "minari"], tyro.conf.arg(name="format")] = "parquet",
    bring: Annotated[Path | None, tyro.conf.arg(name="import")] = None,
    exclude: str = "",
    readmit: str = "",
    why: str = "",
    excluded: bool = False,
) -> int:
    """List the last episodes of production and of the gate's trials, or write some elsewhere, or take some in.

    What is excluded is learnt from no more, neither by an off-policy algorithm nor where the simulator is fitted to
    production; it stays in the record, and `--readmit` lets it be learnt from again.

    Args:
        words: words that all have to be true: failed, fine, lost, production, gate, policy=DIGEST
        run_dir: directory of the run
        where: in their place, for episodes of the store: a condition in SQL's words, as "failed and digest = '…'", on
            id, origin, task, digest, failed, fine, lost, ended_by, total, num_steps, started_at, ended_at, kept
        limit: how many; 20 of a list, all of an export
        as_json: print them as JSON, with whole digests
        export: write those of --where, or all, to this .parquet file or new directory
        form: parquet (as the store's own segments), rllib (RLlib's columns) or minari (a dataset; an extra)
        bring: take the episodes of a Parquet file, or of a directory of such or of a Minari dataset, into the store
        exclude: learn nothing more from policy=DIGEST (its actions), origin=ORIGIN or episode=ID
        readmit: learn from what was excluded again
        why: the reason to exclude it, which is kept
        excluded: list what is excluded, or was
    """
    if exclude or readmit or excluded or why:
        is_alone = not any((words, where, limit, export, bring, as_json))
        return _excluding(run_dir, exclude, readmit, why, excluded, is_alone)
    _check(bool(words), bool(where), export is not None, bring is not None, limit)
    if bring is not None:
        return _bring(run_dir, bring)
    if export is not None:
        return _export(run_dir, where, limit, export, form)
    rows = _rows(run_dir, words, where, 20 if limit is None else limit)
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2)) if as_json else _print(run_dir, rows)
    return 0


def _check(words: bool, where: bool, export: bool, bring: bool, limit: int | None) -> None:
    """Raise UsageError where what is asked for doesn't go together, or is no number of episodes."""
    if words + where > 1 or (export and (words or bring)):
        raise UsageError(
            "Words, --where, --export and --import ask for different things: only --where goes with --export."
        )
    if limit is not None and limit < 0:
        raise UsageError(
            f"--limit is {limit}, and a number of episodes is at least 0: give another one, or leave it out."
        )


def _excluding(run_dir: Path, exclude: str, readmit: str, why: str, excluded: bool, is_alone: bool) -> int:
    """Exclude something from training, or readmit it, by whoever writes the store; or list what is excluded."""
    from flywheel import owner

    if not is_alone or bool(exclude) + bool(readmit) + excluded != 1 or (why and not exclude):
        raise UsageError("--exclude (with --why), --readmit and --excluded stand alone: call one of them.")
    if excluded:
        return _list_excluded(run_dir)

    with owner.writing(run_dir) as writer:
        if exclude:
            found = writer.exclude(exclude, why)
            print(f"Nothing is learnt from {found.kind}={found.name} any more; the record keeps it.")
        else:
            found = writer.readmit(readmit)
            print(f"{found.kind}={found.name} is learnt from again.")
    return 0


def _list_excluded(run_dir: Path) -> int:
    from flywheel.store.intake import open_readonly

    with open_readonly(run_dir) as store:
        found = store.exclusions()
    print(f"{'since (UTC)':<{WIDTH}}  {'until':<{WIDTH}}  what and why")
    for each in found:
        since, until = (column(at) for at in (each.at, each.readmitted_at))
        print(f"{since:<{WIDTH}}  {until:<{WIDTH}}  {each.kind}={each.name}: {each.why}")
    return 0


def _barred(run_dir: Path) -> Barred:
    """Return what is excluded from training; nothing where there is no store (yet)."""
    from flywheel.store.intake import FILE, open_readonly

    if not (run_dir / FILE).exists():
        return {}
    with open_readonly(run_dir) as store:
        return store.excluded()


def _rows(run_dir: Path, words: Sequence[str], where: str, limit: int) -> Sequence[Row | Outcome]:
    if not where:
        from flywheel.connection import connect

        return connect(run_dir).episodes(" ".join(words), limit=limit)
    from flywheel.store.intake import open_readonly

    with open_readonly(run_dir) as store:
        return store.came_out(store.where(where, limit))


def _print(run_dir: Path, rows: Sequence[Row | Outcome]) -> None:
    barred = _barred(run_dir)
    width = max([len("episode"), *(len(row.id) for row in rows)])
    began, came_out = f"{'began (UTC)':<{WIDTH}}", f"{'return':>9}  {'steps':>5}  {'came out':<9}"
    print(f"{'episode':<{width}}  {began}  {'policy':<8}  {came_out}  where")
    for row in rows:
        fate = "failed" if row.failed else "lost" if row.end == "lost" else "fine"
        place = f"gate: {row.scenario}" if row.origin == "gate" and hasattr(row, "scenario") else row.origin
        if {("policy", row.digest), ("origin", row.origin), ("episode", row.id)} & barred.keys():
            place = f"{place}, excluded"
        came_out = f"{row.total:>9.6g}  {row.num_steps:>5}  {fate:<9}"
        print(f"{row.id:<{width}}  {column(row.started_at)}  {row.digest[:8]:<8}  {came_out}  {place}")


def _export(run_dir: Path, where: str, limit: int | None, path: Path, form: str) -> int:
    from flywheel.store.export import write
    from flywheel.store.intake import open_readonly

    with open_readonly(run_dir) as store:
        ids = store.where(where, limit)
        damage = list[str]()
        num, kept = write(store, ids, path, form, damage), len(store.kept(ids))
    gone = f"; of {len(ids) - kept} only the outcome is kept" if kept < len(ids) else ""
    broken = f"; {kept - num} are damaged" if damage else ""
    print(f"{num} episodes are in {path} ({form}){gone}{broken}.")
    for sentence in damage:
        print(sentence)
    return 1 if damage else 0


def _bring(run_dir: Path, path: Path) -> int:
    from flywheel import archive
    from flywheel.store import export
    from flywheel.store.intake import Intake

    task = archive.read_config(run_dir)["task_digest"]
    with Intake(run_dir) as store:
        like = next(iter(store.recent(1, readable=True)), None)
        counts = export.bring(store, path, task, like)
    said = {"stored": "are new", "same": "were there already", "conflict": "are others of the same name, set aside"}
    print(", ".join(f"{counts[answer]} {text}" for answer, text in said.items() if answer in counts) + ".")
    return 1 if "conflict" in counts else 0


def verify(*, run_dir: Path) -> int:
    """Read everything that the store of a run directory holds, and say what is not as it was written.

    Args:
        run_dir: directory of the run
    """
    from flywheel.store import sealing
    from flywheel.store.intake import open_readonly

    with open_readonly(run_dir) as store:
        wrong, num, num_segments = (
            store.verify(),
            store.count(),
            len(list((run_dir / sealing.DIRECTORY).glob("*.parquet"))),
        )
    for sentence in wrong:
        print(sentence)
    if not wrong:
        print(f"All of it is as it was written: {num} episodes, {num_segments} {sealing.DIRECTORY}.")
    return 1 if wrong else 0
