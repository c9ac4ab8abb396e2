"""Who may call what at the policy's door, how often, and how soon a new or a revoked token counts."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import DeployConfig
from flywheel.deploy import registry as registries
from flywheel.deploy.keys import CLIENT, EVERYDAY, token_file
from flywheel.deploy.registry import Registry
from flywheel.deploy.routes import ROUTES, Route
from flywheel.deploy.rules import Rules
from flywheel.deploy.service import Service
from flywheel.deploy.wire import RejectedError
from flywheel.errors import UsageError
from flywheel.tokens import SCOPES, Scope, Token, bearer, find, fresh, hash_of
from tests.callers import STRANGERS, lets, make
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.test_door import FIRST, act, opened

TAKES: dict[tuple[str, str], set[Scope]] = {
    ("POST", "/v1/act"): {"act"},
    ("POST", "/v1/end"): {"act"},
    ("POST", "/v1/rewards"): {"act", "ingest"},
    ("POST", "/v1/leases"): {"act"},
    ("POST", "/v1/episodes"): {"ingest", "act"},
    ("POST", "/v1/spans"): {"ingest", "act"},
    ("GET", "/v1/policy"): {"read", "act"},
    ("GET", "/v1/policies/{digest}"): {"read", "act"},
    ("GET", "/v1/key"): {"read", "act"},
    ("GET", "/v1/served"): {"read"},
    ("POST", "/v1/rollback"): {"operate"},
    ("GET", "/v1/health"): set(),
    ("GET", "/v1/openapi.json"): set(),
}
"""Scopes one of which a route takes, none where it is open; a route that isn't here fails the test."""


async def test_every_route_with_every_token(world: World, service: Service) -> None:
    world.served()
    secrets = make(world.registry)
    assert {(route.method, route.path) for route in ROUTES} == TAKES.keys()
    async with opened(service) as http:
        for (method, path), scopes in TAKES.items():
            for kind, secret in secrets.items():
                shown = {"authorization": f"Bearer {secret}" if secret else ""}
                answer = await http.request(method, path, json={"strange": 1}, headers=shown)
                if not scopes or lets(kind) & scopes:
                    assert answer.status_code in (200, 404, 422), (path, kind, answer.text)  # no spans are kept here
                elif kind in STRANGERS:
                    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (path, kind)
                else:
                    assert answer.status_code == 403, (path, kind)
                    assert all(word in answer.json()["error"] for word in (f"its-{kind}", *scopes))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_every_route_is_closed_to_a_token_over_its_quota(world: World, links: Links, route: Route) -> None:
    """Whatever it lets do: that it may not is told to nobody who has asked too often."""
    world.served()
    secrets = {
        scopes: world.registry.add_token(f"its-{'-'.join(scopes)}", scopes, NOW, quota=0.5)
        for scopes in [*((scope,) for scope in SCOPES), SCOPES]
    }
    async with opened(Service(DeployConfig(poll_s=60.0), links, links, lambda: NOW)) as http:
        for scopes, secret in secrets.items():
            shown = {"authorization": f"Bearer {secret}"}
            assert (await http.get("/v1/policy", headers=shown)).status_code in (200, 403), "its only request"
            answer = await http.request(route.method, route.path, json={"strange": 1}, headers=shown)
            if route.scopes:
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "2"), (scopes, answer.text)
            else:
                assert answer.status_code == 200, scopes


async def test_replicas_learn_of_new_and_revoked_tokens(world: World, service: Service) -> None:
    world.served()
    async with opened(service) as http:
        secret = world.registry.add_token("robot", ["act"], NOW)
        shown = {"authorization": f"bearer {secret}"}
        async with asyncio.timeout(5):
            while (await http.get("/v1/policy", headers=shown)).status_code != 200:
                await asyncio.sleep(0.005)
            world.registry.revoke_token("robot", NOW)
            while (await http.get("/v1/policy", headers=shown)).status_code != 401:
                await asyncio.sleep(0.005)
        assert len(await act(http, FIRST)) == 1, "the others go on"


async def test_tokens_count_before_a_policy_is_there(world: World, service: Service) -> None:
    async with opened(service) as http:
        assert (await http.get("/v1/policy")).json()["digest"] is None
        secret = world.registry.add_token("robot", ["read"], NOW)
        await service.reload()
        answer = await http.get("/v1/policy", headers={"authorization": f"Bearer {secret}"})
        assert answer.status_code == 200


async def test_a_token_over_its_quota_is_told_when_to_come_again(world: World, links: Links) -> None:
    world.served()
    now = [NOW]
    service = Service(DeployConfig(quota=4.0, poll_s=60.0), links, links, lambda: now[0])
    calm = world.registry.add_token("calm", ["read"], NOW, quota=100.0)
    async with opened(service) as http:
        statuses = [(await http.get("/v1/policy")).status_code for _ in range(9)]
        assert statuses == [200] * 8 + [429], "two seconds of its quota at once"
        refused = await http.get("/v1/policy")
        assert refused.headers["retry-after"] == "1" and "4 requests a second" in refused.json()["error"]
        other = await http.get("/v1/policy", headers={"authorization": f"Bearer {calm}"})
        assert other.status_code == 200, "each has its own"
        now[0] += 0.25
        assert [(await http.get("/v1/policy")).status_code for _ in range(2)] == [200, 429]
        assert (await http.get("/v1/health")).status_code == 200


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=200), st.floats(0.1, 50.0), st.floats(0.1, 5.0))
def test_no_more_than_burst_and_rate_get_through(pauses: list[float], quota: float, burst_s: float) -> None:
    rules, secret, now = Rules(quota, burst_s), fresh(), NOW
    rules.adopt([Token(name="t", hash=hash_of(secret), scopes=("act",), made_at=NOW)])
    for taken, pause in enumerate(pauses, 1):
        now += pause
        try:
            rules.check(f"Bearer {secret}", ["act"], now)
        except RejectedError as error:
            assert error.status == 429 and 0 < error.wait_s <= 1.0 / quota * 1.001
            rules.check(f"Bearer {secret}", ["act"], now + error.wait_s * 1.001)
            now += error.wait_s * 1.001
        assert taken <= max(1.0, quota * burst_s) + quota * (now - NOW) + 1e-6


@given(token=st.text(max_size=60))
def test_nothing_that_is_not_a_token_opens_anything(token: str) -> None:
    known = [Token(name=name, hash=hash_of(fresh()), scopes=("act",), made_at=0.0) for name in "ab"]
    assert find(known, token) is None and find(known, known[0].hash) is None
    for header in (token, f"Bearer {token}", f"Basic {token}"):
        assert find(known, bearer(header)) is None


def test_each_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, compared = [fresh() for _ in range(3)], []
    known = [Token(name=str(i), hash=hash_of(secret), scopes=("act",), made_at=0.0) for i, secret in enumerate(secrets)]
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    for secret in (*secrets, "wrong"):
        compared.clear()
        find(known, secret)
        assert compared == [token.hash for token in known], "wherever it is found, and where it isn't"


def test_only_hashes_are_kept(world: World) -> None:
    secret = world.registry.add_token("robot", ["act", "ingest"], NOW, quota=3.0)
    (robot,) = [token for token in world.registry.tokens() if token.name == "robot"]
    assert (robot.scopes, robot.made_at, robot.revoked_at, robot.quota) == (("act", "ingest"), NOW, None, 3.0)
    assert find(world.registry.in_force(), secret) == robot and robot.hash not in repr(robot)
    world.registry.close()
    texts = [path.read_bytes() for path in world.run_dir.rglob("*") if path.is_file()]
    assert not any(secret.encode() in text for text in texts)
    world.registry = Registry(world.run_dir, world.registry.task)
    assert find(world.registry.in_force(), secret) == robot, "it outlives its owner"


def test_what_is_no_token_to_make_or_revoke_is_named(world: World) -> None:
    add = world.registry.add_token
    for name in ("", "-x", "a b", "x" * 65):
        with pytest.raises(UsageError, match="letters, digits"):
            add(name, ["act"], NOW)
    with pytest.raises(UsageError, match="without a scope opens nothing"):
        add("robot", [], NOW)
    with pytest.raises(UsageError, match="Did you mean 'operate'"):
        add("robot", ["operat"], NOW)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="above 0"):
        add("robot", ["act"], NOW, quota=0.0)
    with pytest.raises(UsageError, match="'client' already"):
        add(CLIENT, ["act"], NOW)
    with pytest.raises(UsageError, match="Did you mean 'client'"):
        world.registry.revoke_token("clint", NOW)
    assert {token.name for token in world.registry.tokens()} == EVERYDAY.keys()


def test_a_name_is_free_again_when_its_token_is_revoked(world: World) -> None:
    old = world.registry.add_token("robot", ["act"], NOW)
    world.registry.revoke_token("robot", NOW + 1)
    new = world.registry.add_token("robot", ["act"], NOW + 2)
    assert find(world.registry.in_force(), old) is None and find(world.registry.in_force(), new) is not None
    assert [t.revoked_at for t in world.registry.tokens() if t.name == "robot"] == [NOW + 1, None]


def test_everyday_tokens_are_made_once_for_their_owner_alone(world: World) -> None:
    found = {token.name: token.scopes for token in world.registry.in_force()}
    assert found == {"client": ("act",), "page": ("read",), "operate": ("read", "operate")}
    for name in EVERYDAY:
        path = token_file(world.run_dir, name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert getattr(find(world.registry.in_force(), path.read_text()), "name", None) == name


def test_an_everyday_token_that_is_revoked_stays_so_until_another_is_made(world: World) -> None:
    path = token_file(world.run_dir, CLIENT)
    world.registry.revoke_token(CLIENT, NOW)
    world.registry.close()
    world.registry = Registry(world.run_dir, world.registry.task)
    assert find(world.registry.in_force(), world.token) is None and not path.exists()
    path.write_text(world.token)  # of a backup
    secret = world.registry.add_token(CLIENT, ["act"], NOW)
    assert secret == path.read_text() != world.token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert find(world.registry.in_force(), secret) is not None


def test_the_file_of_an_earlier_version_goes_on_opening(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    token_file(tmp_path, CLIENT).write_text("an old one\n")
    with closing(Registry(tmp_path, "t" * 64)) as registry:
        token = find(registry.in_force(), "an old one")
        assert token is not None and token.scopes == ("act",)


def test_the_file_itself_keeps_one_token_in_force_a_name(world: World) -> None:
    with closing(sqlite3.connect(world.run_dir / registries.FILE)) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO tokens (name, hash, scopes, made_at) VALUES ('client', 'h', 'act', 0)")
