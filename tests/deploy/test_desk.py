"""Over the door, without Ray: late rewards, leases and what comes back under them, policies, who served, rollback."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flywheel.config import DeployConfig, canonical
from flywheel.deploy.canary import Ramp
from flywheel.deploy.keys import OPERATE, token_file
from flywheel.deploy.service import Service
from flywheel.draws import draws
from flywheel.policy import MANIFEST, Bundle, load
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.test_door import FIRST, act, opened

DOOR = DeployConfig(flush_s=0.001, poll_s=0.01)


def operating(world: World) -> dict[str, str]:
    return {"authorization": f"Bearer {token_file(world.run_dir, OPERATE).read_text()}"}


async def sent(http: httpx.AsyncClient, path: str, headers: Any = None, **body: Any) -> Any:
    """Return the answer to a request that is carried out."""
    response = await http.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def rejected(http: httpx.AsyncClient, path: str, headers: Any = None, **body: Any) -> tuple[int, str]:
    """Return the status and the field of a request that isn't."""
    response = await http.post(path, json=body, headers=headers)
    answer = response.json()
    assert answer["error"].startswith(answer["field"])
    return response.status_code, answer["field"]


# Late rewards


async def test_a_late_reward_is_durable_when_it_is_answered_and_the_same_again_is_fine(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        await act(http, FIRST)
        late = {"episode": "e", "t": 0, "reward": 0.1}
        assert await sent(http, "/v1/rewards", rewards=[late]) == {"accepted": 1}, "what was logged went before it"
        rows = links.store._connection.execute("SELECT * FROM rewards").fetchall()
        assert rows == [("e", 0, 0.1, NOW)]
        assert await sent(http, "/v1/rewards", rewards=[late, late]) == {"accepted": 2}
        assert await sent(http, "/v1/rewards", rewards=[]) == {"accepted": 0}


async def test_a_second_number_is_refused_and_set_aside_and_a_step_that_nobody_knows_is_named(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        await act(http, FIRST, FIRST | {"episode": "f"})
        await sent(http, "/v1/rewards", rewards=[{"episode": "e", "t": 0, "reward": 1.0}])
        other, fine = {"episode": "e", "t": 0, "reward": 2.0}, {"episode": "f", "t": 0, "reward": 3.0}
        assert await rejected(http, "/v1/rewards", rewards=[other, fine]) == (409, "rewards[0].reward")
        nobodys = {"episode": "nobody's", "t": 0, "reward": 1.0}
        assert await rejected(http, "/v1/rewards", rewards=[fine, nobodys]) == (404, "rewards[1].episode")
        assert await rejected(http, "/v1/rewards", rewards=[{**other, "t": 7}]) == (404, "rewards[0].episode")
    kept = links.store._connection.execute("SELECT episode, t, reward FROM rewards").fetchall()
    assert kept == [("e", 0, 1.0), ("f", 0, 3.0)], "what could be kept was"
    aside = links.store._connection.execute("SELECT episode, t, reward FROM rewards_aside").fetchall()
    assert aside == [("e", 0, 2.0)]


async def test_rewards_are_refused_while_the_observer_is_away_and_can_be_sent_again(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        await act(http, FIRST)
        links.away = True
        assert (await rejected(http, "/v1/rewards", rewards=[{"episode": "e", "t": 0, "reward": 1.0}]))[0] == 503
        links.away = False
        assert await sent(http, "/v1/rewards", rewards=[{"episode": "e", "t": 0, "reward": 1.0}]) == {"accepted": 1}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"rewards": [{"episode": "e", "t": 0, "reward": NaN}]}', "rewards[0].reward"),
        ('{"rewards": [{"episode": "e", "t": 0, "reward": null}]}', "rewards[0].reward"),
        ('{"rewards": [{"episode": "e", "t": 0, "reward": true}]}', "rewards[0].reward"),
        ('{"rewards": [{"episode": "e", "t": -1, "reward": 1}]}', "rewards[0].t"),
        ('{"rewards": [{"episode": "", "t": 0, "reward": 1}]}', "rewards[0].episode"),
        ('{"rewards": [{"episode": "e", "t": 0, "reward": 1, "x": 1}]}', "rewards[0]"),
    ],
)
async def test_a_wrong_reward_is_named_and_none_is_kept(world: World, service: Service, body: str, field: str) -> None:
    world.served()
    async with opened(service) as http:
        await act(http, FIRST)
        response = await http.post("/v1/rewards", content=body)
        assert (response.status_code, response.json()["field"]) == (422, field)
        many = [{"episode": "e", "t": 0, "reward": 1.0}] * 1025
        assert await rejected(http, "/v1/rewards", rewards=many) == (422, "rewards")
    assert links_of(service).store._connection.execute("SELECT count(*) FROM rewards").fetchone() == (0,)


def links_of(service: Service) -> Links:
    links = service._registry
    assert isinstance(links, Links)
    return links


# Clients that act by themselves


async def uploadable(http: httpx.AsyncClient, world: World, num: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """Return whole episodes of two steps, acted by a client that knows no more than what the API tells it."""
    episodes = []
    for lease in (await sent(http, "/v1/leases", num=num))["leases"]:
        told = (await http.get(f"/v1/policies/{lease['digest']}")).json()
        files = {name: base64.b64decode(data) for name, data in told["files"].items()}
        policy = load(Bundle(world.registry.artifact(lease["digest"]), files))
        observations = np.array([[0.01, 0.02, 0.03, 0.04], [0.02, 0.0, 0.1, 0.2], [0.0, 0.0, 0.3, 0.4]], np.float32)
        actions, _ = policy.act(observations[:-1], draws([lease["draw_key"]] * 2, [0, 1], policy.spec.num_draws))
        whole = {key: lease[key] for key in ("episode", "digest", "given_at", "seal")}
        whole |= {"started_at": NOW, "ended_at": NOW, "observations": observations.tolist()}
        whole |= {"raw_actions": actions.tolist(), "rewards": [1.0, None], "terminated": True, "truncated": False}
        episodes.append(whole | changes)
    return episodes


async def test_a_client_acts_by_itself_with_what_the_api_tells_and_its_episodes_are_durable_when_acknowledged(
    world: World, links: Links, service: Service
) -> None:
    artifact = world.served()
    async with opened(service) as http:
        episodes = await uploadable(http, world, 3)
        ids = [episode["episode"] for episode in episodes]
        assert len(set(ids)) == 3
        assert await sent(http, "/v1/episodes", episodes=episodes) == {"acknowledged": ids, "refused": {}}
        stored = links.store.read(ids)
        assert {digest for episode in stored for digest in episode.digests} == {artifact.digest}
        assert [episode.raw_actions.tolist() for episode in stored] == [e["raw_actions"] for e in episodes]
        assert stored[0].rewards[0] == 1.0 and np.isnan(stored[0].rewards[1]) and np.isfinite(stored[0].logps).all()
        assert await sent(http, "/v1/episodes", episodes=episodes) == {"acknowledged": ids, "refused": {}}
        assert links.store.count() == 3, "the same again changes nothing"
        late = {"episode": ids[0], "t": 1, "reward": 0.5}
        assert await sent(http, "/v1/rewards", rewards=[late]) == {"accepted": 1}
        assert links.store.read(ids)[0].rewards.tolist() == [1.0, 0.5]
        assert await sent(http, "/v1/episodes", episodes=episodes) == {"acknowledged": ids, "refused": {}}


async def test_a_challenger_in_the_shadow_acts_on_what_clients_did_by_themselves(
    world: World, links: Links, service: Service
) -> None:
    world.served(1.0)
    async with opened(service) as http:
        episodes = await uploadable(http, world, 3)
        new = world.judged(2.0)
        world.registry.challenge(new.digest, Ramp(), NOW)
        await service.reload()
        await sent(http, "/v1/episodes", episodes=episodes)
        await sent(http, "/v1/episodes", episodes=episodes)
        async with asyncio.timeout(5):
            while sum(tried.num_shadowed for tried in links.tried_) < 6:
                await asyncio.sleep(0.01)
    assert {tried.digest for tried in links.tried_} == {new.digest}
    assert sum(tried.num_shadowed for tried in links.tried_) == 6, "what came before counts once"
    assert sum(tried.num_same for tried in links.tried_) <= 6


async def test_so_many_decisions_of_clients_at_once_and_no_more_go_into_the_shadow(world: World, links: Links) -> None:
    world.served(1.0)
    service = Service(dataclasses.replace(DOOR, max_batch=3, flush_s=60.0), links, links, lambda: NOW)
    async with opened(service) as http:
        episodes = await uploadable(http, world, 3)
        world.registry.challenge(world.judged(2.0).digest, Ramp(), NOW)
        await service.reload()
        await sent(http, "/v1/episodes", episodes=episodes)
        assert [len(steps.t) for steps in service._shadowed] == [2, 1]


async def test_other_content_and_what_can_not_be_proven_are_refused_one_by_one(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        known, forged, wrong, fine = await uploadable(http, world, 4)
        await sent(http, "/v1/episodes", episodes=[known])
        forged["seal"], wrong["raw_actions"] = "0" * 64, [1 - action for action in wrong["raw_actions"]]
        other = known | {"rewards": [1.0, 2.0]}
        answer = await sent(http, "/v1/episodes", episodes=[other, forged, wrong, fine])
    assert answer["acknowledged"] == [fine["episode"]]
    why = answer["refused"]
    assert why.keys() == {other["episode"], forged["episode"], wrong["episode"]}
    assert "other content" in why[other["episode"]] and "under a lease" in why[forged["episode"]]
    assert why[wrong["episode"]].startswith("raw_actions[0]: ")
    assert links.store.count() == 2 and links.store.conflicts() == [known["episode"]]


async def test_episodes_of_a_former_policy_are_proven_by_it(world: World, links: Links, service: Service) -> None:
    world.served(1.0)
    async with opened(service) as http:
        former, condemned = await uploadable(http, world, 2)
    world.served(2.0, NOW + 1)
    fresh = Service(DOOR, links, links, lambda: NOW)
    async with opened(fresh) as http:
        assert (await sent(http, "/v1/episodes", episodes=[former]))["acknowledged"] == [former["episode"]]
        world.registry._condemn(former["digest"], "fell over", NOW)
        await fresh.reload()
        assert (await sent(http, "/v1/episodes", episodes=[condemned]))["acknowledged"] == [condemned["episode"]]


async def test_episodes_can_be_sent_again_when_the_observer_was_away(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        episodes = await uploadable(http, world)
        links.away = True
        assert (await rejected(http, "/v1/episodes", episodes=episodes))[0] == 503
        links.away = False
        assert len((await sent(http, "/v1/episodes", episodes=episodes))["acknowledged"]) == 1


async def test_what_a_lease_of_another_share_brings_counts_for_the_share_that_drew_it(
    world: World, links: Links
) -> None:
    world.served(1.0)
    canary = world.registry.challenge(world.judged(2.0).digest, Ramp(), NOW + 5, urgent=True)
    now = [NOW]
    service = Service(dataclasses.replace(DOOR, settle_s=2.0), links, links, lambda: now[0])
    async with opened(service) as http:
        episodes = []
        for given_at in (NOW, NOW + 6, NOW + 8):
            now[0] = given_at
            episodes += await uploadable(http, world, started_at=NOW + 20, ended_at=NOW + 20)
        now[0] = NOW + 20
        await sent(http, "/v1/episodes", episodes=episodes)
    started = [episode.started_at for episode in links.store.read([episode["episode"] for episode in episodes])]
    assert started == [NOW, NOW + 6, NOW + 20]
    assert [canary.share_at(at, 2.0) for at in started] == [None, None, canary.share]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rewards": [1.0]}, "episodes[0].rewards"),
        ({"observations": [[0.0] * 4]}, "episodes[0].observations"),
        ({"observations": [[0.0] * 4, [0.0] * 4, [0.0, "1", 0.0, 0.0]]}, "episodes[0].observations[2][1]"),
        ({"raw_actions": []}, "episodes[0].raw_actions"),
        ({"raw_actions": [0, 9]}, "episodes[0].raw_actions[1]"),
        ({"truncated": True}, "episodes[0].terminated"),
        ({"given_at": -1.0}, "episodes[0].given_at"),
        ({"seal": "x"}, "episodes[0].seal"),
        ({"digest": "x"}, "episodes[0].digest"),
        ({"more": 1}, "episodes[0]"),
    ],
)
async def test_a_badly_formed_episode_is_named_and_nothing_of_its_request_is_kept(
    world: World, links: Links, service: Service, changes: dict[str, Any], field: str
) -> None:
    world.served()
    async with opened(service) as http:
        bad, fine = await uploadable(http, world, 2)
        assert await rejected(http, "/v1/episodes", episodes=[bad | changes, fine]) == (422, field)
    assert links.store.count() == 0


async def test_what_runs_holds_its_place_before_what_is_over_is_proven(
    world: World, links: Links, service: Service
) -> None:
    world.served()
    async with opened(service) as http:
        over, runs, forged = await uploadable(http, world, 3)
        running = [
            {**{name: each[name] for name in ("episode", "digest", "given_at", "seal")}, "age_s": 0.0}
            for each in (over, runs, forged | {"seal": "0" * 64})
        ]
        answer = await sent(http, "/v1/episodes", episodes=[over], running=running)
        assert answer == {"acknowledged": [over["episode"]], "refused": {}}
        assert await sent(http, "/v1/episodes", episodes=[], running=running[1:2]) == {
            "acknowledged": [], "refused": {},
        }  # fmt: skip
        assert links.begun_ == [{over["episode"]: NOW, runs["episode"]: NOW}, {runs["episode"]: NOW}]
        many = await rejected(http, "/v1/episodes", episodes=[], running=running[1:2] * 1025)
        assert many == (422, "running")
        wrong = running[1] | {"age_s": -1.0}
        assert await rejected(http, "/v1/episodes", episodes=[], running=[wrong]) == (422, "running[0].age_s")
        links.away = True
        assert (await rejected(http, "/v1/episodes", episodes=[], running=running))[0] == 503


async def test_leases_say_how_much_one_request_takes(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        assert (await sent(http, "/v1/leases", num=1))["max_body"] == service.config.max_body


@pytest.mark.parametrize("num", [0, 1025, 1.5, "1", True, None])
async def test_a_number_of_leases_that_is_none_is_named(world: World, service: Service, num: Any) -> None:
    world.served()
    async with opened(service) as http:
        assert await rejected(http, "/v1/leases", num=num) == (422, "num")


# Policies


async def test_a_policy_comes_with_what_proves_it_by_the_public_key_alone(world: World, service: Service) -> None:
    artifact = world.served()
    async with opened(service) as http:
        key = (await http.get("/v1/key")).json()
        told = (await http.get(f"/v1/policies/{artifact.digest}")).json()
    assert key == {"public": world.registry.keys.public.hex(), "task": world.registry.task}
    plain = json.loads(told["verdict"])
    signature, plain["signature"] = bytes.fromhex(plain["signature"]), ""
    assert (plain["digest"], plain["task"], plain["outcome"]) == (artifact.digest, key["task"], "pass")
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key["public"]))
    public.verify(signature, canonical(plain).encode())
    with pytest.raises(InvalidSignature):
        public.verify(signature, canonical(plain | {"outcome": "fail"}).encode())
    files = {name: base64.b64decode(data) for name, data in told["files"].items()}
    assert load(Bundle(artifact, files)).digest == artifact.digest and MANIFEST in files
    assert told["artifact"]["digest"] == artifact.digest and str(world.run_dir) not in json.dumps(told["artifact"])


async def test_aliases_stand_for_digests_and_what_never_answered_or_is_condemned_is_not_given(
    world: World, links: Links
) -> None:
    first, second = world.served(1.0), world.served(2.0, NOW + 1)
    judged, tried = world.judged(3.0), world.judged(4.0)
    async with opened(Service(DeployConfig(poll_s=3600), links, links, lambda: NOW)) as http:

        async def got(name: str) -> tuple[int, str]:
            response = await http.get(f"/v1/policies/{name}")
            answer = response.json()
            return response.status_code, answer["artifact"]["digest"] if "artifact" in answer else answer["error"]

        assert await got("@champion") == (200, second.digest)
        assert await got("@previous") == (200, first.digest)
        status, why = await got("@challenger")
        assert status == 404 and "@champion, @previous" in why
        for name in (judged.digest, "0" * 64, "@nobody", "%2e%2e", "x" * 500):
            assert (await got(name))[0] == 404
        world.registry.challenge(tried.digest, Ramp(), NOW)
        assert (await got(tried.digest)) == (200, tried.digest), "who doesn't know it asks the registry"
        assert (await got("@challenger")) == (200, tried.digest)
        world.registry.rollback(NOW + 2, "it fell over")
        assert (await got("f" * 64))[0] == 404, "and looks at it for each digest that it doesn't know"
        status, why = await got(second.digest)
        assert status == 410 and "it fell over" in why
        assert await got("@champion") == (200, first.digest)
        assert (await http.get("/v1/policies/")).status_code == 404


# Operating


async def test_who_answered_at_a_time_is_one_question(world: World, service: Service) -> None:
    first = world.served(1.0)
    second = world.judged(2.0)
    canary = world.registry.challenge(second.digest, Ramp(), NOW + 10, urgent=True)
    async with opened(service) as http:
        http.headers.update(operating(world))
        for at, champion, challenger, share in (
            (NOW - 1, None, None, 0.0),
            (NOW, first.digest, None, 0.0),
            (NOW + 10, first.digest, second.digest, canary.share),
        ):
            answer = (await http.get("/v1/served", params={"at": at})).json()
            told = {"at": at, "champion": champion, "challenger": challenger, "share": share}
            assert answer == told | {"control": None, "control_share": 0.0}
        now = (await http.get("/v1/served")).json()
        assert (now["at"], now["champion"]) == (NOW, first.digest)
        for wrong in ("", "now", "nan", "1e999"):
            response = await http.get("/v1/served", params={"at": wrong})
            assert (response.status_code, response.json()["field"]) == (422, "at"), wrong


async def test_a_rollback_is_in_force_everywhere_and_can_be_sent_again_where_it_names_its_policy(
    world: World, links: Links, service: Service
) -> None:
    first, second = world.served(1.0), world.served(2.0, NOW + 1)
    links.now = NOW + 2
    other = Service(DOOR, links, links, lambda: NOW)
    async with opened(service) as http, opened(other) as elsewhere:
        named: dict[str, Any] = {"headers": operating(world), "reason": "it fell over", "digest": second.digest}
        done = {"rolled_back": second.digest, "digest": first.digest}
        assert await sent(http, "/v1/rollback", **named) == done
        assert (await act(http, FIRST))[0]["digest"] == first.digest, "here it is at once"
        async with asyncio.timeout(5):
            while (await elsewhere.get("/v1/policy")).json()["digest"] != first.digest:
                await asyncio.sleep(0.005)
        assert world.registry.reasons()[second.digest] == ("it fell over", NOW + 2)
        assert await sent(http, "/v1/rollback", **named) == done, "again it does no harm"
        assert len(world.registry.releases()) == 3 and world.registry.champion() == first.digest


async def test_a_rollback_to_nowhere_or_of_another_policy_than_serves_changes_nothing(
    world: World, links: Links, service: Service
) -> None:
    first = world.served(1.0)
    async with opened(service) as http:
        named: dict[str, Any] = {"headers": operating(world), "reason": "it fell over"}
        assert (await rejected(http, "/v1/rollback", **named))[0] == 409
        second = world.served(2.0, NOW + 1)
        assert (await rejected(http, "/v1/rollback", **named, digest=first.digest))[0] == 409
        assert await rejected(http, "/v1/rollback", **named | {"reason": ""}) == (422, "reason")
        links.away = True
        assert (await rejected(http, "/v1/rollback", **named))[0] == 503
    assert world.registry.champion() == second.digest and not world.registry.condemned()


async def test_nothing_is_done_before_there_is_a_policy(world: World, service: Service) -> None:
    async with opened(service) as http:
        assert (await rejected(http, "/v1/leases", num=1))[0] == 503
        assert (await http.get("/v1/policies/@champion")).status_code == 404
        assert (await http.get("/v1/key")).json()["task"] == world.registry.task


# msgpack beside JSON


async def test_msgpack_says_what_json_says(world: World, service: Service) -> None:
    world.served()
    packed = {"content-type": "application/msgpack", "accept": "application/msgpack"}

    async def both(http: httpx.AsyncClient, path: str, body: Any) -> Any:
        """Return the answer to a body in msgpack, which is that to the same in JSON."""
        response = await http.post(path, content=msgspec.msgpack.encode(body), headers=packed)
        assert response.headers["content-type"] == "application/msgpack"
        answer = msgspec.msgpack.decode(response.content)
        again = await http.post(path, json=body)
        assert (again.status_code, again.json()) == (response.status_code, answer)
        return answer

    async with opened(service) as http:
        (decision,) = (await both(http, "/v1/act", {"steps": [FIRST]}))["decisions"]
        await both(http, "/v1/rewards", {"rewards": [{"episode": "e", "t": 0, "reward": 0.25}]})
        end = FIRST | {"t": 1, "digest": decision["digest"], "action": decision["raw_action"]}
        ended = await both(http, "/v1/end", {"episodes": [end | {"terminated": True, "truncated": False}]})
        assert ended == {"acknowledged": ["e"], "missing": {}}
        episodes = await uploadable(http, world)
        assert len((await both(http, "/v1/episodes", {"episodes": episodes}))["acknowledged"]) == 1
        wrong = await both(http, "/v1/act", {"steps": [FIRST | {"t": "0"}]})
        assert wrong["field"] == "steps[0].t"
        policy = await http.get("/v1/policies/@champion", headers=packed)
        assert isinstance(msgspec.msgpack.decode(policy.content)["files"][MANIFEST], bytes)
        only_answer = await http.post("/v1/leases", json={"num": 1}, headers={"accept": "application/msgpack"})
        assert len(msgspec.msgpack.decode(only_answer.content)["leases"]) == 1


@pytest.mark.parametrize("body", [b"", b"\xc1", b"{}", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x81\xa5steps"])
async def test_what_is_no_msgpack_is_refused(world: World, service: Service, body: bytes) -> None:
    world.served()
    async with opened(service) as http:
        response = await http.post("/v1/act", content=body, headers={"content-type": "application/msgpack"})
        assert response.status_code in (400, 422) and response.json()["error"]


async def test_numbers_that_json_does_not_have_are_named_in_msgpack_too(world: World, service: Service) -> None:
    world.served()
    nan, inf = float("nan"), float("inf")
    async with opened(service) as http:
        for path, body, field in (
            ("/v1/act", {"steps": [FIRST | {"observation": [0.0, nan, 0.0, 0.0]}]}, "steps[0].observation[1]"),
            ("/v1/rewards", {"rewards": [{"episode": "e", "t": 0, "reward": inf}]}, "rewards[0].reward"),
            (
                "/v1/episodes",
                {"episodes": [(await uploadable(http, world, given_at=nan))[0]]},
                "episodes[0].given_at",
            ),
            (
                "/v1/episodes",
                {"episodes": [(await uploadable(http, world, rewards=[nan, 1.0]))[0]]},
                "episodes[0].rewards[0]",
            ),
        ):
            content = msgspec.msgpack.encode(body)
            response = await http.post(path, content=content, headers={"content-type": "application/msgpack"})
            assert (response.status_code, response.json()["field"]) == (422, field)


async def test_half_a_character_is_no_text(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        body = '{"steps": [{"episode": "\\ud800", "t": 0, "observation": [0, 0, 0, 0]}]}'
        assert (await http.post("/v1/act", content=body)).status_code == 400
