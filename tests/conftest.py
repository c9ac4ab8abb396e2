"""Shared fixtures: Ray is forbidden outside tests/on_ray/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a timing is never an assertion in a test
settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ON_RAY = Path(__file__).parent / "on_ray"


@pytest.fixture(autouse=True)
def no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise if a test outside tests/on_ray/ starts Ray."""
    if not request.path.is_relative_to(ON_RAY):
        ray = __import__("sys").modules.get("ray")
        if ray is not None:

            def refuse(*_: object, **__: object) -> None:
                raise AssertionError("ray.init was called by a test that is not in tests/on_ray/")

            monkeypatch.setattr(ray, "init", refuse)
    yield
