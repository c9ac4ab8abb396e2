"""Nothing unjudged is put into service, and what is in service outlives the process."""

from __future__ import annotations

import dataclasses
import sqlite3
import stat
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel.config import canonical
from flywheel.deploy.keys import open_keys
from flywheel.deploy.registry import FILE, Registry, open_readonly
from flywheel.errors import Refused, UsageError
from flywheel.tapes import Scenario
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.tokens import find
from flywheel.verdicts import decode, encode, sign, verify
from tests.deploy.conftest import NOW, World, verdict_on


def test_a_passing_verdict_puts_a_policy_into_service(world: World) -> None:
    artifact = world.judged()
    release = world.registry.promote(artifact.digest, NOW)
    assert (release.digest, release.previous, release.stage) == (artifact.digest, None, "full")
    assert world.registry.champion() == artifact.digest
    assert world.registry.promote(artifact.digest, NOW + 1) == release, "a retry changes nothing"
    assert world.registry.releases() == [release]


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_another_outcome_is_refused_and_the_old_policy_stays(world: World, outcome: str) -> None:
    old = world.served()
    bad = world.artifact(2.0)
    world.registry.record(verdict_on(bad, outcome))  # type: ignore[arg-type]
    with pytest.raises(Refused, match=outcome):
        world.registry.promote(bad.digest, NOW)
    assert world.registry.champion() == old.digest


def test_the_newest_verdict_counts(world: World) -> None:
    artifact = world.judged()
    world.registry.record(verdict_on(artifact, "fail"))
    with pytest.raises(Refused, match="fail"):
        world.registry.promote(artifact.digest, NOW)


def test_an_unjudged_and_an_unknown_policy_are_refused(world: World) -> None:
    with pytest.raises(Refused, match="never judged"):
        world.registry.promote(world.artifact().digest, NOW)
    with pytest.raises(Refused, match="knows no policy"):
        world.registry.promote("0" * 64, NOW)
    assert world.registry.champion() is None


def test_a_verdict_that_is_too_old_or_from_the_future_is_refused(world: World) -> None:
    artifact = world.judged()
    for now in (NOW - 1, NOW + 901):
        with pytest.raises(Refused, match="not valid now"):
            world.registry.promote(artifact.digest, now)


def test_a_verdict_of_another_task_is_refused(world: World) -> None:
    artifact = world.artifact()
    world.registry.record(verdict_on(artifact, task="0" * 64))
    with pytest.raises(Refused, match="another task"):
        world.registry.promote(artifact.digest, NOW)


def test_a_verdict_that_was_changed_in_the_file_is_refused(world: World) -> None:
    artifact = world.artifact()
    signed = world.registry.record(verdict_on(artifact, "fail"))
    forged = encode(dataclasses.replace(signed, outcome="pass"))
    with sqlite3.connect(world.run_dir / "registry.sqlite") as file:
        file.execute("UPDATE verdicts SET outcome = 'pass', record = ?", (forged,))
    file.close()
    with pytest.raises(Refused, match="does not fit"):
        world.registry.promote(artifact.digest, NOW)


def test_the_file_itself_refuses_a_release_without_a_passing_verdict(world: World) -> None:
    artifact = world.artifact()
    file = sqlite3.connect(world.run_dir / "registry.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="no passing verdict"):
        file.execute("INSERT INTO releases VALUES (1, ?, 'full', 1.0, NULL, 0)", (artifact.digest,))
    file.close()


def test_a_rollback_goes_to_the_policy_before_and_never_to_a_condemned_one(world: World) -> None:
    first, second, third = world.served(1.0, NOW), world.served(2.0, NOW + 1), world.served(3.0, NOW + 2)
    assert world.registry.admissible() == [third.digest, second.digest, first.digest]
    world.registry._condemn(second.digest, "fell over", NOW + 3)
    assert world.registry.previous() == first.digest
    release = world.registry.rollback(NOW + 4)
    assert (release.digest, release.previous) == (first.digest, third.digest)
    assert world.registry.admissible() == [first.digest]
    assert world.registry.condemned() == {second.digest, third.digest}
    with pytest.raises(Refused, match="nothing to roll back"):
        world.registry.rollback(NOW + 5)
    with pytest.raises(Refused, match="condemned"):
        world.registry.promote(third.digest, NOW + 5)
    assert world.registry.champion() == first.digest


def test_a_rollback_that_names_its_policy_can_be_repeated(world: World) -> None:
    first, second, third = world.served(1.0, NOW), world.served(2.0, NOW + 1), world.served(3.0, NOW + 2)
    release = world.registry.rollback(NOW + 3, "fell over", third.digest)
    assert (release.digest, release.previous) == (second.digest, third.digest)
    assert world.registry.rollback(NOW + 4, "fell over", third.digest) == release
    assert world.registry.reasons() == {third.digest: ("fell over", NOW + 3)}
    with pytest.raises(Refused, match="is not in service"):
        world.registry.rollback(NOW + 5, "fell over", first.digest)
    assert world.registry.champion() == second.digest
    admission = world.registry.admission()
    assert admission.previous == first.digest and admission.condemned == {third.digest: "fell over"}


def test_history_says_who_served_when(world: World) -> None:
    first, second = world.served(1.0, NOW), world.served(2.0, NOW + 10)
    served = [world.registry.served_at(t) for t in (NOW - 1, NOW, NOW + 9, NOW + 10)]
    assert served == [None, first.digest, first.digest, second.digest]


def test_everything_is_there_after_a_restart(world: World) -> None:
    first, second = world.served(1.0), world.served(2.0)
    before = (world.registry.admission(), world.registry.releases())
    with pytest.raises(UsageError, match="has a writer already"):
        Registry(world.run_dir, world.registry.task)
    world.registry.close()
    again = Registry(world.run_dir, world.registry.task)
    assert (again.admission(), again.releases()) == before
    assert [a.digest for a in again.artifacts()] == [first.digest, second.digest]
    assert again.artifact(second.digest) == second
    assert again.keys == world.registry.keys
    assert again.next_version() == 3
    again.close()


def test_the_registry_of_another_task_is_refused(world: World) -> None:
    world.registry.close()
    with pytest.raises(UsageError, match="another task"):
        Registry(world.run_dir, "0" * 64)
    Registry(world.run_dir, world.registry.task).close()


def test_a_damaged_artifact_is_not_registered(world: World) -> None:
    artifact = world.artifact()
    network = world.run_dir / "policies" / artifact.digest / "policy.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"\0")
    with pytest.raises(Refused, match="damaged"):
        world.registry.add(artifact)


def test_secrets_are_for_their_owner_only(world: World) -> None:
    for name in ("signing.key", "run.key", "client.token", "page.token", "operate.token"):
        assert stat.S_IMODE((world.run_dir / "keys" / name).stat().st_mode) == 0o600
    keys = world.registry.keys
    assert keys.signing.hex() not in repr(keys)


def test_a_damaged_key_is_named(world: World) -> None:
    (world.run_dir / "keys" / "run.key").write_text("abc")
    with pytest.raises(UsageError, match=r"run\.key is damaged"):
        open_keys(world.run_dir)


changed = st.sampled_from(
    [
        {"outcome": "fail"}, {"digest": "0" * 64}, {"seed": 8}, {"valid_until": 1e12}, {"baseline": "b"},
        {"checks": ()}, {"trials": ()}, {"task": "t"}, {"signature": ""}, {"signature": "00" * 64}, {"signature": "x"},
    ]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(change=changed)
def test_a_signature_covers_every_field(world: World, change: dict[str, object]) -> None:
    keys = world.registry.keys
    signed = sign(verdict_on(world.artifact()), keys.signing)
    verify(signed, keys.public)
    verify(decode(encode(signed)), keys.public)
    with pytest.raises(Refused):
        verify(dataclasses.replace(signed, **change), keys.public)  # type: ignore[arg-type]


def test_a_policy_is_promoted_only_against_the_one_that_it_was_judged_against(world: World) -> None:
    late = world.judged(3.0)
    first = world.served(1.0)
    with pytest.raises(Refused, match="was not judged against the policy that is in service"):
        world.registry.promote(late.digest, NOW)
    assert world.registry.champion() == first.digest
    assert world.registry.promote(first.digest, NOW + 1e9).digest == first.digest, (
        "it serves already, whatever the date"
    )


def test_a_rollback_passes_over_a_policy_that_a_later_look_did_not_pass(world: World) -> None:
    first, second, _ = world.served(1.0, NOW), world.served(2.0, NOW + 1), world.served(3.0, NOW + 2)
    world.registry.record(verdict_on(second, "inconclusive"))
    assert world.registry.previous() == first.digest
    assert world.registry.rollback(NOW + 3).digest == first.digest


def saved(name: str = "tipping") -> Scenario:
    return Scenario(
        name=name, parameters={"length": 2.0}, fork=("episode_847", 20), saved_at=NOW, state=(0.0, 0.0, 0.1, 0.0),
        before={"length": 0.5}, actions=(0, 1), edits=("length 0.5 → 2",),
    )  # fmt: skip


def test_scenarios_are_kept_and_dropped(world: World) -> None:
    assert world.registry.scenarios() == ()
    assert world.registry.save_scenario(saved()) == saved()
    later = dataclasses.replace(saved("box"), saved_at=NOW + 1, state=None, actions=([0.5, -1.0], [0.0, 1.0]))
    world.registry.save_scenario(later)
    with pytest.raises(UsageError, match="already"):
        world.registry.save_scenario(saved())
    for name in ("", "-x", "a b", "x" * 65):
        with pytest.raises(UsageError, match="letters, digits"):
            world.registry.save_scenario(saved(name))
    world.registry.close()
    again = open_readonly(world.run_dir)
    assert again.scenarios() == (saved(), later)
    again.close()
    world.registry = Registry(world.run_dir, task_digest(cartpole))
    world.registry.drop_scenario("tipping")
    assert [s.name for s in world.registry.scenarios()] == ["box"]
    with pytest.raises(UsageError, match="no scenario"):
        world.registry.drop_scenario("tipping")


def test_what_became_of_failures_is_kept_with_their_scenarios(world: World) -> None:
    made = dataclasses.replace(saved(), name="failure-1", origin="production", survived=False)
    world.registry.save_scenario(saved())
    world.registry.grown([made], {"one": "failure-1", "two": "failure-1", "three": ""}, "calm", 7.0)
    assert world.registry.scenarios() == (made, saved())
    assert world.registry.looked_at("calm") == {"one": "failure-1", "two": "failure-1", "three": ""}
    assert world.registry.looked_at("windy") == {"one": "failure-1", "two": "failure-1"}, "three may come again in it"
    world.registry.grown([], {"three": "failure-1"}, "windy", 8.0)
    assert world.registry.looked_at("gusty") == dict.fromkeys(["one", "two", "three"], "failure-1")
    with pytest.raises(sqlite3.IntegrityError):
        world.registry.grown([made], {"four": "failure-1"}, "calm", 9.0)
    assert "four" not in world.registry.looked_at("calm"), "all of it or nothing"
    world.registry.drop_scenario("failure-1")
    world.registry.drop_scenario("tipping")
    assert world.registry.scenarios() == () and world.registry.dropped() == (made,)
    world.registry.save_scenario(saved())


def test_the_last_verdicts_are_read_alone(world: World) -> None:
    artifact = world.artifact()
    for at in (1.0, 2.0, 3.0):
        world.registry.record(dataclasses.replace(verdict_on(artifact), judged_at=at))
    assert [verdict.judged_at for verdict in world.registry.verdicts(None, 2)] == [2.0, 3.0]
    assert [verdict.judged_at for verdict in world.registry.verdicts(artifact.digest)] == [1.0, 2.0, 3.0]


def test_a_file_from_before_there_were_scenarios_is_read_and_made_a_present_one(world: World) -> None:
    artifact = world.served()
    world.registry.close()
    with closing(sqlite3.connect(world.run_dir / FILE)) as db, db:
        for table in ("scenarios", "budget", "terms", "failures", "dropped", "tokens", "canaries", "controls"):
            db.execute(f"DROP TABLE {table}")
        db.execute("UPDATE meta SET schema_version = 1")
    old = open_readonly(world.run_dir)
    assert old.scenarios() == () and old.champion() == artifact.digest
    assert old.tries() == 0 and old.budget() == []
    assert find(old.in_force(), world.token) is not None, "a token of its time opens what it opened"
    old.close()
    world.registry = Registry(world.run_dir, task_digest(cartpole))
    world.registry.save_scenario(saved())
    world.registry.grown([], {"episode_1": ""}, "world", 1.0)
    assert world.registry.looked_at("world") == {"episode_1": ""} and world.registry.dropped() == ()
    assert find(world.registry.in_force(), world.token) is not None
    assert world.registry.champion() == artifact.digest and world.registry.verdicts()[0].outcome == "pass"


def test_a_verdict_from_before_there_were_chains_keeps_its_signature(world: World) -> None:
    artifact = world.artifact()
    plain = dataclasses.asdict(verdict_on(artifact))
    for trial in plain["trials"]:
        del trial["chain"]
    for name in ("tries", "rivals", "num_played", "correction"):
        del plain[name]
    plain["cost_s"] = float(plain["cost_s"])
    message = canonical(plain).encode()
    signature = Ed25519PrivateKey.from_private_bytes(world.registry.keys.signing).sign(message).hex()
    old = decode(canonical({**plain, "signature": signature}))
    assert old.trials[0].chain == ""
    verify(old, world.registry.keys.public)
    with pytest.raises(Refused, match="does not fit"):
        verify(dataclasses.replace(old, tries=1), world.registry.keys.public)
    chained = dataclasses.replace(old, trials=(dataclasses.replace(old.trials[0], chain="c"),))
    with pytest.raises(Refused, match="does not fit"):
        verify(chained, world.registry.keys.public)
    signed = world.registry.record(chained)
    verify(signed, world.registry.keys.public)
    assert world.registry.verdict(artifact.digest) == signed and signed.trials[0].chain == "c"


def test_the_gates_budget_counts_candidates_until_it_is_filled(world: World) -> None:
    one, other = world.artifact(1.0), world.artifact(2.0)
    assert [world.registry.spend(each.digest, NOW + i) for i, each in enumerate([one, other, one])] == [0, 1, 2]
    with pytest.raises(UsageError, match="for a reason, which is kept"):
        world.registry.refill(" ", NOW)
    world.registry.close()
    world.registry = Registry(world.run_dir, task_digest(cartpole))
    assert world.registry.tries() == 3, "it outlives its owner"
    world.registry.refill("production confirms it", NOW + 3)
    assert world.registry.tries() == 0 and world.registry.spend(one.digest, NOW + 4) == 0
    with closing(open_readonly(world.run_dir)) as reader:
        assert reader.tries() == 1
        assert reader.budget()[-2:] == [(NOW + 3, None, "production confirms it"), (NOW + 4, one.digest, None)]
