"""Whether the plain values of a task fit each other: its settings, its drift, its edge cases."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel.config import Config
from flywheel.errors import UsageError
from flywheel.layers import layered, of_task
from flywheel.preflight import check
from flywheel.replaying import OWN
from flywheel.task import Task


def own_config(task: Task, findings: list[str]) -> Config:
    """Return the configuration with the task's own settings, the defaults where those can't work."""
    try:
        for algorithm in OWN:
            layered(of_task(task.name, task.settings, algorithm))
        check(config := layered(of_task(task.name, task.settings)))
    except UsageError as error:
        findings.append(f"Task(settings=...) is wrong. {error}")
        return Config()
    return config


def check_drift(task: Task, findings: list[str]) -> list[str]:
    """Look whether production's changed world is another one, and one that calibration can find."""
    for name, nominal in task.nominal.items():
        if task.drift.get(name) == nominal:
            findings.append(
                f"The drift sets {name} to {nominal:g}, its nominal value, which changes nothing: give another value, "
                "or leave it out."
            )
    _look(task, "drift", task.drift, "where calibration looks for it", findings)
    return ["what drift changes"] if task.drift else []


def of_two_worlds(task: Task) -> list[str]:
    """Return what to think about: edge cases that keep a world which the drift leaves."""
    return [
        f"edge case {case.name} keeps {name} at {value:g} and the drift sets it to {task.drift[name]:g}: from then on "
        "a policy has to master both"
        for case in task.edge_cases
        for name, value in case.parameters.items()
        if name in task.drift and value != task.drift[name]
    ]


def check_edge_cases(task: Task, findings: list[str]) -> list[str]:
    """Look whether each edge case says what is special, and keeps to the parameters' ranges."""
    for case in task.edge_cases:
        what = f"edge case {case.name}"
        if case.state is None and not case.parameters:
            findings.append(f"The {what} has neither parameters nor a state: say what is special about it.")
        _look(task, what, case.parameters, "in which the simulator holds", findings)
    return []


def _look(task: Task, what: str, values: Mapping[str, float], meaning: str, findings: list[str]) -> None:
    """Note the values that are outside their parameter's range."""
    for parameter in task.parameters:
        value = values.get(parameter.name, parameter.low)
        if not parameter.low <= value <= parameter.high:  # nor does NaN lie in it
            findings.append(
                f"The {what} sets {parameter.name} to {value:g}, outside its range {parameter.low:g} to "
                f"{parameter.high:g} ({meaning}): widen the Parameter's range, or give a value inside it."
            )
