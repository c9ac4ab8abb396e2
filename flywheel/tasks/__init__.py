"""Built-in tasks, and finding a task by name.

In: a reference (`cartpole`, `module:attribute` of one's own, or `env:` and a Gymnasium id). Out: a Task, and the
reverse. Never: Ray, torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType

from flywheel.errors import UsageError, unknown
from flywheel.task import Task
from flywheel.tasks import cartpole, gym_env, lunarlander, pendulum

BUILT_IN: Mapping[str, Task] = {
    "cartpole": cartpole.cartpole,
    "cartpole_remembering": cartpole.cartpole_remembering,
    "pendulum": pendulum.pendulum,
    "lunarlander": lunarlander.lunarlander,
}
"""Tasks that come with Flywheel, by name."""


def load(reference: str) -> Task:
    """Return the Task called `reference`: a built-in name, `module:attribute`, or `env:` and a Gymnasium id.

    Raises UsageError naming the nearest known task when there is none.
    """
    if reference in BUILT_IN:
        return BUILT_IN[reference]
    if reference.startswith(gym_env.PREFIX):
        return gym_env.load(reference)
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise unknown("task", reference, [*BUILT_IN, "module:attribute"])
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


def reference(task: Task) -> str:
    """Return the string under which `load`, here or in another process, gives back this very Task.

    Raises UsageError when it is in no module that was imported: a script's own tasks are not.
    """
    for name, built_in in BUILT_IN.items():
        if built_in is task:
            return name
    if isinstance(task.failed, gym_env.Below):
        return gym_env.reference(task)
    defined_in = getattr(task.failed, "__module__", "")
    for name in [defined_in, *sys.modules]:
        module = None if name in ("__main__", "__mp_main__") else sys.modules.get(name)
        for attribute, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
            if value is task:
                return f"{name}:{attribute}"
    raise UsageError(
        f"Task {task.name!r} can't be imported, because no imported module holds it; simulated production runs in "
        "processes of its own and has to import it. Define it at the top level of a module and import it from there, "
        "or do without simulated production (traffic.num_clients=0)."
    )
