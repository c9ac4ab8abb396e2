"""The stream of events: nothing is told twice, nothing is left out, and it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.page.conftest import served
from tests.page.run_dirs import Writer


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    found = Writer(tmp_path / "run")
    yield found
    found.close()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield events with their fields."""
    found: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line:
            if "event" in found:
                yield found
            found = {}
        elif name:
            found[name] = json.loads(value) if name == "data" else value


def test_what_is_told_arrives_once_and_a_new_stream_goes_on_where_the_last_one_ended(writer: Writer) -> None:
    with served(writer.run_dir) as url:
        with httpx.stream("GET", f"{url}api/v1/events", timeout=20) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            found = events(response.iter_lines())
            assert next(found)["event"] == "changed"
            first = next(found)
            assert first["data"]["text"].startswith("Ray is up")
            writer.tell("gate", "judging policy x", 0.1, 1)
            second = next(found)
            assert second["data"]["text"] == "judging policy x" and int(second["id"]) > int(first["id"])
        writer.tell("gate", "pass", 0.1, 1)
        headers = {"last-event-id": second["id"]}
        with httpx.stream("GET", f"{url}api/v1/events", headers=headers, timeout=20) as response:
            told = [next(each for each in events(response.iter_lines()) if each["event"] == "told")]
        assert [each["data"]["text"] for each in told] == ["pass"]


@pytest.mark.parametrize("last", ["²", "9" * 5000, "-1", "x"])
def test_an_id_that_no_stream_gave_begins_where_the_page_asks(last: str, writer: Writer) -> None:
    headers = {"last-event-id": last.encode("latin-1")}
    with (
        served(writer.run_dir) as url,
        httpx.stream("GET", f"{url}api/v1/events", headers=headers, timeout=20) as response,
    ):
        assert response.status_code == 200
        told = next(each for each in events(response.iter_lines()) if each["event"] == "told")
    assert told["data"]["text"].startswith("Ray is up")


def test_changes_of_the_run_are_told_by_name(writer: Writer) -> None:
    from tests.page.run_dirs import FIRST, SHORT_POLE

    with served(writer.run_dir) as url, httpx.stream("GET", f"{url}api/v1/events", timeout=20) as response:
        found = events(response.iter_lines())
        before = next(found)["data"]
        writer.turn(FIRST, SHORT_POLE)
        writer.produce(3, {}, 1)
        changed: set[str] = set()
        for event in found:
            if event["event"] == "changed":
                changed |= {name for name, value in event["data"].items() if value != before[name]}
            if len(changed) == 3:
                break
    assert changed == {"turns", "policies", "production"}


def test_one_stream_too_many_is_asked_to_come_again_and_room_is_made_when_one_ends(writer: Writer) -> None:
    with served(writer.run_dir, max_streams=2) as url, httpx.Client(base_url=url, timeout=20) as client:
        with client.stream("GET", "api/v1/events") as one, client.stream("GET", "api/v1/events") as other:
            lines = [one.iter_lines(), other.iter_lines()]
            assert [next(each) for each in lines] == ["retry: 1000"] * 2
            with client.stream("GET", "api/v1/events") as refused:
                assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
                assert "Too many pages" in json.loads(refused.read())["error"]
        assert client.get("api/v1/now").status_code == 200
        for _ in range(200):
            with client.stream("GET", "api/v1/events") as again:
                if again.status_code == 200:
                    break
        assert again.status_code == 200


def test_a_stream_ends_after_its_time_and_says_that_it_is_there_until_then(writer: Writer) -> None:
    with (
        served(writer.run_dir, stream_s=0.8, heartbeat_s=0.1) as url,
        httpx.stream("GET", f"{url}api/v1/events", timeout=20) as response,
    ):
        lines = list(response.iter_lines())
    assert lines[0] == "retry: 1000" and ": still here" in lines
