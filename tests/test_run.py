"""The command line: what is wrong is said in a sentence, with exit code 2, before anything starts."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from flywheel import archive, run
from flywheel.config import Config, DeployConfig, TrafficConfig, TrainConfig
from flywheel.console import Narrator
from flywheel.errors import FlywheelError, UsageError
from flywheel.layers import layered, of_task
from flywheel.preflight import PERSON, approver, check
from flywheel.records import Plan, Turn
from flywheel.replaying import OWN, ReplayConfig
from flywheel.run import settings
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.pendulum import pendulum
from tests.test_task import TASK


def call(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flywheel.run` in an empty directory."""
    return subprocess.run(
        [sys.executable, "-m", "flywheel.run", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_a_mapping_is_given_as_words_or_as_json_and_comes_back_as_the_same_words() -> None:
    def read(*words: str) -> Config:
        return tyro.cli(Config, args=words, default=settings(), registry=run._REGISTRY)

    config = read("--train.rllib", "clip_param=0.1", "kind=old style", "layers=[1,2]", "--turns", "2")
    assert config.train.rllib == {"clip_param": 0.1, "kind": "old style", "layers": [1, 2]}
    assert read(*run.words_of(config)).train == config.train
    assert read("--train.rllib", '{"clip_param": 0.2, "use_kl_loss": true}').train.rllib["use_kl_loss"] is True
    assert read().train.rllib == {} and "rllib" not in " ".join(run.words_of(read("--train.lr", "0.1")))


def test_a_file_gives_a_mapping_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    path.write_text("[train]\ntrackers = []\n[train.rllib]\nclip_param = 0.1\nuse_kl_loss = true\n")
    train = settings(path).train
    assert train.rllib == {"clip_param": 0.1, "use_kl_loss": True} and train.trackers == ()


def test_help_lists_every_knob_with_its_meaning(tmp_path: Path) -> None:
    done = call(tmp_path, "--help")
    assert done.returncode == 0
    for option in ("--task", "--turns", "--run-dir", "--seed", "--no-drift", "--gate.num-sims"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "cartpol"], "Did you mean 'cartpole'"),
        (["--task", "no_such_module:task"], "no_such_module"),
        (["--env", "CartPol-v1"], "Did you mean: `CartPole`?"),
        (["--env", "CartPole-v1", "--task", "flywheel.tasks.cartpole:cartpole"], "a run has one task"),
        (["--env", "Pendulum-v1"], "give --env-failed-below NUMBER"),
        (["--env", "CartPole-v1", "--env-max-failure-rate", "0"], "env_max_failure_rate must be more than 0"),
        (["--turn", "3"], "--turns"),
        (["--turns", "0"], "turns must be more than 0"),
        (["--turns", "many"], "many"),
        (["--train.rllib", "clip_param"], "'clip_param' is not NAME=VALUE"),
        (["--gate.batch", "0", "--traffic.starts-per-s", "-1"], "gate.batch must be more than 0"),
        (["--run-dir", "/dev/null/run"], "give another --run-dir"),
        (["--gate.num-sims", "100", "--gate.max-sims", "10"], "gate.max_sims must be at least gate.num_sims"),
        (["--gate.edge-max-failed", "4"], "gate.edge_max_failed must be less than edge_trials"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = call(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_too_few_cpus_and_another_tasks_directory(tmp_path: Path) -> None:
    with archive.opened(tmp_path / "other", Config(), "pendulum", "digest"):
        pass
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        wrong = {
            port: ["--deploy.port", port],
            "CPU": ["--num-cpus", "1"],
            "another --run-dir": ["--run-dir", str(tmp_path / "other")],
        }
        for said, arguments in wrong.items():
            done = call(tmp_path, *arguments)
            assert done.returncode == 2, done.stdout + done.stderr
            assert said in done.stderr
            assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_settings_come_from_the_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    assert settings(path) == Config()
    path.write_text("turns = 7\n[train]\nlr = 0.5\nhidden = [32]\n")
    assert settings(path) == Config(turns=7, train=TrainConfig(lr=0.5, hidden=(32,)))


def test_the_tasks_own_settings_count_before_the_defaults_and_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    own = pendulum.settings["train"]
    words = ["--turns", "2", "--task", "pendulum"]
    assert settings(path, words).train == dataclasses.replace(Config().train, **own)
    assert settings(path, ["--task=pendulum"]).train.gamma == own["gamma"] != Config().train.gamma
    path.write_text("task = 'pendulum'\n[train]\ngamma = 0.8\n")
    train = settings(path).train
    assert (train.gamma, train.reward_scale) == (0.8, own["reward_scale"])
    assert settings(path, ["--task", "cartpole"]).train == dataclasses.replace(Config().train, gamma=0.8)
    with pytest.raises(UsageError, match="Did you mean 'pendulum'"):
        settings(path, ["--task", "pendulun"])


def test_an_algorithm_has_defaults_of_its_own_and_the_tasks_section_for_it_counts_before_them(tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    own, section, needs = pendulum.settings["train"], pendulum.settings["sac"], OWN["sac"]
    for words in (["--task", "pendulum", "--train.algorithm", "sac"], ["--train.algorithm=sac", "--task=pendulum"]):
        train = settings(path, words).train
        assert (train.algorithm, train.gamma, train.lr) == ("sac", section["gamma"], section["lr"])
        assert train.steps_per_world == needs["steps_per_world"] != own["steps_per_world"], "PPO's is not for SAC"
        assert train.edge_case_share == own["edge_case_share"], "what is of the task alone stays"
        assert train.replay.batch == needs["replay"]["batch"] and train.replay.epsilon == ReplayConfig().epsilon
    path.write_text("task = 'pendulum'\n[train]\nalgorithm = 'sac'\nlr = 0.5\n")
    assert (settings(path).train.lr, settings(path).train.worlds_per_runner) == (0.5, needs["worlds_per_runner"])
    assert settings(path, ["--train.algorithm", "ppo"]).train.worlds_per_runner == Config().train.worlds_per_runner


@pytest.mark.parametrize("algorithm", OWN)
def test_what_an_algorithm_needs_may_stand(algorithm: str, tmp_path: Path) -> None:
    task = "pendulum" if algorithm == "sac" else "cartpole"
    check(settings(tmp_path / "none", ["--task", task, "--train.algorithm", algorithm]))


def test_a_task_that_is_made_for_an_algorithm_counts_before_what_that_one_needs() -> None:
    own = {"train": {"algorithm": "sac", "steps_per_world": 7}, "ppo": {"steps_per_world": 9}}
    assert layered(of_task("mine", own)).train.steps_per_world == 7
    assert layered(of_task("mine", own, "sac")).train.hidden == (256, 256)
    assert layered(of_task("mine", own, "ppo")).train.steps_per_world == 9
    with pytest.raises(UsageError, match=r"settings of task mine for dqn: 'train\.gama'.*Did you mean 'train\.gamma'"):
        layered(of_task("mine", {"dqn": {"gama": 0.9}}, "dqn"))


def test_flywheel_takes_the_tasks_own_settings_unless_a_configuration_is_given() -> None:
    assert run.Flywheel("pendulum").config.train.gamma == pendulum.settings["train"]["gamma"]
    assert run.Flywheel(pendulum).config.task == "pendulum"
    assert run.Flywheel("pendulum", Config()).config.train == Config().train


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"trian": {}}, "settings of task own: 'trian'. Did you mean 'train'"),
        ({"train": {"gama": 0.9}}, r"Did you mean 'train\.gamma'"),
        ({"train": {"gamma": "much"}}, "the settings of task own: Expected `float`"),
        ({"train": {"minibatch_size": 0}}, "train.minibatch_size must be more than 0"),
    ],
)
def test_a_wrong_setting_of_a_task_is_named(own: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run.Flywheel(dataclasses.replace(cartpole, name="own", settings=own))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("turn = 7", "Did you mean 'turns'"),
        ("[trian]\nlr = 1", "Did you mean 'train'"),
        ("[train]\nlrr = 1.0", "Did you mean 'train.lr'"),
        ("turns = 'many'", "turns"),
        ("turns = ", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "flywheel.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        settings(path)


def test_the_defaults_pass_their_own_check() -> None:
    check(Config())
    with pytest.raises(UsageError, match=r"gate\.lockstep"):
        check(Config(gate=Config().gate.__class__(lockstep=1000)))


@pytest.mark.parametrize("reference", ["says", "no_such_module:says", f"{__name__}:nothing", f"{__name__}:__name__"])
def test_a_function_that_approves_and_is_none_is_named_before_anything_starts(reference: str) -> None:
    with pytest.raises(UsageError, match=r"deploy\.approve"):
        check(Config(deploy=DeployConfig(approve=reference)))


def test_whoever_approves_is_a_person_a_function_or_nobody() -> None:
    assert approver("") is approver(PERSON) is None
    assert approver(f"{__name__}:call") is call


def test_a_run_that_breaks_is_reported_before_its_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: run.Flywheel) -> Iterator[Turn]:
        with archive.opened(self.run_dir, self.config, "cartpole", "digest"):
            raise FlywheelError("the trainer died")
        yield

    monkeypatch.setattr(run.Flywheel, "__iter__", broken)
    with Narrator() as say, pytest.raises(FlywheelError, match="the trainer died"):
        run.turn_the_wheel(Config(run_dir=str(tmp_path / "run")), say)
    assert (tmp_path / "run" / "summary.json").exists()
    assert "no turn was finished" in capsys.readouterr().out


@pytest.mark.parametrize("stopped", [True, False], ids=["in the loop's own time", "within a turn"])
def test_a_stop_says_how_to_go_on_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stopped: bool
) -> None:
    def two_turns(self: run.Flywheel) -> Iterator[Turn]:
        with archive.opened(self.run_dir, self.config, "pendulum", "digest"):
            for number, left in ((1, 2), (2, 1)):
                evidence = {"turns_left": left, "stopped": stopped and number == 2, "before": None}
                turn = Turn(number=number, plan=Plan(strategy="hold", reasons=()), evidence=evidence)
                archive.append_turn(self.run_dir, turn)
                yield turn
            if not stopped:
                raise KeyboardInterrupt

    monkeypatch.setattr(run.Flywheel, "__iter__", two_turns)
    monkeypatch.chdir(tmp_path)
    asked = settings(words=["--task", "pendulum"])
    asked = dataclasses.replace(asked, task="pendulum", turns=3, drift=False, run_dir="my run")
    with Narrator() as say:
        assert run.turn_the_wheel(asked, say) == 130
    told = " ".join(capsys.readouterr().out.split())
    words = "--task pendulum --turns 3 --run-dir 'my run' --no-drift"
    assert told.endswith(f"stopped; go on at turn 3 of 3 with: python -m flywheel.run {words}")


def test_a_stop_before_anything_is_made_says_how_to_go_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def early(self: run.Flywheel) -> Iterator[Turn]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(run.Flywheel, "__iter__", early)
    monkeypatch.chdir(tmp_path)
    with Narrator() as say:
        assert run.turn_the_wheel(Config(run_dir="mine"), say) == 130
    assert "go on at turn 1 of 4 with: python -m flywheel.run --run-dir mine" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(drift=False, forever=True, turns=9, seed=7, address="auto", name="a wheel"),
        Config(train=TrainConfig(lr=1e-5, lambda_=0.5, hidden=(8, 4, 2)), env="CartPole-v1", env_failed_below=-1.0),
        Config(
            task="pendulum",
            gate=dataclasses.replace(Config().gate, num_sims=50),
            deploy=dataclasses.replace(Config().deploy, haproxy=False, host="0.0.0.0"),
        ),
        Config(task="pendulum", train=TrainConfig(algorithm="sac")),
        Config(task="env:CartPole-v1?failed_below=-3&max_failure_rate=0.5", traffic=TrafficConfig(num_clients=0)),
    ],
)
def test_the_options_of_a_configuration_make_it_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for toml in ("", "turns = 3\ndrift = false\ntask = 'pendulum'\n[deploy]\nhaproxy = false\n"):
        run.SETTINGS.write_text(toml)
        words = run.words_of(config)
        again = tyro.cli(Config, args=words, default=settings(words=words))
        assert again == dataclasses.replace(config, env="", env_failed_below=None)
    run.SETTINGS.unlink()
    assert config != Config() or run.words_of(config) == []


def test_an_env_becomes_a_task_that_production_loads_by_its_reference() -> None:
    wheel = run.Flywheel(config=Config(env="CartPole-v1", env_failed_below=-3.0))
    assert wheel.config.task == "env:CartPole-v1?failed_below=-3&low=9&high=475&max_failure_rate=0.05"
    assert wheel.task.name == "CartPole-v1" and "below -3 (as asked for)" in wheel.about_failing
    assert run.Flywheel(config=wheel.config).task == wheel.task, "the resolved configuration goes on"
    assert run.Flywheel("cartpole", Config(env="CartPole-v1")).task is cartpole


def test_a_task_given_as_an_object_is_played_by_production_too() -> None:
    assert run.Flywheel(cartpole).config.task == "cartpole"
    assert run.Flywheel(TASK).config.task == "tests.test_task:TASK"
    nameless = dataclasses.replace(TASK, name="nameless", version="1")
    with pytest.raises(UsageError, match="top level"):
        run.Flywheel(nameless)
    quiet = Config(traffic=dataclasses.replace(Config().traffic, num_clients=0))
    assert run.Flywheel(nameless, quiet).config.task == "nameless"
