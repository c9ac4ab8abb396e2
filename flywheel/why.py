"""The command `flywheel why`: why production changed, in words, in a picture, and with what to look at next."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flywheel import causes, console
from flywheel.causes import NAMES, Cause, Moved, Odd, to_plain
from flywheel.errors import UsageError
from flywheel.moments import utc

if TYPE_CHECKING:
    from flywheel.connection import Connection
    from flywheel.records import Episode


def why(
    *,
    run_dir: Path,
    now: bool = False,
    plot: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Say why production changed: what kind of cause, since which episode, what shows it, and what to look at.

    Args:
        run_dir: directory of the run
        now: make the diagnosis afresh, from what production has shown until now; without it, the last one of the
            journal is told
        plot: PNG file to draw what moved into, episode by episode
        as_json: print it as JSON
    """
    from flywheel.connection import Connection

    with Connection(run_dir) as tp:
        found = _now(tp) if now else _last(run_dir)
        if found is None:
            print("No turn has asked why: no alarm was open when one began. `flywheel why --now` asks now.")
            return 0
        when, cause = found
        if plot is not None:
            _draw(tp, cause, plot)
    if as_json:
        print(json.dumps(_strict(to_plain(cause)), indent=2, allow_nan=False))
        return 0
    print("\n".join(lines(cause, when, run_dir, console.width())))
    if plot is not None:
        print(f"  {'picture':<9} {plot}")
    return 0


def _strict(value: Any) -> Any:
    """Return plain values with None for NaN and infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {name: _strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last(run_dir: Path) -> tuple[str, Cause] | None:
    """Return the last diagnosis of the journal, of a turn under way, too, and which turn made it."""
    from flywheel import archive

    draft = archive.read_draft(run_dir)
    for turn in reversed([*archive.read_turns(run_dir), *([] if draft is None else [draft])]):
        cause = causes.of(turn)
        if cause is not None:
            return f"turn {turn.number}", cause
    return None


def _now(tp: Connection) -> tuple[str, Cause]:
    """Make the diagnosis from what the store holds."""
    from flywheel import archive
    from flywheel.analyze.cause import MOST, find
    from flywheel.remembering import forgotten
    from flywheel.store import intake
    from flywheel.task import spec_of

    since = causes.answered(archive.read_turns(tp.run_dir))
    releases = tp.registry.releases()
    last = releases[-1] if releases else None
    with intake.open_readonly(_store(tp)) as store:
        episodes = [e for e in settled(store.recent(2 * MOST)) if e.started_at >= since]
    signals = [s for s in tp.signals() if last is not None and s.evidence["released_at"] == last.released_at]
    if not episodes:
        raise UsageError(f"Production of {tp.run_dir} has no episode that is settled yet: there is nothing to ask.")
    champion, previous = ("", None) if last is None else (last.digest, last.previous)
    task, episodes = forgotten(tp.task, episodes)
    return "now", find(episodes, spec_of(task), signals=signals, champion=champion, previous=previous)


def settled(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the episodes before which nothing can be open any more, as far as files tell.

    One that began earlier than the longest one lasted, before the newest end, is over or lost: of those that began
    later only short ones are at hand, and failed ones are short.
    """
    if not episodes:
        return []
    longest = max(e.ended_at - e.started_at for e in episodes)
    until = max(e.ended_at for e in episodes) - longest
    kept = [e for e in episodes if e.started_at <= until]
    return kept or list(episodes)


def _store(tp: Connection) -> Path:
    from flywheel.store import intake

    if not (tp.run_dir / intake.FILE).exists():
        raise UsageError(f"{tp.run_dir} has no production yet: there is no {intake.FILE} in it.")
    return tp.run_dir


def _draw(tp: Connection, cause: Cause, path: Path) -> None:
    """Draw the episodes that the diagnosis was made from, and those that came right after them."""
    from flywheel.analyze.picture import draw
    from flywheel.store import intake
    from flywheel.task import spec_of

    with intake.open_readonly(_store(tp)) as store:
        ids = [o.id for o in store.outcomes("production")]
        if cause.since_episode and cause.since_episode not in ids:
            raise UsageError(f"The store no longer holds {cause.since_episode}, where it began: nothing can be drawn.")
        at = ids.index(cause.since_episode) if cause.since_episode else len(ids) - 1
        first = max(0, at - max(cause.num_before, 20))
        episodes = store.read(store.kept(ids[first : at + max(cause.num_after, 20)]))
    draw(cause, [e for e in episodes if e.num_steps], spec_of(tp.task), path)


def lines(cause: Cause, when: str, run_dir: Path, width: int) -> list[str]:
    """Return a diagnosis in lines of at most `width` characters."""
    head = f"{NAMES[cause.kind]} changed" if cause.kind not in ("unknown", "nothing") else f"{NAMES[cause.kind]}"
    if cause.kind == "nothing":
        head = "nothing changed"
    begun = f", since {utc(cause.since_at)}" if cause.since_episode else ""
    found = [*_wrapped(f"{head}{begun} (asked {when if when == 'now' else f'in {when}'})", width, "")]
    for sentence in cause.sentences:
        found += _wrapped(sentence, width, "  ")
    if cause.moved:
        found += ["", "what moved", *_table(cause.moved, width)]
    if cause.transitions:
        found += ["", "transitions that show it", *(line for odd in cause.transitions for line in _odd(odd, width))]
    if cause.examples_after:
        found += ["", "episodes to look at"]
        for word, ids in (("since", cause.examples_after), ("before", cause.examples_before)):
            if ids:
                found += _wrapped(f"{word:<7} {', '.join(ids)}", width, "  ", " " * 10)
        found += ["", *(f"  {command}" for command in _commands(cause, run_dir))]
    return found


def _wrapped(text: str, width: int, indent: str, later: str | None = None) -> list[str]:
    after = indent + "  " if later is None else later
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=after, break_on_hyphens=False, break_long_words=False
    )


def _table(moved: Sequence[Moved], width: int) -> Iterator[str]:
    """Yield a row for each number, two lines of it where they don't fit on one."""
    labels = [f"{row.what}: {row.measure}" for row in moved]
    numbers = [
        f"{row.before:>9.4g} {row.after:>9.4g}  {'' if math.isnan(row.p_value) else f'{row.p_value:.2g}':>7}"
        for row in moved
    ]
    head, widest = f"{'before':>9} {'since':>9}  {'p':>7}", max(len(label) for label in labels)
    if widest + len(head) + 4 <= width:
        yield f"  {'':<{widest}}  {head}"
        for label, number in zip(labels, numbers, strict=True):
            yield f"  {label:<{widest}}  {number}".rstrip()
        return
    yield f"  {head}"
    for label, number in zip(labels, numbers, strict=True):
        yield from _wrapped(label, width, "  ", "    ")
        yield f"  {number}".rstrip()


def _odd(odd: Odd, width: int) -> list[str]:
    seen = "is missing" if math.isnan(odd.seen) else f"{odd.seen:.4g}"
    expected = "" if math.isnan(odd.expected) else f", where {odd.expected:.4g} was to be expected"
    return _wrapped(f"{odd.episode} at step {odd.t}: {odd.what} {seen}{expected}", width, "  ")


def _commands(cause: Cause, run_dir: Path) -> list[str]:
    """Return what to call next; commands are never broken into lines, so that they can be copied."""
    where = f"--run-dir {shlex.quote(str(run_dir))}"
    episode, step = cause.examples_after[0], 0
    if cause.transitions:
        episode, step = cause.transitions[0].episode, cause.transitions[0].t
    found = [
        f"flywheel diverge {shlex.quote(episode)} {where}",
        f"flywheel fork {shlex.quote(episode)} --at {step} {where}",
    ]
    if cause.kind == "policy" and cause.digest:
        found.append(f"flywheel episodes failed policy={cause.digest[:8]} {where}")
    return found
