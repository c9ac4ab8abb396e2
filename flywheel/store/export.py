"""Episodes for other programs and back: plain Parquet as the segments are, RLlib's columns, Minari's datasets."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from flywheel.errors import FlywheelError, UsageError, unknown
from flywheel.records import Array, Episode, Reward
from flywheel.store import minari, segments
from flywheel.store.encode import Entry, Layout, decode, layout
from flywheel.store.intake import Intake, Reader
from flywheel.store.late import joined
from flywheel.store.sealing import GROUP

Format = Literal["parquet", "rllib", "minari"]
FORMATS: tuple[Format, ...] = ("parquet", "rllib", "minari")


def write(reader: Reader, ids: Sequence[str], path: Path, kind: str, damage: list[str] | None = None) -> int:
    """Write the episodes of these ids and return how many; those whose steps are kept no more are left out.

    A path that ends in .parquet becomes one file, another one a directory of files of 100 episodes; it has its name
    when all of it is on the disk. Where a list is given, damaged episodes are left out, and it names their segments.
    UsageError where there is something at the path, nothing to write, or Minari isn't installed; FlywheelError for a
    damaged episode otherwise, and for a disk that is full.
    """
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path} is there already: name a new file or directory, so that nothing is written over.")
    entries = _entries(reader, reader.kept(ids), damage)
    temporary = path.with_name(f".{path.name}.new")
    _remove(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "minari":
            num = _write_minari(entries, temporary)
        elif path.suffix == ".parquet":
            num = _write_file(entries, temporary, kind)
        else:
            num = _write_directory(entries, temporary, kind)
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise FlywheelError(
            f"{path} could not be written ({why}), and nothing is there: make room, or name another place."
        ) from error
    finally:
        _remove(temporary)
    return num


def _entries(reader: Reader, ids: Sequence[str], damage: list[str] | None) -> Iterator[Entry]:
    num = 0
    for id_ in ids:
        try:
            entry = reader.entry(id_)
        except FlywheelError as error:
            if damage is None or isinstance(error, UsageError):
                raise
            damage += [str(error)] if str(error) not in damage else []
        else:
            num += 1
            yield entry
    if not num:
        raise UsageError("There is no episode to export: ask by another --where.")


def _write_minari(entries: Iterator[Entry], path: Path) -> int:
    groups = list(_alike([*entries]))
    if len(groups) > 1:
        raise UsageError(f"These episodes have {len(groups)} kinds of spaces, and a dataset has one: ask by --where.")
    minari.write([_known(entry) for entry in groups[0]], path)
    return len(groups[0])


def _write_file(entries: Iterator[Entry], path: Path, kind: str) -> int:
    groups = list(_alike([*entries]))
    if len(groups) > 1:
        raise UsageError(f"These episodes have {len(groups)} kinds of spaces, and a file has one: name a directory.")
    segments.write_table(_columns(groups[0], kind), path)
    return len(groups[0])


def _write_directory(entries: Iterator[Entry], path: Path, kind: str) -> int:
    path.mkdir()
    num, number = 0, 0
    while group := [*islice(entries, GROUP)]:
        for part in _alike(group):
            number += 1
            segments.write_table(_columns(part, kind), path / f"{number:08d}.parquet")
            num += len(part)
    return num


def _columns(entries: Sequence[Entry], kind: str) -> pa.Table:
    found = segments.table(entries)
    return to_rllib(found) if kind == "rllib" else found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _alike(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    kinds: dict[Layout | None, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(layout(entry.body), []).append(entry)
    for odd in kinds.pop(None, ()):
        raise UsageError(f"Episode {odd.id} has arrays that Parquet can't hold: leave it out by --where \"id <> '…'\".")
    yield from kinds.values()


def _known(entry: Entry) -> Episode:
    """Return an episode as it is known now."""
    told = decode(entry.body, entry.started_at, entry.ended_at)
    known = dataclasses.replace(told, failed=entry.failed, inclusion=entry.inclusion)
    return joined(known, entry.late)


def to_rllib(found: pa.Table) -> pa.Table:
    """Return the columns by the names of RLlib's SampleBatch and SingleAgentEpisode, one agent and one module."""
    observations = found["observations"].combine_chunks()
    last = found["last_observations"].combine_chunks()
    following = np.minimum(np.arange(found.num_rows) + 1, max(found.num_rows - 1, 0))
    kind = observations.type
    new = last.cast(kind) if pa.types.is_list(last.type) else last
    new = pa.compute.if_else(last.is_valid(), new, observations.take(pa.array(following)))
    agent = {name: pa.array([value] * found.num_rows) for name, value in _ONE.items()}
    same = {theirs: found[ours] for theirs, ours in _RLLIB.items()}
    return pa.table({**same, "new_obs": new, **agent})


_ONE = {"agent_id": "default_agent", "module_id": "default_policy"}
_RLLIB = {
    "eps_id": "episode_id", "t": "t", "obs": "observations", "actions": "actions", "rewards": "rewards",
    "terminateds": "terminations", "truncateds": "truncations", "action_logp": "action_logp", "inclusion": "inclusion",
}  # fmt: skip


def bring(intake: Intake, path: Path, task: str, like: Episode | None = None) -> dict[str, int]:
    """Make the episodes of a Parquet file, a directory of such, or of a Minari dataset durable; count the answers.

    What `write` made comes back as it was, its origin too. Others are of origin "train", of this task's digest, and by
    a policy trained elsewhere. UsageError names what is no such file, what it lacks, and what has other spaces than
    `like`; what came before that in the directory is kept.
    """
    counts: dict[str, int] = {}
    for group in _groups(path, task):
        told = [decode(e.body, e.started_at, e.ended_at) if isinstance(e, Entry) else e for e in group]
        if like is not None:
            for each in told:
                _check_like(each, like)
        told = [
            dataclasses.replace(t, inclusion=_inclusion(intake, e)) if isinstance(e, Entry) else t
            for t, e in zip(told, group, strict=True)
        ]
        answers = intake.append(told)
        for answer in answers.values():
            counts[answer] = counts.get(answer, 0) + 1
        new = [e for e in group if isinstance(e, Entry) and answers[e.id] == "stored"]
        late = [
            Reward(episode=e.id, t=t, reward=reward, seen_at=e.ended_at) for e in new for t, reward in e.late.items()
        ]
        intake.reward(late, [None] * len(late))
        intake.judge({e.id: e.failed for e in new})
    return counts


def _inclusion(intake: Intake, entry: Entry) -> float:
    """Return what an episode is to say of its inclusion: a thinned one says so in another store.

    Where it is held already, its content is what was told there, before a thinning here or there.
    """
    if not intake.holds(entry.id):
        return entry.inclusion
    try:
        return decode(intake.entry(entry.id).body, 0.0, 0.0).inclusion
    except FlywheelError:  # only its outcome is kept, or it is damaged: by its content it is the same, or set aside
        return decode(entry.body, 0.0, 0.0).inclusion


def _groups(path: Path, task: str) -> Iterator[Sequence[Entry | Episode]]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not (files or minari.holds(path)):
        raise UsageError(
            f"There are no episodes at {path}: name a Parquet file, or a directory of such or of Minari's."
        )
    if not files:
        yield minari.read(path, task)
    for file in files:
        try:
            found = pq.read_table(file, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{file} is no Parquet file that can be read ({error}): name another one.") from error
        yield (
            segments.entries_of(found) if segments.META in (found.schema.metadata or {}) else foreign(found, file, task)
        )


_NAMES = {
    "episode_id": ("episode_id", "eps_id"), "t": ("t",), "observations": ("observations", "obs"),
    "actions": ("actions",), "rewards": ("rewards",), "terminations": ("terminations", "terminateds"),
    "truncations": ("truncations", "truncateds"), "following": ("new_obs", "next_observations", "last_observations"),
}  # fmt: skip


def foreign(found: pa.Table, file: Path, task: str) -> list[Episode]:
    """Return the episodes of columns that somebody else wrote, in the words of Gymnasium and Minari, or of RLlib."""
    names = {ours: next((n for n in known if n in found.column_names), "") for ours, known in _NAMES.items()}
    for ours, name in names.items():
        if not name:
            raise UsageError(
                f"{file} has none of the columns {', '.join(_NAMES[ours])}: each step needs one of them, the last "
                "observation of an episode, too."
            )
    ids = np.asarray(found[names["episode_id"]].cast(pa.string()).to_pylist())
    order = np.lexsort((_plain(found, names["t"], file), ids))
    found, ids = found.take(order), ids[order]
    bounds = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
    columns = {
        ours: _plain(found, name, file) for ours, name in names.items() if ours not in ("following", "episode_id")
    }
    lasts = found.take([end - 1 for end in bounds[1:]])
    following = _plain(lasts, names["following"], file)
    kind = np.float32 if columns["observations"].dtype.kind == "f" else columns["observations"].dtype
    if following.shape[1:] != columns["observations"].shape[1:]:
        raise UsageError(
            f"In {file} {names['following']} has another shape than {names['observations']}: it needs the same."
        )
    told = {name: _plain(found, name, file) for name in ("action_logp", "inclusion") if name in found.column_names}
    logps, inclusion = told.get("action_logp", np.full(len(ids), np.nan)), told.get("inclusion", np.ones(len(ids)))
    episodes = []
    for number, (begin, end) in enumerate(pairwise(bounds)):
        rows, steps = slice(begin, end), np.diff(columns["t"][begin:end])
        seen = np.concatenate([columns["observations"][rows], following[number : number + 1]])
        if (steps != 1).any():
            at = begin + int(np.flatnonzero(steps != 1)[0])
            raise UsageError(
                f"Episode {ids[begin]} of {file} goes from step {columns['t'][at]} to {columns['t'][at + 1]}: an "
                "episode is one step after the other. Put them there, or leave it out."
            )
        episodes.append(
            minari.made(
                str(ids[begin]), task, seen.astype(kind), columns["actions"][rows], columns["rewards"][rows],
                logps[rows], "terminated" if columns["terminations"][end - 1] else "truncated", float(inclusion[begin]),
            )
        )  # fmt: skip
    return episodes


def _plain(found: pa.Table, name: str, file: Path) -> Array:
    """Return a column as numbers of its own type; UsageError where it holds anything else."""
    kind = found.schema.field(name).type
    while hasattr(kind, "value_type"):  # a list's, or a dictionary's
        kind = kind.value_type
    try:
        values = np.asarray(found[name].to_pylist())
    except ValueError:  # rows of several lengths
        values = np.zeros(0, np.object_)
    if values.dtype.kind not in "biuf":
        raise UsageError(
            f"Column {name} of {file} holds what is no number, nothing in some rows, or rows of several lengths: each "
            "row needs as many numbers as the others."
        )
    return values.astype(kind.to_pandas_dtype())


def _check_like(episode: Episode, like: Episode) -> None:
    """Raise UsageError where an episode has other spaces than one that the store holds."""
    for name in ("observations", "raw_actions"):
        its, ours = getattr(episode, name), getattr(like, name)
        if (its.shape[1:], its.dtype.kind.replace("u", "i")) != (ours.shape[1:], ours.dtype.kind.replace("u", "i")):
            raise UsageError(
                f"Episode {episode.id} has {name.removeprefix('raw_')} of {its.dtype}{list(its.shape[1:])}, and those "
                f"held here are of {ours.dtype}{list(ours.shape[1:])}: it is of another task. Give it a run directory "
                "of its own."
            )
