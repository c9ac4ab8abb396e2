"""A run opened by its page's address does what its directory does: the same records, and the same errors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

import flywheel
from flywheel import archive
from flywheel.config import Config
from flywheel.connection import Connection
from flywheel.deploy.keys import PAGE, token_file
from flywheel.errors import FlywheelError, Refused, UsageError
from flywheel.remote.http import Greeting
from flywheel.remote.travel import Remote, RemoteFork
from flywheel.tapes import chain
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.trace import Fork, NotReproducible, Result, spanstore
from flywheel.trace.carry import FORM, Replayed, packed, replayed, unpacked
from flywheel.trace.contract import Forked, TimeTravel
from tests.page.conftest import operate_token, served

Call = Callable[[TimeTravel], Any]


@pytest.fixture(scope="module")
def local(finished: Path) -> Iterator[Connection]:
    with flywheel.connect(finished) as tp:
        assert isinstance(tp, Connection)
        yield tp


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[Remote]:
    with flywheel.connect(url) as tp:
        assert isinstance(tp, Remote)
        yield tp


def exact(found: Any) -> bytes:
    """Return what was found as bytes, which are equal exactly where it is, types and NaN included."""
    return packed((replayed(found), found.original, str(found)) if isinstance(found, Result) else found)


def failed(tp: TimeTravel) -> str:
    return tp.episodes("failed production")[0].id


def fine(tp: TimeTravel) -> str:
    return tp.episodes("fine production")[0].id


def trial(tp: TimeTravel) -> str:
    return tp.episodes("failed gate")[0].id


def edited(tp: TimeTravel, at: int = 5) -> Forked:
    """Return a fork with edits of every kind, one of them made twice."""
    fork = tp.fork_episode(failed(tp), at=at).edit_parameter("length", np.float32(0.7))
    fork.edit_parameter("temperature", 2).edit_parameter("policy", tp.episodes()[0].digest[:9])
    fork.edit_parameter("temperature", 0.1 + 0.2).edit_parameter("greedy", np.bool_(False))
    return fork.edit_parameter("exploration_rate", "0.1").edit_parameter("action", np.int64(1))


CALLS: dict[str, Call] = {
    "parameters": lambda tp: tp.parameters,
    "parameters_of": lambda tp: tp.parameters_of(tp.episodes()[0].digest),
    "episodes": lambda tp: tp.episodes(),
    "episodes that failed": lambda tp: tp.episodes("failed production", limit=7),
    "episodes, all": lambda tp: tp.episodes(limit=None),
    "episodes of a policy": lambda tp: tp.episodes("fine gate policy=" + tp.episodes("gate")[0].digest[:6]),
    "episode": lambda tp: tp.episode(failed(tp)[:14]),
    "episode of the gate": lambda tp: tp.episode(trial(tp)),
    "values": lambda tp: tp.values(tp.episode(failed(tp))),
    "residuals": lambda tp: tp.residuals(tp.episode(failed(tp)[:14])),
    "residuals of a fork": lambda tp: tp.residuals(edited(tp).replay().fork),
    "signals": lambda tp: tp.signals(),
    "scenarios": lambda tp: tp.scenarios(),
    "shift": lambda tp: dataclasses.replace(tp.shift() or pytest.fail("no shift"), link=""),
    "diverge": lambda tp: tp.diverge(failed(tp)),
    "diverge, bit for bit": lambda tp: tp.diverge(trial(tp), exact=True),
    "diverge from another": lambda tp: tp.diverge(failed(tp), fine(tp)),
    "diverge from another policy": lambda tp: tp.diverge(failed(tp), policy=tp.episodes("gate")[0].digest),
    "fork_episode": lambda tp: tp.fork_episode(failed(tp), at=3).parameters,
    "fork, its episode": lambda tp: tp.fork_episode(trial(tp), at=3).episode,
    "edit_parameter": lambda tp: edited(tp).edits,
    "replay": lambda tp: tp.fork_episode(failed(tp), at=5).edit_parameter("length", 0.5).replay(),
    "replay of all edits": lambda tp: edited(tp).replay(),
    "replay with an edited reward": lambda tp: (
        edited(tp).edit_parameter("reward_scale", 3).edit_parameter("reward_offset", -0.5).replay()
    ),
    "replay, times": lambda tp: tp.fork_episode(failed(tp), at=5).edit_parameter("length", 0.5).replay(times=30),
    "replay, seed": lambda tp: edited(tp, 2).replay(times=3, seed=-7),
    "replay of the gate": lambda tp: tp.fork_episode(trial(tp), at=8).replay(),
    "replay of the gate, edited": lambda tp: tp.fork_episode(trial(tp), 8).edit_parameter("action", "0").replay(),
    "scenario": lambda tp: edited(tp).scenario(),
    "scenario of the gate": lambda tp: tp.fork_episode(trial(tp), at=8).scenario(),
    "scenario of a result": lambda tp: edited(tp).replay().scenario(),
}


@pytest.mark.parametrize("name", CALLS)
def test_both_give_the_same_to_the_last_bit(name: str, local: Connection, remote: Remote) -> None:
    call = CALLS[name]
    ours, theirs = call(local), call(remote)
    assert type(ours) is type(theirs)
    assert exact(ours) == exact(theirs)


def twice(tp: TimeTravel) -> Any:
    changed = tp.episode(failed(tp))
    changed.rewards[0] += 1
    return tp.residuals(changed)


WRONG: dict[str, tuple[type[FlywheelError], str, Call]] = {
    "word": (UsageError, "Did you mean 'failed'", lambda tp: tp.episodes("faild")),
    "episode": (UsageError, "no episode 'nothing'", lambda tp: tp.episode("nothing")),
    "a fork": (UsageError, "A fork is kept nowhere", lambda tp: tp.fork_episode(edited(tp).replay().fork)),  # type: ignore[arg-type]
    "prefix": (UsageError, "give more of it", lambda tp: tp.episode("0")),
    "digest": (Refused, "knows no policy ffff", lambda tp: tp.parameters_of("f" * 64)),
    "no digest": (Refused, "knows no policy", lambda tp: tp.parameters_of("")),
    "step": (UsageError, "can't be forked at 999", lambda tp: tp.fork_episode(failed(tp), at=999)),
    "step before the first": (UsageError, "can't be forked at -1", lambda tp: tp.fork_episode(failed(tp), at=-1)),
    "edit": (UsageError, "Did you mean 'length'", lambda tp: edited(tp).edit_parameter("lenght", 1)),
    "value": (UsageError, "length takes a number", lambda tp: edited(tp).edit_parameter("length", [1.0])),
    "NaN": (UsageError, "length takes a number", lambda tp: edited(tp).edit_parameter("length", float("nan"))),
    "None": (UsageError, "temperature takes a number", lambda tp: edited(tp).edit_parameter("temperature", None)),
    "action": (UsageError, "a whole number from 0 to 1", lambda tp: edited(tp).edit_parameter("action", [[0], [1, 2]])),
    "reward": (UsageError, "reward", lambda tp: edited(tp).edit_parameter("reward", 3)),
    "times": (UsageError, "once or more, not 0", lambda tp: edited(tp).replay(times=0)),
    "policy": (UsageError, "no policy 'zz'", lambda tp: tp.diverge(failed(tp), policy="zz")),
    "critic": (UsageError, "has no critic", lambda tp: tp.diverge(failed(tp), fine(tp), beyond=1.0)),
    "half a step": (UsageError, "at takes a whole number, not 2.5", lambda tp: tp.fork_episode(failed(tp), at=2.5)),
    "no step": (UsageError, "at takes a whole number, not True", lambda tp: tp.fork_episode(failed(tp), at=True)),
    "no times": (UsageError, "times takes a whole", lambda tp: edited(tp).replay(times=float("nan"))),
    "no seed": (UsageError, "seed takes a whole number", lambda tp: edited(tp).replay(seed=None)),
    "limit": (UsageError, "limit takes a whole number from 0 on, not -1", lambda tp: tp.episodes(limit=-1)),
    "no limit": (UsageError, "limit takes a whole number", lambda tp: tp.episodes(limit="5")),
    "policy of two": (UsageError, "name no other one", lambda tp: tp.diverge(failed(tp), fine(tp), policy="zzzz")),
    "beyond of one": (UsageError, "name the other one", lambda tp: tp.diverge(failed(tp), beyond=1.0)),
    "exact of two": (UsageError, "of one episode alone", lambda tp: tp.diverge(failed(tp), fine(tp), exact=True)),
    "exact of a policy": (UsageError, "alone", lambda tp: tp.diverge(failed(tp), policy="zz", exact=True)),
    "scenario": (UsageError, "no scenario 'x'", lambda tp: tp.drop_scenario("x")),
}


@pytest.mark.parametrize("name", WRONG)
def test_both_refuse_the_same_and_say_why(name: str, local: Connection, finished: Path, url: str) -> None:
    kind, why, call = WRONG[name]
    with flywheel.connect(url, operate_token(finished)) as remote:
        for tp in (local, remote):
            with pytest.raises(kind, match=why) as error:
                call(tp)
            assert type(error.value) is kind


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("contract", "here", "there", "only_here"),
    [
        (TimeTravel, Connection, Remote, {"registry", "policies", "run_dir", "config", "task"}),
        (Forked, Fork, RemoteFork, {"task"}),
    ],
)
def test_both_offer_the_same(contract: type, here: type, there: type, only_here: set[str]) -> None:
    offered = set(public(contract))
    assert set(public(here)) == offered | (only_here & {"registry", "policies"})
    assert set(public(there)) == offered | only_here
    for name in offered:
        one, other, third = (inspect.getattr_static(kind, name) for kind in (contract, here, there))
        if not inspect.isfunction(one):
            assert isinstance(other, property) and isinstance(third, property)
            continue
        names = [list(inspect.signature(each).parameters.values()) for each in (one, other, third)]
        bare = [[(p.name, p.kind, p.default) for p in parameters] for parameters in names]
        assert bare[0] == bare[1] == bare[2], name
    called = {name.split(",")[0].split(" ")[0] for name in CALLS}
    assert offered - called <= {"trace", "save_scenario", "drop_scenario", "close", "edits"}


def test_what_only_a_run_directory_offers_says_what_to_do_instead(remote: Remote) -> None:
    for name in ("registry", "policies", "run_dir", "config", "task"):
        with pytest.raises(UsageError, match=rf"no {name} here: .*connect\(run_dir\)"):
            getattr(remote, name)
        assert not hasattr(remote, name)
    fork = edited(remote)
    with pytest.raises(UsageError, match="no task here"):
        _ = fork.task  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="can't be sent to a page"):
        fork.edit_parameter("reward", lambda *_: 0.0)
    with pytest.raises(UsageError, match="200 times at most, not 201"):
        fork.replay(times=201)
    with pytest.raises(UsageError, match="another one here"):
        twice(remote)


def test_a_result_is_drawn_here(remote: Remote, local: Connection, tmp_path: Path) -> None:
    for name, tp in (("local", local), ("remote", remote)):
        with_edit = tp.fork_episode(failed(tp), at=5).edit_parameter("length", 0.5)
        with_edit.replay(times=3).compare(tmp_path / name)
        with_edit.close()
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()


def test_a_shift_is_linked_to_a_fork_from_here(remote: Remote) -> None:
    shift = remote.shift()
    assert shift is not None
    fork = eval(shift.link, {"flywheel": flywheel})
    assert (fork.episode.id, fork.at) == (shift.episode, shift.step)
    fork._page.close()


def test_an_episode_that_cant_be_run_again_is_told_in_the_same_words(own: Path) -> None:
    config = json.loads((own / archive.CONFIG).read_text())
    (own / archive.CONFIG).write_text(json.dumps({**config, "task_digest": "0" * 64}))
    with served(own) as url, flywheel.connect(url) as remote, flywheel.connect(own) as local:
        said = []
        for tp in (local, remote):
            with pytest.raises(NotReproducible, match="not what it was") as error:
                tp.fork_episode(failed(tp), at=3)
            said.append(str(error.value))
    assert said[0] == said[1]


def test_a_run_that_has_just_begun_has_nothing_in_both(tmp_path: Path) -> None:
    with archive.opened(tmp_path / "new", Config(task="cartpole"), "cartpole", task_digest(cartpole)):
        pass
    with served(tmp_path / "new") as url, flywheel.connect(url) as remote, flywheel.connect(tmp_path / "new") as local:
        assert remote.episodes() == local.episodes() == []
        assert exact(remote.parameters) == exact(local.parameters)
        for call in (lambda tp: tp.signals(), lambda tp: tp.scenarios(), lambda tp: tp.episode("x")):
            said = []
            for tp in (local, remote):
                with pytest.raises(UsageError) as error:
                    call(tp)
                said.append(str(error.value))
            assert said[0] == said[1]


def test_a_task_that_the_page_cant_load_is_named(own: Path) -> None:
    config = json.loads((own / archive.CONFIG).read_text())
    config["config"]["task"] = "gone_from_here:task"
    (own / archive.CONFIG).write_text(json.dumps(config))
    with served(own) as url:
        for where in (own, url):
            with pytest.raises(UsageError, match="gone_from_here"):
                flywheel.connect(where)


def test_a_fork_is_saved_for_the_gate_and_dropped_again(own: Path) -> None:
    token = operate_token(own)
    with served(own) as url, flywheel.connect(url, token) as remote, flywheel.connect(own) as local:
        result = edited(remote).replay()
        saved = remote.save_scenario(result, "longer")
        assert remote.scenarios() == local.scenarios() == (saved,)
        again = local.save_scenario(edited(local), "again")
        unnamed = [
            dataclasses.replace(each, name="", saved_at=0.0) for each in (saved, again, edited(remote).scenario())
        ]
        assert unnamed[0] == unnamed[1] == unnamed[2]
        with pytest.raises(UsageError, match="already"):
            remote.save_scenario(edited(remote), "longer")
        with pytest.raises(UsageError, match="not made through this connection"):
            remote.save_scenario(edited(local), "mine")
        remote.drop_scenario("longer")
        assert [each.name for each in local.scenarios()] == ["again"]
        with flywheel.connect(url) as reader:
            with pytest.raises(Refused, match=r"keys/operate\.token"):
                reader.save_scenario(edited(reader), "mine")
            with pytest.raises(Refused, match=r"keys/operate\.token"):
                reader.drop_scenario("again")


def test_spans_are_kept_beside_the_run(own: Path) -> None:
    with served(own) as url:
        with flywheel.connect(url, operate_token(own)) as tp, tp.trace("rl-deployment", site="Berlin") as outer:
            outer.log_metric("prediction_value", 0.3)
            for _ in range(4):  # together they are larger than another body may be
                with tp.trace("look", notes=["x" * 1000] * 30):
                    pass
        with flywheel.connect(url) as reader, pytest.raises(Refused, match=r"keys/operate\.token"):
            reader.trace("mine")
    with spanstore.open_readonly(own) as spans:
        found = spans.of_trace(outer.trace)
    assert [(span.name, span.source) for span in found] == [("rl-deployment", "client"), *[("look", "client")] * 4]
    assert [metric[0] for metric in found[0].metrics] == ["prediction_value"]
    assert {span.parent for span in found[1:]} == {found[0].id}


def test_it_can_be_used_again_after_it_was_closed(url: str) -> None:
    tp = flywheel.connect(url)
    tp.close()
    assert len(tp.episodes(limit=3)) == 3
    tp.close()


# What may go wrong on the way


@pytest.mark.parametrize("given", ["none", "wrong"])
def test_a_page_that_asks_for_a_token_says_where_it_is(given: str, finished: Path) -> None:
    with served(finished, host="0.0.0.0") as url:
        with pytest.raises(Refused, match=r"keys/page\.token") as error:
            flywheel.connect(url, {"none": "", "wrong": "x" * 43}[given])
        assert ("refused this token" in str(error.value)) == (given == "wrong")
        token = token_file(finished, PAGE).read_text()
        with flywheel.connect(url, token) as tp:
            assert tp.episodes(limit=1) and token not in repr(tp)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://", "no address of a page"),
        ("http://me:secret@127.0.0.1:port", "no address of a page"),
        ("http://me:secret@127.0.0.1:1", "address alone, as http://127.0.0.1:1,"),
        ("http://127.0.0.1:1/?token=secret", "address alone"),
        ("http://127.0.0.1:1/#secret", "address alone"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        flywheel.connect(url)
    assert "secret" not in str(error.value)


def test_what_is_no_token_or_has_no_use_is_refused(tmp_path: Path) -> None:
    for token in ("two words", "ä", "a\nb"):
        with pytest.raises(UsageError, match="no token"):
            flywheel.connect("http://127.0.0.1:1", token)
    with pytest.raises(UsageError, match="above 0"):
        flywheel.connect("http://127.0.0.1:1", timeout_s=0.0)
    with pytest.raises(UsageError, match="takes no token"):
        flywheel.connect(tmp_path, "token")


class Door(BaseHTTPRequestHandler):
    """Answers everything with one status and one body, or not before it is let go."""

    status, body = 200, b""
    asked: ClassVar[list[str]]
    let_go: threading.Event | None = None

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.let_go is not None:
            self.let_go.wait()
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def door() -> Iterator[tuple[str, type[Door]]]:
    class Mine(Door):
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Mine
    if Mine.let_go is not None:
        Mine.let_go.set()
    server.shutdown()
    thread.join()
    server.server_close()


OTHER = msgspec.json.encode(Greeting(FORM + 1, "9.9.9", "run", "read"))


@pytest.mark.parametrize(
    ("status", "body", "kind", "why"),
    [
        (200, OTHER, UsageError, r"of flywheel 9\.9\.9.*install the same version"),
        (404, b'{"error":"There is nothing at this address."}', UsageError, "of an earlier version"),
        (404, b"<html>", UsageError, "or something else"),
        (200, b"<html>", UsageError, "is no page of flywheel"),
        (502, b"<html>", FlywheelError, "not itself now: HTTP 502"),
        (307, b"", FlywheelError, "HTTP 307"),
        (500, b'{"error":"The page itself broke."}', FlywheelError, "The page itself broke"),
        (421, b'{"error":"This page is for this machine alone."}', UsageError, "for this machine alone"),
    ],
)
def test_what_is_no_page_of_this_version_is_told(
    status: int, body: bytes, kind: type[FlywheelError], why: str, door: tuple[str, type[Door]]
) -> None:
    url, mine = door
    mine.status, mine.body = status, body
    with pytest.raises(kind, match=why) as error:
        flywheel.connect(url)
    assert type(error.value) is kind


def test_a_page_may_be_at_a_path_of_its_host(door: tuple[str, type[Door]]) -> None:
    url, mine = door
    mine.body = msgspec.json.encode(Greeting(FORM, "0", "run", "read"))
    flywheel.connect(f" {url}/page/ ").close()
    assert mine.asked == ["/page/api/v1/travel"]


def test_a_page_that_does_not_answer_is_told(door: tuple[str, type[Door]]) -> None:
    url, mine = door
    mine.let_go = threading.Event()
    with pytest.raises(FlywheelError, match=r"has not answered for 0\.2 s"):
        flywheel.connect(url, timeout_s=0.2)


def test_a_page_that_is_not_there_is_told_and_no_proxy_is_asked(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with served(finished) as url:
        tp = flywheel.connect(url)
        assert tp.episodes(limit=1)
    with pytest.raises(FlywheelError, match=f"No page answers at {url[:-1]} .*: is `flywheel page` running"):
        tp.episodes()
    tp.close()


def test_records_travel_to_the_last_bit_and_nothing_else_does() -> None:
    values = np.array([np.nan, -np.inf, -0.0, 5e-324, 0.1])
    for array in (values, values.astype("<f4"), np.zeros((0, 3), np.int64), np.array(True), np.arange(6)[::2]):
        found = unpacked(packed(array), np.ndarray[Any, Any])
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
    for wrong in (["|O", [1], b"12345678"], ["<f8", [2], b"12345678"], ["<f8", [-1], b""], 3, ["<f8", [1]]):
        with pytest.raises(msgspec.MsgspecError):
            unpacked(msgspec.msgpack.encode(wrong), np.ndarray[Any, Any])
    for value in (np.array([object()]), object(), values.astype(complex)):
        with pytest.raises(NotImplementedError, match="travels"):
            packed(value)
    kept = {field.name for field in dataclasses.fields(Result)} - {"original", "scenario"}
    assert set(Replayed.__struct_fields__) == kept


def test_a_course_that_is_the_original_is_no_copy_of_it(remote: Remote) -> None:
    result = edited(remote).replay()
    assert chain(remote.episode(failed(remote))) == chain(result.original)
    assert result.unedited is not result.original and not result.exact
    same = remote.fork_episode(trial(remote), at=3).replay()
    assert same.unedited is same.original and same.exact and same.difference is None
