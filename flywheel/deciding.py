"""The commands `flywheel canary`: how the challenger on its way fares, and what a person decides about it."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel import console

if TYPE_CHECKING:
    from flywheel.challenge import Word


def canary(*, run_dir: Path) -> int:
    """Show the challenger on its way: its share, its outcomes, the evidence; earlier ones; and the control group.

    Evidence is a factor: how many times better the claim explains what was seen than its contrary. 1 is none.

    Args:
        run_dir: directory of the run
    """
    from flywheel import archive, told
    from flywheel.deploy.registry import open_readonly
    from flywheel.deploy.shown import shown

    config = archive.read_config(run_dir)["config"].deploy
    with contextlib.closing(open_readonly(run_dir)) as registry:
        found, control = [shown(each, config) for each in registry.canaries()], registry.control()
    print(told.challenges(found, console.width()))
    if control is not None:
        print(textwrap.fill(told.beside(control), console.width(), subsequent_indent="    "))
    return 0


def drop(policy: str = "", /, *, run_dir: Path, reason: str, task: str = "") -> int:
    """Roll the challenger on its way back, frozen or not: it is condemned, and the champion stays.

    Args:
        policy: what its digest begins with, so that no other one is meant; whichever is on its way by default
        run_dir: directory of the run
        reason: why, which is kept
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    return _decide("drop", policy, run_dir, reason, task)


def approve(policy: str = "", /, *, run_dir: Path, reason: str, task: str = "") -> int:
    """Promote the challenger on its way, which is proven and waits for approval.

    Args:
        policy: what its digest begins with, so that no other one is meant; whichever is on its way by default
        run_dir: directory of the run
        reason: why, which is kept
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    return _decide("approve", policy, run_dir, reason, task)


def freeze(policy: str = "", /, *, run_dir: Path, reason: str, task: str = "") -> int:
    """Give the challenger on its way no more episodes, until it is dropped or another one takes its place.

    Args:
        policy: what its digest begins with, so that no other one is meant; whichever is on its way by default
        run_dir: directory of the run
        reason: why, which is kept
        task: a built-in task, or module:attribute of your own; the run directory's own by default
    """
    return _decide("freeze", policy, run_dir, reason, task)


def _decide(word: Word, policy: str, run_dir: Path, reason: str, task: str) -> int:
    from flywheel import owner, told

    with owner.writing(run_dir, task) as writer:
        decided = writer.decide(word, reason, policy)
    print(f"{told.canary(decided)}.")
    return 0
