"""Several processes play for the gate: the same verdict to the last bit, or a sentence, and no process is left."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flywheel.config import GateConfig
from flywheel.draws import draws
from flywheel.errors import Refused
from flywheel.gate import SafetyGate
from flywheel.gate import crew as crews
from flywheel.gate.crew import Processes, local_crew
from flywheel.gate.spread import AsNeeded, Player, cut
from flywheel.gate.trials import Alone, Crew, Situation, Tried, nominal_situations, suite_situations
from flywheel.policy import Policy
from flywheel.records import Correction, Episode, Verdict
from flywheel.simulate.corrected import corrected
from flywheel.task import Limits, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import load_linear
from tests.uneven import BACK, MORTAL, SUITE, UNEVEN, Changed, Fragile, Stuck, Uneven, choosy, failed

CONFIG = GateConfig(
    num_sims=30, batch=20, max_sims=60, latency_calls=10, edge_max_failed=3, stress_sims=10, search_sims=20
)
BARE = dataclasses.replace(UNEVEN, edge_cases=(), parameters=(), set_parameters=None)
"""The same with nominal worlds alone."""
POLICY = load_linear(UNEVEN, BACK, digest="back")


def judge(crew: Crew | None = None, task: Task = UNEVEN, config: GateConfig = CONFIG, **more: Any) -> Verdict:
    """Return a verdict by clocks that don't tell who played."""
    ticks = itertools.count()
    gate = SafetyGate(task, config, crew=crew, clock=lambda: 0.0, cpu_clock=lambda: next(ticks) * 1e-5)
    return gate.judge(POLICY, **{"seed": 4, "now": 7.0, **more})


def note(verdict: Verdict) -> str:
    assert verdict.outcome == "inconclusive" and verdict.trials == ()
    (check,) = verdict.checks
    assert check.name == "simulation" and check.passed is None
    return check.note


def worlds(num: int, task: Task = UNEVEN) -> list[Situation]:
    return nominal_situations(3, "judge", 0, num, task.nominal)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(UNEVEN, 7, 2) as crew:
        yield crew
    assert crew.pids == []


@pytest.mark.parametrize("num", [1, 2, 3])
def test_the_verdict_is_the_same_for_every_spread(num: int, two: Processes) -> None:
    more: dict[str, Any] = {"suite": SUITE, "parameters": {"wind": 0.01}}
    more["baseline"] = load_linear(UNEVEN, np.zeros((2, 2)), digest="anywhere")
    expected = judge(Alone(UNEVEN, 256), **more)
    assert expected.checks[0].name == "failure_rate" and min(len(expected.trials), len(expected.rivals)) > 60
    assert {"nominal", "windier", "suite:led", "suite:led too"} <= {trial.scenario for trial in expected.trials}
    with Processes(UNEVEN, 64, num) as crew:
        assert judge(two if num == 2 else crew, **more) == expected


def test_corrected_worlds_go_along() -> None:
    gymnasium.register("OfThisProgram-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv")
    try:
        named = dataclasses.replace(cartpole, env="OfThisProgram-v0", vector=None, edge_cases=(), max_steps=60)
        task = corrected(named, Correction(actions=(1, 0), delay=1))
        with Processes(task, 8, 2) as crew:
            policy, some = load_linear(cartpole, digest="pole"), nominal_situations(3, "judge", 0, 12, task.nominal)
            played, swapped = (each.play(policy, some, 0.0).trials for each in (Alone(task, 8), crew))
        assert played == swapped
        assert played != Alone(named, 8).play(policy, some, 0.0).trials
    finally:
        del gymnasium.registry["OfThisProgram-v0"]


def test_the_number_of_workers_is_no_part_of_a_verdict() -> None:
    alone, several = (judge(task=BARE, config=dataclasses.replace(CONFIG, workers=workers)) for workers in (1, 2))
    assert alone == several


def test_no_bias_towards_short_episodes(two: Processes) -> None:
    found: list[tuple[int, bool]] = []
    situations, env = worlds(80), Uneven()
    for situation in situations:  # one after another, as one would write it
        observation, over, t = env.reset(seed=situation.seed)[0], False, 0
        while not over:
            raw, _ = POLICY.act(observation[None], draws(situation.seed, t, 1))
            observation, _, terminated, truncated, _ = env.step(raw[0])
            over, t = terminated or truncated, t + 1
        found.append((t, terminated))
    lengths, bad = np.array(found).T
    assert lengths.max() >= 9.5 * lengths.min() and np.corrcoef(lengths, bad)[0, 1] < -0.1 and bad.sum() > 3
    for crew in (Alone(UNEVEN, 1), Alone(UNEVEN, 64), two):
        trials = crew.play(POLICY, situations, 0.0).trials
        assert [(trial.length, trial.failed) for trial in trials] == found


def same_play(crew: Crew, situations: Sequence[Situation]) -> bool:
    one, other = (each.play(POLICY, situations, 7.0) for each in (crew, Alone(UNEVEN, 256)))
    return one.trials == other.trials and one.observations.tobytes() == other.observations.tobytes()


def test_few_situations_and_led_ones(two: Processes) -> None:
    assert same_play(two, worlds(1))
    assert same_play(two, worlds(3))
    assert same_play(two, suite_situations(SUITE, 1, "judge", 5, {"wind": 0.03}))


@pytest.mark.parametrize(("num", "most"), [(100, 2), (100, 3), (3, 8), (1, 2)])
def test_parts_are_the_situations_in_order_and_of_like_size(num: int, most: int) -> None:
    parts = cut(POLICY, worlds(num), 0.0, most)
    sizes = [len(part.situations) for part in parts]
    assert [s for part in parts for s in part.situations] == worlds(num)
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0 and len(parts) == min(num, most)


def test_99_of_100_results_are_none(two: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = crews._Worker.answer
    calls = itertools.count()

    def one_less(worker: Any) -> Tried:
        tried = whole(worker)
        return dataclasses.replace(tried, trials=tried.trials[next(calls) % 2 :])  # the second part lacks its first

    assert same_play(two, worlds(1))
    monkeypatch.setattr(crews._Worker, "answer", one_less)
    verdict = judge(two, BARE, dataclasses.replace(CONFIG, num_sims=100, max_sims=100))
    assert note(verdict).startswith("99 results came back of 100 simulations")


def test_a_process_that_dies_is_a_sentence_and_the_next_play_starts_others(two: Processes) -> None:
    assert same_play(two, worlds(2))
    before = two.pids
    os.kill(before[1], signal.SIGKILL)
    assert "for the gate ended by signal SIGKILL, and its simulations with it" in note(judge(two))
    assert two.pids == [] and same_play(two, worlds(2))
    assert not set(before) & set(two.pids)


def test_an_environment_that_ends_its_process_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARED", str(os.getpid()))
    monkeypatch.setenv("MORTAL", "/nowhere/at/all")
    with Processes(MORTAL, 8, 2) as crew:
        assert "ended with exit code 3" in note(judge(crew, MORTAL))


def test_what_is_raised_in_a_worker_is_raised_here(two: Processes) -> None:
    assert same_play(two, worlds(2))
    nan = load_linear(UNEVEN, BACK, bias=[np.nan, 0.0])
    with pytest.raises(Refused, match="not finite"):
        two.play(nan, worlds(10), 0.0)


@pytest.mark.parametrize("what", [{"failed": choosy}, {"env": Fragile}])
def test_a_verdict_on_what_breaks_is_the_same_too(what: dict[str, Any]) -> None:
    task = dataclasses.replace(BARE, **what)
    alone, each = judge(Alone(task, 256), task), judge(Alone(task, 4), task)
    with Processes(task, 8, 2) as crew:
        assert note(judge(crew, task)) == note(alone) == note(each)
    assert "broke with StrangeError: no, thanks" in note(alone) or "raised OSError('torn') at step 12" in note(alone)


def test_a_verdict_ends_in_time_whatever_its_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARED", str(os.getpid()))
    task = dataclasses.replace(MORTAL, env=Stuck)
    with Processes(task, 8, 2) as crew:
        told = note(judge(crew, task, dataclasses.replace(CONFIG, timeout_s=0.2)))
        assert "no answer after gate.timeout_s = 0.2 s" in told and crew.pids == []


def holding() -> Task:
    """Return a task that can't be sent: its function holds a lock."""
    lock = threading.Lock()

    def guarded(episode: Episode) -> bool:
        with lock:
            return failed(episode)

    return dataclasses.replace(BARE, failed=guarded)


def test_a_task_that_can_t_be_sent_is_a_sentence_where_workers_are_asked_for() -> None:
    task = holding()
    told = note(judge(task=task, config=dataclasses.replace(CONFIG, workers=2)))
    assert told.startswith("Task uneven can't be sent to other processes") and "set gate.workers to 1" in told
    ticks = itertools.count()  # of seconds: every play is one that is worth workers
    crew = AsNeeded(Alone(task, 8), lambda: Processes(task, 8, 2), lambda: 60.0 * next(ticks))
    assert judge(crew, task).trials == judge(Alone(task, 8), task).trials != ()


def test_worlds_that_a_process_would_make_otherwise_are_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(name="changed", env=Changed, failed=failed, limits=Limits(max_failure_rate=0.2))
    with Processes(task, 8, 2) as crew:
        assert len(crew.play(POLICY, worlds(4, task), 0.0).trials) == 4
    monkeypatch.setattr(Changed, "start", 0.5)
    with Processes(task, 8, 2) as crew:
        assert "came out otherwise in a process of its own than here" in note(judge(crew, task))


SCRIPT = """
import gymnasium
from flywheel import SafetyGate
from flywheel.config import GateConfig
from flywheel.task import Limits, Task
from flywheel.testing import load_linear

class Short(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        print("an environment may print")
        return self.observation_space.low, self.np_random.random(), False, True, {}

gymnasium.register("Short-v0", Short)
task = Task(name="short", env="Short-v0", failed=lambda e: e.end == "terminated", limits=Limits(max_latency_s=60.0))
found = [
    SafetyGate(task, GateConfig(workers=workers)).judge(load_linear(task, [1.0]), seed=1, now=0.0)
    for workers in (1, 3)
]
print("verdict", found[0].outcome, found[1].outcome, *[[t.chain for t in v.trials] for v in found][0:1], flush=True)
assert [t.chain for t in found[0].trials] == [t.chain for t in found[1].trials]
print("same")
"""


def test_a_script_needs_no_guard_and_its_own_environments_go_along(tmp_path: Path) -> None:
    script = tmp_path / "monday.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if "may print" not in line]
    assert done.returncode == 0, done.stderr
    assert [line[:17] for line in lines] == ["verdict pass pass", "same"]


ORPHANS = """
import os, signal
from flywheel.gate.crew import Processes
from tests.gate.test_crew import POLICY, UNEVEN, worlds

crew = Processes(UNEVEN, 8, 2)
crew.play(POLICY, worlds(4), 0.0)
print(*crew.pids, flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("raise SystemExit(5)", 5)])
def test_processes_end_with_the_one_that_started_them(end: str, code: int) -> None:
    # they hold its standard error, which ends when the last one of them does
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS.format(end=end)], capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr, len(done.stdout.split())) == (code, b"", 2)


def test_processes_end_with_their_gate_and_have_one_thread_each() -> None:
    gate = SafetyGate(UNEVEN, dataclasses.replace(CONFIG, workers=2))
    assert gate.probe(POLICY, seed=1, episodes=4).note == ""
    crew: Any = gate._crew._crew
    pids = crew.pids
    assert len(pids) == 2
    for pid in pids:
        assert b"\0OMP_NUM_THREADS=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    del gate, crew
    gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_loads_neither_torch_nor_ray() -> None:
    code = "import sys; from flywheel.gate.crew import work; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Told:
    """A crew that notes how many situations it was given."""

    def __init__(self, task: Task = UNEVEN) -> None:
        self.alone, self.given = Alone(task, 8), [0][:0]

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        self.given.append(len(situations))
        return self.alone.play(policy, situations, now)


@pytest.mark.parametrize(
    ("each_s", "alone", "many"), [(0.001, [1, 2, 97, 2], []), (0.1, [1, 2], [97, 2]), (0.021, [1, 2, 2], [97])]
)
def test_what_is_played_soon_is_played_alone(each_s: float, alone: list[int], many: list[int]) -> None:
    here, there = Told(), Told()
    crew = AsNeeded(here, lambda: there, lambda: each_s * sum(here.given))
    assert same_play(crew, worlds(100)) and same_play(crew, worlds(2))
    assert (here.given, there.given) == (alone, many)


def test_who_plays_is_the_configuration_s_to_say() -> None:
    def crew(task: Task, workers: int) -> type:
        return type(local_crew(task, GateConfig(workers=workers)))

    assert [crew(UNEVEN, workers) for workers in (0, 1, 3)] == [AsNeeded, Alone, Processes]
    assert [crew(cartpole, workers) for workers in (0, 1, 3)] == [Alone, Alone, Processes]


def test_a_part_is_played_by_the_policy_that_it_brings() -> None:
    player, other = Player(UNEVEN, 8), load_linear(UNEVEN, np.zeros((2, 2)), digest="other")
    for policy in (POLICY, other, POLICY, POLICY):
        (part,) = cut(policy, worlds(3), 0.0, 1)
        assert player.play(part).trials == Alone(UNEVEN, 8).play(policy, worlds(3), 0.0).trials
