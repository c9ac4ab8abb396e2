"""Acting in process: proven policies, the server's own draws and records, and no episode that nobody can prove."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import verdicts
from flywheel.client import Client, FullError, Local, RejectedError, UnavailableError
from flywheel.client.local import packed
from flywheel.client.spool import Spool
from flywheel.errors import Refused, UsageError
from flywheel.records import Artifact, Episode
from flywheel.trace.context import DIGEST, EPISODE, STEP, about
from tests.client.conftest import Server
from tests.deploy.conftest import NOW, Links, World, verdict_on

FOUR = np.zeros(4)
SEEN = np.random.default_rng(0).normal(0.0, 0.05, (300, 4)).astype(np.float32)
PROGRAM = """
import sys
import numpy as np
from flywheel.client import Local

url, token, directory, ends = sys.argv[1:]
with Local(url, token, directory) as local:
    with local.episode() as episode:
        for t in range(40):
            episode.act(np.full(4, 0.001 * t))
            episode.reward(float(t))
        if ends:
            episode.end(np.full(4, 0.04), terminated=True)
        print(episode.id, flush=True)
        sys.stdin.read()
"""
Open = Callable[..., Local]


@pytest.fixture
def opened(server: Server, world: World, tmp_path: Path) -> Iterator[Open]:
    """Return what opens a Local in the same directory each time."""
    begun: list[Local] = []

    def open_(**settings: Any) -> Local:
        local = Local(server.url, world.token, tmp_path / "local", **{"poll_s": 0.05, "num_leases": 8, **settings})
        begun.append(local)
        return local

    yield open_
    for local in begun:
        local.close()


def record(links: Links, id: str) -> Episode:
    """Return an episode as it was made durable."""
    (found,) = links.store.read([id])
    return found


def play(local: Local, num_steps: int = 5) -> str:
    with local.episode() as episode:
        for t in range(num_steps):
            episode.act(SEEN[t])
            episode.reward(1.0)
        episode.end(SEEN[num_steps], terminated=True)
    return episode.id


def wait_for_policy(local: Local, artifact: Artifact) -> None:
    """Return when new episodes are this policy's."""
    assert local._supplier.wait_for(lambda: local._supply.digests == {artifact.digest}, 30)


def network_fails(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(local._client._http, "request", fail)


# The same records and the same draws


def test_it_acts_and_is_recorded_as_the_server_would_do_it(
    artifact: Artifact, links: Links, server: Server, world: World, opened: Open
) -> None:
    local = opened()
    actions, logps = [], []
    with local.episode() as episode:
        for t in range(300):
            actions.append(episode.act(SEEN[t]))
            logps.append(episode.logp)
            if t % 3:
                episode.reward(0.5 * t)
        episode.end(FOUR, truncated=True)
    local.flush()
    found = record(links, episode.id)
    with Client(server.url, world.token) as client:
        before: dict[str, Any] = {}
        for t in range(300):
            row = {"episode": episode.id, "t": t, "observation": SEEN[t].tolist(), **before}
            (decision,) = client.act([row])
            before = {"digest": decision["digest"], "action": decision["raw_action"]}
            assert (decision["action"], decision["logp"], decision["digest"]) == (actions[t], logps[t], artifact.digest)
    assert found.digests == (artifact.digest,) * 300
    assert np.array_equal(found.observations, [*SEEN, FOUR]) and found.observations.dtype == np.float32
    assert (found.raw_actions.tolist(), found.logps.tolist()) == (actions, logps)
    known = [0.5 * t if t % 3 else None for t in range(300)]
    assert [None if np.isnan(r) else r for r in found.rewards] == known
    assert (found.end, found.origin) == ("truncated", "production")


def test_an_episode_leaves_the_directory_when_the_server_has_it(
    artifact: Artifact, links: Links, server: Server, opened: Open, tmp_path: Path
) -> None:
    local = opened()
    ids = [play(local) for _ in range(3)]
    local.flush()
    assert local.waiting == ()
    assert not list((tmp_path / "local" / "spool").glob("*.episode"))
    assert [record(links, id).num_steps for id in ids] == [5, 5, 5]


def test_spans_inside_are_of_its_trace(artifact: Artifact, opened: Open) -> None:
    with opened().episode() as episode:
        episode.act(FOUR)
        assert about() == {EPISODE: episode.id, STEP: 0, DIGEST: artifact.digest}
        episode.end(FOUR, terminated=True)
    assert about() == {}


def test_threads_share_it(artifact: Artifact, server: Server, links: Links, opened: Open) -> None:
    local, ids = opened(), list[str]()

    def work() -> None:
        ids.extend(play(local) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    local.flush()
    assert len(set(ids)) == 40
    assert all(record(links, id).num_steps == 5 for id in ids)


def test_the_server_is_told_what_runs_at_once_and_again_until_it_has_it(
    artifact: Artifact, links: Links, server: Server, opened: Open
) -> None:
    local = opened()
    assert local._supplier.wait_for(lambda: local.num_leases == 8, 30)
    with local.episode() as long:
        long.act(SEEN[0])
        assert local._courier.wait_for(lambda: any(long.id in some for some in links.begun_), 30)
        short = play(local)
        local.flush()
        assert list(links.begun_[-1]) in ([short, long.id], [long.id]), "it tells of both"
        told = len(links.begun_)
        assert local._courier.wait_for(lambda: len(links.begun_) > told + 2, 30), "again and again"
        assert list(links.begun_[-1]) == [long.id]
        long.end(SEEN[1], terminated=True)
    local.flush()
    told = len(links.begun_)
    local._courier.round(lambda: False, 30)
    assert len(links.begun_) == told, "nothing runs"


def test_what_a_request_tells_of_others_is_bounded_and_the_oldest_first(
    artifact: Artifact, links: Links, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.client.local._ROWS", 2)
    local = opened()
    episodes = [local.episode() for _ in range(5)]
    ids = [episode.id for episode in episodes]
    assert [row["episode"] for row in local._running(set())] == ids[:2]
    assert [row["episode"] for row in local._running({ids[1], ids[4]})] == [ids[1], ids[4], ids[0], ids[2]]
    for episode in episodes[2:]:
        episode.act(FOUR)
        episode.end(FOUR, terminated=True)
    local.flush()
    told = links.begun_
    for id in ids[2:]:
        assert any(id in some for some in told), "whatever is brought is told"


# Leases and policies


def test_a_new_policy_is_fetched_in_the_background_and_running_episodes_keep_theirs(
    artifact: Artifact, server: Server, links: Links, world: World, opened: Open
) -> None:
    local = opened()
    with local.episode() as episode:
        episode.act(SEEN[0])
        new = world.served(2.0)
        wait_for_policy(local, new)
        with local.episode() as other:
            other.act(SEEN[0])
            other.end(SEEN[1], terminated=True)
        episode.act(SEEN[1])
        episode.end(SEEN[2], terminated=True)
    assert (episode.digest, other.digest) == (artifact.digest, new.digest)
    local.flush()
    assert record(links, episode.id).digests == (artifact.digest,) * 2


def test_leases_of_a_policy_that_was_rolled_back_are_given_up(artifact: Artifact, world: World, opened: Open) -> None:
    bad = world.served(2.0)
    local = opened()
    with local.episode() as episode:
        assert episode.digest == bad.digest
        world.registry.rollback(NOW)
        wait_for_policy(local, artifact)
        episode.act(FOUR)
        episode.end(FOUR, terminated=True)


def test_an_episode_knows_that_its_policy_was_rolled_back(
    artifact: Artifact, world: World, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    bad = world.served(2.0)
    local = opened()
    wait_for_policy(local, bad)
    with local.episode() as episode, local.episode() as other:
        episode.act(FOUR)
        other.act(FOUR)
        assert not episode.is_condemned
        world.registry.rollback(NOW)
        assert local._supplier.wait_for(lambda: episode.is_condemned, 30)
        wait_for_policy(local, artifact)
        episode.act(FOUR)
        for each in (episode, other):
            each.end(FOUR, truncated=True)
    said = [record.getMessage() for record in caplog.records if "acts in episodes that run" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"Policy {bad.digest[:12]} may not act any more")


def test_after_a_fork_nothing_begins_and_nothing_is_kept(
    artifact: Artifact, server: Server, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened()
    with local.episode() as episode:
        episode.act(FOUR)
        with monkeypatch.context() as forked:
            forked.setattr("flywheel.client.refusal._num_forks", -1)
            for call in (local.episode, lambda: episode.act(FOUR), lambda: episode.end(FOUR, terminated=True)):
                with pytest.raises(UsageError, match="made before a fork: make one in each process"):
                    call()
        episode.end(FOUR, terminated=True)


def test_it_begins_offline_until_its_leases_are_used_up_and_running_episodes_go_on(
    artifact: Artifact, server: Server, links: Links, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened(num_leases=3)
    assert local._supplier.wait_for(lambda: local.num_leases == 3, 30)
    network_fails(local, monkeypatch)
    ids = [play(local) for _ in range(2)]
    with local.episode() as running:
        running.act(SEEN[0])
        with pytest.raises(UnavailableError, match=r"No episode can begin: no lease is left.*no network"):
            local.episode()
        running.act(SEEN[1])
        running.end(SEEN[2], terminated=True)
    with pytest.raises(UnavailableError, match=r"3 episodes were not acknowledged in 0\.1 s: .*no network"):
        local.flush(0.1)
    monkeypatch.undo()
    ids.append(play(local))
    local.flush()
    assert [record(links, id).num_steps for id in (*ids, running.id)] == [5, 5, 5, 2]


def test_a_lease_is_used_once(artifact: Artifact, opened: Open) -> None:
    local = opened(num_leases=2)
    ids = {play(local, 1) for _ in range(12)}
    assert len(ids) == 12


def test_a_policy_that_is_there_already_is_proven_and_not_fetched_again(
    artifact: Artifact, server: Server, opened: Open, tmp_path: Path
) -> None:
    path = f"/v1/policies/{artifact.digest}"
    local = opened()
    play(local)
    local.close()
    assert server.network.asked.count(path) == 1
    local = opened()
    play(local)
    local.close()
    assert server.network.asked.count(path) == 1
    network = tmp_path / "local" / "policies" / artifact.digest / "policy.onnx"
    network.write_bytes(b"other" + network.read_bytes())
    play(opened())
    assert server.network.asked.count(path) == 2, "what was damaged on the disk is fetched again"


def test_only_some_policies_are_kept(
    artifact: Artifact, world: World, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flywheel.client.supply._KEPT", 2)
    local = opened()
    for number in (2.0, 3.0, 4.0):
        wait_for_policy(local, world.served(number))
    assert len(list((tmp_path / "local" / "policies").iterdir())) == 2
    assert len(local._supply._policies) == 2


# What is not taken


def changed(verdict: str, **fields: Any) -> str:
    return json.dumps(json.loads(verdict) | fields)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a | {"verdict": changed(a["verdict"], judged_at=NOW + 1)}, "a signature that does not fit"),
        (lambda a: a | {"verdict": changed(a["verdict"], signature="")}, "carries no signature"),
        (lambda a: a | {"files": a["files"] | {"policy.onnx": b"other"}}, "policy.onnx does not have the sha256"),
        (lambda a: a | {"files": a["files"] | {"manifest.json": b"{}"}}, "is damaged: its manifest's sha256"),
    ],
    ids=["changed verdict", "no signature", "another network", "another manifest"],
)
def test_a_policy_that_is_not_proven_does_not_act(
    artifact: Artifact, server: Server, opened: Open, tmp_path: Path, spoil: Callable[[Any], Any], words: str
) -> None:
    pack = msgspec.msgpack
    server.network.spoil[f"/v1/policies/{artifact.digest}"] = lambda status, body: (
        status, pack.encode(spoil(pack.decode(body))),
    )  # fmt: skip
    local = opened()
    with pytest.raises(Refused, match=words):
        local.episode()
    assert not list((tmp_path / "local" / "policies").glob("*"))
    server.network.spoil.clear()
    play(local)


@pytest.mark.parametrize(
    ("fields", "words"), [({"outcome": "fail"}, "'fail', so it can't be served"), ({"task": "0" * 64}, "another task")]
)
def test_a_verdict_that_is_signed_has_to_allow_it_as_well(
    artifact: Artifact, server: Server, world: World, opened: Open, fields: dict[str, Any], words: str
) -> None:
    signed = verdicts.encode(verdicts.sign(verdict_on(artifact, **fields), world.registry.keys.signing))
    pack = msgspec.msgpack
    server.network.spoil[f"/v1/policies/{artifact.digest}"] = lambda status, body: (
        status, pack.encode(pack.decode(body) | {"verdict": signed}),
    )  # fmt: skip
    with pytest.raises(Refused, match=words):
        opened().episode()


def test_a_challenger_that_can_not_be_had_leaves_the_champion_acting(
    artifact: Artifact, server: Server, world: World, opened: Open
) -> None:
    new = world.served(2.0)
    gone = msgspec.msgpack.encode({"error": "It may not act any more.", "field": ""})
    server.network.spoil[f"/v1/policies/{new.digest}"] = lambda *_: (410, gone)
    local = opened()
    with pytest.raises(RejectedError, match="It may not act any more") as caught:
        local.episode()
    assert caught.value.status == 410
    server.network.spoil["/v1/leases"] = lambda status, body: (status, mixed(body, artifact.digest))
    digests = set()
    for _ in range(4):
        with local.episode() as episode:
            digests.add(episode.digest)
            episode.act(FOUR)
            episode.end(FOUR, terminated=True)
    assert digests == {artifact.digest}


def mixed(body: bytes, digest: str) -> bytes:
    """Return an answer in which every other lease is of another policy."""
    answer = msgspec.msgpack.decode(body)
    for lease in answer["leases"][::2]:
        lease["digest"] = digest
    return msgspec.msgpack.encode(answer)


def test_the_key_is_pinned_at_first_use(
    artifact: Artifact, server: Server, world: World, opened: Open, tmp_path: Path
) -> None:
    pinned = tmp_path / "local" / "key.json"
    local = opened()
    play(local)
    local.close()
    assert json.loads(pinned.read_bytes()) == {"public": world.registry.keys.public.hex(), "task": world.registry.task}
    other = "ab" * 32
    with pytest.raises(UsageError, match="is not the one pinned in"):
        opened(public_key=other)
    pinned.write_text(json.dumps({"public": other, "task": world.registry.task}))
    with pytest.raises(Refused, match=r"a signature that does not fit.*What counts is the key and the task in"):
        opened().episode()
    assert server.network.asked.count("/v1/key") == 1


def test_a_key_that_is_given_is_the_one_that_counts(artifact: Artifact, world: World, opened: Open) -> None:
    local = opened(public_key="ab" * 32)
    with pytest.raises(Refused, match="with another key than the one that was given"):
        local.episode()
    local.close()
    play(opened(public_key=world.registry.keys.public.hex()))


def test_the_wrong_token_and_a_server_without_a_policy_are_said(server: Server, world: World, tmp_path: Path) -> None:
    with Local(server.url, "wrong", tmp_path / "a") as local, pytest.raises(RejectedError, match="token"):
        local.episode()
    without = pytest.raises(UnavailableError, match="No policy is in service")
    with Local(server.url, world.token, tmp_path / "b") as local, without:
        local.episode()


def test_mistakes_are_named(artifact: Artifact, opened: Open) -> None:
    with pytest.raises(UsageError, match=r"From 1 to 1,024 leases"):
        opened(num_leases=0)
    local = opened()
    with pytest.raises(UsageError, match="in use by another program"):
        opened()
    with local.episode() as episode:
        with pytest.raises(UsageError, match="no step yet"):
            episode.end(FOUR, terminated=True)
        with pytest.raises(UsageError, match=r"shape \[3\]"):
            episode.act(np.zeros(3))
        episode.act(FOUR)
        episode.reward(float("inf"))
        with pytest.raises(UsageError, match="infinite"):
            episode.act(FOUR)
        episode.reward(1.0)
        with pytest.raises(UsageError, match="either"):
            episode.end(FOUR)
        episode.end(FOUR, terminated=True)
    with pytest.raises(UsageError, match="without an end"), local.episode() as episode:
        episode.act(FOUR)


def test_an_episode_that_is_over_takes_nothing_any_more(artifact: Artifact, links: Links, opened: Open) -> None:
    local = opened()
    with local.episode() as episode:
        episode.act(FOUR)
        episode.end(FOUR, terminated=True)
    with pytest.raises(ZeroDivisionError), local.episode() as left:
        for _ in range(3):
            left.act(FOUR)
        raise ZeroDivisionError
    for each in (episode, left):
        for call in (
            lambda e=each: e.act(FOUR), lambda e=each: e.reward(1.0), lambda e=each: e.end(FOUR, truncated=True),
        ):  # fmt: skip
            with pytest.raises(UsageError, match=f"Episode '{each.id}' is over: begin another one"):
                call()
    local.flush()
    assert [record(links, each.id).num_steps for each in (episode, left)] == [1, 2]


def test_an_episode_is_no_longer_than_one_request_takes(
    artifact: Artifact, server: Server, links: Links, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened()
    assert local._supplier.wait_for(lambda: local.num_leases == 8, 30)
    assert local._supply.max_body == 8 * 2**20
    monkeypatch.setattr(local._supply, "max_body", 2**18 + 1000)
    with local.episode() as episode:
        with pytest.raises(UsageError, match=r"has 15 steps, and no more .* end it with truncated=True, and begin"):
            for t in range(20):
                episode.act(SEEN[t])
        with pytest.raises(UsageError, match="has 15 steps"):
            episode.act(SEEN[15])
        episode.end(SEEN[15], truncated=True)
    local.flush()
    assert record(links, episode.id).num_steps == 15


@given(
    value=st.recursive(
        st.integers(-(2**53), 2**53) | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=40), inner, max_size=4),
    )
)
def test_what_a_value_takes_packed_is_never_more_than_it_says(value: Any) -> None:
    assert len(msgspec.msgpack.encode(value)) <= packed(value)


def test_a_full_spool_is_a_sentence_and_the_same_call_goes_on(
    artifact: Artifact, server: Server, links: Links, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened(spool_bytes=4_000)
    assert local._supplier.wait_for(lambda: local.num_leases == 8, 30)
    with monkeypatch.context() as offline:
        network_fails(local, offline)
        play(local, 2)
        with local.episode() as episode:
            acted = 0
            with pytest.raises(FullError, match="of at most 4,000 bytes"):
                for t in range(200):
                    episode.act(SEEN[t])
                    acted += 1
            with pytest.raises(FullError, match="No episode begins"):
                local.episode()
            offline.undo()
            local.flush()
            episode.act(SEEN[acted])
            episode.end(FOUR, terminated=True)
    local.flush()
    assert np.array_equal(record(links, episode.id).observations[:-1], SEEN[: acted + 1])


# Episodes that come to grief


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "torn off"])
def test_an_episode_survives_the_death_of_its_program(
    artifact: Artifact, server: Server, links: Links, world: World, opened: Open, tmp_path: Path, ends: bool
) -> None:
    server.network.spoil["/v1/episodes"] = lambda *_: (503, b"")
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url, world.token, str(tmp_path / "local"), "ends" * ends],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    id = running.stdout.readline().strip()
    running.kill()
    running.communicate()
    server.network.spoil.clear()
    opened().flush()
    found = record(links, id)
    num_steps = 40 if ends else 39
    assert (found.end, found.num_steps) == ("terminated" if ends else "truncated", num_steps)
    assert found.rewards.tolist() == [float(t) for t in range(num_steps)]
    assert np.allclose(found.observations[:, 0], 0.001 * np.arange(num_steps + 1))
    assert found.started_at <= found.ended_at <= max(time.time(), NOW)


def test_an_episode_that_an_exception_ends_is_cut_off_at_its_last_observation(
    artifact: Artifact, server: Server, links: Links, opened: Open
) -> None:
    local = opened()
    with pytest.raises(ZeroDivisionError), local.episode() as episode:
        for t in range(3):
            episode.act(SEEN[t])
            episode.reward(t)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), local.episode() as short:
        short.act(SEEN[0])
        raise ZeroDivisionError
    local.flush()
    found = record(links, episode.id)
    assert (found.end, found.num_steps, found.rewards.tolist()) == ("truncated", 2, [0.0, 1.0])
    assert np.array_equal(found.observations, SEEN[:3])
    assert not links.store.holds(short.id)


def test_what_the_server_refuses_is_put_aside_and_the_others_are_taken(
    artifact: Artifact, server: Server, links: Links, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened()
    assert local._supplier.wait_for(lambda: local.num_leases == 8, 30)
    with monkeypatch.context() as offline:
        network_fails(local, offline)
        ids = [play(local) for _ in range(3)]
        path = local._spool._path(ids[1])
        path.write_bytes(relined(path.read_bytes()))
        local._courier.round(lambda: False, 30)  # none that has read it before is under way any more
    local.flush()
    assert [record(links, id).num_steps for id in (ids[0], ids[2])] == [5, 5]
    assert path.with_suffix(".refused").exists()
    server.network.spoil["/v1/episodes"] = lambda *_: (413, b"")
    play(local)
    local.flush()
    assert len(list((tmp_path / "local" / "spool").glob("*.refused"))) == 2


def test_one_that_can_not_be_read_leaves_the_others_their_way(
    artifact: Artifact, links: Links, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = opened()
    assert local._supplier.wait_for(lambda: local.num_leases == 8, 30)
    with monkeypatch.context() as offline:
        network_fails(local, offline)
        ids = [play(local) for _ in range(4)]
        local._spool._path(ids[0]).unlink()
        local._spool._path(ids[1]).write_bytes(b"")
        other = Spool(tmp_path / "other", 2**20)  # kept by something else
        other.begin("strange")
        for t in (0, 1, 2):
            other.add("strange", {"t": t, "observation": [0.0] * 4, "action": 0, "reward": 1.0})
        other._path("strange").rename(local._spool._path(ids[2]))
        other.close()
        local._courier.round(lambda: False, 30)
    local.flush()
    assert [links.store.holds(id) for id in ids] == [False, False, False, True]
    assert len(list((tmp_path / "local" / "spool").glob("*.refused"))) == 2


def relined(content: bytes) -> bytes:
    """Return a spool's file with a seal that is none of the run's."""
    head, rest = content.split(b"\n", 1)
    text = re.sub(rb'"seal":"[0-9a-f]*"', b'"seal":"' + b"0" * 64 + b'"', head[9:])
    return b"%08x %b\n" % (zlib.crc32(text), text) + rest


def test_it_loads_neither_ray_nor_torch(artifact: Artifact, server: Server, world: World, tmp_path: Path) -> None:
    code = PROGRAM.replace("sys.stdin.read()", "print(*sys.modules)")
    given = [server.url, world.token, str(tmp_path / "local"), "ends"]
    loaded = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime" in loaded.split()
    assert not {"ray", "torch"} & set(loaded.split())
