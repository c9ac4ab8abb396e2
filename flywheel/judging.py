"""The command `flywheel gate`: a policy is judged, by anybody and as often as one likes, or one trial played again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flywheel.errors import UsageError

if TYPE_CHECKING:
    from flywheel.bench import Bench
    from flywheel.policy import Policy
    from flywheel.records import Artifact, Verdict

CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
"""Exit codes of outcomes; 2 is a wrong call's."""


def gate(
    network: tyro.conf.Positional[str] = "",
    /,
    *,
    policy: str = "",
    run_dir: Path | None = None,
    task: str = "",
    baseline: str = "",
    spec: Path | None = None,
    parameters: Annotated[
        tuple[str, ...], tyro.conf.arg(name="parameter", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = (),
    seed: int | None = None,
    trial: str = "",
    recorded: bool = False,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Judge a policy, from a run directory or trained anywhere; exit code 0: it passed, 1: failed, 3: undecided.

    Nothing but the verdict's two files is written, and nothing is allowed by it; a wheel may turn meanwhile.

    Args:
        network: an ONNX file: float32[N, o] observations in, logits, means, or means and log deviations out
        policy: instead: a digest in the run directory (or what it begins with), champion, an artifact's directory,
            or an ONNX file
        run_dir: directory of a run: its task, its gate's configuration, its suite, the worlds it trained for last
        task: without one: a built-in task, or module:attribute of your own
        baseline: the policy it must not be worse than, named as `policy`, or none; of a run directory the one in
            service by default
        spec: a JSON file with what is otherwise for an ONNX file: {"rule": {"greedy": true}, "unsquash": false}
        parameters: of the simulator, such as length=2; may be given several times
        seed: root of all seeds of this verdict; a fresh one by default
        trial: play one trial of the verdict with this seed (else the newest) again: its index, or its episode's id
        recorded: write down the verdict that is recorded in the run directory, and judge nothing
        out: directory for the verdict's files: reports in the run directory, or the present one, by default
        as_json: print the whole verdict with every trial as JSON, and write no files unless --out is given
    """
    from flywheel.bench import Bench
    from flywheel.console import width
    from flywheel.page.shapes import plain
    from flywheel.report import verdict_file

    if bool(network) == bool(policy):
        raise UsageError("Name one policy: an ONNX file, or --policy and a digest of the run directory or a path.")
    with closing(Bench(run_dir, task, out, spec)) as bench:
        found = bench.policy(policy or network)
        if trial:
            return _replay(bench, found, baseline, bench.known(found, seed), trial, width())
        room = bench.room() if out is not None or not as_json else None  # it is there before anything is simulated
        if recorded:
            verdict, told = bench.recorded(found, seed)
        else:
            verdict, told = bench.judge(found, baseline, _values(parameters), seed)
        files = () if room is None else verdict_file.write(room, verdict, told)
        if as_json:
            print(json.dumps(plain(verdict), indent=2))
        else:
            _tell(verdict, bench.name(found), files, "" if recorded else bench.serving(found), width())
    return CODES[verdict.outcome]


def _values(edits: Sequence[str]) -> dict[str, str]:
    """Return "name=value"s by their names."""
    parts = [text.partition("=") for text in edits]
    for text, (name, sign, _) in zip(edits, parts, strict=True):
        if not sign or not name:
            raise UsageError(f"--parameter takes name=value, such as length=2, not {text!r}.")
    return {name: value for name, _, value in parts}


def _tell(verdict: Verdict, name: str, files: Sequence[Path], serving: str, width: int) -> None:
    from flywheel import told

    print(told.checks(verdict, name, width))
    for path in files:
        _line("written", str(path), width)
    if serving:
        _line("allows", "nothing: neither signed nor recorded, no budget spent. What is to serve goes by", width)
        _line("", serving, width)


def _line(head: str, text: str, width: int) -> None:
    """Print what stands behind a word; words aren't cut, so that a path or a command can be copied."""
    print(textwrap.fill(
        f"{head:<13} {text}", width, initial_indent="  ", subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    ))  # fmt: skip


def _replay(bench: Bench, policy: Policy | Artifact, baseline: str, verdict: Verdict, word: str, width: int) -> int:
    """Play a trial again and say whether it is the same; 0 when it is."""
    trial, is_rival = bench.trial(verdict, word)
    again, same = bench.rerun(trial, bench.baseline_of(verdict, baseline) if is_rival else policy)
    fate = "failed" if again.failed else "fine"
    print(textwrap.fill(
        f"trial {trial.episode} ({trial.scenario}, seed {trial.seed}): {fate}, return {again.total:g} after "
        f"{again.length} steps", width, subsequent_indent="  ", break_long_words=False,
    ))  # fmt: skip
    if not same:
        _line("other", f"the verdict has return {trial.total:g} after {trial.length} steps: the task, a library or the "
              "kind of machine is another one than then", width)  # fmt: skip
        return 1
    proof = f"to the last bit (sha256 {again.chain[:16]})" if trial.chain else "by return and steps: no more was kept"
    _line("the same", proof, width)
    if bench.knows(trial.episode):
        _line("go on by", bench.forking(trial), width)
    return 0
