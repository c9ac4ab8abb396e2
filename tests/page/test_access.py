"""Who may come in: every route with every token, strange hosts and origins, large bodies, and what answers carry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.config import PageConfig
from flywheel.deploy.keys import DIRECTORY, OPERATE, READ, open_page_tokens
from flywheel.errors import UsageError
from flywheel.page.access import Access, same_origin
from flywheel.page.app import STATIC, build
from flywheel.page.guard import HEADERS
from flywheel.watch import access_to, listening
from flywheel.window import Window
from tests.page.conftest import operate_token

READS = ["now", "production", "turns", "policies", "episodes", "travel", "travel/episodes", "travel/scenarios"]
FORK = {"id": "x", "at": 0}


def asgi(run_dir: Path, access: Access) -> httpx.AsyncClient:
    """Return a client of a page in this process."""
    app = build(Window(run_dir), access, PageConfig())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://page.example/")


@pytest.fixture
def tokens(finished: Path) -> tuple[str, str]:
    return open_page_tokens(finished)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("token", ["none", "wrong", "read", "operate"])
async def test_every_route_with_every_token(host: str, token: str, finished: Path, tokens: tuple[str, str]) -> None:
    read, operate = tokens
    given = {"none": "", "wrong": "x" * 43, "read": read, "operate": operate}[token]
    headers = {"host": "127.0.0.1:1"} | ({"authorization": f"Bearer {given}"} if given else {})
    may_read = host == "127.0.0.1" or token in ("read", "operate")
    async with asgi(finished, access_to(finished, host)) as client:
        for path in READS:
            assert (await client.get(f"api/v1/{path}", headers=headers)).status_code == (200 if may_read else 401)
        fork = await client.post("api/v1/fork", json=FORK, headers=headers)
        assert fork.status_code == (400 if may_read else 401)
        replay = await client.post("api/v1/travel/replay", json=FORK, headers=headers)
        assert replay.status_code == (400 if may_read else 401)
        for path in ("rollback", "travel/spans"):
            done = await client.post(f"api/v1/{path}", json={"strange": 1}, headers=headers)
            assert done.status_code == (400 if token == "operate" else 403 if may_read else 401)
        assert (await client.get("", headers=headers)).status_code == 200  # the page itself tells nothing of the run


async def test_a_token_is_given_for_a_cookie_that_is_not_the_token(finished: Path, tokens: tuple[str, str]) -> None:
    _read, operate = tokens
    headers = {"host": "127.0.0.1:1"}
    async with asgi(finished, access_to(finished, "0.0.0.0")) as client:
        assert (await client.get("api/v1/now", headers=headers)).status_code == 401
        handed = await client.post("api/v1/session", json={"token": f" {operate}\n"}, headers=headers)
        cookie = handed.headers["set-cookie"]
        assert operate not in cookie and "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        name, value = cookie.split(";")[0].split("=", 1)
        with_it = headers | {"cookie": f"{name}={value}"}
        assert (await client.get("api/v1/now", headers=with_it)).json()["role"] == "operate"
        forged = headers | {"cookie": f"{name}={value.replace('operate', 'read')}"}
        assert (await client.get("api/v1/now", headers=forged)).status_code == 401
        left = await client.request("DELETE", "api/v1/session", json={}, headers=with_it)
        assert f'{name}=""' in left.headers["set-cookie"]


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
    access = Access(read="r" * 43, operate="o" * 43)
    assert access.role_of(token) == ""
    assert access.role({"authorization": f"Bearer {token}", "cookie": f"{access.name}={name}"}) == ""
    assert "r" * 43 not in repr(access) and "o" * 43 not in repr(access)


def test_a_request_of_the_page_itself_or_of_a_program_is_of_the_same_origin() -> None:
    assert same_origin({"host": "127.0.0.1:1"})
    assert same_origin({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1", "sec-fetch-site": "same-origin"})


def test_tokens_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    assert open_page_tokens(tmp_path) == open_page_tokens(tmp_path)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / DIRECTORY).iterdir()} == {
        READ: 0o600,
        OPERATE: 0o600,
    }


def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with listening(PageConfig(port=0)) as door, pytest.raises(UsageError, match="give --port another one"):
        listening(PageConfig(port=door.getsockname()[1]))
