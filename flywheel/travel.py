"""The commands of time travel: what `flywheel fork`, `diverge` and `scenarios` print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from flywheel.errors import UsageError
from flywheel.tapes import short


def fork(
    episode: str,
    /,
    *,
    at: int,
    run_dir: Path,
    edits: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE"), tyro.conf.UseAppendAction] = (),
    times: int = 1,
    seed: int = 0,
    save: str = "",
    picture: Path | None = None,
) -> int:
    """Run the rest of an episode again from one of its steps on, with what you like to be otherwise.

    Args:
        episode: an id, or what it begins with
        at: the step; the policy acts from this one on
        run_dir: directory of the run
        edits: a parameter of the world, exploration_rate, temperature, greedy, policy, reward_scale, reward_offset, or
            the action of this step; may be given several times
        times: runs with and without the edits, under the same draws: from 2 on they give an interval of the effect
        seed: root of those draws
        save: name under which the gate tries every candidate in this situation from now on
        picture: PNG file to draw both courses into
    """
    from flywheel.connection import connect

    changed = [_edit(text) for text in edits]
    tp = connect(run_dir)
    forked = tp.fork_episode(episode, at)
    for name, value in changed:
        forked.edit_parameter(name, value)
    result = forked.replay(times=times, seed=seed)
    print(result)
    if picture is not None:
        result.compare(picture)
        print(f"  {'picture':<9} {picture}")
    if save:
        saved = tp.save_scenario(result, save)
        print(f"  {'saved':<9} scenario {saved.name}: every candidate from now on must master it")
    print(f"  {'python':<9} {_python(run_dir, episode, at, changed, times, seed)}")
    return 0


def _edit(text: str) -> tuple[str, Any]:
    """Return (name, value) of "name=value"; a number where it is one, but of a digest or of yes and no."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError(f"--set takes name=value, such as exploration_rate=0.1, not {text!r}.")
    if name in ("policy", "greedy"):
        return name, value
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _python(run_dir: Path, episode: str, at: int, changed: Sequence[tuple[str, Any]], times: int, seed: int) -> str:
    edits = "".join(f".edit_parameter({name!r}, {value!r})" for name, value in changed)
    more = ", ".join([f"times={times}"] * (times > 1) + [f"seed={seed}"] * (seed != 0))
    return f"flywheel.connect({str(run_dir)!r}).fork_episode({episode!r}, at={at}){edits}.replay({more})"


def diverge(
    one: tyro.conf.Positional[str] = "",
    other: tyro.conf.Positional[str] = "",
    /,
    *,
    run_dir: Path,
    policy: str = "",
    beyond: float | None = None,
    exact: bool = False,
) -> int:
    """Find the first step where two episodes part, or where one isn't what it should have been.

    Alone, each of an episode's decisions is made again, and its world is compared with the simulator. Without any
    episode: where the last shift of the world began to show.

    Args:
        one: an id, or what it begins with
        other: the episode to compare it with
        run_dir: directory of the run
        policy: digest (or what it begins with) of a policy: where would it have acted otherwise in this episode?
        beyond: compare what the critic expects of both, and find where that differs by more than this
        exact: compare decisions to the last bit, of a run that was made on this kind of machine
    """
    from flywheel.connection import connect

    tp = connect(run_dir)
    if not one:
        if policy or beyond is not None or exact:
            raise UsageError("--policy, --beyond and --exact are asked of an episode: name it, or leave them away.")
        print(tp.shift() or "No monitor has seen a shift of the world.")
        return 0
    found = tp.diverge(one, other, policy=policy, beyond=beyond, exact=exact)
    if found is None:
        print("They never part." if other else "It never parts: each step is what it should have been.")
        return 0
    print(f"step {found.step}: {found.note}")
    words = ["flywheel", "fork", one, "--at", str(_before(found.step, found.kind)), "--run-dir", str(run_dir)]
    print(f"  {shlex.join(words)}")
    return 0


def _before(step: int, kind: str) -> int:
    """Return the action that a difference follows: an observation, and an end, are seen after it."""
    return max(0, step - 1) if kind in ("observation", "end") else step


def scenarios_list(*, run_dir: Path) -> int:
    """List the scenarios that every candidate must master.

    Args:
        run_dir: directory of the run
    """
    from flywheel.connection import Connection
    from flywheel.gate.suite import WINDOW, standings

    with Connection(run_dir) as tp:
        found = tp.scenarios()
        standing = standings(found, tp.registry.verdicts(None, WINDOW), tp.config.gate.error)
    if not found:
        print("The suite is empty: `flywheel fork EPISODE --at STEP --save NAME` adds a scenario.")
    for scenario in found:
        id_, step = scenario.fork
        begins = "a start state" if scenario.state else f"{len(scenario.actions)} actions from seed {scenario.seed}"
        values = ", ".join(f"{name} {value:g}" for name, value in scenario.parameters.items())
        told = "; ".join([begins, *([values] if values else [])])
        state = "open" if standing[scenario.name].is_open else "closed"
        last = standing[scenario.name].last or "not tried yet"
        made = "failed in production" if scenario.origin == "production" else "saved fork"
        print(f"{scenario.name:<20}  {short(id_)} at {step:<5} {made}; {told}; {state}, {last}")
    return 0


def scenarios_drop(name: str, /, *, run_dir: Path) -> int:
    """Take a scenario out of the gate's suite.

    Args:
        name: the scenario's name
        run_dir: directory of the run
    """
    from flywheel.connection import connect

    connect(run_dir).drop_scenario(name)
    print(f"Scenario {name} is no longer asked of candidates.")
    return 0
