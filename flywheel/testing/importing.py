"""Whether other processes can import a task: simulated production's clients do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from flywheel.task import Task, task_digest

_CODE = "import importlib, sys; from flywheel.task import task_digest as d; m, a = sys.argv[1:]; "
_CODE += "print(d(getattr(importlib.import_module(m), a)))"


def importable(task: Task, findings: list[str]) -> list[str]:
    """Import the task in a process of its own, and compare digests."""
    if type(task.failed).__module__ == "flywheel.tasks.gym_env":  # its reference holds all of it
        pickle.loads(pickle.dumps(task))
        return ["the task pickled"]
    found = _place(task)
    if found is None:
        findings.append(
            "No imported module holds this task as an attribute, so other processes can't import it: define it at the "
            "top level of a module (task = flywheel.Task(...)) and import it from there."
        )
        return []
    module, attribute = found
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE, module, attribute], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        findings.append(f"Another process can't import {module}:{attribute} ({words}): put the module right.")
    elif done.stdout.split()[-1:] != [task_digest(task)]:
        findings.append(
            f"{module}:{attribute} has another digest in another process: let nothing in the Task depend on when or "
            "where the module is imported."
        )
    return [f"import of {module}:{attribute} in another process"]


def _place(task: Task) -> tuple[str, str] | None:
    """Return the module and the attribute that hold a task; a script is named as it would be imported."""
    for name in [getattr(task.failed, "__module__", ""), *sorted(sys.modules)]:
        module = sys.modules.get(name)
        for attribute, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
            if value is task:
                script = getattr(module, "__file__", None)
                if name not in ("__main__", "__mp_main__"):
                    return name, attribute
                if script is not None:
                    return Path(script).stem, attribute
    return None
