"""A verdict as one page that needs nothing else: no network, no script, no font; it is read, printed, and sent on."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import platform
from functools import cache
from importlib import resources

from flywheel import __version__
from flywheel.config import GateConfig
from flywheel.errors import UsageError
from flywheel.gate.judge import terms
from flywheel.moments import utc
from flywheel.page.source import Policies
from flywheel.records import Check, Verdict
from flywheel.report import figures, worlds
from flywheel.report.context import Context, parameters_of, recorded
from flywheel.report.figures import amount
from flywheel.report.markup import Markup, join, tag
from flywheel.report.worlds import card, command, counted, table
from flywheel.simulate.corrected import corrected
from flywheel.task import Task, task_digest

HEADS = {"pass": "Passed", "fail": "Refused", "inconclusive": "Undecided"}
KINDS = {"pass": "good", "fail": "bad", "inconclusive": "open"}
QUESTIONS = {
    "failure_rate": "Does it fail more rarely than the limit?",
    "regression": "Is it no worse than the policy in service, in the same worlds?",
    "safety": "Is it no less safe than the policy in service, failures and near misses counted?",
    "stress": "Nor at the edge of what the policy in service masters?",
    "edge_cases": "Does it master every edge case of the task?",
    "scenarios": "Does it master every scenario that was saved?",
    "interval": "Is it fit for every world that calibration leaves open?",
    "coverage": "Was every pair of settings of the simulator tried?",
    "search": "How far away is the nearest failure that a search comes to?",
    "cost": "Does a decision cost no more than it may?",
    "simulation": "Could it be simulated?",
    "predictive": "Does production bear out what the gate foretold of the policies in service?",
    "budget": "Was enough of the error budget left to judge it?",
}


ENDINGS = {"simulation": "the simulation broke", "budget": "the error budget is spent"}
"""What an end without any answer is called."""


def page(verdict: Verdict, context: Context) -> str:
    """Return the verdict as a page of HTML; whatever its strings hold, they are only ever text."""
    name = f"{HEADS[verdict.outcome]}: {context.policy}"
    head = tag(
        "head", {}, tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy()}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", {}, f"{name} · {context.task.name}"), tag("link", {"rel": "icon", "href": _icon()}),
        tag("style", {}, Markup(style())),
    )  # fmt: skip
    body = tag(
        "body", {}, _heading(verdict, context),
        tag("main", {}, _checks(verdict), *worlds.every(verdict, context), _budget(verdict, context),
            _origin(verdict, context)),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


def recorded_page(known: Policies, digest: str, number: int, task: Task, config: GateConfig, run_dir: str) -> str:
    """Return the page of a recorded verdict, the oldest on its policy being number 0; UsageError where it isn't."""
    verdicts = known.verdicts.get(digest, ())
    if not 0 <= number < len(verdicts):
        raise UsageError(f"The registry holds {len(verdicts)} verdicts on policy {digest[:12]}: there is no {number}.")
    version = next(artifact.version for artifact in known.artifacts if artifact.digest == digest)
    return page(verdicts[number], recorded(verdicts[number], version, task, config, run_dir))


@cache
def style() -> str:
    """Return the page's style sheet: the colours are those of Flywheel's own page, dark where the reader's are."""
    tokens = (resources.files("flywheel.page") / "static/css/tokens.css").read_text("utf-8")
    light, dark = tokens.split(':root[data-theme="dark"]')
    own = (resources.files("flywheel.report") / "verdict.css").read_text("utf-8")
    return f"{light}@media screen and (prefers-color-scheme: dark) {{ :root{dark}}}\n{own}"


@cache
def policy() -> str:
    """Return the Content-Security-Policy that lets the page have its own style, and nothing else."""
    known = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{known}'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def _icon() -> str:
    drawn = (resources.files("flywheel.page") / "static/favicon.svg").read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"


def reasons(verdict: Verdict) -> list[tuple[str, str]]:
    """Return what decided, as (question, why): checks that failed, or are open; none where all passed."""
    wanted = {"fail": False, "inconclusive": None}
    if verdict.outcome == "pass":
        return []
    return [(_words(check.name), check.note) for check in verdict.checks if check.passed is wanted[verdict.outcome]]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _heading(verdict: Verdict, context: Context) -> Markup:
    why = reasons(verdict)
    names = ", ".join(ENDINGS.get(name, name) for name, _ in why)
    title = f"{HEADS[verdict.outcome]}: {names}" if why else HEADS[verdict.outcome]
    told = [tag("p", {}, tag("b", {}, name), f": {note}" if note else "") for name, note in why]
    if not why:
        told = [tag("p", {}, f"Each of the gate's {len(verdict.checks)} questions has its answer.")]
    against = f"policy {verdict.baseline[:8]}" if verdict.baseline else "nothing in service"
    about = " · ".join([
        context.policy, f"task {context.task.name}", f"against {against}", utc(verdict.judged_at),
        f"{counted(verdict.num_simulations, 'simulation')} in {duration(verdict.cost_s)}",
    ])  # fmt: skip
    return tag(
        "header", {"class": f"is-{KINDS[verdict.outcome]}"}, tag("h1", {}, title), *told,
        tag("p", {"class": "muted"}, about), tag("p", {"class": "muted"}, context.standing),
    )  # fmt: skip


def _checks(verdict: Verdict) -> Markup:
    return card("Questions", "", tag("div", {"class": "checks"}, *(_check(check) for check in verdict.checks)))


def _check(check: Check) -> Markup:
    text, kind = figures.answer(check)
    drawn = figures.axis(check)
    numbers = None
    if drawn is not None and check.interval[0] < check.interval[1]:
        found, low, high = (amount(check.name, each) for each in (check.value, *check.interval))
        is_cost = check.name == "cost"
        told = (
            f"99th percentile {found}, median {low}, slowest {high}" if is_cost else f"{found}, within {low} to {high}"
        )
        numbers = tag("p", {"class": "muted"}, told)
    return tag(
        "article", {}, tag("h3", {}, _words(check.name), " ", tag("span", {"class": f"tag {kind}"}, text)),
        tag("p", {"class": "muted"}, QUESTIONS.get(check.name, "")), drawn, numbers,
        tag("p", {"class": "note"}, check.note) if check.note else None,
    )  # fmt: skip


def _budget(verdict: Verdict, context: Context) -> Markup | None:
    if terms(context.task, context.config, {})[0] != verdict.config:
        told = "It was made with another configuration of the gate than today's, so its shares aren't known here."
        return card("Error budget", f"Judged before it: {counted(verdict.tries, 'candidate')}. {told}")
    whole = context.config.budget
    spent, mine = sum(map(context.allowance, range(verdict.tries))), context.allowance(verdict.tries)
    left = max(0.0, whole - spent - mine)
    parts = [(f"others before it ({verdict.tries:,})", "spent", spent), ("this one", "mine", mine),
             ("those after it", "left", left)]  # fmt: skip
    spoken = ", ".join(f"{name} {100 * share:.3g} %" for name, _, share in parts)
    return card(
        "Error budget",
        f"All candidates between two releases that production confirmed share an error of {100 * whole:.3g} %: so "
        f"probable is it, at most, that any policy at a limit passes. This one could pass with {100 * mine:.3g} %.",
        figures.shares([(kind, share / whole) for _, kind, share in parts], spoken),
        tag("ul", {"class": "key"}, *(tag("li", {}, tag("span", {"class": f"swatch {kind}"}), f" {name}: "
                                          f"{100 * share:.3g} %") for name, kind, share in parts)),
    )  # fmt: skip


def _origin(verdict: Verdict, context: Context) -> Markup:
    versions = {"flywheel": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "gymnasium")}
    values = parameters_of(verdict, context.task)
    told = ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none"
    is_known = terms(corrected(context.task, verdict.correction), context.config, values)[1] == verdict.simulator
    changed = "" if task_digest(context.task) == verdict.task else " (the task has changed since)"
    rows = [
        ("policy", tag("code", {}, verdict.digest)),
        ("policy in service", tag("code", {}, verdict.baseline) if verdict.baseline else "none"),
        ("task", join(context.task.name, " ", tag("code", {}, verdict.task), changed)),
        ("gate's configuration", tag("code", {}, verdict.config)),
        ("simulator's parameters", join(told if is_known else "", " ", tag("code", {}, verdict.simulator))),
        *([] if verdict.correction is None else [("simulator corrected", f"{verdict.correction}")]),
        ("seed of all seeds", tag("code", {}, str(verdict.seed))),
        ("judged", utc(verdict.judged_at)),
        ("valid until", utc(verdict.valid_until)),
        ("signature", tag("code", {}, verdict.signature) if verdict.signature else "none: it allows nothing"),
        ("read with", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("as JSON", context.source or "not written"),
    ]  # fmt: skip
    again = [
        tag("p", {}, "This command makes the verdict again:"),
        command(context.command),
    ]
    replay = [
        tag("p", {}, "And this one plays one of its trials again, alone, and says whether it is the same to the last "
            "bit (0 is the first trial; an id, or what it begins with, does as well):"),
        command(context.replayed("0")),
    ]  # fmt: skip
    return card(
        "Made again",
        "",
        *again,
        *(replay if verdict.trials else []),
        table("Seeds, digests and versions", ["what", "which"], rows),
    )


def duration(seconds: float) -> str:
    """Return seconds in words."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
