"""Peers of experiments: an environment is made once, and answers come line by line, whatever a script prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import peers

SCRIPT = """
import sys
from answering import answer
def double(number):
    print("noise")
    return {"number": 2 * number, "threads": __import__("os").environ["OMP_NUM_THREADS"], "mine": sys.executable}
answer(double=double, end=lambda: sys.exit(3))
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(peers, "HOME", tmp_path)
    monkeypatch.setitem(peers.NEEDS, "mine", ("nothing==1", "more==2"))
    return tmp_path


def test_a_script_answers_in_its_environment_until_it_ends(home: Path) -> None:
    (home / "mine" / "bin").mkdir(parents=True)
    (home / "mine" / "bin" / "python").symlink_to(sys.executable)
    (home / "mine" / "installed").write_text("nothing==1\nmore==2")
    shutil.copy(peers.HERE / "answering.py", home)
    (home / "script.py").write_text(SCRIPT)
    with peers.Peer("mine", str(home / "script.py")) as peer:
        answer = peer.ask(do="double", number=21)
        assert answer["number"] == 42 and answer["threads"] == "1"
        assert Path(answer["mine"]) == home / "mine" / "bin" / "python"
        assert peer.ask(do="double", number=1)["number"] == 2
        with pytest.raises(RuntimeError, match="ended with 3 instead of an answer"):
            peer.ask(do="end")


def test_an_environment_is_made_when_it_is_not_there_or_holds_something_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        (home / "mine").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    python = peers.python_of("mine")
    assert python == home / "mine" / "bin" / "python"
    assert [command[-2:] for command in called] == [["--clear", str(home / "mine")], ["nothing==1", "more==2"]]
    assert peers.python_of("mine") == python and len(called) == 2
    monkeypatch.setitem(peers.NEEDS, "mine", ("nothing==2",))
    peers.python_of("mine")
    assert len(called) == 4


def test_where_pip_fails_one_sentence_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "trying\nERROR: no route to host\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"nothing==1 could not be installed into .*no route to host.*run this"):
        peers.python_of("mine")
    assert not (home / "mine" / "installed").exists()
