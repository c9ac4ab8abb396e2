"""The gate's speed beside the plain loop: one simulation after another, and one forward pass a step.

    python -m experiments.bench_gate             # some ten minutes
    python -m experiments.bench_gate --quick     # a rough answer, and nothing is written

G1  CartPole-v1, 100 simulations of 500 steps, in one process; the plain loop's network is PyTorch's, as it is for most
    who write one, and beside it stand two others: ONNX Runtime's, and the gate's own rule
G2  environments with no vector form, LunarLander-v3 and Hopper-v5, by as many processes as there are CPUs; and how the
    work is shared among four workers on a test cluster of two nodes
G3  10,000 simulations against 100: cost of one, and memory beside what the trials take

Both sides play the same worlds with the same network (beside G1 in ONNX Runtime), in turns; a ratio's interval is of
these pairs.
Prints a table, writes results/bench_gate.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import onnxruntime
import psutil
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.stats import t as student

from experiments.hand_policies import cartpole_policy, hopper_policy, lander_policy
from experiments.report import tell
from flywheel.config import GateConfig
from flywheel.deploy.environment import free_ports
from flywheel.draws import draws
from flywheel.gate import SafetyGate
from flywheel.gate.crew import Processes, local_crew, num_cpus
from flywheel.gate.trials import Alone, Crew, Situation, Tried, nominal_situations
from flywheel.policy import Policy, bundle, pack, to_env, write_files
from flywheel.records import Episode
from flywheel.task import Limits, Task
from flywheel.tasks.cartpole import cartpole
from flywheel.tasks.lunarlander import lunarlander

SEED = 11
CONFIG = GateConfig()
INFO = "for information"
STORE_BYTES = 100 * 2**20
"""Ray's shared memory of each node."""
CLOCKS = "wall", "CPU"
"""How time is taken: what a clock on the wall shows; and CPU seconds of this process and of the busiest worker beside
it, which is what a machine would take that has nothing else to do."""
Row = dict[str, Any]
Seconds = NDArray[np.float64]
"""float64[2], by both CLOCKS."""


def hops() -> gymnasium.Env[Any, Any]:
    """Return a Hopper whose episodes are 1,000 steps long, whatever the policy does."""
    return gymnasium.make("Hopper-v5", terminate_when_unhealthy=False)


def lost(episode: Episode) -> bool:
    """Return True when an episode's return is negative."""
    return episode.total < 0.0


def process(_: Episode) -> float:
    """Return the process that played an episode, in the place of its margin."""
    return float(os.getpid())


HOPPER = Task(name="hopper", env=hops, failed=lost, greedy=True, limits=Limits(max_latency_s=60.0))


def by_onnx(task: Task, policy: Policy) -> Callable[[Any], Any]:
    """Return how one decides in few lines with ONNX Runtime and NumPy."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(policy.network, options, providers=["CPUExecutionProvider"])
    name, space, rng = session.get_inputs()[0].name, task.make_env().action_space, np.random.default_rng(SEED)

    def act(observation: Any) -> Any:
        outputs = session.run(None, {name: observation[None].astype(np.float32)})[0][0]
        if isinstance(space, gymnasium.spaces.Box):
            return np.clip(outputs, space.low, space.high)
        if task.greedy:
            return outputs.argmax()
        chances = np.exp(outputs - outputs.max()).cumsum()
        return np.searchsorted(chances, rng.random() * chances[-1])

    return act


def by_torch(policy: Policy) -> Callable[[Any], Any]:
    """Return how one decides in few lines with the network as the trainer has it, drawn from its softmax."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    given = [torch.tensor(numpy_helper.to_array(t)) for t in onnx.load_from_string(policy.network).graph.initializer]
    layers: list[torch.nn.Module] = []
    for weight, bias in zip(given[::2], given[1::2], strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1])

    def act(observation: Any) -> Any:
        with torch.no_grad():
            logits = network(torch.as_tensor(observation)[None])[0]
            return int(torch.multinomial(torch.softmax(logits, -1), 1))

    return act


def plain_loop(task: Task, act: Callable[[Any], Any], situations: Sequence[Situation]) -> int:
    """Play as one would write it in a few lines, and return the steps; no record is kept of anything but returns."""
    env, returns, steps = task.make_env(), [], 0
    for situation in situations:
        observation, _ = env.reset(seed=situation.seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, over, steps = total + float(reward), terminated or truncated, steps + 1
        returns.append(total)
    env.close()  # type: ignore[no-untyped-call]
    return steps


def loop_of_decisions(task: Task, policy: Policy, situations: Sequence[Situation]) -> list[tuple[int, float]]:
    """Play one after another by the rule and the draws that the gate acts by; return the same steps and returns."""
    env, found = task.make_env(), []
    for situation in situations:
        observation, _ = env.reset(seed=situation.seed)
        total, over, t = 0.0, False, 0
        while not over:
            raw, _ = policy.act(observation[None], draws(situation.seed, t, policy.spec.num_draws))
            observation, reward, terminated, truncated, _ = env.step(to_env(policy.spec, raw)[0])
            total, over, t = total + float(reward), terminated or truncated, t + 1
        found.append((t, total))
    env.close()  # type: ignore[no-untyped-call]
    return found


def timed(play: Callable[..., Any], *given: Any, crew: Processes | None = None) -> tuple[Seconds, Any]:
    """Return the seconds that a call takes by both CLOCKS, and what it gives."""
    workers = [psutil.Process(pid) for pid in (crew.pids if crew else ())]
    before = [_cpu_s(worker) for worker in workers]
    wall, cpu = time.perf_counter(), time.process_time()
    found = play(*given)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    busiest = max((_cpu_s(worker) - then for worker, then in zip(workers, before, strict=True)), default=0.0)
    return np.array([wall, cpu + busiest]), found


def _cpu_s(worker: Any) -> float:
    times = worker.cpu_times()
    return float(times.user + times.system)


def both(id_: str, case: str, pairs: Sequence[tuple[Seconds, Seconds]], goal: str) -> Iterator[Row]:
    """Yield a row on first / second by each clock."""
    for i, clock in enumerate(CLOCKS):
        each = [(float(one[i]), float(other[i])) for one, other in pairs]
        first, second = np.median(each, axis=0)
        yield ratio(id_, f"{case}, {clock} (median {first:.4g} s, {second:.4g} s)", each, goal)


def ratio(id_: str, case: str, pairs: Sequence[tuple[float, float]], goal: str) -> Row:
    """Return a row on the geometric mean of first / second, which passes where its one-sided 95 % bound does."""
    logs = np.log([one / other for one, other in pairs])
    error = float(logs.std(ddof=1)) / len(logs) ** 0.5 if len(logs) > 1 else np.inf
    half, bound = (float(student.ppf(q, max(len(logs) - 1, 1))) * error for q in (0.975, 0.95))
    value, passed = float(logs.mean()), True
    if goal.startswith(">="):
        passed = bool(value - bound >= np.log(float(goal[2:])))
    elif goal.startswith("<="):
        passed = bool(value + bound <= np.log(float(goal[2:])))
    ends = [round(float(np.exp(value + sign * half)), 3) for sign in (-1, 1)]
    return {
        "id": id_, "case": case, "value": round(float(np.exp(value)), 3), "interval": ends, "goal": goal,
        "passed": passed, "runs": len(pairs), "seed": SEED,
    }  # fmt: skip


def number(id_: str, case: str, value: float, goal: str = INFO, passed: bool = True) -> Row:
    """Return a row on a count or on one measurement."""
    return {
        "id": id_, "case": case, "value": round(float(value), 3), "interval": None, "goal": goal, "passed": passed,
        "runs": 1, "seed": SEED,
    }  # fmt: skip


def cartpoles(quick: bool) -> Iterator[Row]:
    """Yield the rows of G1."""
    worlds = nominal_situations(SEED, "bench", 0, 100, cartpole.nominal)
    policy, crew = cartpole_policy(cartpole), local_crew(cartpole, CONFIG)
    crew.play(policy, worlds[:2], 0.0)
    act, act_by_torch, plain, lean, own = by_onnx(cartpole, policy), by_torch(policy), [], [], []
    for _ in range(3 if quick else 6):
        leaner, steps = timed(plain_loop, cartpole, act, worlds)
        mine, tried = timed(crew.play, policy, worlds, 0.0)
        theirs, as_many = timed(plain_loop, cartpole, act_by_torch, worlds)
        slower, same = timed(loop_of_decisions, cartpole, policy, worlds)
        assert steps == as_many == sum(trial.length for trial in tried.trials) == 50_000
        assert same == [(trial.length, trial.total) for trial in tried.trials]
        plain.append((theirs, mine))
        lean.append((leaner, mine))
        own.append((slower, mine))
    yield from both("G1", "plain loop / gate, 100 simulations of 500 steps", plain, ">= 40")
    yield from both("G1", "plain loop with ONNX Runtime in the place of PyTorch / gate", lean, INFO)
    yield from both("G1", "plain loop by the gate's own rule, draws and records of them / gate", own, INFO)


def heavy(quick: bool) -> Iterator[Row]:
    """Yield the rows of G2 on this machine."""
    num = num_cpus()
    for task, make, most, rounds in ((lunarlander, lander_policy, 100, 8), (HOPPER, hopper_policy, 20, 5)):
        worlds = nominal_situations(SEED, "bench", 0, most // 5 if quick else most, task.nominal)
        policy, alone, plain, spread = make(task), Alone(task, CONFIG.lockstep), [], []
        with Processes(task, CONFIG.lockstep, num) as crew:
            cold, _ = timed(crew.play, policy, worlds[:num], 0.0)
            for _ in range(3 if quick else rounds):
                theirs, steps = timed(plain_loop, task, by_onnx(task, policy), worlds)
                mine, tried = timed(crew.play, policy, worlds, 0.0, crew=crew)
                single, same = timed(alone.play, policy, worlds, 0.0)
                assert [trial.chain for trial in tried.trials] == [trial.chain for trial in same.trials]
                assert steps == sum(trial.length for trial in tried.trials)
                plain.append((theirs, mine))
                spread.append((single, mine))
        what = f"{task.name}, {len(worlds)} simulations of {steps / len(worlds):.0f} steps on the mean"
        yield from both("G2", f"{what}: plain loop / {num} processes", plain, ">= 1.6")
        yield from both("G2", f"{what}: one process / {num}", spread, INFO)
        yield number("G2", f"{task.name}: seconds until {num} processes are there, and played one each", cold[0])


def nodes(quick: bool) -> Iterator[Row]:
    """Yield the row of G2 on a test cluster: how much more is done while the busiest of four workers does its part."""
    import ray
    from ray.cluster_utils import Cluster

    from flywheel.gate.on_ray import GateActor

    claims, task = {"sim": 0.001}, dataclasses.replace(lunarlander, margin=process, edge_cases=())
    policy = lander_policy(task)
    with tempfile.TemporaryDirectory() as directory:
        golden = (np.zeros((16, 8), np.float32), policy.outputs(np.zeros((16, 8))))
        files = pack(network=policy.network, weights={}, spec=policy.spec, golden=golden, version=1, parent=None,
                     trained_on={}, made_at=0.0)  # fmt: skip
        given = bundle(write_files(Path(directory), *files))
    dashboard, first, *others = free_ports(4)  # another Ray may be up
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": dashboard, "dashboard_agent_listen_port": first}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE_BYTES})
    for port in others:
        cluster.add_node(
            num_cpus=2, resources={"sim": 2}, object_store_memory=STORE_BYTES, dashboard_agent_listen_port=port
        )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    config = dataclasses.replace(CONFIG, workers=4, num_sims=100 if quick else 200, search_sims=0)
    actor = ray.remote(GateActor).options(num_cpus=0, resources=claims)
    verdict = ray.get(actor.remote(task, config, claims=claims).judge.remote(given, None, None, SEED))
    from ray.util.state import list_actors

    where = {actor.pid: actor.node_id for actor in list_actors(detail=True) if actor.class_name == "Worker"}
    ray.shutdown()
    cluster.shutdown()
    work: Counter[int] = Counter()
    for trial in verdict.trials:
        work[int(trial.margin)] += trial.length
    on = {where[pid] for pid in work}
    value = sum(work.values()) / max(work.values())
    what = f"lunarlander, {len(verdict.trials)} simulations by {len(work)} workers on {len(on)} nodes"
    yield number("G2", f"{what}: all steps / those of the busiest", value, ">= 3.2", value >= 3.2 and len(on) == 2)


class Open:
    """Plays really, and then lets a candidate get exactly what leaves the question of regression open for ever."""

    def __init__(self) -> None:
        self._crew = Alone(cartpole, CONFIG.lockstep)

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return trials with a return of 500 for the baseline, and of 5 % less for the candidate."""
        tried = self._crew.play(policy, situations, now)
        total = 475.0 if policy.digest == "candidate" else 500.0
        return dataclasses.replace(tried, trials=tuple(dataclasses.replace(t, total=total) for t in tried.trials))


def many(quick: bool) -> Iterator[Row]:
    """Yield the rows of G3."""
    num = 2_000 if quick else 10_000
    worlds = nominal_situations(SEED, "bench", 0, num, cartpole.nominal)
    policy, crew, pairs = cartpole_policy(cartpole), Alone(cartpole, CONFIG.lockstep), []
    crew.play(policy, worlds[:2], 0.0)
    for _ in range(2 if quick else 3):
        few = [timed(crew.play, policy, worlds[i : i + 100], 0.0)[0] for i in range(0, 1000, 100)]
        pairs.append((timed(crew.play, policy, worlds, 0.0)[0] / num, np.mean(few, axis=0) / 100))
    yield from both("G3", f"cost of a simulation, {num:,} / 100", pairs, "<= 1")
    yield from memory(crew, policy, worlds)
    task = dataclasses.replace(cartpole, edge_cases=(), parameters=(), set_parameters=None, drift={}, margin=None)
    candidate, baseline = (Policy(policy.network, policy.spec, name) for name in ("candidate", "baseline"))
    costs = []
    for most in (100, num):
        config = dataclasses.replace(CONFIG, max_sims=most)
        verdict = SafetyGate(task, config, crew=Open()).judge(candidate, baseline=baseline, seed=SEED, now=0.0)
        assert len(verdict.trials) == most and verdict.outcome == "inconclusive"
        costs.append(verdict.cost_s / most)
    case = f"cost of a simulation in a verdict that stays open, {num:,} / 100 ({costs[1]:.4f} s, {costs[0]:.4f} s)"
    yield number("G3", case, costs[1] / costs[0], "<= 1", costs[1] <= costs[0])


def memory(crew: Crew, policy: Policy, worlds: Sequence[Situation]) -> Iterator[Row]:
    """Yield the peak of what is allocated beside the trials that are kept, as a ratio to that of the first ones."""
    peaks, kept = [], 0.0
    least = 2 * CONFIG.lockstep
    for num in (least, len(worlds)):
        tracemalloc.start()
        trials = crew.play(policy, worlds[:num], 0.0).trials
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        peaks.append((peak - now) / 2**20)
        kept = now / len(trials)
    few, most = (f"{num:,}" for num in (least, len(worlds)))
    value = peaks[1] / peaks[0]
    case = f"peak memory beside the trials, {most} / {few} ({peaks[1]:.1f} MiB, {peaks[0]:.1f} MiB)"
    yield number("G3", case, value, "<= 1.1", value <= 1.1)
    yield number("G3", "bytes that a trial keeps", kept)


PARTS = {"G1": cartpoles, "G2": heavy, "nodes": nodes, "G3": many}


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing is written")
    parser.add_argument("--only", choices=PARTS, help="only these rows, and nothing is written")
    given, began = parser.parse_args(), time.monotonic()
    parts = [PARTS[given.only]] if given.only else list(PARTS.values())
    rows = []
    for row in itertools.chain.from_iterable(part(given.quick) for part in parts):
        print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
        rows.append(row)
    tell("bench_gate", began, rows, is_kept=not given.quick and not given.only)


if __name__ == "__main__":
    main()
