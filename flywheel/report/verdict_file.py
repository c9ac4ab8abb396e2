"""A verdict as two files, for programs and for people, that stand or fall as a whole."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import msgspec

from flywheel import verdicts
from flywheel.config import canonical
from flywheel.errors import FlywheelError, UsageError
from flywheel.records import SCHEMA_VERSION, Verdict
from flywheel.report.context import Context
from flywheel.report.verdict import page


def name_of(verdict: Verdict) -> str:
    """Return the name of a verdict's files, without what says their kind."""
    return f"verdict-{verdict.digest[:8]}-{verdict.seed}"


def encode(verdict: Verdict, task: str) -> str:
    """Return a verdict as it is signed, with the version of its form and its task's name."""
    plain = json.loads(verdicts.encode(verdict))
    return canonical({"schema_version": SCHEMA_VERSION, "task_name": task, **plain})


def decode(text: str) -> Verdict:
    """Return the verdict of such a text; raises ValueError (msgspec.ValidationError) where it is none."""
    plain = json.loads(text)
    if not isinstance(plain, dict) or plain.get("schema_version", 0) > SCHEMA_VERSION:
        raise ValueError(f"it is no verdict of schema version {SCHEMA_VERSION} or older")
    return msgspec.convert(plain, Verdict)


def read(path: Path) -> Verdict:
    """Return the verdict of a file; raises FlywheelError where it is damaged."""
    try:
        return decode(path.read_text("utf-8"))
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise FlywheelError(f"{path} is no verdict that can be read ({error}): delete it, and judge again.") from error


def room(directory: Path) -> Path:
    """Return a directory, made where it is missing; UsageError where nothing can be written into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        raise UsageError(f"Nothing can be written to {directory} ({error}): give another --out.") from error


def write(directory: Path, verdict: Verdict, context: Context) -> tuple[Path, Path]:
    """Write a verdict's JSON and its page into a directory, each as a whole; return their paths."""
    paths = (directory / f"{name_of(verdict)}.json", directory / f"{name_of(verdict)}.html")
    told = dataclasses.replace(context, source=paths[0].name)
    for path, text in zip(paths, (encode(verdict, context.task.name) + "\n", page(verdict, told)), strict=True):
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    return paths
