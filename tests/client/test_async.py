"""AsyncClient does what Client does: the same requests, the same retries, the same episodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from flywheel.client import AsyncClient, Client, RejectedError, UnavailableError
from flywheel.errors import UsageError
from flywheel.records import Artifact
from flywheel.trace.context import DIGEST, EPISODE, STEP, about
from tests.client.conftest import Server
from tests.deploy.conftest import Links, World

FOUR = np.zeros(4)


@pytest.fixture
async def client(server: Server, world: World) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, world.token, patience_s=5.0) as client:
        yield client


async def test_a_program_plays_an_episode(artifact: Artifact, links: Links, client: AsyncClient) -> None:
    async with client.episode("mine") as episode:
        for t in range(20):
            action = await episode.act(np.full(4, 0.01 * t))
            assert isinstance(action, int)
            assert about() == {EPISODE: "mine", STEP: t, DIGEST: artifact.digest}
            episode.reward(1.0)
        await episode.end(FOUR, truncated=True)
    assert about() == {}
    assert links.rows() == {("mine", t) for t in range(20)}
    assert links.ends[0].ends == ("truncated",)
    assert (client.counters.requests, client.counters.attempts, client.counters.errors) == (21, 21, 0)


async def test_it_gets_the_actions_that_a_client_gets(
    artifact: Artifact, server: Server, world: World, client: AsyncClient
) -> None:
    seen = np.random.default_rng(0).normal(0, 0.1, (30, 4))
    batch, actions = client.batch(), []
    ids = batch.begin(1, ["same"])
    for t in range(30):
        actions += (await batch.act(ids, seen[t : t + 1], [1.0])).tolist()
    with Client(server.url, world.token) as other:
        again = other.batch()
        again.begin(1, ids)
        assert [again.act(ids, seen[t : t + 1], [1.0])[0] for t in range(30)] == actions
        assert again.digests(ids) == batch.digests(ids) == [artifact.digest]


async def test_many_batches_run_at_once(artifact: Artifact, links: Links, client: AsyncClient) -> None:
    async def play() -> tuple[str, ...]:
        batch = client.batch()
        ids = batch.begin(5)
        for t in range(4):
            await batch.act(ids, np.zeros((5, 4)), np.ones(5) if t else None)
        await batch.end(ids, np.zeros((5, 4)), np.ones(5), [True] * 5, [False] * 5)
        return batch.open

    assert await asyncio.gather(*(play() for _ in range(8))) == [()] * 8
    assert len(links.rows()) == 8 * 5 * 4


async def test_lost_steps_are_sent_again_until_the_end_is_durable(
    artifact: Artifact, links: Links, client: AsyncClient
) -> None:
    batch = client.batch()
    ids = batch.begin(3)
    for t in range(7):
        await batch.act(ids, np.full((3, 4), 0.01 * t), np.full(3, float(t)) if t else None)
    links.lost = {(ids[0], 0), (ids[0], 5), (ids[2], 6)}
    await batch.end(ids, np.zeros((3, 4)), np.ones(3), [True] * 3, [False] * 3)
    assert batch.open == ()
    again = links.steps[-1]
    assert set(zip(again.episodes, again.t.tolist(), strict=True)) == {(ids[0], 0), (ids[0], 5), (ids[2], 6)}


async def test_what_fails_is_tried_again_while_others_go_on(
    artifact: Artifact, links: Links, client: AsyncClient
) -> None:
    async with client.episode() as episode:
        await episode.act(FOUR)
        links.away = True
        ending = asyncio.create_task(episode.end(FOUR, terminated=True))
        while not client.counters.not_2xx:
            assert len(await client.act([{"episode": "other", "t": 0, "observation": [0.0] * 4}])) == 1
        links.away = False
        await ending
    assert client.counters.errors == 0


async def test_an_answer_that_was_lost_is_asked_for_again(
    artifact: Artifact, links: Links, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, calls = client._http.request, []

    async def loses_every_other(*args: Any, **kwargs: Any) -> httpx.Response:
        response = await request(*args, **kwargs)
        calls.append(response)
        if len(calls) % 2:
            raise httpx.ReadError("connection lost")
        return response

    monkeypatch.setattr(client._http, "request", loses_every_other)
    async with client.episode() as episode:
        for _ in range(5):
            await episode.act(FOUR)
        await episode.end(FOUR, terminated=True)
    for first, second in zip(calls[0:10:2], calls[1:10:2], strict=True):
        assert first.json() == second.json(), "the retry got the answer that was lost"
    counters = client.counters
    assert (counters.requests, counters.errors, counters.not_answered, counters.attempts) == (6, 0, 6, 12)


async def test_refusals_and_the_end_of_patience_are_raised(server: Server, world: World) -> None:
    async with AsyncClient(server.url, "wrong") as client:
        with pytest.raises(RejectedError, match="token"):
            await client.policy()
        assert client.counters.attempts == 1
    async with AsyncClient("http://127.0.0.1:9", world.token, patience_s=0.1) as client:
        with pytest.raises(UnavailableError, match="Connect"):
            await client.policy()
        assert client.counters.not_answered == client.counters.attempts > 1


async def test_an_episode_without_an_end_is_a_mistake(artifact: Artifact, client: AsyncClient) -> None:
    with pytest.raises(UsageError, match="without an end"):
        async with client.episode() as episode:
            await episode.act(FOUR)
    with pytest.raises(ZeroDivisionError):
        async with client.episode() as episode:
            await episode.act(FOUR)
            raise ZeroDivisionError


async def test_late_rewards_are_told(artifact: Artifact, server: Server, client: AsyncClient) -> None:
    async with client.episode("mine") as episode:
        await episode.act(FOUR)
        await episode.end(FOUR, terminated=True)
    assert await client.rewards([{"episode": "mine", "t": 0, "reward": 2.5}]) == 1
    assert server.network.asked[-1] == "/v1/rewards"
