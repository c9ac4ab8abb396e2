"""The dashboard file: made from the meters, complete, and asking for nothing that isn't measured."""

from __future__ import annotations

import json

from flywheel.meters import METERS
from serve_apps.grafana import FILE, dashboard
from tests.queries import asked, queries

SERIES = {
    meter.shown + end: {"wheel", *meter.tags} | ({"le"} if end == "_bucket" else set())
    for meter in METERS
    for end in (("_bucket", "_sum", "_count") if meter.kind == "histogram" else ("",))
}


def test_the_file_is_what_its_program_writes() -> None:
    assert json.loads(FILE.read_text()) == dashboard(), "run: python -m serve_apps.grafana"


def test_every_query_asks_for_series_that_are_in_the_list_with_their_labels() -> None:
    for query in queries():
        assert 'wheel=~"$wheel"' in query and "wheel" in query.partition("by (")[2]
        for name, labels in asked(query).items():
            assert labels <= SERIES[name], query


def test_every_meter_is_shown() -> None:
    shown = " ".join(queries())
    assert [meter.name for meter in METERS if meter.shown not in shown] == []


def test_panels_fill_the_page_without_lying_on_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_a_legend_names_labels_that_its_query_leaves() -> None:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            left = set.intersection(*asked(target["expr"]).values())
            named = {part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert named <= left, target
