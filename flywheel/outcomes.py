"""How an episode came out: what is kept of it while it waits for those that began before it."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel.records import End, Episode


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Outcome:
    """An episode that is over, without its steps; outcomes are in order of start."""

    started_at: float
    id: str
    digest: str
    """The policy that began it."""
    end: End
    failed: bool
    total: float
    num_steps: int
    ended_at: float

    @property
    def is_known(self) -> bool:
        """False for a lost episode that had not failed when it was last heard of: it may have, later."""
        return self.failed or self.end != "lost"


def outcome_of(episode: Episode) -> Outcome:
    """Return how an episode came out."""
    return Outcome(
        started_at=episode.started_at,
        id=episode.id,
        digest=episode.digests[0] if episode.digests else "",
        end=episode.end,
        failed=episode.failed,
        total=episode.total,
        num_steps=episode.num_steps,
        ended_at=episode.ended_at,
    )
