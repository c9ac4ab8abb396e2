"""Built-in tasks, and finding a task by name.

In: a reference (`cartpole`, or `module:attribute` of one's own). Out: a Task. Never: Ray, torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from flywheel.errors import UsageError, unknown
from flywheel.task import Task
from flywheel.tasks import cartpole

BUILT_IN: Mapping[str, Task] = {"cartpole": cartpole.cartpole}
"""Tasks that come with Flywheel, by name."""


def load(reference: str) -> Task:
    """Return the Task called `reference`: a built-in name, or `module:attribute`.

    Raises UsageError naming the nearest known task when there is none.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon:
        if reference not in BUILT_IN:
            raise unknown("task", reference, [*BUILT_IN, "module:attribute"])
        return BUILT_IN[reference]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"Task {reference!r} can't be loaded because importing {module_name!r} failed ({error}): run from the "
            "directory that holds the module, or install it."
        ) from error
    tasks = {name: value for name, value in vars(module).items() if isinstance(value, Task)}
    if attribute not in tasks:
        raise unknown(f"task in {module_name}:", attribute, tasks)
    return tasks[attribute]
