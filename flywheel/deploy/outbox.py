"""Steps on their way to the observer: in order, counted when they can't be kept. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from flywheel.deploy import lines
from flywheel.deploy.lines import Line
from flywheel.records import Steps

MESSAGE = 4096
"""Rows after which a message to the observer is full."""


def join(given: Sequence[Steps | Line]) -> Steps:
    """Return the rows of one or more pieces as one, in their order."""
    pieces: list[Steps] = []
    for kind, group in groupby(given, type):
        some: list[Any] = list(group)
        pieces += [lines.steps(some)] if kind is Line else some
    if len(pieces) == 1:
        return pieces[0]
    return Steps(
        episodes=tuple(episode for piece in pieces for episode in piece.episodes),
        t=np.concatenate([piece.t for piece in pieces]),
        digests=tuple(digest for piece in pieces for digest in piece.digests),
        observations=np.concatenate([piece.observations for piece in pieces]),
        raw_actions=np.concatenate([piece.raw_actions for piece in pieces]),
        logps=np.concatenate([piece.logps for piece in pieces]),
        draw_keys=np.concatenate([piece.draw_keys for piece in pieces]),
        rewards=np.concatenate([piece.rewards for piece in pieces]),
        ends=tuple(end for piece in pieces for end in piece.ends),
        seen_at=np.concatenate([piece.seen_at for piece in pieces]),
        repeated_digests=tuple(digest for piece in pieces for digest in piece.repeated_digests),
        repeated_actions=np.concatenate([piece.repeated_actions for piece in pieces]),
    )


class Outbox:
    """Keeps at most `max_rows` rows; the oldest go first, and `dropped` counts them.

    Its length is the number of rows that wait or are on their way: with those that were dropped, all that nobody has
    said to have. A dropped step is not lost for good: its episode's end names it as missing, and the client sends it
    again.
    """

    def __init__(self, max_rows: int) -> None:
        """Begin empty."""
        self._max_rows = max_rows
        self._pieces: deque[Steps | Line] = deque()
        self._num_rows = self._num_taken = 0
        self.num_put = 0
        """Rows that were ever put."""
        self.dropped = 0

    def __len__(self) -> int:
        return self._num_rows + self._num_taken

    @property
    def num_gone(self) -> int:
        """Rows that were put and wait no more, the oldest ones: they were sent, or dropped."""
        return self.num_put - len(self)

    def put(self, piece: Steps | Line) -> None:
        """Keep rows behind all others."""
        self._pieces.append(piece)
        self.num_put += size(piece)
        self._num_rows += size(piece)
        self._trim()

    def put_back(self, steps: Steps) -> None:
        """Keep rows that were taken and couldn't be sent before all others."""
        self._pieces.appendleft(steps)
        self._num_taken -= len(steps.t)
        self._num_rows += len(steps.t)
        self._trim()

    def _trim(self) -> None:
        while self._num_rows > self._max_rows:
            lost = size(self._pieces.popleft())
            self._num_rows -= lost
            self.dropped += lost

    def take(self) -> Steps | None:
        """Return the oldest rows as one message, to be `sent` or `put_back`; None when there are none."""
        pieces: list[Steps | Line] = []
        num = 0
        while self._pieces and num < MESSAGE:
            pieces.append(self._pieces.popleft())
            num += size(pieces[-1])
        self._num_rows -= num
        self._num_taken += num
        return join(pieces) if pieces else None

    def sent(self, steps: Steps) -> None:
        """Forget rows that were taken: the observer has them."""
        self._num_taken -= len(steps.t)


def size(piece: Steps | Line) -> int:
    """Return the number of its rows."""
    return 1 if isinstance(piece, Line) else len(piece.t)
