"""The `flywheel` command: what it prints, its exit codes, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flywheel import archive, cli
from flywheel.config import Config, DeployConfig, ObserveConfig
from flywheel.deploy.registry import open_readonly
from flywheel.errors import UsageError
from flywheel.policy import MANIFEST
from flywheel.task import spec_of, task_digest
from flywheel.testing import BAD, GOOD, linear_policy
from flywheel.tokens import find
from tests.test_owner import TASK

RELAXED = "tests.test_owner:TASK"
"""CartPole that may be slow: no verdict in these tests may depend on how busy the machine is."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good policy and a bad one."""
    monkeypatch.chdir(tmp_path)
    for name, gains in (("good", GOOD), ("bad", BAD)):
        (tmp_path / f"{name}.onnx").write_bytes(linear_policy(spec_of(TASK), gains)[0])
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Call the command as a shell does, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["flywheel", *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_names_every_command_and_imports_none_of_them() -> None:
    code = "import sys; sys.argv = ['flywheel', '--help']\nfrom flywheel import cli\ntry: cli.main()\n"
    code += "except SystemExit as ended: print(ended.code, [m for m in ('ray', 'torch', 'scipy', 'onnxruntime') "
    code += "if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("run", *cli.COMMANDS):
        assert f"\n  {name} " in done.stdout
    assert done.stdout.endswith("\n0 []\n")


def test_output_that_nobody_reads_any_more_ends_a_command_quietly() -> None:
    words = [
        sys.executable,
        "-c",
        "from flywheel.run import exit_code as e; raise SystemExit(e(lambda: print('x') or 0))",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.close()
        told = command.stderr.read()
    assert (command.returncode, told) == (141, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gat"], "Did you mean 'gate'"),
        (["policies", "ad", "x.onnx"], "Did you mean 'policies add'"),
        (["policies"], "Did you mean 'policies"),
        (["gate", "good.onnx", "--task", "cartpol"], "Did you mean 'cartpole'"),
        (["gate", "god.onnx", "--task", "cartpole"], "god.onnx"),
        (["gate", "good.onnx", "--task", "cartpole", "--spec", "none.json"], "spec file"),
        (["gate", "good.onnx"], "--task"),
        (["gate", "good.onnx", "--taks", "cartpole"], "--task"),
        (["policies", "list", "--run-dir", "none"], "no registry in none"),
        (["policies", "at", "0", "--run-dir", "none"], "no registry in none"),
        (["policies", "add", "good.onnx", "--task", "cartpole", "--run-dir", "/dev/null/run"], "another --run-dir"),
        (["serve", "--task", "cartpole", "--run-dir", "run", "--deploy.max-batch", "0"], "deploy.max_batch"),
        (["run", "--turns", "0"], "turns must be more than 0"),
        (["page", "--run-dir", "none"], "none is no run directory"),
        (["page", "--run-dir", "none", "--port", "70000"], "page.port must be less than 65536"),
        (["rollback", "--run-dir", "none"], "none is no run directory"),
        (["canary", "--run-dir", "none"], "none is no run directory"),
        (["canary", "drop", "--run-dir", "none"], "--reason"),
        (["canary", "approv", "--reason", "x"], "Did you mean 'canary approve'"),
        (["tokens", "ad", "x"], "Did you mean 'tokens add'"),
        (["tokens", "list", "--run-dir", "none"], "no registry in none"),
        (["tokens", "add", "robot", "--run-dir", "none", "--scope", "act"], "none is no run directory"),
        (["tokens", "add", "robot", "--run-dir", "none", "--scope", "fly"], "fly"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_code_2(
    words: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words) == 2
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert sorted(path.name for path in files.iterdir()) == ["bad.onnx", "good.onnx"]


def test_no_words_are_a_wrong_call_and_a_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 2
    assert "usage" in capsys.readouterr().out
    assert call(monkeypatch, "--version") == 0
    with pytest.raises(UsageError, match="Known: budget, canary, canary approve"):
        cli.find(["--task", "cartpole"])


def test_gate_says_each_check_on_a_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "gate", "good.onnx", "--task", RELAXED, "--seed", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pass: good.onnx after ") and "simulations, seed 3" in lines[0]
    assert [line.split("passed")[0].strip() for line in lines if " passed " in line] == [
        "failure rate", "regression", "safety", "stress", "edge cases", "cost", "coverage", "search",
    ]  # fmt: skip
    monkeypatch.setattr("flywheel.console.width", lambda: 40)
    assert call(monkeypatch, "gate", "bad.onnx", "--task", RELAXED, "--baseline", "good.onnx") == 1
    told = capsys.readouterr().out
    assert "FAILED" in told and max(len(line) for line in told.splitlines()) <= 40


def test_gate_gives_the_whole_verdict_as_strict_json(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "gate", "good.onnx", "--task", RELAXED, "--json") == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    verdict = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert verdict["outcome"] == "pass" and len(verdict["trials"]) > 120


def test_a_spec_changes_how_a_policy_acts(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "random.json").write_text('{"rule": {"exploration_rate": 1.0}}')
    assert call(monkeypatch, "gate", "good.onnx", "--task", RELAXED, "--spec", "random.json") == 1
    assert "100 of 100 simulations failed" in capsys.readouterr().out


def test_serve_takes_options_over_the_file_over_what_the_run_directory_had(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Config] = []
    monkeypatch.setattr("flywheel.serve.serve", lambda task, config, run_dir, say: served.append(config))
    observe, deploy = ObserveConfig(wait_s=0.5, baseline_episodes=50), DeployConfig(port=8101, poll_s=2.0, max_batch=7)
    before = Config(observe=observe, deploy=deploy, address="auto")
    with archive.opened(files / "run", before, TASK.name, task_digest(TASK)):
        (files / "flywheel.toml").write_text("[observe]\nwait_s = 0.1\n[deploy]\nport = 8102\npoll_s = 3.0\n")
    assert call(monkeypatch, "serve", "--task", RELAXED, "--run-dir", "run", "--deploy.port", "8103") == 0
    (config,) = served
    assert config.observe == ObserveConfig(wait_s=0.1, baseline_episodes=50)
    assert config.deploy == DeployConfig(port=8103, poll_s=3.0, max_batch=7)
    assert (config.task, config.address) == (RELAXED, "")


def test_policies_are_added_refused_and_listed(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--task", RELAXED, "--run-dir", "run"]
    assert call(monkeypatch, "policies", "add", "good.onnx", *to) == 0
    assert "is in service" in capsys.readouterr().out
    assert call(monkeypatch, "policies", "add", "bad.onnx", *to) == 1
    told = capsys.readouterr()
    assert "failure rate  FAILED" in told.out and "can't be served" in told.err and "is in service" not in told.out
    assert call(monkeypatch, "policies", "list", "--run-dir", "run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[2], row[3]) for row in rows] == [("1", "pass", "in"), ("2", "fail", "-")]
    for when, said in (("9999999999", f"policy {rows[0][1]} answered\n"), ("1970-01-02", "no policy was in service")):
        assert call(monkeypatch, "policies", "at", when, "--run-dir", "run") == 0
        assert said in capsys.readouterr().out
    assert call(monkeypatch, "rollback", "--run-dir", "run", "--task", RELAXED) == 1
    assert "nothing to roll back to" in capsys.readouterr().err
    assert len(list((files / "run" / "policies").glob(f"*/{MANIFEST}"))) == 2


def test_a_later_policy_is_tried_beside_the_one_in_service_unless_it_is_to_go_at_once(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--task", RELAXED, "--run-dir", "run"]
    for name, factor in (("second", 2), ("third", 3)):
        network = linear_policy(spec_of(TASK), tuple(factor * gain for gain in GOOD))[0]
        (files / f"{name}.onnx").write_bytes(network)
    digests = []
    for name, said in (("good", "is in service."), ("second", "is in the shadow"), ("third", "is in the shadow")):
        assert call(monkeypatch, "policies", "add", f"{name}.onnx", *to) == 0
        text = capsys.readouterr().out
        assert said in text
        with closing(open_readonly(files / "run")) as registry:
            digests.append(registry.artifacts()[-1].digest)
            assert registry.champion() == digests[0], "nobody is promoted without production's word"
            assert registry.aliases().get("@challenger") == (digests[-1] if len(digests) > 1 else None)
    assert "`flywheel canary --run-dir run` shows how far it is." in text
    assert f"policy {digests[1][:8]}, which was tried until now, made room." in text
    assert call(monkeypatch, "policies", "add", "second.onnx", *to, "--at-once") == 0
    text = capsys.readouterr().out
    assert f"policy {digests[1][:8]} is in service.\npolicy {digests[2][:8]}, which was tried until now" in text
    with closing(open_readonly(files / "run")) as registry:
        assert registry.champion() == digests[1] and "@challenger" not in registry.aliases()


def test_tokens_are_made_listed_and_revoked(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "policies", "add", "good.onnx", "--task", RELAXED, "--run-dir", "run") == 0
    capsys.readouterr()
    words = ["--scope", "act", "--scope", "ingest", "--quota", "50", "--run-dir", "run"]
    assert call(monkeypatch, "tokens", "add", "robot", *words) == 0
    secret = capsys.readouterr().out.strip()
    with closing(open_readonly(files / "run")) as registry:
        robot = find(registry.in_force(), secret)
    assert robot is not None and (robot.name, robot.scopes, robot.quota) == ("robot", ("act", "ingest"), 50.0)
    assert call(monkeypatch, "tokens", "add", "robot", *words) == 2
    assert "There is a token 'robot' already" in capsys.readouterr().err
    assert call(monkeypatch, "tokens", "revoke", "robot", "--run-dir", "run") == 0
    assert call(monkeypatch, "tokens", "list", "--run-dir", "run") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert {"client", "page", "operate", "robot"} <= rows.keys()
    assert "act ingest" in rows["robot"] and " 50 " in rows["robot"] and not rows["robot"].endswith("-")
    assert rows["operate"].endswith("-") and secret not in "".join(rows.values())
    with closing(open_readonly(files / "run")) as registry:
        assert find(registry.in_force(), secret) is None
