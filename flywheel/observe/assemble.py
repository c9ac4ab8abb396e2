"""Steps → Episodes: in any order, delayed or doubled, the same rows give the same episodes."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.observe.counts import Counts
from flywheel.observe.rows import Rows
from flywheel.records import End, Episode, Spec, Steps

MAX_OTHERS = 3
"""Further answers to one step that are kept until it is known which of them the client repeats."""
MAX_MISSING = 10_000
"""Most missing steps that one answer names, whatever number of steps a client claims."""
EPISODE_BYTES = 1000
"""Memory that an open episode takes beside its rows, about."""
SLACK = 16
"""One part in so many of the memory is freed beyond what has to be: eviction looks at open episodes one by one."""
_Over = Literal["whole", "lost", "void"]


@dataclass(slots=True)
class _Open:
    first_at: float
    last_at: float
    slots: dict[int, int] = field(default_factory=dict)
    others: dict[int, list[int]] = field(default_factory=dict)
    """other answers to a step, as a retry gets them from another replica after a release"""
    end: Literal["terminated", "truncated"] | None = None
    end_slot: int = -1
    num_steps: int = -1
    is_evicted: bool = False
    is_passed: bool = False
    """True once its place in the order of reading was given up."""

    @property
    def num_rows(self) -> int:
        """Number of slots that it holds."""
        return len(self.slots) + (self.end is not None) + sum(map(len, self.others.values()))


class Assembler:
    """Holds the open episodes of a task in memory, and gives them out when they are whole or lost."""

    def __init__(
        self, spec: Spec, task: str, failed: Callable[[Episode], bool], timeout_s: float, open_mib: float = math.inf
    ) -> None:
        """Begin without episodes. `task` is the task's digest; `failed` judges each episode that is given out.

        Open episodes take `open_mib` MiB at most where `crowded` is asked before each `add`.
        """
        self._rows = Rows(spec)
        self._max_bytes = open_mib * 2**20
        self._task = task
        self._failed = failed
        self._timeout_s = timeout_s
        self._open: OrderedDict[str, _Open] = OrderedDict()  # in order of the last word of them
        self._over: dict[str, tuple[float, _Over]] = {}  # id → (closed at, how), in order of closing
        self.counts = Counts()
        self.trouble = ""
        """The last error that the task's `failed` raised, as a sentence."""

    @property
    def num_open(self) -> int:
        """Number of episodes that have begun and are neither whole nor lost."""
        return len(self._open)

    @property
    def num_rows(self) -> int:
        """Number of rows that open episodes hold."""
        return self._rows.num_used

    @property
    def num_bytes(self) -> int:
        """Memory that open episodes take, about."""
        return self._rows.num_used * self._rows.row_bytes + len(self._open) * EPISODE_BYTES

    def crowded(self, num_rows: int, now: float) -> list[Episode]:
        """Return what to make durable and `close` so that so many more rows fit into memory, [] where they do.

        Those of which nothing was heard for longest go first, whole ones whole and the others as lost, as `overdue`
        gives them. Their clients are told at the end what is missing, and send it again: no acknowledged step is lost.
        Rows that fit into no memory find an empty one.
        """
        excess = self.num_bytes + num_rows * (self._rows.row_bytes + EPISODE_BYTES) - self._max_bytes
        if excess <= 0.0:
            return []
        excess += self._max_bytes / SLACK
        chosen = []
        for id_, episode in self._open.items():
            if excess <= 0.0:
                break
            excess -= episode.num_rows * self._rows.row_bytes + EPISODE_BYTES
            episode.is_evicted = True
            chosen.append(id_)
        # What is void frees memory by itself, which may be enough.
        return self._given_out(chosen, now) or (self.crowded(num_rows, now) if chosen else [])

    def add(self, steps: Steps, now: float) -> None:
        """Take in the rows; those that are known already are counted, and change nothing but the earliest time."""
        if not steps.episodes:
            return
        self._rows.check(steps)
        num_rows = len(steps.episodes)
        self.counts.received += num_rows
        spare = self._rows.take(num_rows)
        new_rows, new_slots, old_rows, old_slots = [], [], [], []
        seen_at = steps.seen_at.tolist()
        for row, (id_, t) in enumerate(zip(steps.episodes, steps.t.tolist(), strict=True)):
            episode = self._open.get(id_) or self._begin(id_, seen_at[row], now)
            if episode is None:
                self.counts.duplicates += 1
                continue
            if episode.last_at != now:
                episode.last_at = now
                self._open.move_to_end(id_)
            if seen_at[row] < episode.first_at:
                episode.first_at = seen_at[row]
            end = steps.ends[row]
            held = episode.slots.get(t, -1) if end == "no" else episode.end_slot
            if held >= 0:
                if end != "no" and (end, t) != (episode.end, episode.num_steps):
                    self.counts.conflicts += 1
                    continue
                old_rows.append(row)
                old_slots.append(held)
                continue
            slot = spare.pop()
            new_rows.append(row)
            new_slots.append(slot)
            if end == "no":
                episode.slots[t] = slot
            else:
                episode.end, episode.end_slot, episode.num_steps = end, slot, t
        self._rows.give_back(spare)
        self._rows.write(np.array(new_slots, np.int64), steps, np.array(new_rows, np.int64))
        if old_rows:
            rows, slots = np.array(old_rows, np.int64), np.array(old_slots, np.int64)
            same, told = self._rows.agree(slots, steps, rows)
            self.counts.duplicates += int(same.sum())
            self.counts.conflicts += int((~told).sum())
            self._rows.see(slots[same], steps.seen_at[rows[same]])
            for row in rows[told & ~same]:
                self._answer(steps, row)

    def missing(self, id_: str, num_steps: int = 0) -> tuple[int, ...]:
        """Return the steps (at most 10,000 of them) that an ended episode still lacks; () when it is whole or was.

        One that was lost or evicted while its end waited lacks all its `num_steps`.
        """
        episode = self._open.get(id_)
        if episode is None:
            is_gone = self._over.get(id_, (0.0, "whole"))[1] != "whole"
            return tuple(range(min(num_steps, MAX_MISSING))) if is_gone else ()
        if episode.end is None or self._is_whole(episode):
            return ()
        lacking = (t for t in range(episode.num_steps) if t not in episode.slots)
        return tuple(islice(lacking, MAX_MISSING))

    def unheard(self, ids: Iterable[str]) -> list[str]:
        """Return those of the ids of which nothing but the end is known, as after a restart."""
        return [id_ for id_ in ids if (episode := self._open.get(id_)) and episode.end and not episode.slots]

    def whole(self, ids: Iterable[str]) -> list[Episode]:
        """Return those of the ids that are whole as Episodes; they stay open until `close`."""
        return [
            self._build(id_, episode)
            for id_ in dict.fromkeys(ids)
            if (episode := self._open.get(id_)) and self._is_whole(episode)
        ]

    def overdue(self, now: float) -> list[Episode]:
        """Return the open episodes of which nothing came for the timeout, whole ones whole and the others as lost.

        A lost episode ends where its steps first lack. One without two steps in a row from the start leaves nothing
        and is closed at once; the others stay open until `close`.
        """
        # A client repeats itself for less than this; afterwards the store still knows the episode.
        for id_, (closed_at, _) in list(self._over.items()):
            if now - closed_at <= 2 * self._timeout_s:
                break
            del self._over[id_]
        late = [id_ for id_, episode in self._open.items() if now - episode.last_at > self._timeout_s]
        return self._given_out(late, now)

    def _given_out(self, ids: Iterable[str], now: float) -> list[Episode]:
        """Return open episodes as they are, and close those that leave nothing."""
        episodes = []
        for id_ in ids:
            episode = self._open[id_]
            if not self._is_whole(episode) and not (0 in episode.slots and 1 in episode.slots):
                _, how = self._over.pop(id_, (now, "void"))
                self._over[id_] = (now, how)  # known for as long again: its end may be waited for just now
                self._drop(id_, kept=0)
                self.counts.void += 1
            else:
                episodes.append(self._build(id_, episode))
        return episodes

    def close(self, episode: Episode, now: float) -> bool:
        """Forget the steps of a durable episode; False when it was over already, so that it must not count again."""
        if episode.id not in self._open:
            return False
        lost = episode.end == "lost"
        _, before = self._over.pop(episode.id, (now, "void"))
        self._over[episode.id] = (now, "lost" if lost else "whole")
        self._drop(episode.id, kept=episode.num_steps + 1, is_cut=lost)
        self.counts.lost += lost
        self.counts.whole += not lost
        return before == "void"

    def settle(self, ids: Iterable[str], now: float) -> None:
        """Close what was opened for episodes that the store holds already."""
        for id_ in ids:
            if id_ in self._open:
                self._drop(id_, kept=0)
                self._over[id_] = (now, "whole")
                self.counts.void += 1

    def is_open(self, id_: str) -> bool:
        """Say whether an episode has begun and is not over."""
        return id_ in self._open

    def reward_of(self, id_: str, t: int) -> float | None:
        """Return the reward that came for a step of an open episode, NaN where none did; None for no such step."""
        episode = self._open.get(id_)
        if episode is None or t not in episode.slots or 0 <= episode.num_steps <= t:
            return None
        after = episode.end_slot if t + 1 == episode.num_steps else episode.slots.get(t + 1, -1)
        return float(self._rows.rewards[after]) if after >= 0 else np.nan

    def seen_at(self, id_: str) -> NDArray[np.float64] | None:
        """Return when each step and the end of an open episode was seen first, float64[T + 1]; None when it is over."""
        episode = self._open.get(id_)
        return None if episode is None else self._rows.seen_at[self._path(episode)]

    def first_open(self) -> tuple[float, str] | None:
        """Return (time of its first step, id) of the open episode that began first and holds its place, if any does."""
        return min(
            ((episode.first_at, id_) for id_, episode in self._open.items() if not episode.is_passed), default=None
        )

    def give_up(self, id_: str) -> bool:
        """Let an open episode hold its place no more; False where it isn't open."""
        if id_ not in self._open:
            return False
        self._open[id_].is_passed = True
        return True

    def is_passed(self, id_: str) -> bool:
        """Say whether the place of an open episode was given up."""
        return id_ in self._open and self._open[id_].is_passed

    @staticmethod
    def _is_whole(episode: _Open) -> bool:
        steps = episode.slots
        # Steps past the end don't count, so that the number alone proves nothing.
        return 0 <= episode.num_steps <= len(steps) and all(t in steps for t in range(episode.num_steps))

    def _begin(self, id_: str, seen_at: float, now: float) -> _Open | None:
        if self._over.get(id_, (now, "void"))[1] == "whole":
            return None
        self.counts.begun += 1
        episode = self._open[id_] = _Open(seen_at, now)
        return episode

    def _answer(self, steps: Steps, row: np.int64) -> None:
        """Keep another answer to a step that is held already."""
        others = self._open[steps.episodes[row]].others.setdefault(int(steps.t[row]), [])
        if others and self._rows.agree(np.array(others), steps, np.full(len(others), row))[0].any():
            self.counts.duplicates += 1
        elif len(others) == MAX_OTHERS:
            self.counts.conflicts += 1
        else:
            others += self._rows.take(1)
            self._rows.write(np.array(others[-1:], np.int64), steps, np.array([row]))

    def _drop(self, id_: str, *, kept: int, is_cut: bool = False) -> None:
        """Forget an open episode, of which so many rows are kept; the others are stray, or where it is cut."""
        episode = self._open.pop(id_)
        self.counts.evicted += episode.is_evicted
        others = [slot for some in episode.others.values() for slot in some]
        self._rows.give_back(others)
        self.counts.conflicts += len(others)
        slots = [*episode.slots.values(), *([episode.end_slot] if episode.end else [])]
        self._rows.give_back(slots)
        self.counts.kept += kept
        if is_cut:
            self.counts.truncated += len(slots) - kept
        else:
            self.counts.stray += len(slots) - kept

    def judge(self, episode: Episode) -> Episode:
        """Return the episode with the task's word on whether it failed."""
        return dataclasses.replace(episode, failed=self._judge(episode))

    def _judge(self, episode: Episode) -> bool:
        try:
            return bool(self._failed(episode))
        except Exception as error:  # the user's function; production must go on being acknowledged
            self.counts.unjudged += 1
            self.trouble = f"The task's failed() raised {error!r} on episode {episode.id}, which counts as failed."
            return True

    def _path(self, episode: _Open) -> NDArray[np.int64]:
        """Return the slots int64[T + 1] of what happened: of each step, and of what came last."""
        whole = self._is_whole(episode)
        path: list[int] = []
        for t in range(episode.num_steps if whole else len(episode.slots)):
            slot = episode.slots.get(t)
            if slot is None:
                break
            path.append(slot)
        if whole:
            path.append(episode.end_slot)
        rows = self._rows
        for t in sorted(episode.others.keys() & range(len(path) - 1), reverse=True):
            answers = [path[t], *episode.others[t]]
            path[t] = next((slot for slot in answers if rows.repeats(path[t + 1], slot)), path[t])
        return np.array(path, np.int64)

    def unfinished(self, digest: str, most: int) -> list[Episode]:
        """Return the last open episodes that a policy began, as far as they came: not judged, their end "lost"."""
        found: list[Episode] = []
        for id_, episode in reversed(self._open.items()):
            if len(found) == most:
                break
            has_acted = 0 in episode.slots and 1 in episode.slots and episode.end is None
            if has_acted and self._rows.digest_names(np.array([episode.slots[0]]))[0] == digest:
                found.append(self._so_far(id_, episode))
        return found

    def _build(self, id_: str, episode: _Open) -> Episode:
        return self.judge(self._so_far(id_, episode))

    def _so_far(self, id_: str, episode: _Open) -> Episode:
        rows, slots = self._rows, self._path(episode)
        acted = slots[:-1]
        end: End = episode.end if self._is_whole(episode) and episode.end else "lost"
        return Episode(
            id=id_,
            origin="production",
            task=self._task,
            parameters={},
            draw_key=int(rows.draw_keys[slots[0]]),
            digests=rows.digest_names(acted),
            observations=rows.observations[slots],
            raw_actions=rows.raw_actions[acted],
            rewards=rows.rewards[slots[1:]],
            logps=rows.logps[acted],
            end=end,
            failed=False,
            started_at=episode.first_at,
            ended_at=float(rows.seen_at[slots[-1]]),
        )


def ends_of(steps: Steps) -> dict[str, int]:
    """Return the episodes that end in these rows, each with its number of steps."""
    rows = zip(steps.episodes, steps.t.tolist(), steps.ends, strict=True)
    return {id_: num_steps for id_, num_steps, end in rows if end != "no"}
