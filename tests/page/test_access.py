"""Who may come in: every route with every token, strange hosts and origins, large bodies, and what answers carry."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import PageConfig
from flywheel.deploy.keys import OPERATE, PAGE
from flywheel.deploy.registry import FILE, Registry
from flywheel.errors import UsageError
from flywheel.page.access import Access, same_origin
from flywheel.page.app import STATIC, build
from flywheel.page.guard import HEADERS
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.tokens import Token, fresh, hash_of
from flywheel.watch import access_to, listening
from flywheel.window import Window
from tests.callers import lets, make
from tests.page.conftest import operate_token

TAKES: dict[tuple[str, str], str] = {
    **dict.fromkeys([("GET", "/"), ("GET", "/static"), ("POST", "/api/v1/session"), ("DELETE", "/api/v1/session")], ""),
    **{
        ("GET", f"/api/v1/{path}"): "read"
        for path in (
            "openapi.json", "now", "production", "events", "turns", "turn", "policies", "policy", "verdict", "episodes",
            "episode", "frames", "fork", "scenarios", "diverges", "expected", "spans", "shift", "travel",
            "travel/parameters", "travel/episodes", "travel/episode", "travel/signals", "travel/shift",
            "travel/scenarios", "travel/values", "travel/residuals", "travel/diverge", "travel/fork",
        )
    },
    **{("POST", f"/api/v1/{path}"): "read" for path in ("fork", "travel/edits", "travel/scenario", "travel/replay")},
    **{("POST", f"/api/v1/{path}"): "operate" for path in ("rollback", "canary", "scenarios", "travel/spans")},
    ("DELETE", "/api/v1/scenarios"): "operate",
}  # fmt: skip
"""The scope that a route takes, "" where it is open; a route that isn't here fails the test."""


def asgi(run_dir: Path, access: Access) -> httpx.AsyncClient:
    """Return a client of a page in this process."""
    app = build(Window(run_dir), access, PageConfig(stream_s=0.01, look_s=0.01))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://page.example/")


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield routes, those of routers that were included among them."""
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from (route,) if included is None else flat(included.routes)


def routes(run_dir: Path) -> set[tuple[str, str]]:
    """Return every method and path that the page answers."""
    app: Any = build(Window(run_dir), access_to(run_dir, "127.0.0.1"), PageConfig())._app
    found = {(method, each.path) for each in flat(app.routes) for method in getattr(each, "methods", None) or {"GET"}}
    return {(method, path) for method, path in found if method != "HEAD"}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_every_route_with_every_token(host: str, own: Path) -> None:
    with closing(Registry(own, task_digest(cartpole))) as registry:
        secrets = make(registry)
    assert routes(own) == TAKES.keys()
    async with asgi(own, access_to(own, host)) as client:
        for (method, path), takes in TAKES.items():
            for kind, secret in secrets.items():
                headers = {"host": "127.0.0.1:1"} | ({"authorization": f"Bearer {secret}"} if secret else {})
                body = {} if method == "GET" else {"json": {"strange": 1}}
                answer = await client.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
                may = lets(kind) | ({"read"} if host == "127.0.0.1" else set())
                if not takes or takes in may:
                    assert answer.status_code in (200, 307, 400, 404, 405), (path, kind, answer.text)
                else:
                    assert answer.status_code == (403 if may else 401), (path, kind, answer.text)
                    missing = takes if "read" in may else "read"  # which everything behind the door takes
                    assert not may or f"the scope {missing}" in answer.json()["error"]


async def test_a_token_is_given_for_a_cookie_that_is_not_the_token(own: Path) -> None:
    registry = Registry(own, task_digest(cartpole))
    secrets, operate = make(registry), operate_token(own)
    headers = {"host": "127.0.0.1:1"}
    async with asgi(own, access_to(own, "0.0.0.0")) as client:
        assert (await client.get("api/v1/now", headers=headers)).status_code == 401
        for kind in ("wrong", "revoked", "act", "ingest"):
            refused = await client.post("api/v1/session", json={"token": secrets[kind]}, headers=headers)
            assert refused.status_code == 403 and "opens nothing" in refused.json()["error"]
        handed = await client.post("api/v1/session", json={"token": f" {operate}\n"}, headers=headers)
        cookie = handed.headers["set-cookie"]
        assert operate not in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert hash_of(operate) not in cookie
        name, value = cookie.split(";")[0].split("=", 1)
        with_it = headers | {"cookie": f"{name}={value}"}
        assert (await client.get("api/v1/now", headers=with_it)).json()["role"] == "operate"
        forged = headers | {"cookie": f"{name}={hash_of(operate)}"}
        assert (await client.get("api/v1/now", headers=forged)).status_code == 401
        left = await client.request("DELETE", "api/v1/session", json={}, headers=with_it)
        assert f'{name}=""' in left.headers["set-cookie"]
        async with asgi(own, access_to(own, "0.0.0.0")) as again:
            assert (await again.get("api/v1/now", headers=with_it)).status_code == 200, "it outlives the page"
        registry.revoke_token(OPERATE, 3.0)
        assert (await client.get("api/v1/now", headers=with_it)).status_code == 401, "but not its token"
    registry.close()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8700", "", "127.0.0.2", "[::2]:80", "["])
async def test_a_name_that_was_rebound_to_this_machine_is_not_answered(host: str, finished: Path) -> None:
    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        response = await client.get("api/v1/now", headers={"host": host})
        assert response.status_code == 421 and "for this machine alone" in response.json()["error"]


@pytest.mark.parametrize("host", ["localhost:8700", "127.0.0.1", "[::1]:8700"])
async def test_this_machine_is_answered_by_each_of_its_names(host: str, finished: Path) -> None:
    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        assert (await client.get("api/v1/now", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "strange",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_no_other_page_can_ask_for_anything_to_be_done(strange: dict[str, str], finished: Path) -> None:
    headers = {"host": "127.0.0.1:8700", "authorization": f"Bearer {operate_token(finished)}"} | strange
    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        for path in ("fork", "rollback", "session"):
            response = await client.post(f"api/v1/{path}", json={}, headers=headers)
            assert response.status_code == 403 and "Another page" in response.json()["error"]
        for path in ("shift", "now"):
            response = await client.get(f"api/v1/{path}", headers=headers)
            assert response.status_code == 403 and "Another page" in response.json()["error"]
        assert (await client.get("", headers=headers)).status_code == 200  # a link elsewhere may lead to the page


async def test_a_body_that_is_large_or_no_json_is_not_read(finished: Path) -> None:
    headers = {"host": "127.0.0.1"}
    as_json = headers | {"content-type": "application/json"}

    async def drops() -> Iterator[bytes]:  # type: ignore[misc]
        for _ in range(100):
            yield b" " * 2**12

    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        large = await client.post("api/v1/fork", content=b" " * 2**20, headers=as_json)
        unnamed = await client.post("api/v1/fork", content=drops(), headers=as_json)
        form = await client.post("api/v1/fork", data={"id": "x"}, headers=headers)
        deep = await client.post("api/v1/fork", content=b"[" * 60_000, headers=as_json)
    assert [r.status_code for r in (large, unnamed, form, deep)] == [413, 413, 415, 400]
    assert all(len(r.json()["error"]) > 20 for r in (large, unnamed, form, deep))


async def test_every_answer_carries_a_strict_policy(finished: Path) -> None:
    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        for path in ("", "static/js/main.js", "api/v1/now", "api/v1/nothing", "nothing", "static/../app.py"):
            response = await client.get(path, headers={"host": "localhost"})
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
            assert "unsafe" not in response.headers["content-security-policy"]
            assert "server" not in response.headers
            assert "cache-control" in response.headers


@pytest.mark.parametrize(
    "path", ["static/../app.py", "static/%2e%2e/app.py", "static/..%2fapp.py", "static//etc/passwd"]
)
async def test_no_path_leads_out_of_the_static_files(path: str, finished: Path) -> None:
    async with asgi(finished, access_to(finished, "127.0.0.1")) as client:
        response = await client.get(f"static/{path}", headers={"host": "localhost"})
    assert response.status_code == 404 and "def build" not in response.text


def test_static_files_name_nothing_outside_and_hold_no_inline_code() -> None:
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", html) and not re.search(r"<style|\bstyle=|\son\w+=", html)
    for path in [*STATIC.glob("js/**/*.js"), *STATIC.glob("css/*.css"), STATIC / "index.html"]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]|innerHTML|insertAdjacentHTML|\beval\(|new Function", text), (
            path
        )
        assert text.count("\n") <= 400, path


@given(token=st.text(max_size=60), name=st.text(max_size=20))
def test_nothing_that_is_not_a_token_opens_anything(token: str, name: str) -> None:
    known = Token(name="operate", hash=hash_of(fresh()), scopes=("read", "operate"), made_at=0.0)
    access = Access(lambda: [known], key=b"k" * 43, local=False)
    assert access.token(token) is None and access.token(known.hash) is None
    assert access.scopes({"authorization": f"Bearer {token}", "cookie": f"{access.name}={name}"}) == ()
    assert access.scopes({"cookie": f"{access.name}={access.cookie(known)}"}) == ("read", "operate")
    assert "k" * 43 not in repr(access)


def test_a_request_of_the_page_itself_or_of_a_program_is_of_the_same_origin() -> None:
    assert same_origin({"host": "127.0.0.1:1"})
    assert same_origin({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1", "sec-fetch-site": "same-origin"})


def test_a_page_that_no_token_opens_listens_on_this_machine_only(own: Path, tmp_path: Path) -> None:
    with closing(Registry(own, task_digest(cartpole))) as registry:
        for name in (PAGE, OPERATE):
            registry.revoke_token(name, 3.0)
        for run_dir in (own, tmp_path / "without a registry"):
            assert access_to(run_dir, "127.0.0.1").scopes({}) == ("read",)
            with pytest.raises(UsageError, match=r"no token with the scope read is in force.*--scope read"):
                access_to(run_dir, "0.0.0.0")
        registry.add_token("anna", ["read"], 4.0)
        assert access_to(own, "0.0.0.0").scopes({}) == ()


def test_a_run_of_an_earlier_version_is_opened_by_its_files(own: Path) -> None:
    with closing(sqlite3.connect(own / FILE)) as db, db:
        db.execute("DROP TABLE tokens")
        db.execute("UPDATE meta SET schema_version = 5")
    access = access_to(own, "0.0.0.0")
    assert access.scopes({"authorization": f"Bearer {operate_token(own)}"}) == ("read", "operate")


def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with listening(PageConfig(port=0)) as door, pytest.raises(UsageError, match="give --port another one"):
        listening(PageConfig(port=door.getsockname()[1]))
