"""The parts of a verdict's page that tell of worlds: where it was tried, pairs that differ, cells, the trials."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from flywheel.gate.stress import LEVELS
from flywheel.records import Parameters, Trial, Verdict
from flywheel.report import cells, figures
from flywheel.report.cells import Cell, Grid, Pair
from flywheel.report.context import SHORT, Context, parameters_of
from flywheel.report.figures import number
from flywheel.report.markup import Markup, join, tag
from flywheel.tapes import CELLS, INTERVAL, NOMINAL, SEARCH, STRESS, SUITE
from flywheel.task import Parameter

SHOWN = 50
"""Rows of a list that are shown; the JSON has the others."""
MOST_GRIDS = 15
"""Pairs of parameters whose cells are shown unfolded."""
KINDS = {
    NOMINAL: "as the task begins, at the verdict's parameters",
    STRESS: "at the edge of what the policy in service masters",
    CELLS: "few worlds that together hold every pair of settings",
    INTERVAL: "drawn from what calibration leaves open",
    SEARCH: "found by the search for failures: its worst worlds only, so no rate",
}
"""What worlds of a scenario are."""


def counted(num: int, what: str) -> str:
    """Return "1 trial" or "4 trials"."""
    return f"{num:,} {what}{'' if num == 1 else 's'}"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> Markup:
    """Return a table whose first column names its rows; `numeric` are the columns of numbers.

    Where the page is narrow each row stands by itself, and its cells carry their column's name.
    """

    def cell(i: int, text: str) -> Markup:
        if not i:
            return tag("th", {"scope": "row"}, text)
        label = heads[i] if len(heads) > 2 else None
        return tag("td", {"class": "num" if i in numeric else None, "data-label": label}, text)

    head = [tag("th", {"scope": "col", "class": "num" if i in numeric else None}, text) for i, text in enumerate(heads)]
    body = [tag("tr", {}, *(cell(i, text) for i, text in enumerate(row))) for row in rows]
    inner = tag(
        "table", {"class": "rows"}, tag("caption", {"class": "unseen"}, caption),
        tag("thead", {}, tag("tr", {}, *head)), tag("tbody", {}, *body),
    )  # fmt: skip
    return tag("div", {"class": "scroll", "role": "region", "aria-label": caption, "tabindex": 0}, inner)


def fold(summary: str, *children: str | None) -> Markup:
    """Return what is there when somebody opens it."""
    return tag("details", {}, tag("summary", {}, summary), *children)


def card(title: str, about: str, *children: str | None) -> Markup:
    """Return a part of the page."""
    return tag("section", {}, tag("h2", {}, title), tag("p", {"class": "muted"}, about) if about else None, *children)


def fate(trial: Trial) -> Markup:
    """Return how a trial came out."""
    kind, text = ("bad", "✗ failed") if trial.failed else ("good", "✓ fine")
    return tag("span", {"class": f"tag {kind}"}, text)


def places(verdict: Verdict, context: Context) -> Markup:
    """Return where the policy was tried, and how often it failed there."""
    rivals: dict[str, list[Trial]] = {}
    groups: dict[str, list[Trial]] = {}
    for found, trials in ((groups, verdict.trials), (rivals, verdict.rivals)):
        for trial in trials:
            found.setdefault(trial.scenario, []).append(trial)
    rows = []
    for name in sorted(groups, key=lambda each: _rank(each, groups[each])):
        some, theirs = groups[name], rivals.get(name, [])
        margins = [trial.margin for trial in some if math.isfinite(trial.margin)]
        rows.append([
            _scenario(name), f"{len(some):,}", _failures(some), number(min(margins)) if margins else "–",
            _failures(theirs) if theirs else "–",
        ])  # fmt: skip
    heads = ["worlds", "tried", "failed", "least margin", "in service failed"]
    shown = table("Worlds by their kind", heads, rows[:SHOWN], (1, 2, 3, 4))
    return card("Where it was tried", "", shown, _left(len(rows), context))


def _rank(name: str, trials: Sequence[Trial]) -> tuple[int, int, str]:
    """Return where worlds stand in the table: those of every verdict, then named ones, most failures first."""
    if name in KINDS:
        return [*KINDS].index(name), 0, name
    return len(KINDS), -sum(trial.failed for trial in trials), name


def _failures(trials: Sequence[Trial]) -> Markup:
    num = sum(trial.failed for trial in trials)
    return tag("span", {"class": "bad" if num else None}, f"✗ {num:,}" if num else "0")


def _scenario(name: str) -> Markup:
    if name in KINDS:
        return join(name, tag("small", {}, KINDS[name]))
    kind = "a scenario of the suite" if name.startswith(SUITE) else "an edge case of the task"
    return join(name.removeprefix(SUITE), tag("small", {}, kind))


def nominal(verdict: Verdict, context: Context) -> Markup | None:
    """Return the nominal trials as a strip."""
    some = [trial for trial in verdict.trials if trial.scenario == NOMINAL]
    if not some:
        return None
    has_margin = any(math.isfinite(trial.margin) for trial in some)
    picture, low, high = figures.strip(some, 0.0 if has_margin else None)
    what = "margin (how far it stayed from failing, which is the dashed line)" if has_margin else "return"
    failed = sum(trial.failed for trial in some)
    return card(
        "Nominal worlds",
        f"Each mark is one simulation, from the first to the last, at its {what}: a dot is fine, a square failed.",
        tag("div", {"class": "plot"}, tag("span", {"class": "top"}, number(high)), picture,
            tag("span", {"class": "low"}, number(low)),
            tag("span", {"class": "under"}, f"1 to {len(some):,}: {failed:,} failed")),
        rows_of("Nominal trials", some, verdict, context),
    )  # fmt: skip


def pairs(verdict: Verdict, context: Context) -> Markup | None:
    """Return the worlds in which the candidate and the policy in service did not come out alike."""
    if not verdict.trials:
        return None
    if verdict.baseline is None:
        return card("Pairs that differ", "There was no policy in service to compare with.")
    found = cells.pairs(verdict.trials, verdict.rivals)
    if not found:
        return card("Pairs that differ", "No world of this verdict was played by the policy in service, too.")
    some = cells.differing(found)
    worse = sum(new.failed and not old.failed for new, old in some)
    better = sum(old.failed and not new.failed for new, old in some)
    about = (
        f"Of {counted(len(found), 'pair')} in the same worlds under the same draws {len(some):,} differ: in {worse:,} "
        f"only the candidate failed, in {better:,} only the policy in service, in {len(some) - worse - better:,} their "
        "returns differ."
    )
    rows = [_pair(pair, context, parameters_of(verdict, context.task)) for pair in some[:SHOWN]]
    heads = ["world", "candidate", "return", "in service", "return", "difference", "again"]
    shown = table("Pairs that differ", heads, rows, (2, 4, 5))
    summary = "All of them" if len(rows) == len(some) else f"The {len(rows):,} that differ most"
    return card("Pairs that differ", about, fold(summary, shown, _left(len(some), context)) if rows else None)


def _pair(pair: Pair, context: Context, usual: Parameters) -> list[str]:
    new, old = pair
    again = [replay(context, new.episode), tag("small", {}, "in service:"), replay(context, old.episode)]
    return [
        _world(new, usual), fate(new), number(new.total), fate(old), number(old.total),
        number(new.total - old.total), join(*(again if new.episode != old.episode else again[:1])),
    ]  # fmt: skip


def replay(context: Context, episode: str) -> Markup:
    """Return a trial's id, which opens into the command that plays it again."""
    return fold(episode[:SHORT], command(context.replayed(episode)))


def command(words: Sequence[str]) -> Markup:
    """Return a command to be copied, which is broken between its words only."""
    return tag("code", {"class": "command"}, *(tag("span", {}, f"{shlex.quote(word)} ") for word in words))


def _left(num: int, context: Context) -> Markup | None:
    if num <= SHOWN:
        return None
    return tag("p", {"class": "muted"}, f"{num - SHOWN:,} more are not shown; the JSON has all: {context.source}.")


def _world(trial: Trial, usual: Parameters) -> Markup:
    other = [f"{name} {value:.3g}" for name, value in trial.parameters.items() if value != usual.get(name)]
    name = trial.scenario.removeprefix(SUITE)
    return join(name, tag("small", {}, ", ".join([*other, f"seed {trial.seed}"])))


def listed(title: str, about: str, trials: Sequence[Trial], verdict: Verdict, context: Context) -> Markup | None:
    """Return a part that lists trials, where there are any."""
    return card(title, about, rows_of(title, trials, verdict, context)) if trials else None


def rows_of(title: str, trials: Sequence[Trial], verdict: Verdict, context: Context) -> Markup:
    """Return trials as a folded list, failed ones first and then those with the least margin (or return)."""
    ordered = sorted(trials, key=lambda t: (not t.failed, t.margin if math.isfinite(t.margin) else t.total, t.episode))
    usual = parameters_of(verdict, context.task)
    rows = [
        [_world(each, usual), fate(each), number(each.total), f"{each.length:,}", number(each.margin),
         replay(context, each.episode)]
        for each in ordered[:SHOWN]
    ]  # fmt: skip
    heads = ["world", "came out", "return", "steps", "margin", "again"]
    num, failed = len(trials), sum(trial.failed for trial in trials)
    summary = f"{counted(num, 'trial')}, {failed:,} failed" + (f": the {SHOWN} worst" if num > SHOWN else "")
    return fold(summary, table(title, heads, rows, (2, 3, 4)), _left(num, context))


SIGNS = (
    ("3", "", "so many worlds, none failed"),
    ("1/3", "some", "one of three failed"),
    ("✗", "bad", "all failed, and not all of the policy in service"),
    ("=", "both", "all failed, of both"),
    ("–", "none", "not tried"),
)
"""What stands in a cell, the class of its colour, and what it means."""


def matrix(verdict: Verdict, context: Context) -> Markup | None:
    """Return the two-way cells of the parameters' ranges: tried, failed, and whether the baseline failed there."""
    found = cells.grids(context.task, verdict.trials, verdict.rivals)
    if not found:
        return None
    whole = [cell for grid in found.values() for cell in cells.every(grid)]
    tried = [cell for cell in whole if cell.num]
    kinds = Counter(_sign(cell)[1] for cell in tried)
    about = (
        f"{len(tried):,} of {len(whole):,} cells were tried: {kinds['']:,} without a failure, {kinds['some']:,} with "
        f"some, and in {kinds['bad'] + kinds['both']:,} every world failed"
    )
    if verdict.baseline is not None:
        about += f" (in {kinds['both']:,} of those also every one of the policy in service)"
    key = [tag("li", {}, tag("span", {"class": f"cell {kind}"}, sign), f" {text}") for sign, kind, text in SIGNS]
    ordered = sorted(found.items(), key=lambda each: -sum(cell.num_failed for cell in cells.every(each[1])))
    named = {parameter.name: parameter for parameter in context.task.parameters}
    shown = [_grid(named, names, grid) for names, grid in ordered]
    first, rest = shown[:MOST_GRIDS], shown[MOST_GRIDS:]
    folded = fold(f"{counted(len(rest), 'further pair')} of parameters", tag("div", {"class": "grids"}, *rest))
    return card(
        "Cells of the parameter space", f"{about}. A column, and a row, is named by where its level begins.",
        tag("ul", {"class": "key"}, *key),
        tag("div", {"class": "grids"}, *first), folded if rest else None,
    )  # fmt: skip


def _grid(named: Mapping[str, Parameter], names: Sequence[str], grid: Grid) -> Markup:
    across, down = named[names[0]], named[names[-1]]

    def edge(parameter: Parameter, i: int, scope: str) -> Markup:
        low, high = cells.edge(parameter, i), cells.edge(parameter, i + 1)
        return tag("th", {"scope": scope, "title": f"{parameter.name} {low:.4g} to {high:.4g}"}, f"{low:.3g}")

    head = [edge(across, i, "col") for i in range(LEVELS)]
    corner = tag("td", {}, _unseen("levels"))
    is_pair = len(names) > 1
    sides = [edge(down, i, "row") if is_pair else tag("th", {"scope": "row"}, "any") for i in range(len(grid))]
    rows = [tag("tr", {}, side, *map(_cell, row)) for side, row in zip(sides, grid, strict=True)]
    other = [", ", tag("b", {}, down.name), " down"] if is_pair else []
    caption = tag("caption", {}, tag("b", {}, across.name), " across", *other)
    return tag("table", {"class": "cells"}, caption, tag("thead", {}, tag("tr", {}, corner, *head)),
               tag("tbody", {}, *rows))  # fmt: skip


def _sign(cell: Cell) -> tuple[str, str]:
    """Return what stands in a cell, and the class of its colour."""
    if not cell.num:
        return "–", "none"
    if cell.num_failed < cell.num:
        return (f"{cell.num_failed}/{cell.num}", "some") if cell.num_failed else (str(cell.num), "")
    return ("=", "both") if cell.num_rival and cell.num_rival_failed == cell.num_rival else ("✗", "bad")


def _cell(cell: Cell) -> Markup:
    sign, kind = _sign(cell)
    spoken = f"{cell.num} tried, {cell.num_failed} failed" if cell.num else "not tried"
    if cell.num_rival:
        spoken += f"; in service {cell.num_rival_failed} of {cell.num_rival}"
    shown = tag("span", {"aria-hidden": "true"}, sign)
    return tag("td", {"class": f"cell {kind}".strip(), "title": spoken}, shown, _unseen(spoken))


def _unseen(text: str) -> Markup:
    return tag("span", {"class": "unseen"}, text)


def every(verdict: Verdict, context: Context) -> list[Markup | None]:
    """Return all parts that tell of worlds."""
    searched = [trial for trial in verdict.trials if trial.scenario == SEARCH]
    spread = [trial for trial in verdict.trials if trial.scenario in (STRESS, CELLS, INTERVAL) and trial.failed]
    known = (NOMINAL, SEARCH, STRESS, CELLS, INTERVAL)
    named = [trial for trial in verdict.trials if trial.scenario not in known and trial.failed]
    return [
        places(verdict, context) if verdict.trials else None,
        nominal(verdict, context),
        pairs(verdict, context),
        matrix(verdict, context),
        listed("Failures at other parameters", "", spread, verdict, context),
        listed("Failures in edge cases and scenarios", "", named, verdict, context),
        listed("What the search found", "The worlds in which it came closest to failing, or failed.", searched, verdict,
               context),
    ]  # fmt: skip
