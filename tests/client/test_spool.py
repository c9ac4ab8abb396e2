"""The spool keeps what was written whole, bounds what it holds, and says so."""

from __future__ import annotations

import errno
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.client import DamagedError, FullError
from flywheel.client import spool as module
from flywheel.client.spool import Spool
from flywheel.errors import FlywheelError, UsageError

ROOM = 2**20


def step(t: int, **more: Any) -> dict[str, Any]:
    return {"t": t, "observation": [0.1 * t, -1e300], "action": t % 2, "reward": None if t == 0 else 1.0} | more


def filled(directory: Path, num_steps: int = 3, *, end: bool = True) -> Path:
    """Keep an episode and return its file."""
    spool = Spool(directory, ROOM)
    spool.begin("e", seal="s")
    for t in range(num_steps):
        spool.add("e", step(t))
    if end:
        spool.add("e", step(num_steps, terminated=True, truncated=False))
    spool.close()
    (path,) = directory.glob("*.episode")
    return path


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", ROOM)
    yield spool
    spool.close()


def test_an_episode_is_there_again_as_it_was(tmp_path: Path) -> None:
    path = filled(tmp_path)
    assert (path.stat().st_mode & 0o777, (tmp_path / "lock").stat().st_mode & 0o777) == (0o600, 0o600)
    again = Spool(tmp_path, ROOM)
    assert again.waiting == ("e",)
    assert again.num_bytes == path.stat().st_size
    found = again.read("e")
    assert found.head == {"schema_version": 1, "episode": "e", "seal": "s"}
    assert found.steps == [step(t) for t in range(3)]
    assert found.end == step(3, terminated=True, truncated=False)
    again.drop("e")
    assert (again.waiting, again.num_bytes, list(tmp_path.glob("*.episode"))) == ((), 0, [])
    again.close()


def test_a_torn_write_loses_the_step_that_was_being_written_and_no_other(tmp_path: Path) -> None:
    path = filled(tmp_path / "whole")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:size])
        spool = Spool(directory, ROOM)
        num_steps = sum(end <= size for end in ends) - 1  # the first line is the head
        if num_steps < 1:
            assert spool.waiting == ()
            assert not list(directory.glob("*.episode"))
        else:
            found = spool.read("e")
            assert found.steps == [step(t) for t in range(num_steps)]
            assert found.end is None
        spool.close()


@given(at=st.integers(0, 10_000), to=st.integers(0, 255))
def test_a_damaged_byte_ends_the_file_where_it_stands(
    tmp_path_factory: pytest.TempPathFactory, at: int, to: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    path = filled(directory, 6)
    content = bytearray(path.read_bytes())
    at %= len(content)
    is_same = content[at] == to
    content[at] = to
    path.write_bytes(content)
    num_whole = content[:at].count(b"\n")
    spool = Spool(directory, ROOM)
    if is_same:
        assert spool.read("e").end is not None
    elif num_whole < 2:
        assert spool.waiting == ()
    else:
        assert spool.read("e").steps == [step(t) for t in range(num_whole - 1)]
    spool.close()


def test_of_two_lines_for_one_step_the_later_one_counts(spool: Spool) -> None:
    spool.begin("e")
    for row in (step(0), step(1, action=0), step(1, action=1), step(2, terminated=True), step(2, terminated=False)):
        spool.add("e", row)
    found = spool.read("e")
    assert [row["action"] for row in found.steps] == [0, 1]
    assert found.end == step(2, terminated=False)


def test_a_full_spool_lets_no_episode_begin_and_lets_running_ones_go_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 8_000)
    spool.begin("e")
    t = 0
    while spool.num_bytes <= 7_000:
        spool.add("e", step(t))
        t += 1
    with pytest.raises(FullError, match=r"holds 7,[01]\d\d of at most 8,000 bytes, 1 episodes .* No episode begins"):
        spool.begin("f")
    spool.add("e", step(t))
    with pytest.raises(FullError, match="Nothing was kept; the same call may be made again"):
        for _ in range(100):
            t += 1
            spool.add("e", step(t))
    assert spool.num_bytes <= 8_000
    assert len(spool.read("e").steps) == t
    spool.drop("e")
    spool.begin("f")
    spool.close()


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    spool.begin("e")
    spool.add("e", step(0))
    monkeypatch.setattr(module, "_AHEAD", 0)
    monkeypatch.setattr(os, "pwrite", lambda file, zeros, at: write(file, zeros[:20], at))
    num_steps = 1
    with pytest.raises(FullError, match=r"takes nothing \(20 of"):
        for _ in range(1_000):
            spool.add("e", step(num_steps))
            num_steps += 1
    assert num_steps > 1
    assert spool.read("e").steps == [step(t) for t in range(num_steps)]
    monkeypatch.undo()
    spool.add("e", step(num_steps))
    spool.add("e", step(num_steps + 1))
    assert spool.read("e").steps == [step(t) for t in range(num_steps + 2)]


def test_a_program_that_is_killed_loses_no_step(tmp_path: Path) -> None:
    if not (child := os.fork()):
        spool = Spool(tmp_path, ROOM)
        spool.begin("e")
        for t in range(500):
            spool.add("e", step(t))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    spool = Spool(tmp_path, ROOM)
    assert spool.waiting == ("e",)
    assert spool.read("e").steps == [step(t) for t in range(500)]
    spool.close()


def test_more_episodes_than_open_files_are_kept(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPEN_FILES", 3)
    for t in range(3):
        for name in "abcdefgh":
            if t == 0:
                spool.begin(name)
            spool.add(name, step(t))
    assert len(spool._files) == 3
    assert all(spool.read(name).steps == [step(t) for t in range(3)] for name in "abcdefgh")


def test_one_program_has_it_at_a_time(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in use by another program: give each"):
        Spool(tmp_path / "spool", ROOM)
    spool.close()
    Spool(tmp_path / "spool", ROOM).close()
    with pytest.raises(UsageError, match="closed"):
        spool.begin("e")


def test_ids_are_unique_and_may_be_anything(spool: Spool) -> None:
    name = "../ä/" + "x" * 120
    spool.begin(name)
    with pytest.raises(UsageError, match="in the spool already"):
        spool.begin(name)
    spool.add(name, step(0))
    assert spool.read(name).head["episode"] == name


def test_a_refused_episode_stays_for_people(spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool.begin("e")
    spool.add("e", step(0))
    spool.leave("e")
    size = spool.num_bytes
    spool.refuse("e", "It is another run's.")
    assert (spool.waiting, spool.num_bytes) == ((), size)
    assert "It is another run's." in caplog.text
    spool.close()
    again = Spool(tmp_path / "spool", ROOM)
    assert (again.waiting, again.num_bytes) == ((), size)
    again.close()


def test_the_sentence_names_what_was_refused_and_room_is_back_when_it_is_deleted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 2_000)
    for name in "abc":
        spool.begin(name)
        for t in range(8):
            spool.add(name, step(t))
        spool.leave(name)
        spool.refuse(name, "It is another run's.")
    with pytest.raises(FullError, match=r"0 episodes .* and 3 refused ones \(\*\.refused\): look at them and delete"):
        spool.begin("d")
    for path in tmp_path.glob("*.refused"):
        path.unlink()
    spool.begin("d")
    spool.close()


def test_a_disk_that_takes_no_new_file_is_said_and_the_same_call_goes_on(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, *_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool.begin("open")
    with monkeypatch.context() as disk:
        disk.setattr(os, "open", full)
        with pytest.raises(FullError, match=r"takes nothing .*No space left"):
            spool.begin("e")
        with pytest.raises(FullError, match=r"takes nothing .*No space left"):
            spool.sync("open")
    spool.begin("e")
    spool.add("e", step(0))
    spool.sync("e")
    assert [row["episode"] for row in spool.begun()] == ["open", "e"]


@pytest.mark.parametrize("spoil", ["gone", "no numbers", "a step lacks", "no permission"])
def test_a_file_that_can_not_be_read_is_named_and_put_aside(spool: Spool, tmp_path: Path, spoil: str) -> None:
    spool.begin("e")
    for t in (0, 2) if spoil == "a step lacks" else (0, 1):
        spool.add("e", step(t))
    spool.leave("e")
    path = spool._path("e")
    if spoil == "gone":
        path.unlink()
    elif spoil == "no numbers":
        path.write_bytes(b"")
    elif spoil == "no permission":
        path.unlink()
        path.mkdir()  # root may read anything else
    if spoil != "no permission":
        with pytest.raises(DamagedError, match=r"\.episode can't be read"):
            spool.read("e")
        spool.refuse("e", "It can't be read.")
        assert (spool.waiting, len(list((tmp_path / "spool").glob("*.refused")))) == ((), int(spoil != "gone"))
    else:
        with pytest.raises(DamagedError, match="IsADirectory"):
            spool.read("e")


def test_a_directory_with_a_strange_file_opens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    text = b'{"no": "head"}'
    strange = tmp_path / "strange.episode"
    strange.write_bytes(2 * (b"%08x %b\n" % (zlib.crc32(text), text)))
    spool = Spool(tmp_path, ROOM)
    assert spool.waiting == ("e",) and path.exists() and strange.with_suffix(".refused").exists()
    assert "can't be read" in caplog.text
    spool.close()


def test_a_forked_process_neither_begins_nor_adds_nor_forgets(spool: Spool) -> None:
    spool.begin("e")
    spool.add("e", step(0))
    read, write = os.pipe()
    if not (child := os.fork()):
        said = []
        for call in (lambda: spool.begin("f"), lambda: spool.add("e", step(1))):
            try:
                call()
            except UsageError as error:
                said.append(str(error))
        spool.leave("e")
        spool.drop("e")
        os.write(write, "|".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    sentence = "This client was made before a fork: make one in each process."
    assert os.read(read, 1000).decode() == f"{sentence}|{sentence}"
    os.close(read)
    spool.add("e", step(1))
    assert spool.read("e").steps == [step(0), step(1)] and spool.waiting == ()


def test_what_a_newer_version_wrote_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(module, "SCHEMA_VERSION", 2)
        path = filled(tmp_path)
    with pytest.raises(FlywheelError, match="format 2, and this version reads up to 1: update"):
        Spool(tmp_path, ROOM)
    assert path.exists()
