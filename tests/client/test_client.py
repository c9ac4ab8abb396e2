"""The SDK against a real door: whole episodes, retries, and what is sent again."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import httpx
import numpy as np
import pytest

from flywheel.client import Client, RejectedError, UnavailableError
from flywheel.errors import UsageError
from flywheel.records import Artifact
from flywheel.trace.context import DIGEST, EPISODE, STEP, about, root_of, trace_of
from flywheel.trace.spans import Tracer
from flywheel.trace.spanstore import open_readonly
from tests.client.conftest import Server
from tests.deploy.conftest import Links, World

FOUR = np.zeros(4)
FAILS = httpx.Response(422, json={"error": "no", "field": ""})


def test_a_program_plays_an_episode(artifact: Artifact, links: Links, client: Client) -> None:
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=1)
    with client.episode() as episode:
        for _ in range(20):
            action = episode.act(observation)
            assert isinstance(action, int)
            observation, reward, *_ = env.step(action)
            episode.reward(float(reward))
        episode.end(observation, truncated=True)
    assert links.rows() == {(episode.id, t) for t in range(20)}
    assert links.ends[0].ends == ("truncated",)
    rewards = {int(t): r for s in links.steps for t, r in zip(s.t, s.rewards, strict=True)}
    assert np.isnan(rewards[0])
    assert [rewards[t] for t in range(1, 20)] == [1.0] * 19
    assert (client.counters.requests, client.counters.attempts, client.counters.errors) == (21, 21, 0)
    env.close()  # type: ignore[no-untyped-call]


def test_an_unknown_reward_is_null(artifact: Artifact, links: Links, client: Client) -> None:
    with client.episode("mine") as episode:
        episode.act(FOUR)
        episode.act(FOUR)
        episode.end(FOUR, terminated=True)
    assert episode.id == "mine"
    assert all(np.isnan(steps.rewards).all() for steps in [*links.steps, *links.ends])


def test_a_batch_takes_one_request_a_step(artifact: Artifact, links: Links, client: Client) -> None:
    batch = client.batch()
    ids = batch.begin(40)
    for t in range(10):
        actions = batch.act(ids, np.zeros((40, 4)), np.ones(40) if t else None)
        assert actions.shape == (40,)
        assert set(actions.tolist()) <= {0, 1}
    assert batch.digests(ids) == [artifact.digest] * 40
    assert client.counters.requests == 10
    batch.end(ids[:15], np.zeros((15, 4)), np.ones(15), np.ones(15, bool), np.zeros(15, bool))
    assert batch.open == tuple(ids[15:])
    assert client.counters.requests == 11
    assert len(links.rows()) == 400


def test_more_rows_than_a_request_takes_go_in_several(artifact: Artifact, client: Client) -> None:
    batch = client.batch()
    ids = batch.begin(600)
    assert batch.act(ids, np.zeros((600, 4))).shape == (600,)
    assert client.counters.requests == 2


def test_lost_steps_are_sent_again_until_the_end_is_durable(artifact: Artifact, links: Links, client: Client) -> None:
    batch = client.batch()
    ids = batch.begin(3)
    for t in range(7):
        batch.act(ids, np.full((3, 4), 0.01 * t), np.full(3, float(t)) if t else None)
    links.lost = {(ids[0], 0), (ids[0], 5), (ids[2], 6)}
    batch.end(ids, np.zeros((3, 4)), np.ones(3), [True] * 3, [False] * 3)
    assert batch.open == ()
    again = links.steps[-1]
    sent = dict(zip(zip(again.episodes, again.t.tolist(), strict=True), again.rewards.tolist(), strict=True))
    assert set(sent) == {(ids[0], 0), (ids[0], 5), (ids[2], 6)}
    assert sent[ids[0], 5] == 5.0
    assert np.isnan(sent[ids[0], 0])


def test_an_end_waits_for_an_observer_that_comes_back(artifact: Artifact, links: Links, client: Client) -> None:
    with client.episode() as episode:
        episode.act(FOUR)
        links.away = True
        back = threading.Timer(0.2, lambda: setattr(links, "away", False))
        back.start()
        episode.end(FOUR, terminated=True)
        back.join()
    assert client.counters.not_2xx > 0
    assert client.counters.errors == 0
    assert client.counters.requests == 2


def test_a_policy_that_comes_later_is_waited_for(world: World, client: Client) -> None:
    late = threading.Timer(0.2, world.served)
    late.start()
    with client.episode() as episode:
        episode.act(FOUR)
        late.join()
        episode.end(FOUR, terminated=True)
    assert client.counters.errors == 0
    assert client.counters.not_2xx > 0


def test_patience_ends(world: World, server: Server) -> None:
    with Client(server.url, world.token, patience_s=0.1) as client:
        with pytest.raises(UnavailableError, match="No policy is in service"):
            client.act([{"episode": "e", "t": 0, "observation": [0.0] * 4}])
        assert client.counters.errors == 1
    with Client("http://127.0.0.1:9", "token", patience_s=0.1) as client:
        with pytest.raises(UnavailableError, match="Connect"):
            client.policy()
        assert client.counters.not_answered == client.counters.attempts > 1


def test_an_answer_that_was_lost_is_asked_for_again(
    artifact: Artifact, links: Links, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, calls = client._http.request, []

    def loses_every_other(*args: object, **kwargs: object) -> httpx.Response:
        response = request(*args, **kwargs)  # type: ignore[arg-type]
        calls.append(response)
        if len(calls) % 2:
            raise httpx.ReadError("connection lost")
        return response

    monkeypatch.setattr(client._http, "request", loses_every_other)
    with client.episode() as episode:
        for _ in range(5):
            episode.act(FOUR)
        episode.end(FOUR, terminated=True)
    for first, second in zip(calls[0:10:2], calls[1:10:2], strict=True):
        assert first.json() == second.json(), "the retry got the answer that was lost"
    assert sum(len(steps.t) for steps in links.steps) == 5, "each step was logged once"
    counters = client.counters
    assert (counters.requests, counters.errors, counters.not_answered, counters.attempts) == (6, 0, 6, 12)


def test_a_client_over_its_quota_waits_as_long_as_it_is_asked_to(
    artifact: Artifact, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, waited = client._http.request, []
    over = httpx.Response(429, headers={"retry-after": "3"}, json={"error": "Over its quota.", "field": ""})
    strange = httpx.Response(503, headers={"retry-after": "soon"}, json={"error": "Away.", "field": ""})
    answers = [over, strange]
    monkeypatch.setattr(client._http, "request", lambda *a, **b: answers.pop(0) if answers else request(*a, **b))
    monkeypatch.setattr("flywheel.client.http.time.sleep", waited.append)
    assert client.policy()["digest"] == artifact.digest
    assert waited == [3.0, 0.1]
    answers = [httpx.Response(429, headers={"retry-after": "6"}, json={"error": "Over its quota.", "field": ""})]
    with pytest.raises(UnavailableError, match="Over its quota"):
        client.policy()
    assert len(waited) == 2, "its patience is 5 s"


def test_the_wrong_token_is_not_tried_again(server: Server) -> None:
    with Client(server.url, "wrong") as client:
        with pytest.raises(RejectedError, match="token"):
            client.policy()
        assert (client.counters.attempts, client.counters.errors) == (1, 1)


def test_mistakes_are_named_before_anything_is_sent(artifact: Artifact, client: Client) -> None:
    batch = client.batch()
    ids = batch.begin(2)
    with pytest.raises(UsageError, match="is nan"):
        batch.act(ids, np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]))
    with pytest.raises(UsageError, match="infinite"):
        batch.act(ids, np.zeros((2, 4)), [0.0, float("inf")])
    with pytest.raises(UsageError, match="as many"):
        batch.act(ids, np.zeros((3, 4)))
    with pytest.raises(UsageError, match="no open episode"):
        batch.act(["other"], np.zeros((1, 4)))
    with pytest.raises(UsageError, match="no step yet"):
        batch.end(ids, np.zeros((2, 4)), None, [True] * 2, [False] * 2)
    with pytest.raises(UsageError, match="open already"):
        batch.begin(1, [ids[0]])
    assert client.counters.requests == 0
    with pytest.raises(UsageError, match="without an end"), client.episode() as episode:
        episode.act(FOUR)
    with client.episode() as episode:
        episode.act(FOUR)
        with pytest.raises(UsageError, match="either"):
            episode.end(FOUR)
        episode.end(FOUR, terminated=True)


def test_an_exception_in_the_program_passes_through(artifact: Artifact, client: Client) -> None:
    with pytest.raises(ZeroDivisionError), client.episode() as episode:
        episode.act(FOUR)
        raise ZeroDivisionError


def test_each_episodes_requests_carry_its_trace(
    artifact: Artifact, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, seen = client._http.request, []

    def noted(*args: object, **kwargs: object) -> httpx.Response:
        response = request(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(response.request.headers.get("traceparent"))
        return response

    monkeypatch.setattr(client._http, "request", noted)
    for id in ("one", "two"):
        with client.episode(id) as episode:
            episode.act(FOUR)
            assert about() == {EPISODE: id, STEP: 0, DIGEST: artifact.digest}
            episode.end(FOUR, terminated=True)
    batch = client.batch()
    batch.act(batch.begin(2), np.zeros((2, 4)))
    one, two = (f"00-{trace_of(id)}-{root_of(trace_of(id))}-00" for id in ("one", "two"))
    assert seen == [one, one, two, two, None]
    assert about() == {}


def test_a_traced_program_finds_its_episodes_and_asks_for_their_spans(
    artifact: Artifact, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(client._http, "request", lambda *_, headers, **__: sent.append(headers["traceparent"]) or FAILS)
    with Tracer.to_run_dir(tmp_path) as tracer, tracer.span("rl-deployment") as span:
        client.batch().begin(1, ["of a batch"])
        with pytest.raises(RejectedError), client.episode("e") as episode, tracer.span("prepare") as inner:
            episode.act(FOUR)
    assert sent == [f"00-{trace_of('e')}-{inner.id}-01"]
    with open_readonly(tmp_path) as spans:
        assert [one.name for one in spans.of_episode("e")] == ["prepare", "rl-deployment"]
        (outer,) = spans.of_episode("of a batch")
    assert outer.id == span.id


def test_a_production_program_loads_no_ray_torch_or_onnxruntime() -> None:
    code = "import flywheel.client, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "onnxruntime", "scipy", "gymnasium", "msgspec", "opentelemetry.sdk"} & set(loaded)
