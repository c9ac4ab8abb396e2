"""A window on a run directory: it sees what comes while it is open, and names a file that is damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from flywheel import archive
from flywheel.config import Config
from flywheel.connection import Connection
from flywheel.deploy import registry as registries
from flywheel.errors import UsageError
from flywheel.store import intake
from flywheel.store.intake import Intake
from flywheel.task import task_digest
from flywheel.tasks.cartpole import cartpole
from flywheel.window import Window
from tests.store.test_intake import episode


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
