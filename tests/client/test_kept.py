"""What a program had in its spool when it died reaches the server with the next one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from flywheel.client import AsyncClient, Client, FullError, RejectedError, UnavailableError
from flywheel.client.spool import Spool
from flywheel.errors import UsageError
from flywheel.records import Artifact
from tests.client.conftest import Server
from tests.deploy.conftest import Links, World

FOUR = np.zeros(4)
PROGRAM = """
import sys
import numpy as np
from flywheel.client import Client

url, token, spool = sys.argv[1:]
with Client(url, token, spool=spool) as client, client.episode("e") as episode:
    for t in range(5):
        episode.act(np.full(4, 0.01 * t))
        episode.reward(float(t))
    print("acted", flush=True)
    sys.stdin.read(1)
    episode.end(np.full(4, 0.05), terminated=True)
"""


@contextmanager
def program(server: Server, world: World, spool: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program up to its fifth step; it ends its episode when it is told to, and is killed in any case."""
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url, world.token, str(spool)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == "acted\n"
        yield running
    finally:
        running.kill()
        running.communicate()


def test_an_end_that_was_not_acknowledged_is_sent_by_the_next_program(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with program(server, world, spool) as running:
        links.away = True
        assert running.stdin is not None
        running.stdin.write("\n")
        running.stdin.flush()
        server.network.wait_for("/v1/end")
    links.steps.clear()
    links.away = False
    with Client(server.url, world.token, spool=spool) as client:
        client.flush()
        assert client.waiting == ()
    assert links.rows() == {("e", t) for t in range(5)}, "the observer had lost all of them, and got them again"
    (end,) = links.ends[-1:]
    assert (end.episodes, end.ends, end.t.tolist()) == (("e",), ("terminated",), [5])
    assert np.allclose(end.observations, 0.05)
    rewards = {int(t): r for steps in links.steps for t, r in zip(steps.t, steps.rewards, strict=True)}
    assert [rewards[t] for t in range(1, 5)] == [0.0, 1.0, 2.0, 3.0]
    assert not list(spool.glob("*.episode"))


def test_of_an_episode_that_was_torn_off_the_steps_are_sent(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with program(server, world, tmp_path / "spool"):
        pass
    links.steps.clear()
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:
        client.flush()
    (again,) = links.steps
    assert (again.episodes, again.t.tolist()) == (("e",) * 5, list(range(5)))
    assert again.digests == (artifact.digest,) * 5
    assert links.ends == [], "nobody knows an end of it"


def test_the_next_program_waits_for_a_server_that_is_away(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with program(server, world, tmp_path / "spool"):
        pass
    with Client("http://127.0.0.1:9", world.token, spool=tmp_path / "spool") as client:
        with pytest.raises(UnavailableError, match=r"1 episodes were not acknowledged in 0.1 s: .*They stay"):
            client.flush(0.1)
        assert client.waiting == ("e",)
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:
        client.flush()


def test_what_the_server_never_takes_is_put_aside(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with program(server, world, tmp_path / "spool"):
        pass
    (path,) = (tmp_path / "spool").glob("*.episode")
    server.network.spoil["/v1/end"] = lambda *_: (409, b'{"error": "It never said that.", "field": ""}')
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:
        client.flush()
    assert path.with_suffix(".refused").exists() and not path.exists()


def left(spool: Path, *ids: str, digest: str) -> None:
    """Leave ended episodes of one step in a spool."""
    kept = Spool(spool, 2**20)
    for id in ids:
        kept.begin(id)
        row = {"episode": id, "t": 0, "observation": [0.0] * 4}
        kept.add(id, row | {"digest": digest, "action": 0})
        kept.add(
            id, row | {"t": 1, "digest": digest, "action": 0, "reward": 1.0, "terminated": True, "truncated": False}
        )
        kept.leave(id)
    kept.close()


def test_a_404_that_is_not_the_apis_own_is_waited_out(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "spool", "a", "b", digest=artifact.digest)
    monkeypatch.setattr(links, "rows", lambda: {("a", 0), ("b", 0)})
    gone = b"Path '/v1/end' not found. Ping http://.../-/routes for available routes."
    server.network.spoil["/v1/end"] = lambda *_: (404, gone)
    with Client(server.url, world.token, spool=tmp_path / "spool", patience_s=0.1) as client:
        server.network.wait_for("/v1/end")
        with pytest.raises(UnavailableError, match=r"gave no answer for 0\.1 s, the last time: HTTP 404 Path"):
            client.end([])
        assert set(client.waiting) == {"a", "b"}, "the application is being put into place anew"
        server.network.spoil["/v1/end"] = lambda *_: (404, b'{"error": "There is no /v1/end.", "field": ""}')
        with pytest.raises(RejectedError, match=r"There is no /v1/end\."):
            client.end([])
        assert not list((tmp_path / "spool").glob("*.refused"))
        server.network.spoil.clear()
        client.flush()
    assert not list((tmp_path / "spool").glob("*.episode")) and not list((tmp_path / "spool").glob("*.refused"))


def test_one_that_can_not_be_read_or_sent_leaves_the_others_their_way(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "spool", "gone", "bad", "good", digest=artifact.digest)
    monkeypatch.setattr(links, "rows", lambda: {("bad", 0), ("good", 0)})
    server.network.spoil["/v1/end"] = lambda status, body: (500, b"") if b'"bad"' in body else (status, body)
    monkeypatch.setattr("flywheel.client.http._SENDER_PATIENCE_S", 0.1)
    found = Spool._find

    def find(spool: Spool) -> None:
        found(spool)
        spool._path("gone").unlink()

    monkeypatch.setattr(Spool, "_find", find)
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:
        assert client._courier.wait_for(lambda: client.waiting == ("bad",), 30)
        server.network.spoil.clear()
        client.flush()
    assert {end.episodes for end in links.ends} >= {("good",), ("bad",)}


async def test_an_asynchronous_program_sends_it_as_well(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with program(server, world, tmp_path / "spool"):
        pass
    links.steps.clear()
    async with AsyncClient(server.url, world.token, spool=tmp_path / "spool") as client:
        await client.flush()
        async with client.episode() as episode:
            await episode.act(FOUR)
            assert len(list((tmp_path / "spool").glob("*.episode"))) == 1
            await episode.end(FOUR, truncated=True)
        assert not list((tmp_path / "spool").glob("*.episode"))
    assert {episode for episode, _ in links.rows()} == {"e", episode.id}


def test_an_episode_leaves_the_spool_when_it_is_acknowledged_or_given_up(
    artifact: Artifact, server: Server, world: World, tmp_path: Path
) -> None:
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:
        assert client.spool is not None
        with client.episode() as episode:
            episode.act(FOUR)
            assert client.spool.num_bytes > 0
            episode.end(FOUR, terminated=True)
        assert client.spool.num_bytes == 0
        with pytest.raises(ZeroDivisionError), client.episode() as episode:
            episode.act(FOUR)
            raise ZeroDivisionError
        assert (client.spool.num_bytes, client.waiting) == (0, ())


def test_an_end_that_the_program_gives_up_is_sent_all_the_same(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with Client(server.url, world.token, spool=tmp_path / "spool", patience_s=0.1) as client:
        with pytest.raises(UnavailableError), client.episode("mine") as episode:
            episode.act(FOUR)
            links.away = True
            episode.end(FOUR, terminated=True)
        assert client.waiting == ("mine",)
        with pytest.raises(UsageError, match="in the spool already"):
            client.episode("mine")
        links.away = False
        client.flush()
        assert links.ends[-1].episodes == ("mine",)


def test_a_full_spool_is_a_sentence_and_room_lets_the_same_call_through(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with Client(server.url, world.token, spool=tmp_path / "spool", spool_bytes=3_000) as client:
        batch, other = client.batch(), client.batch()
        (other_id,) = other.begin()
        other.act([other_id], np.zeros((1, 4)))
        (id,) = batch.begin()
        with pytest.raises(FullError, match="of at most 3,000 bytes"):
            for _ in range(100):
                batch.act([id], np.zeros((1, 4)))
        t, _ = batch.last(id)
        with pytest.raises(FullError, match="No episode begins"):
            batch.begin(2)
        assert batch.open == (id,)
        other.end([other_id], np.zeros((1, 4)), None, [True], [False])
        batch.act([id], np.zeros((1, 4)))
        assert batch.last(id)[0] == t + 1
        batch.end([id], np.zeros((1, 4)), None, [True], [False])
        assert client.spool is not None and client.spool.num_bytes == 0
    assert links.rows() >= {(id, step) for step in range(t + 2)}


def test_a_program_that_threads_share_keeps_every_step(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path
) -> None:
    with Client(server.url, world.token, spool=tmp_path / "spool") as client:

        def play() -> None:
            with client.episode() as episode:
                for _ in range(5):
                    episode.act(FOUR)
                episode.end(FOUR, terminated=True)

        threads = [threading.Thread(target=play) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.counters.errors == 0
        assert client.spool is not None and client.spool.num_bytes == 0
    assert len(links.rows()) == 40


def test_the_wrong_token_is_said(server: Server, world: World, artifact: Artifact, tmp_path: Path) -> None:
    with program(server, world, tmp_path / "spool"):
        pass
    with Client(server.url, "wrong", spool=tmp_path / "spool") as client:
        with pytest.raises(UnavailableError, match="token is missing, wrong") as caught:
            client.flush(1.0)
        assert not isinstance(caught.value, RejectedError)
        assert client.waiting == ("e",)
