"""Gate, registry, Serve, observer and store together, with hand-made policies: what is refused never serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from flywheel import growth
from flywheel.client import Client, Episode
from flywheel.config import DeployConfig, GateConfig, ObserveConfig, StoreConfig, TraceConfig
from flywheel.deploy.environment import claim_port
from flywheel.deploy.keys import CLIENT, OPERATE, token_file
from flywheel.deploy.on_ray import namespace
from flywheel.draws import draws
from flywheel.errors import Refused
from flywheel.gate.on_ray import GateActor
from flywheel.observe.on_ray import ObserverActor
from flywheel.policy import Bundle, bundle, load
from flywheel.records import Artifact, Outcome, Verdict
from flywheel.store.on_ray import StoreActor
from flywheel.tapes import Scenario, short
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import BAD, GOOD, SHORT_POLE, write_linear_artifact
from flywheel.trace.context import DIGEST, STEP, TURN, bar_of, is_sampled, trace_of
from flywheel.trace.on_ray import TRACE, TraceActor
from flywheel.trace.spans import Tracer
from flywheel.trace.spanstore import open_readonly
from tests.test_readme import block

# Ray Serve's own models are written for an older pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")
NAMESPACE = namespace("test")
CONFIG = DeployConfig(port=0)
CANARY = DeployConfig(shadow_decisions=40, ramp=(0.5,), ramp_first=5, settle_s=0.0, poll_s=0.2, control_share=0.0)
STORE = "store-of-test-rooms"
TRACING = TraceConfig(sample_share=0.5)


@dataclass
class Rooms:
    """Every room that a policy meets after training."""

    ray: Any
    run_dir: Path
    gate: Any
    registry: Any
    store: Any
    observer: Any
    deployment: Any
    token: str

    def ask(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """Call an actor and wait."""
        return self.ray.get(method.remote(*arguments, **named), timeout=60)

    def submit(self, gains: tuple[float, ...]) -> tuple[Artifact, Outcome]:
        """Register a policy and let the gate judge it against the one in service."""
        artifact, verdict = self.judged(gains)
        return artifact, verdict.outcome

    def judged(self, gains: tuple[float, ...], suite: tuple[Scenario, ...] = ()) -> tuple[Artifact, Verdict]:
        """As submit; return the whole verdict."""
        artifact = write_linear_artifact(self.run_dir / "policies", cartpole, gains)
        self.ask(self.registry.add, artifact)
        champion = self.ask(self.registry.champion)
        baseline = self.ask(self.registry.bundle, champion) if champion else None
        judged = self.ask(self.gate.judge, bundle(artifact), baseline, None, 7, suite)
        verdict: Verdict = self.ask(self.registry.record, judged)
        return artifact, verdict

    def promote(self, artifact: Artifact) -> None:
        """Put a policy into service, watched by the observer, on every replica."""
        release = self.ask(self.registry.promote, artifact.digest)
        self.ask(self.observer.release, release, 0.05)
        assert {status["digest"] for status in self.deployment.reload()} == {artifact.digest}

    def master(self, num_episodes: int) -> set[str]:
        """Play episodes that no policy fails and return the digests that answered."""
        with Client(self.deployment.url, self.token) as client:
            batch = client.batch()
            ids = batch.begin(num_episodes)
            observations, rewards, fine = (
                np.zeros((num_episodes, 4)),
                np.ones(num_episodes),
                np.ones(num_episodes, bool),
            )
            batch.act(ids, observations, rewards)
            seen = set(batch.digests(ids))
            batch.end(ids, observations, rewards, ~fine, fine)
        return seen

    def play(self, num_episodes: int, num_steps: int = 20) -> set[str]:
        """Play short episodes over HTTP and return the digests that answered."""
        seen: set[str] = set()
        with Client(self.deployment.url, self.token) as client:
            batch = client.batch()
            ids = batch.begin(num_episodes)
            observations = np.zeros((num_episodes, 4))
            for _ in range(num_steps):
                batch.act(ids, observations, np.ones(num_episodes))
                seen.update(batch.digests(ids))
            over = np.ones(num_episodes, bool)
            batch.end(ids, observations, np.ones(num_episodes), over, ~over)
        return seen


@pytest.fixture(scope="module")
def rooms(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    ray = ray_cluster
    from flywheel.deploy import on_ray, on_serve

    run_dir = tmp_path_factory.mktemp("run")
    named = {"namespace": NAMESPACE, "num_cpus": 0}
    gate = ray.remote(GateActor).options(num_cpus=0).remote(cartpole, GateConfig())
    registry = ray.remote(on_ray.RegistryActor).options(name=on_ray.REGISTRY, **named).remote(
        str(run_dir), task_digest(cartpole), "test", CANARY, 0.05
    )  # fmt: skip
    trace = ray.remote(TraceActor).options(name=TRACE, **named).remote(str(run_dir), TRACING)
    store = ray.remote(StoreActor).options(name=STORE, **named).remote(str(run_dir), StoreConfig())
    ray.get(store.count.remote(), timeout=60)
    observer = ray.remote(ObserverActor).options(name=on_ray.OBSERVER, **named).remote(
        cartpole, ObserveConfig(), STORE, "test", NAMESPACE, TRACING
    )  # fmt: skip
    ray.get(registry.run_dir.remote(), timeout=60)
    deployment = on_serve.start_serve(CONFIG, claim_port(CONFIG), "test", tracing=TRACING)
    yield Rooms(ray, run_dir, gate, registry, store, observer, deployment, token_file(run_dir, CLIENT).read_text())
    on_serve.end_app("test")
    for actor in (observer, store, trace, registry, gate):
        ray.kill(actor)


def test_a_refused_candidate_never_serves_and_the_old_policy_goes_on(rooms: Rooms) -> None:
    good, outcome = rooms.submit(GOOD)
    assert outcome == "pass"
    rooms.promote(good)
    assert rooms.play(8) == {good.digest}

    bad, outcome = rooms.submit(BAD)
    assert outcome == "fail"
    with pytest.raises(Refused, match=bad.digest[:12]):
        rooms.ask(rooms.registry.promote, bad.digest)
    rooms.deployment.reload()
    assert rooms.play(8) == {good.digest}
    assert rooms.ask(rooms.registry.champion) == good.digest
    assert rooms.ask(rooms.registry.verdict, bad.digest).outcome == "fail"
    assert rooms.ask(rooms.store.count, good.digest, "production") == 16


def test_every_stored_action_can_be_computed_again(rooms: Rooms) -> None:
    rooms.play(4)
    for episode in rooms.ask(rooms.store.recent, 4):
        artifact = rooms.ask(rooms.registry.artifact, episode.digests[0])
        uniform = draws([episode.draw_key] * episode.num_steps, range(episode.num_steps), artifact.spec.num_draws)
        actions, logps = load(artifact).act(episode.observations[:-1], uniform)
        assert np.array_equal(actions, episode.raw_actions)
        assert np.array_equal(logps, episode.logps)


def acted_alone(rooms: Rooms, http: httpx.Client, num_episodes: int, num_steps: int = 6) -> list[dict[str, Any]]:
    """Return whole episodes of a client that acts by itself, by nothing but what the API tells it."""
    told = msgspec.msgpack.decode(http.get("/v1/policies/@champion").content)
    artifact = rooms.ask(rooms.registry.artifact, told["artifact"]["digest"])
    policy, episodes = load(Bundle(artifact, told["files"])), []
    answer = http.post("/v1/leases", content=msgspec.msgpack.encode({"num": num_episodes}))
    for lease in msgspec.msgpack.decode(answer.content)["leases"]:
        seen = np.random.default_rng(1).normal(0.0, 0.05, (num_steps + 1, 4)).astype(np.float32)
        uniform = draws([lease.pop("draw_key")] * num_steps, range(num_steps), artifact.spec.num_draws)
        actions, _ = policy.act(seen[:-1], uniform)
        rewards: list[float | None] = [*[1.0] * (num_steps - 1), None]
        whole = {"observations": seen.tolist(), "raw_actions": actions.tolist(), "rewards": rewards}
        when = {"started_at": lease["given_at"], "ended_at": lease["given_at"] + 0.1}
        episodes.append(lease | when | whole | {"terminated": True, "truncated": False})
    return episodes


def test_whole_episodes_and_late_rewards_are_stored_as_if_the_server_had_answered(rooms: Rooms) -> None:
    packed = "application/msgpack"
    shown = {"Authorization": f"Bearer {rooms.token}", "Content-Type": packed, "Accept": packed}
    with httpx.Client(base_url=rooms.deployment.url, headers=shown, timeout=30) as http:

        def post(path: str, body: Any) -> tuple[int, Any]:
            answer = http.post(path, content=msgspec.msgpack.encode(body))
            return answer.status_code, msgspec.msgpack.decode(answer.content)

        episodes = acted_alone(rooms, http, 8)
        ids = [episode["episode"] for episode in episodes]
        before = rooms.ask(rooms.observer.status)["digests"][rooms.ask(rooms.registry.champion)]["episodes"]
        for _ in range(2):  # the same again is acknowledged
            assert post("/v1/episodes", {"episodes": episodes}) == (200, {"acknowledged": ids, "refused": {}})
        other = episodes[0] | {"rewards": [0.0] * 6}
        assert post("/v1/episodes", {"episodes": [other]})[1]["refused"].keys() == {ids[0]}
        status = rooms.ask(rooms.observer.status)
        assert status["digests"][rooms.ask(rooms.registry.champion)]["episodes"] == before + 8

        late = [{"episode": id_, "t": 5, "reward": 0.5} for id_ in ids]
        for _ in range(2):
            assert post("/v1/rewards", {"rewards": late}) == (200, {"accepted": 8})
        status_code, answer = post("/v1/rewards", {"rewards": [late[0] | {"reward": 1.0}]})
        assert (status_code, answer["field"]) == (409, "rewards[0].reward")
        assert post("/v1/rewards", {"rewards": [late[0] | {"episode": "nobody's"}]})[0] == 404
    stored = rooms.ask(rooms.store.read, ids)
    assert [episode.total for episode in stored] == [5.5] * 8
    assert [episode.raw_actions.tolist() for episode in stored] == [e["raw_actions"] for e in episodes]
    counted = rooms.ask(rooms.observer.status)["digests"][stored[0].digests[0]]
    shown_total = rooms.ask(rooms.store.summary)[stored[0].digests[0]]["total"]
    assert counted["total"] == pytest.approx(shown_total), "what is counted is what is stored"


def test_a_reward_may_come_before_and_after_the_end_of_its_episode(rooms: Rooms) -> None:
    with Client(rooms.deployment.url, rooms.token) as client, client.episode() as episode:
        for _ in range(3):
            episode.act([0.0] * 4)  # nobody knows yet what for
        shown = {"Authorization": f"Bearer {rooms.token}"}

        def late(t: int, reward: float) -> int:
            body = {"rewards": [{"episode": episode.id, "t": t, "reward": reward}]}
            return httpx.post(f"{rooms.deployment.url}/v1/rewards", json=body, headers=shown, timeout=30).status_code

        assert (late(0, 0.25), late(0, 0.25), late(0, 9.0), late(3, 1.0)) == (200, 200, 409, 404)
        episode.end([0.0] * 4, terminated=True)
        assert (late(2, 0.5), late(2, 0.75)) == (200, 409)
    (stored,) = rooms.ask(rooms.store.read, [episode.id])
    np.testing.assert_array_equal(stored.rewards, [0.25, np.nan, 0.5])


def test_an_episode_is_traced_from_the_program_to_the_run_directory(rooms: Rooms) -> None:
    """One episode that is sampled, one that isn't but fails, and one that isn't and is well: that of the batch."""
    lucky, other, third = (
        next(f"{name}{i}" for i in range(99) if is_sampled(trace_of(f"{name}{i}"), bar_of(0.5)) is luck)
        for name, luck in (("lucky", True), ("other", False), ("third", False))
    )
    with Client(rooms.deployment.url, rooms.token) as client:
        with client.episode(other) as episode:
            play_two_steps(episode)
        with (
            Tracer.to_url(rooms.deployment.url, rooms.token) as tracer,
            tracer.span("rl-deployment", **{TURN: 1}) as outer,
            client.episode(lucky) as episode,
        ):
            outer.log_metric("prediction_value", 0.3)
            with tracer.span("play") as inner:
                play_two_steps(episode)
        batch = client.batch()
        batch.begin(1, [third])
        for _ in range(500):
            batch.act([third], np.zeros((1, 4)), [1.0])
        batch.end([third], np.zeros((1, 4)), [1.0], [False], [True])
    assert tracer.counts.sent == tracer.counts.made == 2
    rooms.deployment.flush(5.0)
    rooms.ask(rooms.observer.flush, 5.0)
    with open_readonly(rooms.run_dir) as spans:
        found = spans.of_episode(lucky)
        assert [(span.name, span.source) for span in found] == [
            ("episode", "observer"), ("play", "client"), ("act", "replica"), ("act", "replica"), ("end", "replica"),
            ("store", "observer"), ("rl-deployment", "client"),
        ]  # fmt: skip
        assert [span.attributes.get(STEP) for span in found[2:5]] == [0, 1, 2]
        assert {span.parent for span in found[2:5]} == {inner.id} and found[0].id == found[1].parent
        assert {span.attributes[DIGEST] for span in found[:5] if DIGEST in span.attributes} == {
            rooms.ask(rooms.registry.champion)
        }
        first, second, last, stored = found[2:6]
        assert first.started_at <= found[0].started_at <= first.ended_at, "an episode begins with its first decision"
        assert second.ended_at <= last.started_at <= stored.started_at <= stored.ended_at <= last.ended_at
        assert found[0].ended_at == stored.ended_at
        assert found[-1].metrics[0][:2] == ("prediction_value", 0.3) and spans.of_turn(1)[0].id == outer.id
        assert spans.why(trace_of(lucky)) == "failed", "CartPole fell"

        from_record = spans.of_episode(other)
        assert [span.name for span in from_record] == ["episode", "act", "act", "store"]
        assert {span.source for span in from_record} == {"observer"}
        assert spans.of_episode(third) == []


def play_two_steps(episode: Episode) -> None:
    """Play a short episode that counts as failed."""
    for _ in range(2):
        episode.act([0.0] * 4)
        episode.reward(1.0)
    episode.end([0.0] * 4, terminated=True)


def test_what_fails_over_http_is_in_the_next_verdict_with_nobodys_help(rooms: Rooms) -> None:
    """The pole leans more than the short-pole gains can hold where this episode begins."""
    leaning = (0.0, 0.0, 0.2, 0.5)
    with Client(rooms.deployment.url, rooms.token) as client, client.episode() as episode:
        episode.act(leaning)
        episode.reward(1.0)
        episode.end((0.0, 0.0, 0.22, 0.6), terminated=True)
    given: tuple[Any, ...] = (rooms.ask, rooms.registry, rooms.gate.grow, {}, time.time())
    look = growth.look(cartpole, GateConfig(), rooms.run_dir, *given)
    (scenario,) = look.made
    assert scenario.fork == (episode.id, 0) and scenario.state == pytest.approx(leaning)
    assert rooms.ask(rooms.registry.scenarios) == (scenario,)
    _, verdict = rooms.judged(SHORT_POLE, rooms.ask(rooms.registry.scenarios))
    assert verdict.outcome == "fail"
    (check,) = [check for check in verdict.checks if check.name == "scenarios"]
    assert check.note == f"not mastered: {scenario.name} (episode {short(episode.id)})"
    assert growth.look(cartpole, GateConfig(), rooms.run_dir, *given) == growth.Look(), "once is enough"
    rooms.ask(rooms.registry.drop_scenario, scenario.name)


def test_the_clients_example_in_the_readme_runs(rooms: Rooms) -> None:
    text = block("as client, client.episode()").replace("http://127.0.0.1:8000", rooms.deployment.url)
    before = rooms.ask(rooms.store.count)
    exec(
        compile(text, "README.md", "exec"),
        {"token": rooms.token, "observation": [0.0] * 4, "last_observation": [0.0] * 4},
    )
    assert rooms.ask(rooms.store.count) == before + 1


@pytest.mark.parametrize(
    "observation",
    [[0.0] * 3, [[0.0] * 4], "0000", [0.0, 0.0, 0.0, True], [0.0, 0.0, None, 0.0], "NaN", "Infinity", "1e999"],
)
def test_a_wrong_observation_is_422_by_name_and_nothing_is_stored(rooms: Rooms, observation: object) -> None:
    before = rooms.ask(rooms.observer.status)
    text = {"NaN": "[0, 0, 0, NaN]", "Infinity": "[0, Infinity, 0, 0]", "1e999": "[1e999, 0, 0, 0]"}.get(
        str(observation), httpx.Request("POST", "http://x", json=observation).content.decode()
    )
    answer = httpx.post(
        f"{rooms.deployment.url}/v1/act",
        content=f'{{"steps": [{{"episode": "poison", "t": 0, "observation": {text}}}]}}',
        headers={"Authorization": f"Bearer {rooms.token}"},
    )
    assert answer.status_code == 422, answer.text
    assert "observation" in answer.text
    after = rooms.ask(rooms.observer.status)
    assert (after["counts"], after["open"]) == (before["counts"], before["open"])


def test_a_challenger_goes_from_the_shadow_to_full_by_what_production_shows(rooms: Rooms) -> None:
    fresh, outcome = rooms.submit(tuple(1.1 * gain for gain in GOOD))
    assert outcome == "pass"
    rooms.promote(fresh)  # no alarm is open on it, as there is on the one before: a challenger would begin at half,
    # and one that came later would end the canary
    champion = fresh.digest
    artifact, outcome = rooms.submit(tuple(1.2 * gain for gain in GOOD))
    assert outcome == "pass"
    begun = rooms.ask(rooms.registry.challenge, artifact.digest)
    assert (begun.state, begun.champion) == ("shadow", champion)
    assert {status["challenger"] for status in rooms.deployment.reload()} == {artifact.digest}
    assert rooms.master(4) == {champion}, "in the shadow it is not heard"
    deadline, seen = time.monotonic() + 60, set()
    while (canary := rooms.ask(rooms.registry.canary)).state in ("shadow", "canary"):
        assert time.monotonic() < deadline, canary
        seen.add(canary.state)
        rooms.master(32)
        time.sleep(0.1)
    assert canary.state == "promoted" and canary.num_shadowed >= 40 and seen == {"shadow", "canary"}
    assert canary.test.num_failed == (0, 0) and min(canary.test.num) >= CANARY.ramp_first
    assert {status["digest"] for status in rooms.deployment.reload()} == {artifact.digest}
    assert rooms.play(4) == {artifact.digest}
    released = rooms.ask(rooms.registry.releases)[-1]
    assert rooms.ask(rooms.observer.status)["release"]["released_at"] == released.released_at, "it is watched already"


def test_a_rollback_over_http_is_in_force_everywhere_and_told_to_everybody(rooms: Rooms) -> None:
    champion, previous = (rooms.ask(ask) for ask in (rooms.registry.champion, rooms.registry.previous))
    shown = {"Authorization": f"Bearer {token_file(rooms.run_dir, OPERATE).read_text()}"}
    with httpx.Client(base_url=rooms.deployment.url, headers=shown, timeout=30) as http:
        body = {"reason": "it falls over", "digest": champion}
        for _ in range(2):
            answer = http.post("/v1/rollback", json=body)
            assert answer.json() == {"rolled_back": champion, "digest": previous}, answer.text
        assert http.get(f"/v1/policies/{champion}").status_code == 410
        released = rooms.ask(rooms.registry.releases)[-1]
        assert http.get("/v1/served", params={"at": released.released_at}).json()["champion"] == previous
        assert http.get("/v1/served", params={"at": released.released_at - 1e-3}).json()["champion"] == champion
    assert {status["digest"] for status in rooms.deployment.reload()} == {rooms.ask(rooms.registry.champion)}
    deadline = time.monotonic() + 60
    while rooms.ask(rooms.observer.status)["release"]["digest"] != rooms.ask(rooms.registry.champion):
        assert time.monotonic() < deadline, "whoever watches is told"
        time.sleep(0.1)
