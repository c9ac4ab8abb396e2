"""Reads Ray's metrics as Prometheus does: every target of the session's discovery file, again and again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scraped:
    """Keeps the last value of each series of Flywheel."""

    def __init__(self, temp_dir: Path) -> None:
        """Look for Ray's session in `temp_dir`."""
        self._discovery = temp_dir / "prom_metrics_service_discovery.json"
        self.series: dict[str, dict[Labels, float]] = {}
        self.seen: dict[str, set[float]] = {}
        """All values that any series of a name ever had."""
        self._rounds: dict[str, list[int]] = {}
        self._num_rounds = 0

    def scrape(self) -> None:
        """Take in what every target shows now; a target that isn't up yet shows nothing."""
        self._num_rounds += 1
        for target in self._targets():
            try:
                text = httpx.get(f"http://{target}/metrics", timeout=10).text
            except httpx.TransportError:
                continue
            ours = "\n".join(line for line in text.splitlines() if "ray_flywheel" in line) + "\n"
            for family in text_string_to_metric_families(ours):
                for sample in family.samples:
                    self.series.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
                    self.seen.setdefault(sample.name, set()).add(sample.value)
                    self._rounds.setdefault(sample.name, []).append(self._num_rounds)

    def labels(self, name: str) -> set[str]:
        """Return the labels that every series of a name has."""
        found = [{label for label, _ in labels} for labels in self.series[name]]
        return set.intersection(*found)

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the sums over processes by these labels."""
        sums: dict[tuple[str, ...], float] = {}
        for series, value in self.series[name].items():
            key = tuple(dict(series)[label] for label in labels)
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def presence(self, name: str) -> float:
        """Return the share of all scrapes since the first one with this name that had it."""
        rounds = self._rounds[name]
        return len(set(rounds)) / (self._num_rounds - rounds[0] + 1)

    def watch(self, is_over: Callable[[float], bool]) -> None:
        """Scrape each time that `is_over(seconds)`, which waits so long, says no."""
        while not is_over(1.0):
            self.scrape()

    def _targets(self) -> Iterator[str]:
        if self._discovery.exists():
            for group in json.loads(self._discovery.read_text() or "[]"):
                yield from group["targets"]
