"""The suite that grows by itself: is a failure of production in the next verdict, and does it refuse what it should?

    python -m experiments.gate_suite             # some minutes; a part of experiments.gate_power
    python -m experiments.gate_suite --quick     # a rough answer

The truth is known: a policy balances CartPole, but acts wrongly in a region of states, its hole, which the gate's own
worlds never lead to and production does. Everything goes the way that it goes in a run directory: store, registry,
growth, verdict. Nobody saves anything.

DQ5b  the failure is in the next verdict's suite; a candidate that has the hole is refused, with the episode's name; a
      repaired one passes; fifty copies are one scenario; a candidate that fails 2 % anywhere is hardly ever refused
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from experiments.report import share
from flywheel import foreign, owner
from flywheel.config import Config, GateConfig
from flywheel.gate.suite import check_suite, try_suite
from flywheel.gate.trials import Situation, Tried
from flywheel.policy import Policy
from flywheel.records import Episode, Trial
from flywheel.simulate import play
from flywheel.store.intake import Intake
from flywheel.tapes import Scenario, short
from flywheel.task import Limits, Task, spec_of
from flywheel.tasks.cartpole import cartpole
from flywheel.testing import GOOD, load_linear

TASK: Task = dataclasses.replace(cartpole, edge_cases=(), limits=Limits(max_latency_s=60.0))
"""CartPole, whose named edge cases can't find the hole; nothing depends on how busy the machine is."""
REFERENCE = "experiments.gate_suite:BARE"
BARE: Task = dataclasses.replace(TASK, parameters=(), set_parameters=None, drift={}, margin=None)
"""The same without parameters: a verdict on it asks for no stress, coverage and search, which take most of the time."""
FINE = 24
"""Production's episodes that are well."""
WIDTH = 0.25
"""Half-width of a hole on the track (m)."""


def holed(centre: float, scale: float = 1.0) -> bytes:
    """Return a network (ONNX) that balances the pole, and pushes it over where the cart is near `centre` (m)."""
    gains = scale * np.array(GOOD, dtype=np.float32)
    inf = np.float32(np.inf)
    values = {
        "gains": np.stack([-gains, gains]) / np.float32(2),
        "low": np.array([centre - WIDTH, -inf, -inf, -inf], np.float32),
        "high": np.array([centre + WIDTH, inf, inf, inf], np.float32),
        "one": np.float32(1.0),
        "two": np.float32(2.0),
    }
    nodes = [
        helper.make_node("Gemm", ["observations", "gains"], ["logits"], transB=1),
        helper.make_node("Greater", ["observations", "low"], ["above"]),
        helper.make_node("Less", ["observations", "high"], ["below"]),
        helper.make_node("And", ["above", "below"], ["both"]),
        helper.make_node("Cast", ["both"], ["each"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["each"], ["inside"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["inside", "two"], ["twice"]),
        helper.make_node("Sub", ["one", "twice"], ["sign"]),
        helper.make_node("Mul", ["logits", "sign"], ["outputs"]),
    ]
    graph = helper.make_graph(
        nodes,
        "holed",
        [helper.make_tensor_value_info("observations", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def produced(policy: Policy, rng: np.random.Generator, states: Sequence[tuple[float, ...] | None]) -> list[Episode]:
    """Return production's episodes, which begin in these states (None: as the simulator begins)."""
    keys = [int(key) for key in rng.integers(2**53, size=len(states))]
    names = [rng.bytes(16).hex() for _ in states]
    episodes = play(
        TASK, policy, seeds=keys, parameters=[{}] * len(states), draw_keys=keys, states=states, origin="production"
    )
    return [
        dataclasses.replace(episode, id=name, seed=None, scenario="", started_at=1000.0 + i, ended_at=1001.0 + i)
        for i, (name, episode) in enumerate(zip(names, episodes, strict=True))
    ]


def pushed(policy: Policy, rng: np.random.Generator, calm: Episode, t: int, to: float) -> Episode:
    """Return an episode that goes as a calm one did until something unknown puts the cart elsewhere before step t."""
    state = (to, *calm.observations[t][1:].tolist())
    (rest,) = produced(policy, rng, [state])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(calm, name)[:t], getattr(rest, name)])
        for name in ("observations", "raw_actions", "rewards", "logps")
    }
    whole = dataclasses.replace(rest, **columns, digests=(policy.digest,) * (t + rest.num_steps), started_at=2000.0)
    return dataclasses.replace(whole, failed=TASK.failed(whole))


@dataclasses.dataclass(frozen=True)
class Seen:
    """What became of a failure that was put into production."""

    in_suite: bool
    """The next verdict tried a scenario of an episode in which it failed."""
    refused: bool
    """That verdict refused the candidate with the hole, for nothing else, and named the episode."""
    passed: bool
    """The repaired one passed."""
    num_scenarios: int


def once(rng: np.random.Generator, run_dir: Path, how: str, copies: int) -> Seen:
    """Put a failure, and copies of it, into production, and let two candidates be judged."""
    centre = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.2))
    spec = spec_of(TASK)
    config = Config(gate=GateConfig(latency_calls=50, workers=1))
    with owner.opened(BARE, REFERENCE, run_dir, config) as writer:

        def submit(network: bytes) -> tuple[Any, Any]:
            policy = foreign.load(network, spec)
            return owner.submit(writer, BARE, policy, run_dir, int(rng.integers(2**31)))

        if how == "push":  # that it can be survived is shown by who was in service before
            writer.promote(submit(load_linear(TASK).network)[0].digest)
        artifact, _ = submit(holed(centre))
        writer.promote(artifact.digest)
        policy = Policy(holed(centre), spec, artifact.digest)
        episodes = produced(policy, rng, [None] * FINE)
        if how == "start":
            start = (centre, *rng.uniform(-0.05, 0.05, 3).tolist())
            episodes += produced(policy, rng, [start] * copies)
        else:
            calm = next(episode for episode in episodes if not episode.failed)
            t = int(rng.integers(150, 350))
            episodes += [pushed(policy, rng, calm, t, centre) for _ in range(copies)]
        failed = [episode.id for episode in episodes[FINE:] if episode.failed]
        with Intake(run_dir) as store:
            store.append(episodes)
        _, refusal = submit(holed(centre, 1.1))
        suite: Sequence[Scenario] = writer.registry.scenarios()
        _, verdict = submit(load_linear(TASK, tuple(1.2 * gain for gain in GOOD)).network)
    told = [check for check in refusal.checks if check.passed is False]
    tried = {trial.scenario for trial in refusal.trials}
    mine = [scenario for scenario in suite if scenario.fork[0] in failed and f"suite:{scenario.name}" in tried]
    named = any(short(scenario.fork[0]) in check.note for scenario in mine for check in told)
    return Seen(
        in_suite=bool(mine),
        refused=refusal.outcome == "fail" and [check.name for check in told] == ["scenarios"] and named,
        passed=verdict.outcome == "pass",
        num_scenarios=len(suite),
    )


class Chance:
    """A crew whose every trial fails with a probability."""

    def __init__(self, rate: float, rng: np.random.Generator) -> None:
        """Keep it."""
        self._rate, self._rng = rate, rng

    def play(self, policy: Policy, situations: Sequence[Situation], now: float) -> Tried:
        """Return a Trial a situation."""
        failed = self._rng.random(len(situations)) < self._rate
        trials = tuple(
            Trial(
                seed=s.seed, parameters={}, scenario=s.scenario, total=0.0, length=1, failed=bool(bad), margin=0.0,
                episode="",
            )
            for s, bad in zip(situations, failed, strict=True)
        )  # fmt: skip
        return Tried(trials=trials, observations=np.zeros((2, 4)))


def refusals(rate: float, num_scenarios: int, num: int, seed: int) -> NDArray[np.bool_]:
    """Return which of so many candidates that fail anywhere at a rate are refused for a suite, bool[num]."""
    config, crew = GateConfig(), Chance(rate, np.random.default_rng(seed))
    suite = [
        Scenario(name=f"s{i}", parameters={}, fork=("e", 0), saved_at=0.0, state=(0.0,) * 4, origin="production")
        for i in range(num_scenarios)
    ]
    policy = load_linear(TASK)
    found = []
    for _ in range(num):
        trials = try_suite(crew, policy, suite, 0, {}, config, TASK.limits, 0.0)
        found.append(not check_suite(trials, suite, TASK.limits, config.error).passed)
    return np.array(found)


def always(case: str, hits: Sequence[bool], seed: int) -> dict[str, Any]:
    """Return a row on what has to be true every time."""
    return {**share("DQ5b", case, np.array(hits), None, False, seed), "goal": "always", "passed": all(hits)}


def rows(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows, from the seed on."""
    num = 2 if quick else 24
    ways = {
        "production begins where the simulator never does": ("start", 1),
        "something unknown happens in mid-episode": ("push", 1),
        "fifty copies": ("start", 50),
    }
    for number, (case, (how, copies)) in enumerate(ways.items()):
        seen = []
        for i in range(num):
            with tempfile.TemporaryDirectory() as directory:
                seen.append(once(np.random.default_rng([seed, number, i]), Path(directory) / "run", how, copies))
        yield always(f"{case}: it is in the next verdict's suite", [each.in_suite for each in seen], seed)
        yield always(f"{case}: who fails it is refused, with its name", [each.refused for each in seen], seed)
        yield always(f"{case}: the repaired one passes", [each.passed for each in seen], seed)
        yield always(f"{case}: it is one scenario", [each.num_scenarios == 1 for each in seen], seed)
    yield always("who fails every trial of 8 scenarios is refused", refusals(1.0, 8, num, seed).tolist(), seed)
    hits = refusals(0.02, 8, 400 if quick else 4000, seed)
    yield share("DQ5b", "who fails 2 % anywhere is refused by 8 scenarios", hits, 0.01, True, seed)


def main() -> None:
    """Print the rows, and exit with 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="root of all seeds")
    arguments = parser.parse_args()
    passed = True
    for row in rows(arguments.seed, arguments.quick):
        print(json.dumps(row), flush=True)
        passed &= row["passed"]
    sys.exit(not passed)


if __name__ == "__main__":
    main()
