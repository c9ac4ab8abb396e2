"""The command `flywheel estimate`: what a policy would have brought on the episodes that production has seen."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flywheel.analyze.off_policy import OffPolicy


def estimate(digest: str, /, *, run_dir: Path, episodes: int = 500, by: str = "", seed: int | None = None) -> int:
    """Estimate a policy's return and failure rate on logged episodes of production; no verdict. Exit code 3: refused.

    Episodes of a policy that acts otherwise count for little: with fewer than 50 that count there is no estimate.

    Args:
        digest: a policy of the run directory, or what its digest begins with
        run_dir: directory of the run
        episodes: most recent episodes that are read
        by: the policy that acted in them, named as the first one; the one in service by default
        seed: root of the resamples behind the intervals; a fresh one by default
    """
    from flywheel.analyze.off_policy import evaluate
    from flywheel.connection import connect
    from flywheel.errors import UsageError
    from flywheel.store import intake
    from flywheel.trace.edits import matching

    with connect(run_dir) as run:
        known = {artifact.digest: artifact for artifact in run.registry.artifacts()}
        target = run.policies[matching("policy", digest, known)]
        acted = matching("policy", by, known) if by else run.registry.champion()
        if acted is None:
            raise UsageError("No policy is in service there: name the one whose episodes are to be read by --by.")
        with intake.open_readonly(run_dir) as store:
            logged = store.recent(episodes, None, acted)
        seed = secrets.randbelow(2**31) if seed is None else seed
        found = evaluate(logged, target, seed, run.task.return_range)
    print(told(found, acted, seed))
    return 3 if found.refusal else 0


def told(found: OffPolicy, acted: str, seed: int) -> str:
    """Return an estimate as a table."""
    head = f"policy {found.digest[:8]} on {found.num:,} episodes of policy {acted[:8]}, which count as "
    lines = [f"{head}{found.effective:,.0f} (seed {seed}); {found.num_left_out:,} more say nothing"]
    if found.refusal:
        return "\n".join([*lines, f"  refused: {found.refusal}"])
    rows = [("logged", found.logged), *((each.method, each) for each in found.returns)]
    lines += ["  return         value   95 %"]
    lines += [
        f"    {name:<10} {each.value:8.5g}   {each.interval[0]:.5g} to {each.interval[1]:.5g}"
        for name, each in rows
        if each
    ]
    lines += ["  failure rate   value   95 %"]
    for name, share in (("logged", found.logged_failed), ("WIS", found.failed)):
        if share is not None:
            low, high = share.interval
            lines += [f"    {name:<10} {share.value:8.2%}   {low:.2%} to {high:.2%}"]
    if found.is_screened:
        lines += ["  screened: it is surely worse than what acted, where production has been"]
    return "\n".join([*lines, "  It is an estimate: what the policy that acted never did, nobody has seen."])
