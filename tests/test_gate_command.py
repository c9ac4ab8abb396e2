"""`flywheel gate`: any policy is judged again and its trials played again, beside a wheel that goes on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from flywheel import archive, foreign, owner
from flywheel import verdicts as signed
from flywheel.config import Config, GateConfig
from flywheel.deploy.registry import POLICIES, open_readonly
from flywheel.judging import CODES
from flywheel.records import Plan, Turn, Verdict
from flywheel.report import verdict_file
from flywheel.run import SETTINGS
from flywheel.task import spec_of, task_digest
from flywheel.testing import BAD, GOOD, SHORT_POLE, linear_policy
from tests.gate.test_judge import CHANCE, Chance
from tests.runs import REFERENCE, RELAXED, make_run
from tests.test_cli import call

QUICK = GateConfig(search_sims=20, stress_sims=20, latency_calls=20, workers=1)
BY_CHANCE = "tests.gate.test_judge:CHANCE"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that no test changes, but for its reports, beside a good policy's file and a bad one's."""
    home = tmp_path_factory.mktemp("gate")
    config = Config(task=REFERENCE, run_dir=str(home / "run"), gate=QUICK)
    with archive.opened(home / "run", config, RELAXED.name, task_digest(RELAXED)):
        pass
    (home / SETTINGS).write_text("[gate]\nsearch_sims = 20\nstress_sims = 20\nlatency_calls = 20\n")
    make_run(home / "run", after=0)
    for name, gains in (("good", GOOD), ("bad", BAD)):
        (home / f"{name}.onnx").write_bytes(linear_policy(spec_of(RELAXED), gains)[0])
    (home / "chance.onnx").write_bytes(linear_policy(spec_of(CHANCE), [1.0])[0])
    return home


@pytest.fixture
def home(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


def _elsewhere(home: Path, directory: Path) -> Path:
    """Return another directory with the same settings."""
    shutil.copy(home / SETTINGS, directory)
    return directory


def digest(home: Path) -> str:
    """Return the digest of the policy in service."""
    with closing(open_readonly(home / "run")) as registry:
        found = registry.champion()
    assert found is not None
    return found


def written(directory: Path, seed: int, digest8: str = "*") -> Verdict:
    """Return the verdict with a seed that was written into a directory, with its page beside it."""
    (path,) = directory.glob(f"verdict-{digest8}-{seed}.json")
    assert path.with_suffix(".html").read_text("utf-8").startswith("<!doctype html>")
    return verdict_file.read(path)


def test_a_digest_is_judged_again_while_a_wheel_holds_the_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with owner.opened(RELAXED, REFERENCE, home / "run") as wheel:
        before = wheel.registry.verdicts(), wheel.registry.budget(), wheel.registry.releases()
        prefix = digest(home)[:7]
        assert call(monkeypatch, "gate", "--policy", prefix, "--run-dir", "run", "--seed", "5") == 0
        assert (wheel.registry.verdicts(), wheel.registry.budget(), wheel.registry.releases()) == before
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"pass: policy {prefix}") and "(version 1) after " in told[0] and "seed 5" in told[0]
    assert "allows        nothing: it is neither signed nor recorded, and spent no budget" in told[-2]
    file = f"run/{POLICIES}/{digest(home)}/policy.onnx"
    assert told[-1].strip() == f"to serve      flywheel policies add {file} --task {REFERENCE} --run-dir run"
    found = written(home / "run" / "reports", 5)
    assert (found.signature, found.baseline, found.tries, found.outcome) == ("", None, 0, "pass")


def test_a_file_is_judged_against_the_policy_in_service_in_the_worlds_that_are_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gate", "--policy", "good.onnx", "--run-dir", "run", "--seed", "6", "--parameter", "length=2"]
    assert call(monkeypatch, *words, "--out", str(tmp_path)) == 0
    found = written(tmp_path, 6)
    assert found.baseline == digest(home)
    assert {trial.parameters["length"] for trial in found.trials if trial.scenario == "nominal"} == {2.0}
    assert "\n  worlds        length 2\n" in capsys.readouterr().out
    page = next(tmp_path.glob("*.html")).read_text("utf-8")
    command = ("--baseline", digest(home)[:12], "--parameter", "length=2.0")
    assert "".join(f"<span>{word} </span>" for word in command) in page
    assert call(monkeypatch, *words, "--baseline", "none", "--out", str(tmp_path)) == 0
    assert written(tmp_path, 6).baseline is None


def test_a_run_directorys_gate_asks_what_its_wheels_gate_asks(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, opened = tmp_path / "run", ("interval", "predictive")
    shutil.copytree(home / "run", run)
    ranges = {"length": (0.4, 0.6), "gravity": (9.8, 9.8)}
    plan = Plan(strategy="continue_training", reasons=("a shift",), parameters=ranges)
    archive.append_turn(run, Turn(number=1, plan=plan))
    words = ["gate", "--policy", "champion", "--run-dir", str(run), "--seed", "6", "--baseline", "none"]
    assert call(monkeypatch, *words) == 0
    mine = written(run / "reports", 6)
    with owner.opened(RELAXED, REFERENCE, run) as wheel:
        (home / "other.onnx").write_bytes(linear_policy(spec_of(RELAXED), [2 * gain for gain in SHORT_POLE])[0])
        candidate = foreign.load(home / "other.onnx", spec_of(RELAXED))
        its = owner.submit(wheel, RELAXED, candidate, run, seed=6)[1]
    assert [c.name for c in mine.checks if c.name in opened] == [c.name for c in its.checks if c.name in opened]
    assert next(c.note for c in mine.checks if c.name == "interval").endswith("worlds failed that are drawn from "
                                                                                "length 0.4 to 0.6")  # fmt: skip
    assert call(monkeypatch, *words, "--parameter", "length=0.55") == 0  # a world that is named leaves nothing open
    assert "interval" not in [check.name for check in written(run / "reports", 6).checks]


def test_champion_names_the_policy_in_service(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["--run-dir", "run", "--seed", "7", "--out", str(tmp_path)]
    assert call(monkeypatch, "gate", "--policy", "champion", *words) == 0
    assert written(tmp_path, 7).digest == digest(home)
    same = f"run/{POLICIES}/{digest(home)}"
    code = call(monkeypatch, "gate", "--policy", same, "--task", REFERENCE, "--baseline", "good.onnx", *words[2:])
    found = written(tmp_path, 7)
    assert code == CODES[found.outcome]
    assert found.digest == digest(home) and found.baseline == sha256((home / "good.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize(("rate", "code", "outcome"), [(0.0, 0, "pass"), (0.9, 1, "fail"), (2.0, 3, "inconclusive")])
def test_the_exit_code_is_the_outcome(
    rate: float, code: int, outcome: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Chance, "rate", rate)
    words = ["gate", "chance.onnx", "--task", BY_CHANCE, "--seed", "8", "--out", str(tmp_path)]
    assert call(monkeypatch, *words) == code
    told = capsys.readouterr().out
    assert told.startswith(f"{outcome}: chance.onnx after")
    found = written(tmp_path, 8)
    assert found.outcome == outcome and bool(found.trials) == (rate <= 1)
    assert ("the simulator crashed" in told) == (rate > 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name one policy"),
        (["good.onnx", "--policy", "bad.onnx"], "Name one policy"),
        (["good.onnx"], "--run-dir"),
        (["good.onnx", "--task", "cartpol"], "Did you mean 'cartpole'"),
        (["gone.onnx", "--task", "cartpole"], "gone.onnx can't be read"),
        (["--policy", "champion", "--task", "cartpole"], "no champion"),
        (["--policy", "champoin", "--run-dir", "run"], "Did you mean 'champion'"),
        (["--policy", "gone.onnx", "--run-dir", "run"], "There is no policy (nor file) 'gone.onnx'"),
        (["--policy", "champion", "--run-dir", "rnu"], "rnu is no run directory"),
        (["--policy", "champion", "--run-dir", "run", "--task", "cartpole"], "leave --task away"),
        (["good.onnx", "--run-dir", "run", "--baseline", "chmpion"], "Did you mean 'champion'"),
        (["good.onnx", "--run-dir", "run", "--parameter", "lenght=2"], "Did you mean 'length'"),
        (["good.onnx", "--run-dir", "run", "--parameter", "length=99"], "length takes 0.1 to 4, not 99"),
        (["good.onnx", "--run-dir", "run", "--parameter", "length=long"], "length takes a number"),
        (["good.onnx", "--run-dir", "run", "--parameter", "length"], "--parameter takes name=value"),
        (["good.onnx", "--run-dir", "run", "--trial", "1"], "No verdict on good.onnx is known in run: judge it first"),
        (["good.onnx", "--run-dir", "run", "--recorded"], "No verdict on good.onnx is recorded in run"),
        (["good.onnx", "--task", "cartpole", "--recorded"], "give --run-dir"),
        (["--policy", "champion", "--run-dir", "run", "--seed", "2", "--recorded"], "with seed '2'. Known: 1."),
        (["--policy", "champion", "--run-dir", "run", "--seed", "1", "--trial", "9999"], "an index from 0 to "),
        (["good.onnx", "--task", "cartpole", "--out", "good.onnx/x", "--seed", "1"], "give another --out"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    words: list[str], said: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "gate", *words) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_it_is_read_in_a_narrow_terminal_and_in_a_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(_elsewhere(home, tmp_path))
    words = ["gate", str(home / "bad.onnx"), "--task", REFERENCE, "--seed", "9"]
    assert call(monkeypatch, *words) == 1
    lines = capsys.readouterr().out.splitlines()
    checks = [check.name.replace("_", " ") for check in written(tmp_path, 9).checks]
    assert [line[2:15].strip() for line in lines[1 : len(checks) + 1]] == checks  # one line each
    monkeypatch.setattr("flywheel.console.width", lambda: 60)
    assert call(monkeypatch, *words) == 1
    told = capsys.readouterr().out
    assert max(len(line) for line in told.splitlines() if str(home) not in line) <= 60
    assert "verdict-" in told and "FAILED" in told
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html", ".toml"}


def test_json_goes_to_the_terminal_and_writes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(_elsewhere(home, tmp_path))
    assert call(monkeypatch, "gate", str(home / "good.onnx"), "--task", REFERENCE, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) > 100
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS.name]


def test_a_trial_is_the_same_to_the_last_bit_and_one_that_is_not_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gate", "bad.onnx", "--task", REFERENCE, "--seed", "4", "--out", str(tmp_path)]
    assert call(monkeypatch, *words) == 1
    found = written(tmp_path, 4)
    edge = next(trial for trial in found.trials if trial.scenario != "nominal")
    for word in ("0", str(len(found.trials) - 1), edge.episode[:12]):
        capsys.readouterr()
        assert call(monkeypatch, *words, "--trial", word) == 0
        told = capsys.readouterr().out
        assert "the same      to the last bit (sha256" in told and "flywheel fork" not in told
    (path,) = tmp_path.glob("*.json")
    first = dataclasses.replace(found.trials[0], chain="00" * 32, total=77.0)
    text = verdict_file.encode(dataclasses.replace(found, trials=(first, *found.trials[1:])), RELAXED.name)
    path.write_text(text)
    assert call(monkeypatch, *words, "--trial", "0") == 1
    assert "the verdict has return 77" in capsys.readouterr().out


def test_a_recorded_trial_leads_to_its_fork(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "gate", "--policy", "champion", "--run-dir", "run", "--seed", "1", "--trial", "3") == 0
    told = capsys.readouterr().out
    assert "to the last bit" in told
    (command,) = [line for line in told.splitlines() if "flywheel fork" in line]
    assert call(monkeypatch, *shlex.split(command.partition("flywheel fork")[2].join(["fork", ""]))) == 0
    assert "step" in capsys.readouterr().out


def test_a_trial_of_the_policy_in_service_is_played_by_that(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gate", "bad.onnx", "--task", REFERENCE, "--seed", "3", "--out", str(tmp_path)]
    assert call(monkeypatch, *words, "--baseline", "good.onnx") == 1
    rival = next(trial for trial in written(tmp_path, 3).rivals if trial.scenario == "cells")
    capsys.readouterr()
    assert call(monkeypatch, *words, "--trial", rival.episode) == 2
    assert "name its file by --baseline" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--trial", rival.episode, "--baseline", "good.onnx") == 0
    told = capsys.readouterr().out
    assert f"return {rival.total:g} after {rival.length} steps" in told and "to the last bit" in told


@pytest.mark.parametrize("scenario", ["stress", "cells", "search"])
def test_trials_in_other_worlds_come_again_too(
    scenario: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gate", "good.onnx", "--run-dir", "run", "--seed", "12", "--out", str(tmp_path)]
    assert call(monkeypatch, *words) == 0
    trial = next(trial for trial in written(tmp_path, 12).trials if trial.scenario == scenario)
    capsys.readouterr()
    assert call(monkeypatch, *words, "--trial", trial.episode[:12]) == 0
    assert f"({scenario}, seed {trial.seed})" in capsys.readouterr().out


def test_the_recorded_verdict_is_written_as_it_was_signed(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", "champion", "--run-dir", "run", "--recorded", "--out", str(tmp_path)]
    assert call(monkeypatch, "gate", *words) == 0
    assert "to serve" not in capsys.readouterr().out
    with closing(open_readonly(home / "run")) as registry:
        kept = registry.verdict(digest(home))
    assert kept is not None and kept.signature
    assert signed.encode(written(tmp_path, kept.seed)) == signed.encode(kept)
    assert kept.signature in next(tmp_path.glob("*.html")).read_text("utf-8")
