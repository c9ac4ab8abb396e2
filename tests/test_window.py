"""A window on a run directory: it sees what comes while it is open, and names a file that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from flywheel import archive, cli
from flywheel.config import Config
from flywheel.connection import Connection
from flywheel.deploy import registry as registries
from flywheel.errors import FlywheelError, UsageError
from flywheel.run import exit_code
from flywheel.store import intake
from flywheel.store.intake import Intake
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.trace import spanstore
from flywheel.trace.spanstore import SpanStore
from flywheel.window import Window
from tests.page.conftest import served
from tests.store.test_intake import episode


class Closing(Protocol):
    """What owns a file until it is closed."""

    def close(self) -> None:
        """Let go of it."""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run directory that nothing has happened in yet."""
    run_dir = tmp_path / "run"
    with archive.opened(run_dir, Config(task="cartpole"), "cartpole", task_digest(cartpole)):
        pass
    return run_dir


def test_what_is_opened_while_a_run_starts_sees_what_the_run_then_does(begun: Path) -> None:
    for name in (intake.FILE, registries.FILE):
        (begun / name).touch()
    with closing(Window(begun)) as window, Connection(begun) as connection:
        assert not window.tally() and not window.policies().artifacts and not window.scenarios()
        assert not connection.episodes()
        with pytest.raises(UsageError, match="no policy was ever added"):
            connection.scenarios()
        with Intake(begun) as store, closing(registries.Registry(begun, task_digest(cartpole))):
            store.append([episode(str(i)) for i in range(3)])
            assert [row["episodes"] for row in window.tally().values()] == [3]
            assert len(connection.episodes()) == 3 and connection.scenarios() == ()
            assert window.scenarios() == ()


@pytest.mark.parametrize("name", [archive.JOURNAL, archive.DRAFT, archive.LIVING, intake.FILE, registries.FILE])
def test_the_page_names_a_file_that_is_damaged(name: str, begun: Path) -> None:
    (begun / name).write_text('{"number": 2, "pl\n' * 100)
    with served(begun) as url:
        response = httpx.get(f"{url}api/v1/now", trust_env=False)
        named = httpx.get(f"{url}api/v1/now", headers={"Authorization": "Bearer x"}, trust_env=False)
    for answer in (response, named) if name == registries.FILE else (response,):
        assert answer.status_code == 409
        assert f"{begun / name} is damaged" in answer.json()["error"] and "put a copy" in answer.json()["error"]


@pytest.mark.parametrize("name", [archive.CONFIG, intake.FILE, registries.FILE])
def test_so_do_commands(name: str, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (begun / name).write_text('{"number": 2, "pl\n' * 100)
    assert exit_code(lambda: cli.call(["episodes", f"--run-dir={begun}"])) == 1
    assert f"{begun / name} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        (intake.FILE, Intake),
        (registries.FILE, lambda run_dir: registries.Registry(run_dir, task_digest(cartpole))),
        (spanstore.FILE, lambda run_dir: SpanStore(run_dir, 10)),
    ],
)
def test_so_do_owners_and_let_go_of_it(name: str, owner: Callable[[Path], Closing], begun: Path) -> None:
    (begun / name).write_text("no database\n" * 100)
    with pytest.raises(FlywheelError, match=f"{name} is damaged"):
        owner(begun)
    (begun / name).unlink()
    with closing(owner(begun)):
        pass


def test_a_setting_that_none_can_be_is_damage_too(begun: Path) -> None:
    text = (begun / archive.CONFIG).read_text()
    (begun / archive.CONFIG).write_text(text.replace('"turns": 4', '"turns": "many"'))
    with pytest.raises(FlywheelError, match=r"config\.json is damaged \(Expected `int`, got `str`"):
        Window(begun)
