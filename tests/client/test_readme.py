"""What the README shows of the client works as shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.records import Artifact
from tests.client.conftest import Server
from tests.deploy.conftest import Links, World

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "flywheel.client" in text]


@pytest.mark.parametrize("word", ["import Client", "import AsyncClient", "import Local"])
def test_a_block_plays_an_episode(
    artifact: Artifact, links: Links, server: Server, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    word: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (text,) = [text for text in BLOCKS if word in text]
    given: dict[str, Any] = {"token": world.token, "observation": np.zeros(4), "last_observation": np.ones(4)}
    exec(compile(text.replace("http://127.0.0.1:8000", server.url), "README.md", "exec"), given)
    if word == "import Local":
        with given["Local"](server.url, world.token, "robot-7") as again:
            again.flush()
        assert "/v1/episodes" in server.network.asked
    else:
        assert len(links.ends) == 1
    assert capsys.readouterr().out == ("1\n" if "Async" in word else "")


def test_no_block_of_the_client_is_left_out() -> None:
    assert len(BLOCKS) == 3
