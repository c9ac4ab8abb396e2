"""The shape of the house: what may be imported where, how long a file may be, what nothing may be called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "flywheel").rglob("*.py"))
FORBIDDEN = {"utils", "common", "helpers", "base", "core", "manager", "misc"}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_import_rule_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import flywheel; flywheel.Task, flywheel.Config",
        "import flywheel.client",
        "import flywheel.policy, flywheel.draws",
        "import flywheel.tasks.traffic",
        "import flywheel.gate.judge, flywheel.observe.observer, flywheel.store.intake, flywheel.analyze.strategy",
        "import flywheel.run",
        "import flywheel.cli, flywheel.owner, flywheel.foreign",
        "import flywheel.watch, flywheel.window, flywheel.page.app",
        "import flywheel; flywheel.connect",
    ],
)
def test_importing_loads_no_ray_and_no_torch(statement: str) -> None:
    assert not loaded_by(statement) & {"ray", "torch"}


def test_no_room_is_a_junk_drawer() -> None:
    assert not [path for path in FILES if path.stem in FORBIDDEN]


def test_files_and_functions_are_short() -> None:
    long = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 50:
                    long.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert not long


def test_the_loop_is_on_one_page() -> None:
    assert len((ROOT / "flywheel" / "loop.py").read_text().splitlines()) <= 80


def test_every_config_field_says_its_unit_and_why() -> None:
    trees = [ast.parse((ROOT / "flywheel" / name).read_text()) for name in ("config.py", "replaying.py")]
    bare = []
    for node in [n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef) and n.name != "Config"]:
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                bare.append(f"{node.name}.{ast.unparse(field.target)}")
    assert not bare


def test_the_changelog_speaks_of_this_version() -> None:
    import flywheel

    assert f"## {flywheel.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{flywheel.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_public_names_resolve() -> None:
    import flywheel

    assert [name for name in flywheel.__all__ if getattr(flywheel, name) is None] == []
    with pytest.raises(AttributeError, match="it has"):
        _ = flywheel.Fliwheel
