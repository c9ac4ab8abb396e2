"""What the wheel says, kept in its run directory, so that whoever comes later can read and follow it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flywheel import archive
from flywheel.console import EVERY_S, Say
from flywheel.records import Told


class Story:
    """A Say that passes every sentence on and keeps it; of passing ones without numbers, one now and then."""

    def __init__(self, run_dir: Path, say: Say, clock: Callable[[], float] = time.time) -> None:
        """Write to the run directory, whose lock this process holds."""
        self._run_dir, self._say, self._clock = run_dir, say, clock
        self._last: dict[str, float] = {}
        self.turn = 0

    def __call__(self, stage: str, text: str, *, passing: bool = False, **numbers: float) -> None:
        """Say one sentence, with what it says in numbers."""
        self._say(stage, text, passing=passing)
        now = self._clock()
        if passing and not numbers and now - self._last.get(stage, float("-inf")) < EVERY_S:
            return
        self._last[stage] = now if passing else float("-inf")
        told = Told(at=now, stage=stage, text=text, turn=self.turn, passing=passing, numbers=numbers)
        archive.tell(self._run_dir, told)


@contextmanager
def kept(run_dir: Path, say: Say) -> Iterator[Story]:
    """Yield the story of a process that turns or serves here; its last line says that it ended, and of what."""
    story = Story(run_dir, say)
    try:
        yield story
    except BaseException as error:
        archive.tell(run_dir, Told(at=time.time(), stage="end", text=_why(error), turn=story.turn))
        raise
    archive.tell(run_dir, Told(at=time.time(), stage="end", text="the process ended in order", turn=story.turn))


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return "the process was stopped"
    return f"the process ended by {type(error).__name__}: {error}"
