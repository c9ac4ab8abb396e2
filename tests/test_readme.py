"""The README tells the truth: its Python runs, its commands and files exist."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tyro

from experiments.wheel import markdown
from flywheel import cli, connect, foreign
from flywheel.config import DeployConfig
from flywheel.deploy.door import Door
from flywheel.deploy.service import Service
from flywheel.draws import draws
from flywheel.gate import SafetyGate
from flywheel.policy import Bundle
from flywheel.policy import load as load_policy
from flywheel.task import spec_of, task_digest
from flywheel.tasks import load
from flywheel.testing import GOOD, SHORT_POLE, linear_policy, load_linear
from tests.deploy.conftest import NOW, Links, World
from tests.deploy.listening import listening
from tests.page.conftest import operate_token, served
from tests.runs import make_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block(word: str) -> str:
    """Return the one Python block that has this word in it."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_the_task_of_ones_own_can_be_loaded_judged_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_task.py").write_text(block("my_task.py"))
    monkeypatch.syspath_prepend(tmp_path)
    task = load("my_task:task")
    assert len(task_digest(task)) == 64
    probe = SafetyGate(task).probe(load_linear(task), seed=1, episodes=5)
    assert probe.num_failed == 0
    assert probe.edge_failed == ()
    sys.modules.pop("my_task")


def run(word: str) -> None:
    exec(compile(block(word), "README.md", "exec"), {})


def test_the_gate_works_alone_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.onnx").write_bytes(linear_policy(spec_of(load("cartpole")), GOOD)[0])
    monkeypatch.setattr(
        "flywheel.gate.checks.time_decisions", lambda *_, **__: np.full((1, 20), 1e-4)
    )  # the machine may be busy
    run('judge("policy.onnx")')
    assert capsys.readouterr().out.startswith("pass [")


def test_the_suite_grows_alone_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    task, tilted = load("cartpole"), np.array([[0.0, 0.0, 0.2, 0.5], [0.0, 0.0, 0.22, 0.6]], np.float32)
    for name, gains in (("policy.onnx", SHORT_POLE), ("next.onnx", GOOD)):
        (tmp_path / name).write_bytes(linear_policy(spec_of(task), gains)[0])
    given = {"SafetyGate": SafetyGate, "task": task, "episodes": [task.episode(tilted, [0], id="ab12cd34")]}
    exec(compile(block("SafetyGate(task).grow"), "README.md", "exec"), given)
    assert capsys.readouterr().out == "[('failure-ab12cd34', ('ab12cd34', 0))]\n"
    assert any(check.name == "scenarios" for check in given["verdict"].checks)  # type: ignore[attr-defined]


def test_the_observer_works_alone_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    run("Observer(task)")
    assert re.fullmatch(r"(degradation (failed|loss) after \d+ episodes\n)+", capsys.readouterr().out)


def test_the_store_works_alone_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("ReplayStore(")
    answers, read = capsys.readouterr().out.splitlines()
    assert answers.endswith(": 'stored'}") and read == "1 2.0 (3, 4)"


def test_time_travel_works_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "mine")
    run('connect("runs/mine")')
    told = capsys.readouterr().out
    assert "step" in told and "95 %" in told
    assert (tmp_path / "fork.png").stat().st_size > 10_000


def test_so_it_does_by_the_address_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the page starts a command that loads the task, which is in tests
    make_run(tmp_path / "mine")
    with served(tmp_path / "mine") as url:
        text = block('connect("http').replace("http://127.0.0.1:8700", url)
        exec(compile(text, "README.md", "exec"), {"token": operate_token(tmp_path / "mine")})
    assert "95 %" in capsys.readouterr().out
    assert (tmp_path / "fork.png").stat().st_size > 10_000
    assert [scenario.name for scenario in connect(tmp_path / "mine").scenarios()] == ["long-pole"]


def test_its_requests_are_answered_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path / "runs" / "mine")
    world.served(1.0)
    artifact = world.served(2.0, NOW + 1)
    links = Links(world.registry)
    with (
        closing(world.registry),
        closing(links.store) as store,
        listening(Door(Service(DeployConfig(flush_s=0.001), links, links, lambda: NOW + 2))) as url,
    ):
        (tmp_path / "episodes.json").write_text(json.dumps({"episodes": [_acted(url, world)]}))
        (text,) = re.findall(r"```sh\n(URL=.*?)```", README, flags=re.DOTALL)
        shown = [json.loads(line[2:]) for line in text.splitlines() if re.match(r"# *{", line)]
        commands = re.sub(r"^URL=\S+", f"URL={url}", text)
        commands = re.sub(r"\nDIGEST=\S+", f"\nDIGEST={artifact.digest}", commands)
        assert text.count("\ncurl ") == len(shown)
        script = commands.replace("\ncurl ", "\necho; curl --fail ")
        done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
        for said, found in zip(shown, done.stdout.strip().splitlines(), strict=True):
            _check_like(said, json.loads(found))
        assert world.registry.champion() != artifact.digest and store.count() == 1


def _acted(url: str, world: World) -> dict[str, Any]:
    """Return an episode of one step that was acted under a lease, as a client would that has nothing but the API."""
    shown = {"authorization": f"Bearer {world.token}"}
    told = httpx.get(f"{url}/v1/policies/@champion", headers=shown).json()
    files = {name: base64.b64decode(data) for name, data in told["files"].items()}
    policy = load_policy(Bundle(world.registry.artifact(told["artifact"]["digest"]), files))
    (lease,) = httpx.post(f"{url}/v1/leases", json={"num": 1}, headers=shown).json()["leases"]
    actions, _ = policy.act(np.zeros((1, 4), np.float32), draws([lease.pop("draw_key")], [0], policy.spec.num_draws))
    return {
        **lease, "started_at": NOW, "ended_at": NOW, "observations": [[0.0] * 4] * 2, "raw_actions": actions.tolist(),
        "rewards": [1.0], "terminated": True, "truncated": False,
    }  # fmt: skip


def _check_like(said: Any, found: Any) -> None:
    """Raise unless an answer has the fields that are shown, of the same kinds; {} and a text that ends in … are cut."""
    if isinstance(said, dict) and said:
        assert said.keys() == found.keys()
        for name, value in said.items():
            _check_like(value, found[name])
    elif isinstance(said, list) and isinstance(found, list) and said and found:
        _check_like(said[0], found[0])
    elif isinstance(said, int | float) and not isinstance(said, bool):
        assert isinstance(found, int | float)
    else:
        assert type(said) is type(found)


def test_its_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^flywheel (.*)$", README, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        name, words = cli.find(line.split())
        with pytest.raises(SystemExit):
            tyro.cli(cli.COMMANDS[name], args=[*words, "--help"])
        told = capsys.readouterr().out
        assert all(word in told for word in words if word.startswith("--")), line


def test_its_spec_is_one() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    assert foreign.change(spec_of(load("cartpole")), json.loads(text)).rule.greedy


def test_what_it_names_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for room in re.findall(r"^\| `(\w+)/`", README, flags=re.MULTILINE):
        assert (ROOT / "flywheel" / room / "__init__.py").exists(), room
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target


def test_its_numbers_are_those_of_the_experiment() -> None:
    for name in ("wheel", "tasks"):
        assert markdown(json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())) in README


def test_nothing_was_left_to_be_filled_in() -> None:
    assert not re.search(r"RUN_OUTPUT|RESULTS_TABLE|TODO", README)
