"""Tasks are found by name, and a wrong name gets a suggestion."""

from __future__ import annotations

import pytest

from flywheel.errors import UsageError
from flywheel.tasks import BUILT_IN, load
from flywheel.tasks.cartpole import cartpole


def test_built_in_and_own_tasks_are_found() -> None:
    assert load("cartpole") is cartpole is BUILT_IN["cartpole"]
    assert load("flywheel.tasks.cartpole:cartpole") is cartpole


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("cartpol", "Did you mean 'cartpole'"),
        ("no_such_module:task", "importing 'no_such_module' failed"),
        ("flywheel.tasks.cartpole:cartpol", "Did you mean 'cartpole'"),
        ("flywheel.tasks.cartpole:NUM_STEPS", "There is no task in flywheel.tasks.cartpole"),
    ],
)
def test_wrong_names_get_a_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(reference)
