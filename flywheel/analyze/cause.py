"""Why production changed: the most basic explanation that what it shows leaves, and since which episode.

Explanations are asked in the order of how much else they would explain: broken logging looks like bad rewards, a
biased sensor like another world, another world like a bad policy. None is named unless its own numbers moved further
than chance moves any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact, mannwhitneyu

from flywheel.analyze.exhibits import Change, exhibits
from flywheel.analyze.expected import expected_rewards
from flywheel.analyze.moved import ASKED, LEAST, LIMIT, Mask, Scan, Strata, onset, scan
from flywheel.analyze.rivals import is_bias, is_noise, is_other_reward, persists
from flywheel.analyze.summaries import Family, Summaries, summarize
from flywheel.analyze.words import sentences
from flywheel.causes import Cause, CauseKind
from flywheel.records import Episode, Signal, Spec

MOST = 600
"""Episodes that are read: the last ones."""
NEAR = 5
"""Episodes on either side of where a monitor's evidence begins in which a change is looked for first."""
BESIDE = 20
"""Episodes of the earlier policy that must run beside the present one's to be what it is compared with."""
DOUBT = 0.05
"""p-value of the dynamics up to which other rewards may be theirs: then they must all be changed alike."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What was found before it is put into words."""

    kind: CauseKind
    p_value: float
    onset: int
    family: Family | None = None
    scan: Scan | None = None


def find(
    episodes: Sequence[Episode],
    spec: Spec,
    *,
    signals: Sequence[Signal] = (),
    champion: str = "",
    previous: str | None = None,
    seed: int = 0,
) -> Cause:
    """Return why production changed, or that nothing did.

    Args:
        episodes: production's settled ones, of any policies; the last 600 in order of start are read.
        spec: names observations, and says how actions are applied.
        signals: alarms, where there are some: a change is looked for first where their evidence begins.
        champion: digest of the policy in service; by default that of the last episode.
        previous: digest of the one before it; by default that of the last episode before the champion's first one.
        seed: of the shuffled orders.
    """
    ordered = sorted((e for e in episodes if e.num_steps), key=lambda e: (e.started_at, e.id))[-MOST:]
    if len(ordered) < 2 * LEAST:
        return Cause(kind="unknown", digest=champion, sentences=(f"only {len(ordered)} episodes are at hand",))
    champion = champion or ordered[-1].digests[0]
    strata, rng = Strata([e.digests[0] for e in ordered]), np.random.default_rng(seed)
    known, near = summarize(ordered, spec), _near(ordered, signals)
    scans = {f.name: _asked(f, strata, near, rng) for f in known.families}
    release = _release(ordered, champion, previous)
    found = _decide(ordered, known, scans, release, near)
    known = _as_before(known, found.onset)
    change = Change(episodes=ordered, known=known, kind=found.kind, onset=found.onset, champion=champion,
                    former=release.former, family=found.family, scan=found.scan, p_value=found.p_value)  # fmt: skip
    shown = exhibits(change)
    evidence = {name: each.p_value for name, each in scans.items()} | {"release": release.p_value}
    is_some = found.kind != "nothing"
    return Cause(
        kind=found.kind,
        sentences=sentences(change, shown, is_alone=not release.is_beside),
        digest=champion,
        since_episode=ordered[found.onset].id if is_some else "",
        since_at=ordered[found.onset].started_at if is_some else 0.0,
        num_before=int(change.before.sum()),
        num_after=int(change.after.sum()) if is_some else 0,
        p_value=min(1.0, found.p_value * ASKED),
        moved=shown.moved,
        transitions=shown.transitions,
        examples_before=shown.before if is_some else (),
        examples_after=shown.after if is_some else (),
        evidence=evidence,
    )


def _near(episodes: Sequence[Episode], signals: Sequence[Signal]) -> Mask | None:
    """Return bool[N]: where the signals' evidence begins, and somewhat around it; None where nothing says it."""
    place = {e.id: i for i, e in enumerate(episodes)}
    onsets = [place[s.since_episode] for s in signals if s.since_episode in place]
    if not onsets:
        return None
    away = np.abs(np.arange(len(episodes))[:, None] - np.array(onsets)).min(axis=1)
    return np.asarray(away <= NEAR)


def _asked(family: Family, strata: Strata, near: Mask | None, rng: np.random.Generator) -> Scan:
    """Return whether a family moved anywhere, or near a signal's onset, where fewer changed episodes are enough."""
    every = scan(family.numbers, strata, np.ones(len(family.numbers), dtype=np.bool_), rng)
    if near is None:
        return every
    close = scan(family.numbers, strata, near, rng)
    better = close if close.p_value <= every.p_value else every
    return Scan(
        p_value=min(1.0, 2 * better.p_value), by_number=np.minimum(1.0, 2 * better.by_number), steady=better.steady
    )


def _decide(
    episodes: Sequence[Episode], known: Summaries, scans: dict[str, Scan], release: _Release, near: Mask | None
) -> _Found:
    families = {f.name: f for f in known.families}
    # a sensor that is biased, or noisier, shows where episodes begin and in transitions: it has no numbers of its own
    for name in ("logging", "reward", "sensors", "initial_states", "dynamics"):
        if name not in scans or scans[name].p_value > LIMIT:
            continue
        at = _onset(scans[name])
        is_moved = scans["dynamics"].p_value <= DOUBT  # then like transitions may not be alike any more
        if name == "reward" and is_moved and not is_other_reward(_as_before(known, at), at):
            continue
        kind = _kind(name, known, families[name], scans, at)
        shown = "dynamics" if kind == "dynamics" else name
        return _Found(kind=kind, p_value=scans[name].p_value, onset=at, family=families[shown], scan=scans[shown])
    if release.p_value <= LIMIT:
        return _Found(kind="policy", p_value=release.p_value, onset=release.first)
    if scans["outcome"].p_value <= LIMIT:
        at = _onset(scans["outcome"])
        return _Found(
            kind="unknown", p_value=scans["outcome"].p_value, onset=at, family=families["outcome"],
            scan=scans["outcome"],
        )  # fmt: skip
    if near is not None:
        return _Found(kind="unknown", p_value=1.0, onset=min(int(np.flatnonzero(near)[0]) + NEAR, len(episodes) - 1))
    return _Found(kind="nothing", p_value=1.0, onset=len(episodes) - 1)


def _as_before(known: Summaries, at: int) -> Summaries:
    """Return the same with the rewards that like transitions had before episode `at`."""
    if known.transitions is None:
        return known
    before = np.arange(known.transitions.num_episodes) < at
    return dataclasses.replace(known, expected=expected_rewards(known.transitions, before))


def _kind(name: str, known: Summaries, family: Family, scans: dict[str, Scan], at: int) -> CauseKind:
    """Return what a family that moved says, where a sensor or the world may explain it as well."""
    if name == "initial_states" and scans["dynamics"].p_value <= LIMIT:
        moved = scans[name].by_number <= LIMIT
        if is_bias(known, family, moved, at) or is_noise(known, at):
            return "sensors"
        return "dynamics" if persists(known, at) else "initial_states"
    if name == "dynamics" and is_noise(known, at):
        return "sensors"
    kinds: dict[str, CauseKind] = {
        "logging": "logging", "reward": "reward", "sensors": "sensors", "initial_states": "initial_states",
        "dynamics": "dynamics",
    }  # fmt: skip
    return kinds[name]


def _onset(found: Scan) -> int:
    """Return the episode where the numbers that moved did: those that did so most surely."""
    moved = np.flatnonzero(found.by_number <= LIMIT)
    if not len(moved):  # only all of them together
        moved = np.argsort(found.by_number, kind="stable")[:8]
    return onset(found.steady[:, moved])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Release:
    """The policy in service beside the one before it."""

    p_value: float
    first: int
    """The champion's first episode."""
    former: NDArray[np.bool_]
    """bool[N]: episodes of the policy before it that it is compared with."""
    is_beside: bool
    """Whether those ran at the same time."""


def _release(episodes: Sequence[Episode], champion: str, previous: str | None) -> _Release:
    """Ask whether the policy in service comes out worse than the one before it: more fail, or returns are lower."""
    digests = np.array([e.digests[0] for e in episodes])
    ours = digests == champion
    first = int(np.argmax(ours))
    if previous is None or previous not in digests:
        previous = str(digests[first - 1]) if first else ""
    former = digests == previous
    beside = former & (np.arange(len(episodes)) >= first)
    is_beside = bool(beside.sum() >= BESIDE)
    former = beside if is_beside else former & ~beside
    if not ours.any() or former.sum() < LEAST:
        return _Release(p_value=1.0, first=first, former=former & False, is_beside=is_beside)
    failed = np.array([e.failed for e in episodes])
    table = [[int((failed & some).sum()), int((~failed & some).sum())] for some in (ours, former)]
    more = float(fisher_exact(table, alternative="greater").pvalue)
    totals = np.array([e.total for e in episodes])
    lower = float(mannwhitneyu(totals[ours], totals[former], alternative="less").pvalue)
    return _Release(p_value=min(1.0, 2 * min(more, lower)), first=first, former=former, is_beside=is_beside)
