"""Why production changed is asked of the rooms, and where asking fails a turn goes on without an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flywheel import explaining
from flywheel.causes import CAUSE, Cause
from flywheel.errors import FlywheelError
from flywheel.outcomes import Outcome
from flywheel.records import Episode, Release, Spec
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole, cartpole_remembering
from tests.deploy.test_canary import alarm
from tests.store.test_intake import episode
from tests.test_arms import outcome

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


def test_of_episodes_far_apart_all_that_are_settled_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where those between them were thinned out: the observer tells a page at a time of them, too."""
    known = [outcome(float(t), "new") for t in range(100)]
    asked = list[Sequence[Episode]]()

    def find(episodes: Sequence[Episode], *_: Any, **named: Any) -> Cause:
        asked.append(episodes)
        return Cause(kind="nothing", sentences=("",))

    def pages(digests: Sequence[str], after: tuple[float, str]) -> list[Outcome]:
        return [o for o in known if (o.started_at, o.id) > after][:10]

    monkeypatch.setattr(explaining, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    kept = [episode(o.id, at=o.started_at) for o in [*known, outcome(100.0, "new")][::20]]
    recent = {"new": kept, "old": []}
    rooms: Any = SimpleNamespace(
        registry=SimpleNamespace(releases=lambda: [RELEASE]),
        serving=SimpleNamespace(
            store=SimpleNamespace(recent=lambda num, since, digest: recent[digest]),
            observer=SimpleNamespace(outcomes=pages),
        ),
        work=lambda function: find,
        say=lambda stage, text: None,
    )
    explaining.explain(rooms, spec_of(cartpole), [alarm(digest="new")], [])
    assert [each.id for each in asked[0]] == ["e0", "e20", "e40", "e60", "e80"], "the last one is not settled yet"


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


def test_what_is_remembered_of_actions_is_no_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "ask", lambda method, *arguments, **named: method(*arguments, **named))
    monkeypatch.setattr(explaining, "_settled", lambda *_: [remembered])
    remembered = dataclasses.replace(episode("e", at=1.0), observations=np.ones((3, 8), np.float32))
    asked = list[Any]()

    def find(episodes: Sequence[Episode], spec: Spec, **named: Any) -> Cause:
        asked.extend([episodes[0].observations.shape, spec])
        return Cause(kind="nothing", sentences=("",))

    rooms: Any = SimpleNamespace(
        registry=SimpleNamespace(releases=lambda: [RELEASE]), work=lambda function: find, say=lambda stage, text: None
    )
    explaining.explain(rooms, spec_of(cartpole_remembering), [alarm(digest="new")], [], cartpole_remembering)
    assert asked == [(3, 4), spec_of(cartpole)]
