"""Each kind of incident is called by its name, since about when it began, and shown by what it moved."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence

import numpy as np
import pytest

from experiments.diagnosis import NOISE, World, happened, incidents, worlds
from flywheel.analyze.cause import find
from flywheel.causes import CAUSE, Cause, answered, from_plain, of, to_plain, told
from flywheel.config import canonical
from flywheel.errors import FlywheelError
from flywheel.records import Episode, Plan, Release, Signal, Turn
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole

SPEC = spec_of(cartpole)


@functools.cache
def world() -> World:
    return worlds()["cartpole"]


@functools.cache
def production(name: str) -> tuple[Sequence[Episode], int]:
    """Return production with an incident, and the number of its first changed episode."""
    incident = next(each for each in incidents(world()) if each.name.startswith(name))
    return happened(world(), incident, np.random.default_rng([7, *name.encode()]))


@functools.cache
def cause(name: str) -> Cause:
    return find(production(name)[0], SPEC)


KINDS = {
    "bad release": "policy",
    "pole length": "dynamics",
    "force": "dynamics",
    "pole mass": "dynamics",
    "gravity": "dynamics",
    "initial": "initial_states",
    "sensor": "sensors",
    "5 %": "logging",
    "rewards": "reward",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_an_incident_is_called_by_its_name(name: str, kind: str) -> None:
    found, (episodes, at) = cause(name), production(name)
    assert found.kind == kind and found.p_value <= 0.02
    place = [e.id for e in episodes].index(found.since_episode)
    assert abs(place - at) <= 10
    assert found.since_at == episodes[place].started_at
    assert found.num_after == len(episodes) - place
    assert found.moved and all(row.after != row.before for row in found.moved)
    ids = [e.id for e in episodes]
    assert all(ids.index(id_) >= place for id_ in found.examples_after)
    assert all(ids.index(id_) < place for id_ in found.examples_before)
    assert found.since_episode in found.sentences[0]


def test_nothing_is_nothing_though_another_policy_was_released() -> None:
    found = cause("nothing")
    assert found.kind == "nothing" and found.since_episode == "" and not found.moved and not found.examples_after


def test_what_moved_is_told_by_name_and_number() -> None:
    assert cause("rewards").moved[0].after == pytest.approx(0.8)
    assert "0.8 times" in cause("rewards").sentences[0]
    assert cause("5 %").moved[0].after == pytest.approx(0.05, abs=0.01)
    assert np.isnan(cause("5 %").transitions[0].seen)
    force = cause("force")
    assert {row.what for row in force.moved} == {"observation 1", "observation 3"}, "the speeds answer to force"
    odd = force.transitions[0]
    episode = next(e for e in production("force")[0] if e.id == odd.episode)
    number = int(odd.what.split()[-1])
    assert odd.seen == pytest.approx(float(episode.observations[odd.t + 1, number]))
    assert abs(odd.expected - odd.seen) > 3 * NOISE[number]


def test_order_of_arrival_and_seed_change_nothing_of_the_kind() -> None:
    episodes, _ = production("pole length")
    mixed = [episodes[i] for i in np.random.default_rng(0).permutation(len(episodes))]
    found = find(mixed, SPEC, seed=3)
    assert (found.kind, found.since_episode) == ("dynamics", cause("pole length").since_episode)


def test_a_policy_that_runs_beside_the_bad_one_proves_it() -> None:
    episodes, at = production("bad release")
    good = [
        dataclasses.replace(e, id=f"beside_{e.id}", started_at=at + 2.0 * i + 0.5) for i, e in enumerate(episodes[:40])
    ]
    found = find([*episodes, *good], SPEC, champion="present", previous="former")
    assert found.kind == "policy" and found.num_before == 40
    assert "beside it" in found.sentences[0]
    assert "very moment" not in " ".join(found.sentences) and "very moment" in " ".join(cause("bad release").sentences)


def test_few_changed_episodes_are_enough_where_an_alarm_says_where() -> None:
    episodes, at = production("pole length")
    alarm = Signal(
        kind="shift_detected", monitor="world", digest="present", value=1, threshold=1,
        since_episode=episodes[at + 1].id, at_episode=episodes[at + 3].id, evidence={}, at=0,
    )  # fmt: skip
    found = find(episodes[: at + 4], SPEC, signals=[alarm])
    assert (found.kind, found.since_episode, found.num_after) == ("dynamics", episodes[at].id, 4)


def test_an_alarm_that_nothing_bears_out_is_not_known() -> None:
    episodes, _ = production("nothing")
    alarm = Signal(
        kind="degradation", monitor="failed", digest="present", value=1, threshold=1,
        since_episode=episodes[-30].id, at_episode=episodes[-1].id, evidence={}, at=0,
    )  # fmt: skip
    found = find(episodes, SPEC, signals=[alarm])
    assert found.kind == "unknown" and "--now" in found.sentences[1]
    assert find(episodes[:4], SPEC).kind == "unknown"


def test_lost_and_empty_episodes_are_read_as_they_are() -> None:
    episodes, _ = production("nothing")
    cut = [
        dataclasses.replace(e, end="lost", observations=e.observations[: e.num_steps]) if i % 30 == 0 else e
        for i, e in enumerate(episodes)
    ]
    none = dataclasses.replace(
        episodes[0], id="none", observations=episodes[0].observations[:1], raw_actions=episodes[0].raw_actions[:0],
        rewards=np.zeros(0), logps=np.zeros(0), digests=(),
    )  # fmt: skip
    assert find([none, *cut], SPEC).kind == "nothing"


def test_episodes_of_a_few_steps_are_read_as_they_are() -> None:
    """Shorter than the coarser look's stride: a failure may be over at once."""
    episodes, _ = production("nothing")
    short = [
        dataclasses.replace(
            e, observations=e.observations[:6], raw_actions=e.raw_actions[:5], rewards=e.rewards[:5],
            logps=e.logps[:5], digests=e.digests[:5], end="terminated",
        )
        for e in episodes
    ]  # fmt: skip
    assert find(short, SPEC).kind == "nothing"
    assert find([*short[:1], *episodes[1:]], SPEC).kind == "nothing"


def test_a_cause_survives_the_journal() -> None:
    for name in ("force", "5 %", "nothing"):
        plain = json.loads(canonical(to_plain(cause(name))))
        assert plain["schema_version"] == 1
        again = from_plain(plain)
        assert canonical(to_plain(again)) == canonical(to_plain(cause(name)))
    with pytest.raises(FlywheelError, match="--now"):
        from_plain({"kind": "bad luck", "sentences": []})


def test_a_release_answers_what_was_diagnosed_before_it() -> None:
    plan = Plan(strategy="retrain_prioritize_recent", reasons=())
    release = Release(digest="new", stage="full", share=1.0, previous="present", released_at=1e9)
    turn = Turn(number=2, plan=plan, evidence={CAUSE: to_plain(cause("force"))})
    assert of(Turn(number=1, plan=plan)) is None and answered([turn]) == 0.0
    assert answered([dataclasses.replace(turn, release=release)]) == cause("force").since_at
    later = dataclasses.replace(turn, evidence={CAUSE: to_plain(cause("nothing"))}, release=release)
    assert answered([dataclasses.replace(turn, release=release), later]) == cause("force").since_at
    assert told(cause("force")).startswith("the world's dynamics changed: the world answers otherwise")


def test_a_noisier_sensor_and_one_that_hangs_are_sensors() -> None:
    episodes, at = production("nothing")
    at = len(episodes) - 90
    rng = np.random.default_rng(3)

    def changed(episode: Episode, noise: float, hangs: bool) -> Episode:
        seen = np.array(episode.observations)
        seen[:, 3] += (noise * rng.normal(size=len(seen))).astype(np.float32)
        if hangs:
            seen[1::5, 3] = seen[:-1:5, 3][: len(seen[1::5])]
        return dataclasses.replace(episode, observations=seen)

    for noise, hangs, word in ((0.1, False, "noisier: observation 3"), (0.0, True, "stands still")):
        found = find([*episodes[:at], *(changed(e, noise, hangs) for e in episodes[at:])], SPEC)
        assert found.kind == "sensors" and word in found.sentences[0], found.sentences
