"""Sealed episodes at rest: Parquet files that never change, one row a step, from which every bit comes back.

Columns, in the words of Gymnasium, Minari and RLlib: `episode_id`, `t`, `observations`, `actions` (raw), `rewards`
(late ones, too; `late` says which), `terminations`, `truncations`, `action_logp`, `policy` (its digest), `origin`,
`task`, `scenario`, `failed`, `inclusion`, `started_at`, `ended_at`; `last_observations` stands in an episode's last row
only. What has more than one number a step is a list. The file's metadata hold `schema_version` and what is no column.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel.errors import FlywheelError
from flywheel.records import Array
from flywheel.store.encode import Entry, decode, joined, split

FORMAT = 1
"""Version of the columns; readers keep reading older ones."""
META = b"flywheel"
"""Key of what the file's metadata say of its episodes."""
SHELF = 4
"""Segments that a reader holds decoded: episodes are mostly asked for in order of arrival."""
_SPLIT = frozenset({"observations", "last_observations", "actions", "action_logp"})


class _Episode(msgspec.Struct):
    id: str
    num_steps: int
    header: bytes
    last: bytes
    """The only observation of an episode without a step, which has no row; empty otherwise."""
    inclusion: float
    failed: bool
    started_at: float
    ended_at: float


class _Meta(msgspec.Struct):
    schema_version: int
    episodes: list[_Episode]


def table(entries: Sequence[Entry]) -> pa.Table:
    """Return the columns of episodes of one layout, with all that `entries_of` needs in the metadata."""
    parts = [split(entry.body) for entry in entries]
    episodes = [decode(entry.body, entry.started_at, entry.ended_at) for entry in entries]
    counts = [episode.num_steps for episode in episodes]
    meta = [
        _Episode(
            e.id, count, header, b"" if count else arrays["observations"].tobytes(), e.inclusion, e.failed,
            e.started_at, e.ended_at,
        )
        for (header, arrays), count, e in zip(parts, counts, entries, strict=True)
    ]  # fmt: skip
    rewards, is_late = _known(entries, [arrays["rewards"] for _, arrays in parts])
    ends = np.zeros(sum(counts), np.int8)
    last = np.cumsum(counts)[np.flatnonzero(counts)] - 1
    ends[last] = [{"terminated": 1, "truncated": 2, "lost": 3}[e.end] for e in episodes if e.num_steps]
    observations = [arrays["observations"] for _, arrays in parts]

    of = pa.array(np.repeat(np.arange(len(counts)), counts))

    def whole(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
        """Return a column whose value is one for the whole episode."""
        return pa.array(list(values), kind).take(of)

    columns = {
        "episode_id": whole((e.id for e in entries), pa.string()),
        "t": pa.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts])),
        "observations": _lists(np.concatenate([each[:-1] for each in observations])),
        "actions": _lists(np.concatenate([arrays["raw_actions"] for _, arrays in parts])),
        "rewards": pa.array(rewards),
        "terminations": pa.array(ends == 1),
        "truncations": pa.array(ends == 2),
        "action_logp": pa.array(np.concatenate([arrays["logps"] for _, arrays in parts])),
        # no dictionary of Arrow's, as Ray Data can't join two files' different ones; Parquet writes its own
        "policy": pa.array(chain.from_iterable(e.digests for e in episodes), pa.string()),
        "late": pa.array(is_late),
        "last_observations": _lasts([each[-1] for each in observations], counts),
        "origin": whole((e.origin for e in episodes), pa.string()),
        "task": whole((e.task for e in episodes), pa.string()),
        "scenario": whole((e.scenario for e in episodes), pa.string()),
        "failed": whole((e.failed for e in entries), pa.bool_()),
        "inclusion": whole((e.inclusion for e in entries), pa.float64()),
        "started_at": whole((e.started_at for e in entries), pa.float64()),
        "ended_at": whole((e.ended_at for e in entries), pa.float64()),
    }
    packed = zlib.compress(msgspec.msgpack.encode(_Meta(FORMAT, meta)))
    told = {b"schema_version": str(FORMAT).encode(), META: base64.b64encode(packed)}
    return pa.table(columns).replace_schema_metadata(told)


def _known(entries: Sequence[Entry], told: Sequence[Array]) -> tuple[Array, Array]:
    """Return float64[rows] rewards as they are known, and bool[rows] which of them came late."""
    rewards, is_late = [each.copy() for each in told], [np.zeros(len(each), np.bool_) for each in told]
    for entry, known, late in zip(entries, rewards, is_late, strict=True):
        for t, reward in entry.late.items():
            if t < len(known) and np.isnan(known[t]):
                known[t], late[t] = reward, True
    return np.concatenate(rewards), np.concatenate(is_late)


def _lists(array: Array) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), int(np.prod(array.shape[1:])))


def _lasts(last: Sequence[Array], counts: Sequence[int]) -> pa.Array:
    """Return the column of last observations: null but in each episode's last row."""
    held = [each for each, count in zip(last, counts, strict=True) if count]
    is_last = np.zeros(sum(counts), np.bool_)
    is_last[np.cumsum([count for count in counts if count], dtype=np.int64) - 1] = True
    if np.ndim(last[0]) == 0:
        values = pa.array(np.asarray(held, last[0].dtype))
        return values.take(pa.array(np.cumsum(is_last) - 1, mask=~is_last))
    size = last[0].size
    offsets = np.concatenate([[0], np.cumsum(is_last) * size]).astype(np.int32)
    values = pa.array(np.concatenate([np.zeros(0, last[0].dtype), *(each.reshape(-1) for each in held)]))
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~is_last))


def entries_of(found: pa.Table) -> list[Entry]:
    """Return the episodes of `table`'s columns; FlywheelError where a newer version wrote them."""
    meta = msgspec.msgpack.decode(zlib.decompress(base64.b64decode(found.schema.metadata[META])), type=_Meta)
    if meta.schema_version > FORMAT:
        raise FlywheelError(
            f"These episodes were written in format {meta.schema_version}, and this version reads up to {FORMAT}: "
            "update flywheel."
        )
    known, is_late = _numbers(found, "rewards"), _numbers(found, "late")
    rewards = known.copy()
    rewards[is_late] = np.nan
    actions, logps = _numbers(found, "actions"), _numbers(found, "action_logp")
    observations, lasts = _numbers(found, "observations"), _numbers(found, "last_observations", is_sparse=True)
    entries, begin, num = list[Entry](), 0, 0
    for each in meta.episodes:
        rows = slice(begin, begin + each.num_steps)
        if each.num_steps:
            seen, begin, num = np.concatenate([observations[rows], lasts[num : num + 1]]), rows.stop, num + 1
        else:
            seen = np.frombuffer(each.last, observations.dtype)
        arrays = {"observations": seen, "raw_actions": actions[rows], "rewards": rewards[rows], "logps": logps[rows]}
        entries.append(
            Entry(
                id=each.id, body=joined(each.header, arrays), failed=each.failed, started_at=each.started_at,
                ended_at=each.ended_at, inclusion=each.inclusion,
                late={int(t): float(known[rows][t]) for t in np.flatnonzero(is_late[rows])},
            )
        )  # fmt: skip
    return entries


def _numbers(found: pa.Table, name: str, *, is_sparse: bool = False) -> Array:
    """Return a column as dtype[rows] or dtype[rows, numbers], without its nulls."""
    column = found[name].combine_chunks()
    num_rows = len(column) - column.null_count
    if isinstance(column, pa.FixedSizeListArray | pa.ListArray):
        flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
        return flat.reshape(num_rows, len(flat) // max(1, num_rows))
    return np.asarray((column.drop_null() if is_sparse else column).to_numpy(zero_copy_only=False))


def write(path: Path, entries: Sequence[Entry]) -> tuple[str, int]:
    """Write a segment that is on the disk, whole and read back, when it has its name; return its sha256 and size.

    Raises FlywheelError where the disk gives back other bytes than it was given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    write_table(table(entries), temporary)
    with open(temporary, "rb") as file:
        data = file.read()
    found = {entry.id: entry.body for entry in entries_of(read_table(data))}
    wrong = [entry.id for entry in entries if found.get(entry.id) != entry.body]
    if wrong:
        temporary.unlink()
        raise FlywheelError(
            f"Episode {wrong[0]} did not come back from {temporary} as it is: it stays in the store's log."
        )
    os.replace(temporary, path)
    fsync_directory(path.parent)
    return hashlib.sha256(data).hexdigest(), len(data)


def write_table(found: pa.Table, path: Path) -> None:
    """Write columns to a file, which is on the disk then."""
    with open(path, "wb") as file:
        pq.write_table(found, file, **encodings(found.schema))
        file.flush()
        os.fsync(file.fileno())


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return how columns are written: random floats are smaller byte by byte, all else as a dictionary."""
    floats, others = list[str](), list[str]()
    for column in schema:
        is_list = pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)
        kind = column.type.value_type if is_list else column.type
        name = f"{column.name}.list.element" if is_list else column.name
        is_split = column.name in _SPLIT and (pa.types.is_float32(kind) or pa.types.is_float64(kind))
        (floats if is_split else others).append(name)
    return {"compression": "zstd", "compression_level": 1, "use_dictionary": others, "use_byte_stream_split": floats}


def fsync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    held = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def read_table(data: bytes) -> pa.Table:
    """Return the columns in a file's bytes."""
    return pq.read_table(pa.BufferReader(data), use_threads=False)


class Shelf:
    """The segments of a directory, each proved by its digest when it is read; the last ones asked for stay decoded."""

    def __init__(self, directory: Path) -> None:
        """Read from this directory, which need not be there yet."""
        self._directory = directory
        self._held: OrderedDict[str, dict[str, Entry]] = OrderedDict()

    def episodes(self, name: str, sha256: str) -> dict[str, Entry]:
        """Return a segment's episodes by id; FlywheelError where it is missing or damaged."""
        if sha256 not in self._held:
            path = self._directory / name
            try:
                data = path.read_bytes()
            except OSError as error:
                raise FlywheelError(damaged(path, f"it can't be read: {error.strerror}")) from error
            if hashlib.sha256(data).hexdigest() != sha256:
                raise FlywheelError(damaged(path, "its bytes are not those that were written"))
            while len(self._held) >= SHELF:
                self._held.popitem(last=False)
            self._held[sha256] = {entry.id: entry for entry in entries_of(read_table(data))}
        self._held.move_to_end(sha256)
        return self._held[sha256]


def damaged(path: Path, why: str) -> str:
    """Return what there is to say of a segment that can't be read."""
    return (
        f"Segment {path} is damaged ({why}): the steps of its episodes can't be read until a copy of it is put back; "
        "their outcomes, and all other episodes, are not touched by it."
    )
