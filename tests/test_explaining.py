"""Why production changed is asked of the rooms, and where asking fails a turn goes on without an answer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel import explaining
from flywheel.causes import CAUSE, Cause
from flywheel.errors import FlywheelError
from flywheel.records import Release
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.deploy.test_canary import alarm

RELEASE = Release(digest="new", stage="full", share=1.0, previous="old", released_at=1000.0)


def explained(monkeypatch: pytest.MonkeyPatch, recent: Callable[..., Any], find: Callable[..., Any]) -> dict[str, Any]:
    monkeypatch.setattr(explaining, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    rooms: Any = SimpleNamespace(
        registry=SimpleNamespace(releases=lambda: [RELEASE]),
        serving=SimpleNamespace(store=SimpleNamespace(recent=recent)),
        work=lambda function: find,
        say=lambda stage, text: None,
    )
    found = explaining.explain(rooms, spec_of(cartpole), [alarm(digest="new")], [])[CAUSE]
    assert isinstance(found, dict)
    return found


def nobody(*arguments: Any, **named: Any) -> list[Any]:
    return []


def fails(*arguments: Any, **named: Any) -> Any:
    raise FlywheelError("Segment 7 is damaged.")


def test_what_is_found_is_the_turns_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = explained(monkeypatch, nobody, lambda *_, **named: Cause(kind="reward", sentences=(named["previous"],)))
    assert (found["kind"], found["sentences"]) == ("reward", ["old"])


@pytest.mark.parametrize("what", ["reading", "asking"])
def test_where_it_fails_the_cause_is_not_known_and_the_wheel_turns(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    found = explained(monkeypatch, fails if what == "reading" else nobody, fails)
    assert found["kind"] == "unknown" and "Segment 7 is damaged" in found["sentences"][0]
