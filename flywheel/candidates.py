"""The candidate of a round: the policy as it is at its end, or the best one on the way, where that got lost again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flywheel import told
from flywheel.console import Say
from flywheel.policy import NETWORK, Files
from flywheel.records import Artifact, Plan, Probe, Progress
from flywheel.train.ending import Ending, trained_on


class Candidate:
    """Exports policies of the trainer; of one that is kept on the way nobody else hears before it is written."""

    def __init__(
        self,
        ending: Ending,
        ask: Callable[..., Any],
        rooms: Any,
        seed: int,
        say: Say,
        look: Callable[[Plan, bytes], Probe],
    ) -> None:
        """Begin a round that ends like this; trainer and registry of `rooms` are asked, `seed` is the run's.

        `look` tries a plan's network whole, in the worlds that the policy at the round's end was tried in.
        """
        self._ending, self._ask, self._rooms, self._seed, self._say = ending, ask, rooms, seed, say
        self._look = look
        self._kept: tuple[str, Files] | None = None

    def keep(self, plan: Plan, progress: Progress, probe: Probe) -> None:
        """Keep the policy as it is now, in place of the one before."""
        self._kept = self._export(plan, progress)
        self._ending.keep(progress, probe)

    def write(self, plan: Plan, progress: Progress, probe: Probe) -> Artifact:
        """Write the round's candidate as an artifact and register it: what is there now, or was better and is lost."""
        kept = self._ending.kept
        last = kept.last or probe
        if self._kept is not None and self._ending.is_in_doubt(last):
            kept.probe = self._look(plan, self._kept[1][NETWORK])
        exported = self._kept if self._ending.is_lost_again(last) else None
        if exported is not None and kept.probe is not None:
            how = told.probed(kept.probe, self._ending.needed)
            self._say("train", f"the policy after {kept.num_steps:,} steps is the candidate, which did better: {how}")
        digest, files = exported or self._export(plan, progress)
        artifact: Artifact = self._ask(self._rooms.registry.write, digest, files)
        return artifact

    def _export(self, plan: Plan, progress: Progress) -> tuple[str, Files]:
        version = self._ask(self._rooms.registry.next_version)
        origin = trained_on(plan, progress, self._seed)
        found: tuple[str, Files] = self._ask(self._rooms.trainer.export, version, plan.warm_start, origin, time.time())
        return found
