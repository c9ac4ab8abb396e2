"""Episodes for other programs and back: plain Parquet as the segments are, RLlib's columns, Minari's datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from flywheel.errors import UsageError, unknown
from flywheel.records import Episode, Reward
from flywheel.store import minari, segments
from flywheel.store.encode import Entry, Layout, decode, layout
from flywheel.store.intake import Intake, Reader
from flywheel.store.late import joined
from flywheel.store.sealing import GROUP

Format = Literal["parquet", "rllib", "minari"]
FORMATS: tuple[Format, ...] = ("parquet", "rllib", "minari")


def write(reader: Reader, ids: Sequence[str], path: Path, kind: str) -> int:
    """Write the episodes of these ids and return how many; those whose steps are kept no more are left out.

    A path that ends in .parquet becomes one file, another one a directory of files of 100 episodes. UsageError where
    there is something at the path, nothing to write, or Minari isn't installed.
    """
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path} is there already: name a new file or directory, so that nothing is written over.")
    ids = reader.kept(ids)
    if not ids:
        raise UsageError("There is no episode to export: ask by another --where.")
    if kind == "minari":
        minari.write([_known(reader.entry(id_)) for id_ in ids], path)
        return len(ids)
    if path.suffix == ".parquet":
        groups = [[reader.entry(id_) for id_ in ids]]
    else:
        groups = [[reader.entry(id_) for id_ in ids[i : i + GROUP]] for i in range(0, len(ids), GROUP)]
    tables = [segments.table(part) for group in groups for part in _alike(group)]
    tables = [to_rllib(each) for each in tables] if kind == "rllib" else tables
    if path.suffix == ".parquet":
        if len(tables) > 1:
            raise UsageError(
                f"These episodes have {len(tables)} kinds of spaces, and a file has one: name a directory."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        segments.write_table(tables[0], path)
        return len(ids)
    path.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(tables, 1):
        segments.write_table(each, path / f"{number:08d}.parquet")
    return len(ids)


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
    "terminateds": "terminations", "truncateds": "truncations", "action_logp": "action_logp",
}  # fmt: skip


def bring(intake: Intake, path: Path, task: str) -> dict[str, int]:
    """Make the episodes of a Parquet file, a directory of such, or of a Minari dataset durable; count the answers.

    What `write` made comes back as it was, its origin too. Others are of origin "train", of this task's digest, and by
    a policy trained elsewhere. UsageError names what is no such file, or what it lacks.
    """
    counts: dict[str, int] = {}
    for group in _groups(path, task):
        told = [decode(e.body, e.started_at, e.ended_at) if isinstance(e, Entry) else e for e in group]
        # a thinned one says so in another store; where it is held, its content is what was told
        told = [
            dataclasses.replace(t, inclusion=e.inclusion) if isinstance(e, Entry) and not intake.holds(e.id) else t
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
    order = np.lexsort((found["t"].to_numpy(), ids))
    found, ids = found.take(order), ids[order]
    bounds = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
    columns = {ours: np.asarray(found[name].to_pylist()) for ours, name in names.items() if ours != "following"}
    kind = np.float32 if columns["observations"].dtype.kind == "f" else columns["observations"].dtype
    logps = found["action_logp"].to_numpy() if "action_logp" in found.column_names else np.full(len(ids), np.nan)
    episodes = []
    for begin, end in pairwise(bounds):
        rows = slice(begin, end)
        last = np.asarray(found[names["following"]][end - 1].as_py(), kind)
        episodes.append(
            minari.made(
                str(ids[begin]), task, np.concatenate([columns["observations"][rows].astype(kind), last[None]]),
                columns["actions"][rows], columns["rewards"][rows], logps[rows],
                "terminated" if columns["terminations"][end - 1] else "truncated",
            )
        )  # fmt: skip
    return episodes
