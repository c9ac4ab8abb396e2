"""Turn the wheel: `python -m flywheel.run`, or `for turn in Flywheel(task)`.

Importing this module loads no Ray; the first turn does.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from flywheel import __version__, interrupt, told
from flywheel.config import Config
from flywheel.console import Narrator, Say, folded, silent
from flywheel.errors import FlywheelError, UsageError
from flywheel.layers import layered, named_values, of_task, words_from
from flywheel.preflight import check
from flywheel.records import Turn
from flywheel.task import Task

SETTINGS = Path("flywheel.toml")
TITLE = f"Flywheel {__version__}: train, gate, serve, observe, analyze, and again."


def _mapping(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Let the command line give a mapping as NAME=VALUE, as often as there are names."""
    if info.type != Mapping[str, Any]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE",
        instance_from_str=named_values,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=words_from,
    )


_REGISTRY = tyro.constructors.ConstructorRegistry()
_REGISTRY.primitive_rule(_mapping)


class Flywheel:
    """The whole loop for one task, as an iterator of turns.

    >>> for turn in Flywheel("cartpole"):          # doctest: +SKIP
    ...     print(turn.plan.strategy, turn.verdict and turn.verdict.outcome)
    """

    def __init__(self, task: Task | str = "", config: Config | None = None, say: Say = silent) -> None:
        """Take a task (or its name) and a configuration; nothing starts before the first turn is asked for.

        Without a configuration the task's own settings count; a given one is taken as it is.
        Raises UsageError for an unknown task or a configuration that can't work.
        """
        from flywheel.tasks import gym_env, load, reference

        self.about_failing = ""
        if config is not None and config.env and not task:
            task, self.about_failing = gym_env.chosen(config)
        self.task = task if isinstance(task, Task) else load(task or (config or Config()).task)
        config = config or layered(of_task(self.task.name, self.task.settings))
        check(config)
        if isinstance(task, Task):
            # clients are processes of their own and import the task by its name
            name = reference(task) if config.traffic.num_clients else task.name
        else:
            name = task or config.task
        self.config = dataclasses.replace(
            config,
            task=name,
            run_dir=config.run_dir or f"runs/{self.task.name}-{time.strftime('%Y%m%d-%H%M%S')}",
            seed=config.seed or secrets.randbelow(2**31 - 1) + 1,
        )
        self.run_dir = Path(self.config.run_dir).resolve()
        self._say = say

    def __iter__(self) -> Iterator[Turn]:
        """Start everything, yield each turn as it ends, stop everything; the same run directory goes on."""
        from flywheel import stages
        from flywheel.loop import turns

        with stages.opened(self.task, self.config, self.run_dir, self._say) as over_rooms:
            yield from turns(over_rooms, over_rooms.numbers(), self.config.forever)


def settings(path: Path = SETTINGS, words: Sequence[str] = (), kept: Config | None = None) -> Config:
    """Return the defaults of the command line: flywheel.toml's over the task's own over the dataclasses'.

    Task and algorithm are the ones that the command line `words` name, else the file's. `kept` takes the place of the
    task's settings: the configuration that a run directory had so far. Raises UsageError with the nearest name for a
    task or a setting that doesn't exist, and for a value of the wrong type.
    """
    data: dict[str, Any] = {}
    if path.exists():
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}.") from error
    from_file = layered({str(path): data})
    if kept is not None:
        return layered({"the run directory": dataclasses.asdict(kept), str(path): data})
    from flywheel.tasks import load

    task = load(_given(words, "--task") or from_file.task)
    algorithm = _given(words, "--train.algorithm") or data.get("train", {}).get("algorithm", "")
    return layered({**of_task(task.name, task.settings, algorithm), str(path): data})


def _given(words: Sequence[str], option: str) -> str:
    """Return the value of an option that decides the defaults of others; "" without one."""
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def words_of(config: Config) -> list[str]:
    """Return the options by which the command line makes this configuration of the defaults that it has here.

    What `--env` and its options came to is in the task's name.
    """
    config = dataclasses.replace(config, env="", env_failed_below=None, env_max_failure_rate=None)
    words = ["--task", config.task]
    usual, default = settings(words=words), settings(words=[*words, "--train.algorithm", config.train.algorithm])
    train = dataclasses.replace(default.train, algorithm=usual.train.algorithm)
    return list(_changed(config, dataclasses.replace(default, train=train), ""))


def _changed(part: Any, default: Any, where: str) -> Iterator[str]:
    for field in dataclasses.fields(part):
        value, usual = getattr(part, field.name), getattr(default, field.name)
        name = re.sub("_(?!$)", "-", field.name)  # as tyro spells it
        if dataclasses.is_dataclass(value):
            yield from _changed(value, usual, f"{where}{name}.")
        elif value == usual:
            continue
        elif isinstance(value, Mapping):
            yield from (f"--{where}{name}", *words_from(value))
        elif isinstance(value, bool):
            yield f"--{where}{name}" if value else f"--{where}no-{name}"
        else:
            yield from (f"--{where}{name}", *map(str, value if isinstance(value, tuple) else [value]))


def turn_the_wheel(config: Config, say: Narrator) -> int:
    """Run to the end, write the report, and return the exit code: 0, or 1 when production did not recover."""
    flywheel = Flywheel(config=config, say=say)
    say("start", f"task {flywheel.task.name}, run directory {_short(flywheel.run_dir)}, seed {flywheel.config.seed}")
    if flywheel.about_failing:
        say("start", flywheel.about_failing)
    if missing := told.losses(flywheel.task):
        say("start", f"the task goes without {missing}")
    stopped, failure = False, None
    try:
        for turn in flywheel:
            stopped = turn.evidence["stopped"]
    except KeyboardInterrupt:
        interrupt.handled()
        stopped = True
    except UsageError:
        raise
    except FlywheelError as error:  # told after the report: what was done until then can be looked at
        failure = error
    from flywheel import archive, report

    turns = archive.read_turns(flywheel.run_dir)
    if (flywheel.run_dir / archive.CONFIG).exists():
        summary = report.write(flywheel.run_dir)
        if turns:
            say.console.print(report.table(summary))
        else:
            say("done", "no turn was finished")
        say("done", f"{_short(flywheel.run_dir)}/report.png and summary.json")
    if failure is not None:
        raise failure
    if stopped and config.forever:
        return 0  # a stop is how it is meant to end
    if stopped:
        left = archive.to_come(turns, config)
        resolved = dataclasses.replace(flywheel.config, run_dir=_short(flywheel.run_dir), seed=config.seed)
        command = shlex.join(["python", "-m", "flywheel.run", *words_of(resolved)])
        say("done", f"stopped; go on at turn {left[0]} of {left[-1]} with: {command}")
        return 130
    if trouble := _trouble(turns):
        say("done", f"exit code 1: {trouble}")
        return 1
    return 0


def _trouble(turns: Sequence[Turn]) -> str:
    """Return what is not as it should be at the end of a run, "" when a policy serves and no change is left uncured."""
    if not any(turn.release for turn in turns):
        return "the gate has let no policy into service"
    if turns[-1].evidence["before"] is not None:
        return "the turns are over, and production is not as good as before the change"
    return ""


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def exit_code(call: Callable[[], int]) -> int:
    """Return what a command's call returned, or 2: wrong call, 1: failed (both said on stderr), 130: stopped.

    141, as shells have it, where whoever read the output has gone (`| head`).
    """
    interrupt.arm()
    try:
        code = call()
        sys.stdout.flush()
    except UsageError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        code = 2
    except FlywheelError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        interrupt.handled()
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain of it at its end
        code = 141
    return code


def main(words: Sequence[str] | None = None, prog: str = "python -m flywheel.run") -> None:
    """Read flywheel.toml and the command line, turn the wheel; exit 0: done, 2: wrong call, 1: failed, 130: stopped."""

    def call() -> int:
        given = sys.argv[1:] if words is None else words
        with folded(given):
            config = tyro.cli(
                Config, args=given, default=settings(words=given), prog=prog, description=TITLE, registry=_REGISTRY
            )
        with Narrator() as say:
            return turn_the_wheel(config, say)

    sys.exit(exit_code(call))


if __name__ == "__main__":
    main()
