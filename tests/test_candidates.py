"""Which policy of a round becomes its candidate."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel.candidates import Candidate
from flywheel.policy import NETWORK
from tests.train.test_ending import FOLLOWED, at, ends, shows

BETTER = "the policy after 5,120 steps is the candidate, which did better: 0 of 200 failed, return 417 of 475 needed"


def candidate_of(ending: Any, rooms: Any, said: list[str], whole: Any = None) -> Candidate:
    """A round's candidate; a network is nothing but how it does, `whole`."""

    def look(plan: Any, network: bytes) -> Any:
        assert network == b"kept"
        return whole

    return Candidate(
        ending, lambda method, *given: method(*given), rooms, 7, lambda stage, text, **_: said.append(text), look
    )


@pytest.mark.parametrize(
    ("last", "written", "told"),
    [
        (shows(0, 480.0), 9_000, []),
        (shows(7, 480.0), 5_120, [BETTER]),
        (shows(0, 386.0), 5_120, [BETTER]),
    ],
)
def test_the_best_policy_of_a_climb_is_the_candidate_where_it_got_lost_again(
    last: Any, written: int, told: list[str]
) -> None:
    """Found in a run: after 5,120 steps it was good, and in 100,000 more an edge case failed in every probe."""
    registered: list[tuple[str, Any]] = []
    said: list[str] = []
    trainer = SimpleNamespace(export=lambda version, parent, origin, now: ("digest", origin["steps"]))
    registry = SimpleNamespace(next_version=lambda: 3, write=lambda *given: registered.append(given))
    rooms, ending = SimpleNamespace(trainer=trainer, registry=registry), ends(FOLLOWED)
    candidate = candidate_of(ending, rooms, said)
    candidate.keep(FOLLOWED, at(4_096), shows(0, 386.0))
    candidate.keep(FOLLOWED, at(5_120), shows(0, 417.0))
    candidate.write(FOLLOWED, at(9_000), last)
    assert (registered, said) == ([("digest", written)], told)


def test_the_policy_at_the_end_is_compared_by_its_whole_probe() -> None:
    """Found in review: three failures in the 20 episodes of a probe that was broken off are more than three of 200."""
    plan, written = dataclasses.replace(FOLLOWED, correction=None), []
    trainer = SimpleNamespace(export=lambda version, parent, origin, now: ("digest", origin["steps"]))
    registry = SimpleNamespace(next_version=lambda: 3, write=lambda *given: written.append(given[1]))
    rooms = SimpleNamespace(trainer=trainer, registry=registry)
    for last, wanted in ((shows(30), 5_000), (shows(2), 9_000)):
        ending = ends(plan)
        candidate = candidate_of(ending, rooms, [])
        candidate.keep(plan, at(5_000), shows(3))
        ending.whole(last)
        candidate.write(plan, at(9_000), dataclasses.replace(shows(3), num_episodes=20))
        assert written.pop() == wanted


@pytest.mark.parametrize(
    ("whole", "last", "written"),
    [
        (shows(9, edges=("cart_rolling_out",)), shows(200), 5_000),
        (shows(9, edges=("cart_rolling_out",)), shows(4), 9_000),
        (shows(9, edges=("cart_rolling_out",)), shows(1), 9_000),
    ],
)
def test_the_best_of_policies_whose_probes_were_broken_off_is_looked_at_whole(
    whole: Any, last: Any, written: int
) -> None:
    """Found in a run: the candidate failed 200 of 200, one on the way 0 of 20, but edge cases failed in each probe."""
    plan, registered, said = dataclasses.replace(FOLLOWED, correction=None), list[Any](), list[str]()
    trainer = SimpleNamespace(export=lambda version, *given: ("digest", {NETWORK: b"kept", "steps": given[1]["steps"]}))
    registry = SimpleNamespace(next_version=lambda: 3, write=lambda digest, files: registered.append(files["steps"]))
    ending = ends(plan)
    candidate = candidate_of(ending, SimpleNamespace(trainer=trainer, registry=registry), said, whole)
    candidate.keep(plan, at(5_000), dataclasses.replace(shows(0, edges=("cart_rolling_out",)), num_episodes=20))
    ending.whole(last)
    candidate.write(plan, at(9_000), last)
    assert registered == [written]
    assert [text.split("better: ")[1] for text in said] == (
        ["9 of 200 failed; edge cases failed: cart_rolling_out"] if written == 5_000 else []
    )
