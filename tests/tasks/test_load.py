"""Tasks are found by name, and a wrong name gets a suggestion."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from flywheel.errors import UsageError
from flywheel.tasks import BUILT_IN, load, reference
from flywheel.tasks.cartpole import cartpole


def test_built_in_and_own_tasks_are_found() -> None:
    assert load("cartpole") is cartpole is BUILT_IN["cartpole"]
    assert load("flywheel.tasks.cartpole:cartpole") is cartpole


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cartpol", "Did you mean 'cartpole'"),
        ("no_such_module:task", "importing 'no_such_module' failed"),
        ("flywheel.tasks.cartpole:cartpol", "Did you mean 'cartpole'"),
        (":x", "There is no task ':x'"),
        ("flywheel.tasks.cartpole:", "There is no task 'flywheel.tasks.cartpole:'"),
        (".cartpole:cartpole", "There is no task '.cartpole:cartpole'"),
        ("", "There is no task ''"),
        ("flywheel.tasks.cartpole:NUM_STEPS", "There is no task in flywheel.tasks.cartpole"),
    ],
)
def test_wrong_names_get_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(name)


OWN = """
import dataclasses
from flywheel.tasks.cartpole import cartpole

def failed(episode): return False

own = dataclasses.replace(cartpole, name="own", failed=failed)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an imported module that holds a task `own`."""
    name = "module_with_a_task"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    return name


def test_a_task_is_traced_back_to_where_load_finds_it(own_module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference(cartpole) == "cartpole"
    own = load(f"{own_module}:own")
    monkeypatch.setattr(sys.modules["__main__"], "own", own, raising=False)
    assert reference(own) == f"{own_module}:own"
    assert load(reference(own)) is own
    other = dataclasses.replace(own, name="other", failed=cartpole.failed)
    monkeypatch.setattr(sys.modules[own_module], "other", other, raising=False)
    assert reference(other) == f"{own_module}:other", "also where `failed` is from another module"


def test_an_equal_task_or_one_of_the_script_alone_is_none_that_can_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = dataclasses.replace(cartpole)
    monkeypatch.setattr(sys.modules["__main__"], "alone", alone, raising=False)
    with pytest.raises(UsageError, match=r"'cartpole' can't be imported.*traffic.num_clients=0"):
        reference(alone)
