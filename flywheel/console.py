"""What a person sees while the wheel turns: live in a terminal, plain lines in a file."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

COLORS = {
    "start": "dim",
    "train": "blue",
    "gate": "magenta",
    "deploy": "cyan",
    "observe": "yellow",
    "analyze": "yellow",
    "done": "green",
}
EVERY_S = 5.0
"""Seconds between two passing lines of one stage in a file."""


class Say(Protocol):
    """Tells what happens: `stage` is one word, `text` a phrase; a passing line may be overwritten by the next."""

    def __call__(self, stage: str, text: str, *, passing: bool = False) -> None:
        """Show one line."""


def silent(stage: str, text: str, *, passing: bool = False) -> None:
    """Show nothing: for programs that iterate over turns themselves."""


def width() -> int:
    """Return the columns to write in: the terminal's, at least 40; lines in a file have no end."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000


@contextmanager
def folded(words: Sequence[str]) -> Iterator[None]:
    """Let the help that these words ask for, if they do, have no line wider than the terminal: tyro folds some only."""
    if not {"-h", "--help"} & set(words):
        yield  # a command is run in the block, and prints as it goes
        return
    page = _Page(sys.stdout)
    try:
        with redirect_stdout(page):
            yield
    finally:
        for line in page.getvalue().splitlines():
            print(fold(line, width()))


class _Page(io.StringIO):
    """What is printed meanwhile, in the colours and with the lines that it would have had."""

    def __init__(self, behind: TextIO) -> None:
        """Stand in for a stream."""
        super().__init__()
        self._behind = behind

    def isatty(self) -> bool:
        """Say whether it is for a terminal."""
        return self._behind.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What it will be written in: whether boxes can be drawn hangs on it."""
        return self._behind.encoding


def fold(text: str, most: int, indent: int = 0) -> str:
    """Return a line in lines of at most `most` characters, all but the first behind `indent` spaces."""
    wide = len(text) > most and "\x1b" not in text
    later = " " * indent
    return textwrap.fill(text, most, subsequent_indent=later, break_on_hyphens=False) if wide else text


class Narrator:
    """Prints lines with the seconds since the start; a context, so that the terminal is left clean."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `console` (standard output by default)."""
        self.console = console or Console(highlight=False)
        self._clock = clock
        self._began = clock()
        self._last: dict[str, float] = {}
        self._status: Status | None = None

    def __enter__(self) -> Narrator:
        """Start the live line where there is a terminal."""
        if self.console.is_terminal:
            self._status = self.console.status("", spinner="dots")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live line."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, stage: str, text: str, *, passing: bool = False) -> None:
        """Show one line; a passing one only now and then when nobody sees it live."""
        now = self._clock()
        if passing and self._status is not None:
            line = Text.assemble((f"{stage}  ", COLORS.get(stage, "")), text)
            line.truncate(self.console.width - 4, overflow="ellipsis")  # beside the spinner
            self._status.update(line)
            return
        if self._status is not None:
            self._status.update(" ")  # rich ignores an empty one
        if passing and now - self._last.get(stage, float("-inf")) < EVERY_S:
            return
        if passing:
            self._last[stage] = now
        if not self.console.is_terminal:
            print(f"{now - self._began:6.1f} s  {stage:<7}  {text}", file=self.console.file, flush=True)
            return
        row = Table.grid(padding=(0, 2))
        row.add_column(justify="right", width=7, no_wrap=True)
        row.add_column(width=7, no_wrap=True)
        row.add_column()
        row.add_row(Text(f"{now - self._began:.1f} s", "dim"), Text(stage, COLORS.get(stage, "")), Text(text))
        self.console.print(row)
