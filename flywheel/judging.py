"""The command `flywheel gate`: a policy is judged, by anybody and as often as one likes, or one trial played again."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flywheel import console
from flywheel.errors import UsageError

if TYPE_CHECKING:
    from flywheel.bench import Bench
    from flywheel.policy import Policy
    from flywheel.records import Artifact, Verdict
    from flywheel.report.context import Context

CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
"""Exit codes of outcomes; 2 is a wrong call's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Judge a policy, from a run directory or trained anywhere; exit code 0: it passed, 1: failed, 3: undecided.

    Nothing but the verdict's two files is written, and nothing is allowed by it; a wheel may turn meanwhile.
    """

    network: tyro.conf.Positional[str] = ""
    """an ONNX file: float32[N, o] observations in, logits, means, or means and log deviations out"""
    policy: str = ""
    """instead: a digest in the run directory (or what it begins with), champion, an artifact's directory, or an ONNX
    file"""
    run_dir: Path | None = None
    """directory of a run: its task, its gate's configuration, its suite, the worlds it trained for last"""
    task: str = ""
    """without one: a built-in task, or module:attribute of your own"""
    baseline: str = ""
    """the policy it must not be worse than, named as --policy, or none; by default a run directory's in service"""
    spec: Path | None = None
    """a JSON file with what is otherwise for an ONNX file: {"rule": {"greedy": true}, "unsquash": false}"""
    parameters: Annotated[
        tuple[str, ...], tyro.conf.arg(name="parameter", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = ()
    """of the simulator, such as length=2; may be given several times"""
    seed: int | None = None
    """root of all seeds of this verdict; a fresh one by default"""
    trial: str = ""
    """play one trial of the verdict with this seed (else of the newest) again: its index, or its episode's id"""
    recorded: bool = False
    """write down the verdict that is recorded in the run directory, and judge nothing"""
    out: Path | None = None
    """directory for the verdict's files; by default reports in the run directory, or the present one without it"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print the whole verdict with every trial as JSON, and write no files unless --out is given"""

    def __call__(self) -> int:
        """Judge, or play a trial again; return the exit code."""
        from flywheel.bench import Bench

        if bool(self.network) == bool(self.policy):
            raise UsageError("Name one policy: an ONNX file, or --policy and a digest of the run directory or a path.")
        with closing(Bench(self.run_dir, self.task, self.out, self.spec)) as bench:
            policy = bench.policy(self.policy or self.network)
            if self.trial:
                return _replay(bench, policy, self.baseline, self.seed, self.trial)
            return self._judge(bench, policy)

    def _judge(self, bench: Bench, policy: Policy | Artifact) -> int:
        from flywheel.page.shapes import plain
        from flywheel.report import verdict_file

        writes = self.out is not None or not self.as_json
        room = bench.room() if writes else None  # it is there before anything is simulated
        if self.recorded:
            verdict, context = bench.recorded(policy, self.seed)
        else:
            verdict, context = bench.judge(policy, self.baseline, _values(self.parameters), self.seed)
        files = () if room is None else verdict_file.write(room, verdict, context)
        if self.as_json:
            print(json.dumps(plain(verdict), indent=2))
        else:
            _tell(verdict, context, files, "" if self.recorded else bench.serving(policy))
        return CODES[verdict.outcome]


def _values(edits: Sequence[str]) -> dict[str, str]:
    """Return "name=value"s by their names."""
    parts = [text.partition("=") for text in edits]
    for text, (name, sign, _) in zip(edits, parts, strict=True):
        if not sign or not name:
            raise UsageError(f"--parameter takes name=value, such as length=2, not {text!r}.")
    return {name: value for name, _, value in parts}


def _tell(verdict: Verdict, context: Context, files: Sequence[Path], serving: str) -> None:
    from flywheel import told
    from flywheel.report.context import parameters_of

    print(told.checks(verdict, context.policy, console.width()))
    usual = {f"{name} {value:g}" for name, value in context.task.nominal.items()}
    worlds = [f"{name} {value:g}" for name, value in parameters_of(verdict, context.task).items()]
    if other := [each for each in worlds if each not in usual]:
        _line("worlds", ", ".join(other))
    if verdict.correction is not None:
        _line("corrected", str(verdict.correction))
    for path in files:
        _line("written", str(path))
    if serving:
        _line("allows", "nothing: it is neither signed nor recorded, and spent no budget")
        _line("to serve", serving)


def _line(head: str, text: str) -> None:
    """Print what stands behind a word; words aren't cut, so that a path or a command can be copied."""
    print(textwrap.fill(
        f"{head:<13} {text}", console.width(), initial_indent="  ", subsequent_indent="    ", break_long_words=False,
        break_on_hyphens=False,
    ))  # fmt: skip


def _replay(bench: Bench, policy: Policy | Artifact, baseline: str, seed: int | None, word: str) -> int:
    """Play a trial again and say whether it is the same; 0 when it is."""
    trial, verdict, is_rival = bench.trial(bench.known(policy, seed), word)
    again, same = bench.rerun(trial, bench.baseline_of(verdict, baseline) if is_rival else policy, verdict)
    fate = "failed" if again.failed else "fine"
    print(textwrap.fill(
        f"trial {trial.episode} ({trial.scenario}, seed {trial.seed}): {fate}, return {again.total:g} after "
        f"{again.length} steps", console.width(), subsequent_indent="  ", break_long_words=False,
    ))  # fmt: skip
    if not same:
        _line("other", f"the verdict has return {trial.total:g} after {trial.length} steps: the task, a library or the "
              "kind of machine is another one than then")  # fmt: skip
        return 1
    proof = f"to the last bit (sha256 {again.chain[:16]})" if trial.chain else "by return and steps: no more was kept"
    _line("the same", proof)
    if bench.knows(trial.episode):
        _line("fork it by", bench.forking(trial))
    return 0
