"""The Grafana dashboard of Flywheel's meters: `python -m serve_apps.grafana` writes grafana.json beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flywheel import meters
from flywheel.meters import Meter

FILE = Path(__file__).with_name("grafana.json")
_WHEEL = 'wheel=~"$wheel"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel: its queries with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    kind: str = "timeseries"
    log: bool = False


def _by(*tags: str) -> str:
    return f"by ({', '.join(('wheel', *tags))})"


def _now(meter: Meter, *tags: str, only: str = "", how: str = "max") -> str:
    """A gauge; for some seconds after a restart the process before shows its value, too."""
    return f"{how} {_by(*tags)} ({meter.shown}{{{_WHEEL}{only}}})"


def _per_s(meter: Meter, *tags: str, only: str = "") -> str:
    return f"sum {_by(*tags)} (rate({meter.shown}{{{_WHEEL}{only}}}[$__rate_interval]))"


def _in_range(name: str, *tags: str, only: str = "") -> str:
    """What every process counted; `increase` would miss the first event of each, and these are rare."""
    return f"sum {_by(*tags)} (max_over_time({name}{{{_WHEEL}{only}}}[$__range]))"


def _quantile(q: float, meter: Meter, *tags: str) -> str:
    rate = f"rate({meter.shown}_bucket{{{_WHEEL}}}[$__rate_interval])"
    return f"histogram_quantile({q}, sum {_by('le', *tags)} ({rate}))"


def _mean(title: str, seconds: Meter, count: Meter, tag: str) -> Panel:
    mean = f"{_in_range(seconds.shown, tag)} / {_in_range(count.shown, tag)}"
    return Panel(title, "s", ((mean, f"{{{{wheel}}}} {{{{{tag}}}}}"),), count.help, kind="stat")


def _total(title: str, meter: Meter, *tags: str) -> Panel:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in ("wheel", *tags))
    return Panel(title, "short", ((_in_range(meter.shown, *tags), legend),), meter.help, kind="stat")


def _graph(title: str, meter: Meter, *tags: str, only: str = "", log: bool = False) -> Panel:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in ("wheel", *tags))
    return Panel(title, meter.unit, ((_now(meter, *tags, only=only), legend),), meter.help, log=log)


def _flow(title: str, meter: Meter, *tags: str, only: str = "") -> Panel:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in ("wheel", *tags))
    return Panel(title, "cps", ((_per_s(meter, *tags, only=only), legend),), meter.help)


def _latency(title: str, meter: Meter, *tags: str) -> Panel:
    legend = " ".join(f"{{{{{tag}}}}}" for tag in ("wheel", *tags))
    queries = tuple((_quantile(q, meter, *tags), f"{legend} p{q * 100:g}") for q in (0.5, 0.99))
    return Panel(title, "s", queries, meter.help)


_EVIDENCE = f"{_now(meters.EVIDENCE, 'monitor')} / {_now(meters.THRESHOLD, 'monitor')}"
_SIDES = "{{wheel}} {{check}} {{side}}"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Production": (
        _graph("Return of the last 50 episodes", meters.RETURN),
        _graph("Failure rate of the last 50 episodes", meters.FAILURE_RATE),
        _flow("Episodes stored a second", meters.EPISODES, "end", "failed", only=',origin="production"'),
        Panel(
            "Episodes under way",
            "short",
            ((_now(meters.OPEN), "{{wheel}} open"), (_now(meters.WAITING), "{{wheel}} wait for earlier ones")),
            "An outcome is read in order of episode start.",
        ),
    ),
    "Monitors": (
        Panel(
            "Evidence as a share of the alarm's threshold",
            "percentunit",
            ((_EVIDENCE, "{{wheel}} {{monitor}}"),),
            "At 100 % the monitor raises its Signal, once a release.",
            log=True,
        ),
        Panel(
            "Evidence and thresholds",
            "short",
            (
                (_now(meters.EVIDENCE, "monitor"), "{{wheel}} {{monitor}}"),
                (_now(meters.THRESHOLD, "monitor"), "{{wheel}} {{monitor}} threshold"),
            ),
            meters.EVIDENCE.help,
            log=True,
        ),
        _total("Signals", meters.SIGNALS, "monitor", "kind"),
    ),
    "Gate": (
        _total("Verdicts", meters.VERDICTS, "outcome"),
        Panel(
            "Failure rate that the last verdict saw",
            "percentunit",
            ((_now(meters.CHECK, "check", "side", only=',check="failure_rate"'), _SIDES),),
            "It passes when the interval's high end is below the bound.",
        ),
        Panel(
            "The last verdict's other checks",
            "short",
            ((_now(meters.CHECK, "check", "side", only=',check!="failure_rate"'), _SIDES),),
            meters.CHECK.help,
        ),
        _total("Simulations", meters.SIMULATIONS, "purpose"),
    ),
    "Releases": (
        Panel(
            "Policy version",
            "short",
            (
                (_now(meters.VERSION, "stage"), "{{wheel}} {{stage}}"),
                (_now(meters.REPLICA_VERSION, how="min"), "{{wheel}} oldest replica"),
                (_now(meters.REPLICA_VERSION), "{{wheel}} newest replica"),
            ),
            "What the registry says, and what replicas answer with.",
        ),
        _graph("Share of new episodes", meters.SHARE, "stage"),
        _total("Releases", meters.RELEASES, "stage", "cause"),
    ),
    "Serving": (
        _flow("Decisions a second", meters.DECISIONS),
        _flow("Requests a second", meters.REQUESTS, "route", "code"),
        _latency("Latency behind the door", meters.REQUEST_SECONDS, "route"),
        _graph("Steps that wait for the observer", meters.QUEUE),
    ),
    "Ingest and losses": (
        _latency("Ingest lag", meters.INGEST),
        _flow("Rows a second", meters.ROWS, "kind"),
        _total("Losses", meters.LOSSES, "kind"),
        _flow("Losses a second", meters.LOSSES, "kind"),
        _graph("Episodes in the store", meters.STORED),
        _graph("Size of the store", meters.STORE_BYTES),
    ),
    "Traces": (
        _flow("Spans a second", meters.SPANS, "kind"),
        _total("Spans", meters.SPANS, "kind"),
        _graph("Spans that are kept", meters.TRACES),
    ),
    "Stage times of the loop": (
        _total("Turns", meters.TURNS, "strategy"),
        _mean("Time of a stage, in the mean", meters.STAGE_SECONDS, meters.STAGES, "stage"),
        _mean("Time of a piece of work, in the mean", meters.WORK_SECONDS, meters.WORK, "work"),
    ),
    "Training": (
        Panel(
            "Return",
            "short",
            (
                (_now(meters.TRAINING_RETURN), "{{wheel}} training"),
                (_now(meters.PROBE_RETURN), "{{wheel}} gate's probe"),
            ),
            "Of training episodes and of the gate's probe of the same weights.",
        ),
        _graph("Failure rate of the gate's probe", meters.PROBE_FAILURE_RATE),
        _flow("Environment steps a second", meters.TRAINING_STEPS),
        _graph("What a batch is made of", meters.BATCH_SHARE, "source"),
        _graph("Age of a batch's steps, in episodes", meters.BATCH_AGE),
        _graph("Steps that a batch is drawn from, if all alike", meters.BATCH_EFFECTIVE),
        _graph("Environment steps a second, while an iteration goes on", meters.TRAINING_SPEED),
        _graph("Time left of the round, at most", meters.TRAINING_LEFT),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []})
        y += 1
        for i, panel in enumerate(row):
            panels.append(_panel(panel) | {"gridPos": _place(8 * (i % 3), y + 8 * (i // 3), 8, 8)})
        y += 8 * ((len(row) + 2) // 3)
    for number, made in enumerate(panels, 1):
        made["id"] = number
    return {
        "title": "Flywheel",
        "uid": "flywheel",
        "tags": ["flywheel", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), _wheels()]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    custom = {"scaleDistribution": {"type": "log", "log": 10}} if panel.log else {}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": {"unit": panel.unit, "noValue": "none", "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "textMode": "value_and_name"},
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}


def _wheels() -> dict[str, Any]:
    names = f"{meters.STORED.shown}|{meters.TRAINING_STEPS.shown}"
    query = f'label_values({{__name__=~"{names}"}}, wheel)'
    return {
        "name": "wheel",
        "label": "Wheel",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "wheels"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
