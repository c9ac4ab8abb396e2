"""How many episodes each policy began, how they came out, and the last outcomes."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel.observe.arm import RECENT
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode


class Tally:
    """Counts durable production episodes by the policy that began them, by the rewards that are known."""

    def __init__(self, rows: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Go on from the numbers by digest that a store sums up."""
        self._rows = {digest: dict(row) for digest, row in (rows or {}).items()}
        self._recent: dict[str, Outcome] = {}

    def count(self, episode: Episode) -> Outcome:
        """Count one more episode and return its outcome."""
        outcome = outcome_of(episode)
        row = self._rows.setdefault(outcome.digest, dict.fromkeys(("episodes", "failed", "lost", "total"), 0.0))
        row["episodes"] += 1
        row["failed"] += outcome.failed
        row["lost"] += outcome.end == "lost"
        row["total"] += outcome.total
        self.remember(outcome)
        return outcome

    def remember(self, outcome: Outcome) -> None:
        """Let an outcome be the last one, uncounted."""
        self._recent[outcome.id] = outcome
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def change(self, after: Outcome, before: Outcome) -> bool:
        """Count an episode as it is known now, where it counted as `before` until now; False if nothing changed."""
        before = self._recent.get(after.id, before)
        row = self._rows.get(after.digest)
        if row is not None:
            row["failed"] += after.failed - before.failed
            row["total"] += after.total - before.total
        if after.id in self._recent:
            self._recent[after.id] = after
        return (after.failed, after.total) != (before.failed, before.total)

    def episodes(self, digest: str) -> int:
        """Return the number of episodes that a digest began."""
        return int(self._rows.get(digest, {}).get("episodes", 0))

    def window(self, n: int, digest: str | None = None) -> list[Outcome]:
        """Return the last n (of at most 1,000) outcomes in order of closing, of one digest or of all."""
        return [o for o in self._recent.values() if digest is None or o.digest == digest][-n:]

    def rows(self) -> dict[str, dict[str, float]]:
        """Return the numbers by digest, with the mean return."""
        return {digest: {**row, "mean_return": row["total"] / row["episodes"]} for digest, row in self._rows.items()}
