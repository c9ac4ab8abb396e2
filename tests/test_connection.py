"""A run directory opened for time travel: what it tells, what can be done with its episodes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import flywheel
from experiments.changed_worlds import Change, changed
from flywheel import archive, foreign, owner
from flywheel.bench import Bench
from flywheel.connection import Connection
from flywheel.deploy import registry as registries
from flywheel.deploy.keys import open_keys
from flywheel.errors import Refused, UsageError
from flywheel.known import last_worlds
from flywheel.records import Correction, Episode, Plan, Turn
from flywheel.store.intake import Intake
from flywheel.tapes import chain
from flywheel.task import spec_of, task_digest
from flywheel.testing import GOOD, linear_policy
from flywheel.trace import Fork, NotReproducible, spanstore
from flywheel.verdicts import verify
from tests.runs import REFERENCE, RELAXED, make_run, produced


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[Episode]]:
    run_dir = tmp_path_factory.mktemp("made") / "run"
    return run_dir, make_run(run_dir)


@pytest.fixture(scope="module")
def episodes(made: tuple[Path, Sequence[Episode]]) -> Sequence[Episode]:
    return made[1]


@pytest.fixture
def tp(made: tuple[Path, Sequence[Episode]]) -> Connection:
    """A connection to a run directory that no test changes."""
    return flywheel.connect(made[0])


def test_every_episode_is_one_search_away(tp: Connection, episodes: Sequence[Episode]) -> None:
    rows = tp.episodes("production", limit=None)
    assert [row.id for row in rows] == [e.id for e in reversed(episodes)]
    assert [row.id for row in tp.episodes("failed production", limit=3)] == [e.id for e in episodes[:-4:-1]]
    trials = tp.episodes("gate", limit=None)
    num = Counter(row.scenario for row in trials)
    assert (num["nominal"], num["pole_tilted"], num["cells"]) == (100, 4, 31) and num["search"]
    failed = tp.episodes("failed gate", limit=None)
    assert failed and {row.scenario for row in failed} <= {"cells", "search"}
    assert not tp.episodes("lost") and len(tp.episodes("fine gate", limit=None)) == len(trials) - len(failed)
    assert len(tp.episodes("policy=" + trials[0].digest[:5], limit=None)) == len(rows) + len(trials)
    assert tp.episodes("policy=none") == []
    with pytest.raises(UsageError, match="Did you mean 'failed'"):
        tp.episodes("faild")


def test_an_episode_is_found_by_what_its_id_begins_with(tp: Connection, episodes: Sequence[Episode]) -> None:
    assert chain(tp.episode("episode_00041")) == chain(episodes[41])
    with pytest.raises(UsageError, match="begins 10 episode"):
        tp.episode("episode_0004")
    with pytest.raises(UsageError, match="no episode"):
        tp.episode("nothing")


def test_a_trial_is_played_again_bit_for_bit(tp: Connection) -> None:
    for row in tp.episodes("gate", limit=None)[::10]:
        trial = next(t for v in tp.registry.verdicts() for t in v.trials if t.episode == row.id)
        assert chain(tp.episode(row.id[:10])) == trial.chain
        assert tp.diverge(row.id) is None
        result = tp.fork_episode(row.id, at=min(60, row.num_steps // 2)).replay()
        assert result.exact and result.difference is None


def test_a_trial_that_comes_out_otherwise_is_not_reproducible(tmp_path: Path) -> None:
    make_run(tmp_path, before=1, after=0)
    row = flywheel.connect(tmp_path).episodes("gate")[0]
    for old, new, why in (
        ('"chain":"', '"chain":"0', "comes out otherwise now"),
        ('"total":500.0', '"total":400.0', "comes out otherwise now"),
    ):
        with sqlite3.connect(tmp_path / registries.FILE) as db:
            db.execute("UPDATE verdicts SET record = replace(record, ?, ?)", (old, new))
        with pytest.raises(NotReproducible, match=why):
            flywheel.connect(tmp_path).episode(row.id)
        db.close()


def test_production_is_made_again_decision_by_decision(tp: Connection, episodes: Sequence[Episode]) -> None:
    assert tp.diverge(episodes[5].id) is None
    found = tp.diverge(episodes[45].id)
    assert found is not None and found.step == 1 and "from what the simulator does" in found.note
    assert tp.diverge(episodes[5].id, episodes[6].id) is not None
    with pytest.raises(UsageError, match="no policy 'zz'"):
        tp.diverge(episodes[5].id, policy="zz")
    assert tp.diverge(episodes[5].id, policy=episodes[5].digests[0][:6]) is None
    with pytest.raises(UsageError, match="has no critic"):
        tp.diverge(episodes[5].id, episodes[6].id, beyond=1.0)
    assert tp.values(episodes[5]) is None
    residuals = tp.residuals(episodes[45])
    assert residuals is not None and residuals.shape == (episodes[45].num_steps, 4) and np.abs(residuals).max() > 0.01


def test_a_shift_is_found_where_it_began(tp: Connection, episodes: Sequence[Episode]) -> None:
    shift = tp.shift()
    assert shift is not None and (shift.episode, shift.step) == (episodes[40].id, 0)
    assert f"flywheel fork {episodes[40].id} --at 0 --run-dir {tp.run_dir}" in str(shift)


@pytest.mark.parametrize("late", [True, False])
def test_so_it_is_when_the_monitor_took_it_for_later(late: bool, tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=30, after=8)
    with Intake(tmp_path) as store:
        text = store.noted("observer.signals")
        assert text is not None
        store.note("observer.signals", text.replace(episodes[28].id, episodes[34 if late else 10].id))
    shift = flywheel.connect(tmp_path).shift()
    assert shift is not None and shift.episode == episodes[30].id


def test_without_a_shift_there_is_none(tmp_path: Path) -> None:
    make_run(tmp_path, before=3, after=0)
    assert flywheel.connect(tmp_path).shift() is None


def test_a_fork_of_production_runs_in_the_worlds_of_the_last_plan(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=2, after=2)
    tp = flywheel.connect(tmp_path)
    assert tp.parameters["length"] == 0.5
    assert not tp.fork_episode(episodes[-1].id, at=5).replay().unedited.failed
    plan = Plan(strategy="hold", reasons=(), parameters={"length": (1.8, 2.2)})
    archive.append_turn(tmp_path, Turn(number=1, plan=plan))
    assert tp.parameters["length"] == 2.0
    result = tp.fork_episode(episodes[-1].id, at=5).replay()
    assert result.unedited.num_steps == episodes[-1].num_steps and result.world["length"] == 2.0
    earlier = tp.fork_episode(episodes[0].id, at=5).replay()
    assert earlier.world["length"] == 0.5 and not earlier.unedited.failed, "what it was before the change explains it"


SWAPPED, LATE = Correction(actions=(1, 0)), Correction(delay=1)


def plans(run_dir: Path, correction: Correction) -> Plan:
    plan = Plan(strategy="retrain_prioritize_recent", reasons=(), correction=correction)
    archive.append_turn(run_dir, Turn(number=1, plan=plan))
    return plan


@pytest.mark.parametrize(("correction", "sign"), [(SWAPPED, -1.0), (LATE, 1.0)])
def test_what_is_judged_in_corrected_worlds_is_played_again_and_forked_there(
    correction: Correction, sign: float, tmp_path: Path
) -> None:
    make_run(tmp_path, before=1, after=0)
    plans(tmp_path, correction)
    spec = spec_of(RELAXED)
    policy = foreign.load(linear_policy(spec, sign * np.array(GOOD))[0], spec)
    with owner.opened(RELAXED, REFERENCE, tmp_path) as writer:
        artifact, verdict = owner.submit(writer, RELAXED, policy, tmp_path, seed=2)
    assert verdict.outcome == "pass" and verdict.correction == correction
    assert artifact.trained_on["correction"] == json.loads(json.dumps(dataclasses.asdict(correction)))
    verify(verdict, open_keys(tmp_path).public)
    with pytest.raises(Refused, match="does not fit"):
        verify(dataclasses.replace(verdict, correction=None), open_keys(tmp_path).public)
    tp = flywheel.connect(tmp_path)
    assert (
        isinstance(tp, Connection) and last_worlds(tp.task, archive.read_turns(tp.run_dir))[0].correction == correction
    )
    for trial in verdict.trials[::40]:
        assert chain(tp.episode(trial.episode)) == trial.chain
        assert tp.diverge(trial.episode) is None
        assert tp.fork_episode(trial.episode, at=trial.length // 2).replay().exact
    with closing(Bench(tmp_path)) as bench:
        assert bench.rerun(verdict.trials[0], bench.policy(artifact.digest), verdict)[1]
        again, _ = bench.judge(bench.policy(artifact.digest), "none", {}, 3)
        assert again.correction == correction and again.simulator == verdict.simulator


def test_production_of_a_changed_world_is_forked_where_its_transitions_are_made_best(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=2, after=0)
    policy = flywheel.connect(tmp_path).policies[episodes[0].digests[0]]
    swapped = produced(changed(RELAXED, Change(swapped=True)), policy, 2, 2)
    with Intake(tmp_path) as store:
        store.append(swapped)
    tp = flywheel.connect(tmp_path)
    assert swapped[0].failed and not tp.fork_episode(swapped[0].id, at=2).replay().unedited.failed
    plans(tmp_path, SWAPPED)
    assert tp.fork_episode(swapped[0].id, at=2).replay().unedited.num_steps == swapped[0].num_steps
    assert not tp.fork_episode(episodes[0].id, at=2).replay().unedited.failed, "what it was before explains it"


def test_production_where_actions_are_late_is_not_forked_as_nobody_knows_what_is_on_its_way(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=2, after=0)
    policy = flywheel.connect(tmp_path).policies[episodes[0].digests[0]]
    late = produced(changed(RELAXED, Change(delay=1)), policy, 1, 2)
    with Intake(tmp_path) as store:
        store.append(late)
    plans(tmp_path, LATE)
    with pytest.raises(NotReproducible, match="actions arrive late"):
        flywheel.connect(tmp_path).fork_episode(late[0].id, at=2)


def test_a_fork_becomes_a_scenario_and_the_next_verdict_shows_it(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=1, after=1)
    tp = flywheel.connect(tmp_path)
    result = tp.fork_episode(episodes[-1].id, at=10).edit_parameter("length", 2.0).replay()
    saved = tp.save_scenario(result, "longer")
    assert tp.scenarios() == (saved,) and saved.parameters == {"length": 2.0} and saved.state is not None
    with pytest.raises(UsageError, match="already"):
        tp.save_scenario(result, "longer")
    with pytest.raises(UsageError, match="letters, digits"):
        tp.save_scenario(result, "no spaces")
    trial_row = tp.episodes("gate")[0]
    tp.save_scenario(tp.fork_episode(trial_row.id, at=0), "from-the-start")
    spec = spec_of(RELAXED)
    with owner.opened(RELAXED, REFERENCE, tmp_path) as writer:
        policy = owner.foreign.load(linear_policy(spec, tuple(2 * g for g in GOOD))[0], spec)
        _, verdict = owner.submit(writer, RELAXED, policy, tmp_path, seed=2)
    assert {"edge_cases", "scenarios", "cost"} < {c.name for c in verdict.checks}
    assert next(c for c in verdict.checks if c.name == "scenarios").note == "all 2 mastered"
    mine = [t for t in verdict.trials if t.scenario == "suite:longer"]
    assert len(mine) == 4 and {t.parameters["length"] for t in mine} == {2.0}
    for trial in (*mine[:2], *[t for t in verdict.trials if t.scenario == "suite:from-the-start"][:2]):
        assert chain(tp.episode(trial.episode)) == trial.chain
        assert tp.fork_episode(trial.episode, at=3).replay().difference is None
    tp.drop_scenario("longer")
    assert [s.name for s in tp.scenarios()] == ["from-the-start"]
    with pytest.raises(UsageError, match="Did you mean 'from-the-start'"):
        tp.drop_scenario("from-start")
    with pytest.raises(NotReproducible, match="dropped since"):
        flywheel.connect(tmp_path).episode(mine[0].episode)


def test_a_scenario_goes_to_the_wheel_that_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor's body and the way to it, without Ray between them."""
    from flywheel import attach, cluster
    from flywheel.deploy.on_ray import RegistryActor

    episodes = make_run(tmp_path, before=1, after=0)
    actor = RegistryActor(str(tmp_path), task_digest(RELAXED))
    attached = SimpleNamespace(registry=actor, observer=None, store=None, close=lambda: None)
    monkeypatch.setattr(attach, "attach", lambda run_dir: attached)
    monkeypatch.setattr(cluster, "ask", lambda method, *arguments: method(*arguments))
    archive.write_living(tmp_path, "127.0.0.1:1", "wheel", "/")
    with flywheel.connect(tmp_path) as tp:
        saved = tp.save_scenario(tp.fork_episode(episodes[0].id).edit_parameter("length", 2.0), "longer")
        assert actor.scenarios() == tp.scenarios() == (saved,)
        tp.drop_scenario("longer")
        assert actor.scenarios() == ()
    actor._registry.close()


def test_another_form_of_the_task_says_nothing_of_production(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=1, after=0)
    config = tmp_path / archive.CONFIG
    config.write_text(config.read_text().replace(task_digest(RELAXED), "0" * 64))
    tp = flywheel.connect(tmp_path)
    assert tp.episode(episodes[0].id).num_steps == 500
    with pytest.raises(NotReproducible, match="not what it was"):
        tp.fork_episode(episodes[0].id, at=3)
    with pytest.raises(NotReproducible, match=r"made again as it was\. Task cartpole is not what"):
        tp.diverge(episodes[0].id)
    assert tp.fork_episode(tp.episodes("gate")[0].id, at=3).replay().exact, "a seed proves itself"


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        flywheel.connect(tmp_path)


def test_it_reads_while_the_owner_is_up_and_says_who_it_is_when_it_must_write(tmp_path: Path) -> None:
    episodes = make_run(tmp_path, before=1, after=0)
    tp = flywheel.connect(str(tmp_path))
    with owner.opened(RELAXED, REFERENCE, tmp_path):
        assert tp.episode(episodes[0].id).id == episodes[0].id
        fork: Fork = tp.fork_episode(episodes[0].id, at=0)
        with pytest.raises(UsageError, match="Another process turns the wheel"):
            tp.save_scenario(fork, "mine")


def test_spans_of_ones_own_are_kept_beside_the_run(tp: Connection) -> None:
    with tp.trace("rl-deployment") as outer:
        outer.log_metric("prediction_value", 0.3)
        with tp.trace("look", episode="e"):
            pass
    tp.close()
    with spanstore.open_readonly(tp.run_dir) as spans:
        found = spans.of_trace(outer.trace)
    assert [span.name for span in found] == ["rl-deployment", "look"]
    assert [metric[0] for metric in found[0].metrics] == ["prediction_value"] and found[1].parent == found[0].id
