"""What became of a fork, to be read, drawn and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.records import Episode, Parameters
from flywheel.tapes import Difference, Scenario, short
from flywheel.trace.effect import Effect, Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """Both courses of a fork's rest, and what is to be said of them."""

    task: str
    """The task's name."""
    original: Episode
    """As it was recorded."""
    unedited: Episode
    """The rest without the edits: the original itself where its world runs again bit for bit, else what the simulator
    makes of it."""
    fork: Episode
    """The rest with the edits."""
    at: int
    """The step of the fork: the policy ran for this one and those after it."""
    edits: tuple[str, ...]
    """In words."""
    world: Parameters
    """Parameters of the simulator that the rest ran in, where the original's world can't be run again; else {}."""
    rewarded: bool
    """Whether the fork's rewards are edited ones: the policy was not retrained for them."""
    difference: Difference | None
    """Where fork and unedited part first; None where they are equal to the last bit."""
    effect: Effect | None
    """Of the edits, over many pairs of runs; None where the rest ran only once."""
    scenario: Callable[[], Scenario]
    """() -> what the gate can try every candidate in, still without a name."""

    @property
    def exact(self) -> bool:
        """Whether the original's world was run again bit for bit, from its seed."""
        return not self.world

    def compare(self, path: str | Path | None = None) -> Figure:
        """Return a picture of both courses, written to a PNG file where `path` is given."""
        from flywheel.trace.picture import draw

        return draw(self, None if path is None else Path(path))

    def __str__(self) -> str:
        origin, scenario = self.original.origin, self.original.scenario
        head = f"fork of episode {short(self.original.id)} ({self.task}, {origin}{f' {scenario}' if scenario else ''})"
        lines = [f"{head} at step {self.at}"]
        rows = [("edits", "; ".join(self.edits) or "none"), ("world", self._world()), ("original", how(self.original))]
        if not self.exact:
            rows.append(("unedited", f"{how(self.unedited)} (in the simulator)"))
        rows += [("fork", how(self.fork)), ("parts", self._parts())]
        if self.effect is not None:
            rows += _effect(self.effect)
        if self.rewarded:
            rows.append(("note", f"rewards are edited from step {self.at} on; the policy was not retrained for them"))
        return "\n".join([*lines, *(f"  {name:<9} {text}" for name, text in rows)])

    def _world(self) -> str:
        if self.exact:
            return "stepped again from its seed, every observation equal to the last bit"
        values = ", ".join(f"{name} {value:g}" for name, value in self.world.items())
        return f"went on in the simulator from what was observed at step {self.at}{f' ({values})' if values else ''}"

    def _parts(self) -> str:
        if self.difference is None:
            return "never: equal to the last bit"
        return f"at step {self.difference.step}: {self.difference.note}"


def how(episode: Episode) -> str:
    """Return how an episode came out."""
    fate = "failed" if episode.failed else "lost" if episode.end == "lost" else "did not fail"
    return f"return {episode.total:.6g} in {episode.num_steps} steps, {fate}"


def _effect(effect: Effect) -> list[tuple[str, str]]:
    low, high = effect.interval
    one, other = effect.means
    if not effect.is_drawn:
        fates = [("failed" if rate.num_failed else "did not fail") for rate in (effect.unedited, effect.edited)]
        return [
            (
                "effect",
                f"{effect.mean:+.4g} of return: {one:.6g} becomes {other:.6g}; nothing is drawn, so every run is this "
                "one",
            ),
            ("failed", f"it {fates[0]} without the edits, and {fates[1]} with them"),
        ]
    return [
        (
            "effect",
            f"{effect.mean:+.4g} of return (95 %: {low:+.4g} to {high:+.4g}) in {effect.num_pairs} pairs of runs "
            f"under the same draws: {one:.6g} becomes {other:.6g}",
        ),
        ("failed", f"{_rate(effect.unedited)} without the edits, {_rate(effect.edited)} with them"),
    ]


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.num_failed} of {rate.num} (95 %: {100 * low:.0f} % to {100 * high:.0f} %)"
