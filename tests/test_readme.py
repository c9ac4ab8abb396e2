"""The README tells the truth: its Python runs, its commands and files exist."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from experiments.wheel import markdown
from flywheel.gate import SafetyGate
from flywheel.task import task_digest
from flywheel.tasks import load
from flywheel.testing import load_linear

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block(word: str) -> str:
    """Return the one Python block that has this word in it."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_the_task_of_ones_own_can_be_loaded_judged_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_task.py").write_text(block("my_task.py"))
    monkeypatch.syspath_prepend(tmp_path)
    task = load("my_task:task")
    assert len(task_digest(task)) == 64
    probe = SafetyGate(task).probe(load_linear(task), seed=1, episodes=5)
    assert probe.num_failed == 0
    assert probe.edge_failed == ()
    sys.modules.pop("my_task")


def test_the_gate_works_alone_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("SafetyGate"), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("pass [")


def test_what_it_names_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for room in re.findall(r"^\| `(\w+)/`", README, flags=re.MULTILINE):
        assert (ROOT / "flywheel" / room / "__init__.py").exists(), room
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target


def test_its_numbers_are_those_of_the_experiment() -> None:
    report = json.loads((ROOT / "experiments" / "results" / "wheel.json").read_text())
    assert markdown(report) in README


def test_nothing_was_left_to_be_filled_in() -> None:
    assert not re.search(r"RUN_OUTPUT|RESULTS_TABLE|TODO", README)
