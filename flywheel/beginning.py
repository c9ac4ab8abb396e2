"""`train.warm_start`: the policy that the first round goes on from, of this run directory or of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel.config import Config
from flywheel.deploy.registry import POLICIES
from flywheel.errors import UsageError, unknown
from flywheel.policy import MANIFEST, Files, read_artifact, read_files
from flywheel.records import Plan, Spec
from flywheel.train.beginning import check_start

Start = tuple[str, Files]
"""A policy's digest, and its files."""


def chosen(config: Config, spec: Spec, run_dir: Path) -> Start | None:
    """Return the policy that `train.warm_start` names, None where it names none; `spec` is of the task's policies.

    Raises UsageError where there is none of that name, and Refused where training can't go on from it.
    """
    if not config.train.warm_start:
        return None
    directory = _directory(config.train.warm_start, run_dir)
    artifact = read_artifact(directory)
    for what in ("observation_shape", "action_kind", "action_shape", "num_outputs"):
        if (theirs := getattr(artifact.spec, what)) != (ours := getattr(spec, what)):
            raise UsageError(
                f"train.warm_start names policy {artifact.digest[:8]}, and its {what.replace('_', ' ')} is {theirs}, "
                f"this task's {ours}: name a policy of this task."
            )
    check_start(artifact.digest, artifact.trained_on, config.train)
    return artifact.digest, read_files(directory)


def from_it(plan: Plan, start: Start | None, ask: Callable[..., Any], rooms: Any) -> Plan:
    """Return the plan with the start, which is registered, where it would train from fresh weights, and says so."""
    if start is None or plan.warm_start is not None or plan.strategy != "continue_training":
        return plan
    ask(rooms.registry.write, *start)
    why = f"training goes on from policy {start[0][:8]}, as train.warm_start says"
    return dataclasses.replace(plan, warm_start=start[0], reasons=(*plan.reasons, why))


def _directory(name: str, run_dir: Path) -> Path:
    """Return a policy's directory by its path, or by (the beginning of) its digest in a run directory."""
    if (Path(name) / MANIFEST).exists():
        return Path(name).resolve()
    kept = run_dir / POLICIES / Path(name).name  # of a directory that is gone, where this run began from it
    if Path(name).name != name and (kept / MANIFEST).exists():
        return kept
    known = [path.name for path in (run_dir / POLICIES).glob("*") if not path.name.startswith(".")]
    found = [digest for digest in known if digest.startswith(name)]
    if len(found) == 1:
        return run_dir / POLICIES / found[0]
    if found:
        raise UsageError(
            f"train.warm_start is {name!r}, which {len(found)} policies of {run_dir} begin with: say more."
        )
    if known:
        raise unknown(f"policy in {run_dir} (and no directory of one):", name, [digest[:12] for digest in known])
    raise UsageError(
        f"train.warm_start is {name!r}, which is no policy's directory, and {run_dir} has no policies yet: give the "
        f"path of one, RUN_DIR/{POLICIES}/DIGEST."
    )
