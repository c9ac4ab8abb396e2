"""What the dashboard's queries ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "serve_apps" / "grafana.json"
_SELECTOR = re.compile(r"(ray_[a-z_]+)\{([^}]*)\}")
_LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"')
_BY = re.compile(r"by \(([^)]*)\)")


def queries() -> list[str]:
    """Return every query of every panel."""
    panels = json.loads(FILE.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def asked(query: str) -> dict[str, set[str]]:
    """Return the labels that a query needs of each series it names: those it selects and groups by."""
    grouped = {label.strip() for labels in _BY.findall(query) for label in labels.split(",")}
    found = {name: {label for label in _LABEL.findall(inside)} | grouped for name, inside in _SELECTOR.findall(query)}
    assert len(_SELECTOR.findall(query)) == len(re.findall(r"\bray_", query)), f"a series without a selector: {query}"
    return found
