"""Production as a chart shows it: a point an episode (or a bin of them), means, and what happened when. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.page.source import Changes, Listed, Policies
from flywheel.records import Signal

ROLLING = 15
"""Episodes of the rolling mean, as in the report's picture; a hundredth of what is shown where that is more."""
POINTS = 1200
"""Most points of a line: about what a wide screen has pixels for."""


def series(
    episodes: Sequence[Listed], first: int, policies: Policies, signals: Sequence[Signal], changes: Changes
) -> dict[str, Any]:
    """Return columns for a chart over production's episodes, in order of start.

    `first` is the number of the first of them among all of production, 1 for the very first. Where there are more than
    POINTS, each point is a bin of neighbours that began on one policy: `value` its mean return, `low` and `high` the
    least and the most. `rolling` and `rate` are the mean return and the share of failed ones of the last `window`
    episodes; they are null before there are so many, or where all of them were lost.
    """
    digests = list(dict.fromkeys(e.digest for e in episodes))
    place = {digest: number for number, digest in enumerate(digests)}
    starts = np.array([e.started_at for e in episodes])
    known = np.array([e.end != "lost" for e in episodes], dtype=bool)
    totals = np.where(known, np.array([e.total for e in episodes], dtype=float), np.nan)
    failed = np.where(known, np.array([e.failed for e in episodes], dtype=float), np.nan)
    whose = np.array([place[e.digest] for e in episodes], dtype=int)
    window = max(ROLLING, len(episodes) // 100)
    bins = _bins(whose, max(1, -(-len(episodes) // POINTS)))
    ends = bins[1:] - 1
    return {
        "first": first,
        "count": len(episodes),
        "window": window,
        "digests": digests,
        "binned": len(ends) < len(episodes),
        "number": (first + (bins[:-1] + ends) / 2).tolist(),
        "at": starts[bins[:-1]].tolist(),
        "policy": whose[bins[:-1]].tolist(),
        "value": _round(_per_bin(np.nanmean, totals, bins)),
        "low": _round(_per_bin(np.nanmin, totals, bins)),
        "high": _round(_per_bin(np.nanmax, totals, bins)),
        "failed": _round(_per_bin(np.nansum, failed, bins)),
        "id": [episodes[i].id for i in bins[:-1]],
        "rolling": _round(_rolling(totals, window)[ends]),
        "rate": _round(_rolling(failed, window)[ends]),
        "marks": _marks(episodes, starts, first, policies, signals, changes),
    }


def _bins(whose: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Return where bins of at most `size` begin, and the end of the last; none spans two policies."""
    cuts = set(range(0, len(whose) + 1, size)) | {len(whose)}
    if size > 1:
        cuts |= set((np.flatnonzero(np.diff(whose)) + 1).tolist())
    return np.array(sorted(cuts), dtype=int)


def _per_bin(function: Any, values: NDArray[np.float64], bins: NDArray[np.int_]) -> NDArray[np.float64]:
    if len(bins) - 1 == len(values):
        return values
    parts = (values[begin:end] for begin, end in itertools.pairwise(bins))
    return np.array([function(part) if np.isfinite(part).any() else np.nan for part in parts])


def _rolling(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the known ones of the last `window` values, NaN before there are so many."""
    known = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    found = np.full(len(values), np.nan)
    if len(values) >= window:
        num = counts[window:] - counts[:-window]
        means = (sums[window:] - sums[:-window]) / np.maximum(num, 1)
        found[window - 1 :] = np.where(num > 0, means, np.nan)
    return found


def _round(values: NDArray[np.float64]) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _marks(
    episodes: Sequence[Listed],
    starts: NDArray[np.float64],
    first: int,
    policies: Policies,
    signals: Sequence[Signal],
    changes: Changes,
) -> list[dict[str, Any]]:
    """Return change, signals, verdicts, challengers and releases at their places among the episodes that are shown."""
    numbers = {e.id: first + i for i, e in enumerate(episodes)}
    versions = {artifact.digest: artifact.version for artifact in policies.artifacts}

    def place(at: float) -> float:
        return first - 0.5 + float(np.searchsorted(starts, at))

    found: list[dict[str, Any]] = []
    if changes.first in numbers:
        what = f"world changes: {changes.text}" if changes.text else "world changes"
        found.append({"kind": "change", "number": numbers[changes.first], "text": what, "episode": changes.first})
    for signal in signals:
        number = numbers.get(signal.at_episode, place(signal.at))
        words = f"{signal.kind.replace('_', ' ')} ({signal.monitor})"
        found.append({"kind": "signal", "number": number, "at": signal.at, "text": words, "episode": signal.at_episode})
    for digest, verdicts in policies.verdicts.items():
        for verdict in verdicts:
            word = {"pass": "passes", "fail": "refuses"}.get(verdict.outcome, "can't decide on")
            text = f"gate {word} v{versions[digest]}"
            found.append(
                {"kind": "verdict", "number": place(verdict.judged_at), "at": verdict.judged_at, "text": text,
                 "digest": digest}
            )  # fmt: skip
    found += [
        {"kind": "challenge", "number": place(at), "at": at, "text": text, "digest": digest}
        for at, text, digest in _tried(policies, versions)
    ]
    for release in policies.releases:
        text = f"v{versions.get(release.digest, 0)} in service"
        found.append(
            {"kind": "release", "number": place(release.released_at), "at": release.released_at, "text": text,
             "digest": release.digest}
        )  # fmt: skip
    begun = starts[0] if len(starts) else 0.0
    shown = [mark for mark in found if first == 1 or mark.get("at", begun) >= begun]
    return sorted(shown, key=lambda mark: float(mark["number"]))


def _tried(policies: Policies, versions: Mapping[str, int]) -> Iterator[tuple[float, str, str]]:
    """Yield when challengers began and ended, in words; a promotion is told as the release that it is."""
    for each in policies.challenges:
        who = f"v{versions.get(each.challenger, 0)}"
        yield each.begun_at, f"{who} is tried", each.challenger
        if each.is_over and each.state != "promoted":
            yield each.changed_at, f"{who} {each.state.replace('_', ' ')}", each.challenger
