"""Which episodes have spans when they are over: those that had luck, those that failed, and those around a signal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import TraceConfig
from flywheel.records import End, Episode, Release, Signal
from flywheel.trace.context import DIGEST, EPISODE, RELEASE, STEP, bar_of, is_sampled, root_of, trace_of
from flywheel.trace.row import Row, packed
from flywheel.trace.tail import REMEMBERED, STEPS, Tail, trace_of_signal

NEVER = TraceConfig(sample_share=0.0, around=2)
RELEASED = Release(digest="d", stage="full", share=1.0, previous=None, released_at=5.0)


def episode(id_: str, num_steps: int = 3, failed: bool = False, end: End = "terminated") -> Episode:
    return Episode(
        id=id_, origin="production", task="t", parameters={}, draw_key=1, digests=("d",) * num_steps,
        observations=np.zeros((num_steps + 1, 4)), raw_actions=np.arange(num_steps), rewards=np.full(num_steps, 2.0),
        logps=np.full(num_steps, -0.5), end=end, failed=failed,
    )  # fmt: skip


def close(tail: Tail, one: Episode, release: Release | None = None) -> list[Row]:
    return tail.closed(one, 10.0 + np.arange(one.num_steps + 1), (20.0, 20.5), release)


def told(rows: list[Row]) -> dict[str, list[str]]:
    """Return the names of an episode's spans, by episode."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(str(row.attributes[EPISODE]), []).append(row.name)
    return found


WHOLE = ["episode", "store", "act", "act", "act"]


def test_a_failed_episode_has_a_span_for_each_step_from_its_record() -> None:
    root, store, *steps = close(Tail(NEVER), episode("e", failed=True), RELEASED)
    assert (root.trace, root.id, root.parent) == (trace_of("e"), root_of(trace_of("e")), "")
    assert (root.started_at, root.ended_at, root.why) == (10.0, 20.5, "failed")
    assert root.attributes == {
        EPISODE: "e", DIGEST: "d", RELEASE: 5.0, "flywheel.num_steps": 3, "flywheel.return": 6.0,
        "flywheel.end": "terminated", "flywheel.failed": True,
    }  # fmt: skip
    assert (store.name, store.started_at, store.ended_at, store.parent) == ("store", 20.0, 20.5, root.id)
    assert [row.started_at for row in steps] == [10.0, 11.0, 12.0]
    assert steps[2].attributes == {
        EPISODE: "e", STEP: 2, DIGEST: "d", "flywheel.action": 2, "flywheel.logp": -0.5, "flywheel.reward": 2.0
    }  # fmt: skip
    assert {row.parent for row in steps} == {root.id} and {row.source for row in steps} == {"observer"}
    packed([root, store, *steps])


def test_others_have_none_and_lost_ones_have_theirs() -> None:
    tail = Tail(NEVER)
    assert close(tail, episode("fine")) == []
    assert told(close(tail, episode("lost", end="lost"))) == {"lost": WHOLE}


@given(st.text(min_size=1, max_size=30), st.floats(0, 1), st.booleans())
def test_replicas_trace_the_requests_of_exactly_those_that_the_observer_does_not(
    id_: str, share: float, failed: bool
) -> None:
    names = told(close(Tail(TraceConfig(sample_share=share)), episode(id_, failed=failed))).get(id_, [])
    if is_sampled(trace_of(id_), bar_of(share)):
        assert names == ["episode", "store"], "its steps were traced as they came"
    else:
        assert names == (WHOLE if failed else [])


def signal(since: str, at: str) -> Signal:
    return Signal(
        kind="shift_detected", monitor="world", digest="d", value=2e5, threshold=1e5, since_episode=since,
        at_episode=at, evidence={"released_at": 5.0}, at=99.0,
    )  # fmt: skip


def test_episodes_around_a_signal_are_kept_before_and_after_it() -> None:
    tail = Tail(NEVER)
    for i in range(20):
        close(tail, episode(str(i)))
    raised = signal("8", "16")
    *rows, span = tail.raised(raised)
    assert told(rows) == {str(i): WHOLE for i in (6, 7, 8, 9, 10, 14, 15, 16, 17, 18)}
    assert {row.why for row in rows if row.name == "episode"} == {"signal"}
    assert (span.name, span.trace, span.started_at, span.why) == ("signal", trace_of_signal(raised), 99.0, "signal")
    assert span.links == tuple((trace_of(i), root_of(trace_of(i))) for i in ("8", "16"))
    assert span.attributes["flywheel.signal.at_episode"] == "16" and span.attributes[RELEASE] == 5.0
    later = [told(close(tail, episode(str(i)))) for i in range(20, 24)]
    assert later == [{"20": WHOLE}, {"21": WHOLE}, {}, {}]


def test_what_was_told_already_is_told_again_only_to_be_kept_longer() -> None:
    tail = Tail(NEVER)
    for i in range(4):
        close(tail, episode(str(i), failed=i == 1))
    rows = told(tail.raised(signal("1", "1"))[:-1])
    assert rows == {"0": WHOLE, "1": ["episode"], "2": WHOLE, "3": WHOLE}
    assert len(tail.raised(signal("1", "1"))) == 1


@pytest.mark.parametrize("id_", ["", "long ago"])
def test_a_signal_about_an_episode_that_is_forgotten_stands_alone(id_: str) -> None:
    tail = Tail(NEVER)
    close(tail, episode("long ago"))
    for i in range(REMEMBERED):
        close(tail, episode(str(i)))
    assert [row.name for row in tail.raised(signal(id_, id_))] == ["signal"]
    assert len(tail._trails) == REMEMBERED


def test_a_very_long_episode_has_spans_of_its_last_steps() -> None:
    rows = close(Tail(NEVER), episode("e", STEPS + 10, failed=True))
    assert [row.attributes[STEP] for row in rows[2:]] == list(range(10, STEPS + 10))


def test_an_unknown_reward_is_left_out_and_observations_are_not_remembered() -> None:
    tail, one = Tail(NEVER), episode("e", failed=True)
    one.rewards[1] = np.nan
    rows = close(tail, one)
    assert ["flywheel.reward" in row.attributes for row in rows[2:]] == [True, False, True]
    assert tail._trails["e"].episode.observations.nbytes == 0
