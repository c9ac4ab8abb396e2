"""Which replicas know the shares of new episodes that are in force, as their looks at the registry show it. Pure."""

from __future__ import annotations

LIVE_S = 30.0
"""Seconds without a look after which a replica counts as gone, and nobody waits for it."""
PATIENCE_S = 60.0
"""Seconds after which episodes count all the same: of a challenger that a replica can't follow something is to be
seen, too."""


class Looks:
    """The last look of each replica, and since when it acts by what it says that it acts by."""

    def __init__(self) -> None:
        """Begin without a look; shares from before the first one are known to all."""
        self._begun_at: float | None = None
        self._seen: dict[str, tuple[float, float, float]] = {}

    def saw(self, replica: str, changed_at: float | None, now: float) -> None:
        """Take in that a replica acts by shares that came into force at `changed_at`; None: by none yet."""
        self._begun_at = now if self._begun_at is None else self._begun_at
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen[2] < LIVE_S}
        if replica and changed_at is not None:
            acted_by, since, _ = self._seen.get(replica, (None, now, now))
            self._seen[replica] = (changed_at, since if acted_by == changed_at else now, now)

    def known_from(self, changed_at: float, now: float) -> float | None:
        """Return from when on every replica acts by shares that came into force at `changed_at`; None if one doesn't.

        A replica that can't follow is waited for as long as PATIENCE_S.
        """
        if self._begun_at is None or changed_at < self._begun_at:
            return changed_at
        live = [seen for seen in self._seen.values() if now - seen[2] < LIVE_S] or list(self._seen.values())
        if any(acted_by < changed_at for acted_by, _, _ in live):
            return None if now - changed_at < PATIENCE_S else changed_at + PATIENCE_S
        return max((since for acted_by, since, _ in live if acted_by == changed_at), default=changed_at)
