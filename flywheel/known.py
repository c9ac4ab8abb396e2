"""What a run directory knows of its policies: each by its digest, and the worlds that it was made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flywheel import foreign
from flywheel.deploy.registry import Registry
from flywheel.policy import Policy, load
from flywheel.records import Artifact, Correction, Parameters, Turn
from flywheel.simulate.corrected import corrected, correction_of
from flywheel.task import Task

Worlds = tuple[Task, Parameters]
"""The task, with what its worlds correct, and their parameters."""


class Policies(Mapping[str, Policy]):
    """The policies of a run directory by digest, each loaded and proven once, when it is first asked for."""

    def __init__(self, registry: Registry) -> None:
        """Load nothing yet."""
        self._registry = registry
        self._loaded: dict[str, Policy] = {}

    def __getitem__(self, digest: str) -> Policy:
        if digest not in self._loaded:
            self._loaded[digest] = load(self._registry.bundle(digest))
        return self._loaded[digest]

    def __contains__(self, digest: object) -> bool:
        return digest in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(artifact.digest for artifact in self._registry.artifacts())

    def __len__(self) -> int:
        return len(self._registry.artifacts())


def worlds_of(task: Task, artifact: Artifact) -> Worlds:
    """Return the worlds that a policy was trained and judged for."""
    ranges = artifact.trained_on.get("parameters", {})
    return corrected(task, correction_of(artifact.trained_on)), {**task.nominal, **foreign.middle(ranges)}


def last_worlds(task: Task, turns: Sequence[Turn]) -> Worlds:
    """Return the worlds as production showed them last: the middle of the last plan's ranges, and its correction."""
    return corrected(task, last_correction(turns)), {**task.nominal, **foreign.middle(last_ranges(turns))}


def last_ranges(turns: Sequence[Turn]) -> Mapping[str, tuple[float, float]]:
    """Return what is open of the parameters since the last plan that names some; {} where none does."""
    return next((turn.plan.parameters for turn in reversed(turns) if turn.plan.parameters), {})


def last_correction(turns: Sequence[Turn]) -> Correction | None:
    """Return what the worlds of the last plan correct."""
    return turns[-1].plan.correction if turns else None
