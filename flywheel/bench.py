"""What policies are judged with outside the loop: a task and its gate, of a run directory (only read) or of none."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import archive, predicting
from flywheel.config import GateConfig
from flywheel.connection import Connection
from flywheel.deploy.registry import POLICIES
from flywheel.errors import UsageError, unknown
from flywheel.foreign import load as load_network
from flywheel.foreign import read_changes
from flywheel.gate import SafetyGate
from flywheel.known import last_ranges, last_worlds
from flywheel.policy import MANIFEST, NETWORK, Policy, read_artifact
from flywheel.policy import load as load_artifact
from flywheel.records import Artifact, Check, Parameters, Trial, Verdict
from flywheel.report import context, verdict_file
from flywheel.report.context import SHORT, Context
from flywheel.run import settings
from flywheel.simulate.corrected import corrected
from flywheel.store import intake
from flywheel.tapes import Scenario
from flywheel.task import Task, spec_of
from flywheel.tasks import load as load_task
from flywheel.trace.edits import in_range, matching, number

OUTCOMES = 500
"""Last outcomes of production that are looked at for which episodes are over."""
CHAMPION, NONE, REPORTS = "champion", "none", "reports"
Judged = Policy | Artifact


class Bench:
    """Judges, and plays trials again; it writes a verdict's own two files, and nothing else."""

    def __init__(self, run_dir: Path | None, task: str = "", out: Path | None = None, spec: Path | None = None) -> None:
        """Open a run directory, or take a task; `spec` is a file for `foreign.load`.

        Raises UsageError for what isn't there, and where neither says which task it is.
        """
        self._run = None if run_dir is None else Connection(run_dir)
        if self._run is None and not task:
            raise UsageError("Whose policy is it? Give --run-dir and a run directory, or --task and a task's name.")
        if self._run is not None and task not in ("", self._run.config.task):
            raise UsageError(f"{run_dir} is of task {self._run.config.task}, not {task}: leave --task away.")
        self._reference, self._spec = task, spec
        self.task: Task = load_task(task) if self._run is None else self._run.task
        self.config: GateConfig = self._run.config.gate if self._run else settings(words=["--task", task]).gate
        turns = [] if self._run is None else archive.read_turns(self._run.run_dir)
        self._form, self._ranges = last_worlds(self.task, turns)[0], last_ranges(turns)
        self.gate = SafetyGate(self._form, self.config)
        self._out = out
        self.out = out or (Path() if run_dir is None else run_dir / REPORTS)
        self._named: dict[str, tuple[str, str]] = {}

    def close(self) -> None:
        """Let go of the run directory."""
        if self._run is not None:
            self._run.close()

    @property
    def suite(self) -> tuple[Scenario, ...]:
        """What every candidate of the run directory must master."""
        return () if self._run is None else self._run.scenarios()

    @property
    def parameters(self) -> Parameters:
        """Of the worlds that a candidate is judged in now."""
        return self.task.nominal if self._run is None else self._run.parameters

    # Policies

    def policy(self, name: str) -> Judged:
        """Return the policy that a name stands for: `champion`, a digest or what it begins with, or a path.

        Raises UsageError, with the nearest digest, where there is none.
        """
        known = {} if self._run is None else {each.digest: each for each in self._run.registry.artifacts()}
        if name == CHAMPION:
            name = self._champion() or ""
        if not name:
            raise UsageError("No policy is in service there, so there is no champion: name one by its digest.")
        path = Path(name)
        if any(digest.startswith(name) for digest in known):
            artifact = known[matching("policy", name, known)]
            return self._noted(artifact, artifact.digest[:SHORT], _called(artifact))
        if (path / MANIFEST).is_file():
            artifact = read_artifact(path.resolve())
            return self._noted(artifact, name, _called(artifact))
        if not path.is_file() and known:
            raise unknown("policy (nor file)", name, [CHAMPION, *(digest[:SHORT] for digest in known)])
        changes = None if self._spec is None else read_changes(self._spec)
        return self._noted(load_network(path, spec_of(self.task), changes), name, path.name)

    def _noted(self, policy: Judged, word: str, name: str) -> Judged:
        self._named[policy.digest] = (word, name)
        return policy

    def name(self, policy: Judged) -> str:
        """Return what people call a policy that `policy` returned."""
        return self._named[policy.digest][1]

    def _champion(self) -> str | None:
        return None if self._run is None else self._run.registry.champion()

    def _baseline(self, policy: Judged, name: str) -> Judged | None:
        if name == NONE or (not name and self._champion() in (None, policy.digest)):
            return None
        return self.policy(name or CHAMPION)

    def baseline_of(self, verdict: Verdict, name: str) -> Judged:
        """Return the policy that a verdict compares with; `name` says where it is, if it is in no run directory."""
        if self._run is None and not name:
            raise UsageError("That trial is of the policy in service then: name its file by --baseline.")
        return self.policy(name or str(verdict.baseline))

    # Verdicts

    def judge(
        self, policy: Judged, baseline: str, changed: Mapping[str, Any], seed: int | None
    ) -> tuple[Verdict, Context]:
        """Return a fresh verdict, as of a first candidate with a whole budget; `changed` are parameters by name.

        A run directory's asks all that its wheel's gate asks: also in the ranges that calibration left open, but for
        parameters that are changed, and whether production contradicts the gate.
        """
        rival = self._baseline(policy, baseline)
        values = {**(middle := self.parameters), **self._checked(changed)}
        ranges = {name: ends for name, ends in self._ranges.items() if values[name] == middle[name]}
        verdict = self.gate.judge(
            policy, baseline=rival, parameters=values, suite=self.suite, seed=seed, doubt=self._doubt(values),
            ranges=ranges,
        )  # fmt: skip
        against = NONE if rival is None else self._named[rival.digest][0]
        options = context.asked(values, self.task.nominal, self.parameters)
        return verdict, Context(
            task=self.task,
            policy=self.name(policy),
            standing="Neither signed nor recorded: it allows nothing, and spent nothing of the error budget.",
            command=(*self._words(policy, verdict.seed), "--baseline", against, *options),
            replay=(*self._words(policy, verdict.seed), *self._where(), "--trial"),
            config=self.config,
            allowance=self.gate.allowance,
        )

    def _doubt(self, values: Parameters) -> Check | None:
        """Return what production says of the gate itself, as a wheel would ask; episodes may be played meanwhile."""
        if self._run is None:
            return None
        run_dir, analyze = self._run.run_dir, self._run.config.analyze
        given = self._form, self.config, analyze, run_dir, _call, self._run.registry, values
        return predicting.question(*given, lambda: (_settled_until(run_dir), ""))

    def _checked(self, changed: Mapping[str, Any]) -> Parameters:
        known = {parameter.name: parameter for parameter in self.task.parameters}
        for name in changed:
            if name not in known:
                raise unknown(f"parameter of task {self.task.name}:", name, known)
        return {name: in_range(known[name], number(name, value)) for name, value in changed.items()}

    def recorded(self, policy: Judged, seed: int | None) -> tuple[Verdict, Context]:
        """Return the newest verdict (with this seed) that the run directory's registry holds of a policy."""
        if self._run is None:
            raise UsageError("Verdicts are recorded in a run directory: give --run-dir.")
        verdict = self._newest(policy, self._run.registry.verdicts(policy.digest), seed, "recorded")[0]
        version = self._run.registry.artifact(verdict.digest).version
        return verdict, context.recorded(verdict, version, self.task, self.config, str(self._run.run_dir))

    def known(self, policy: Judged, seed: int | None) -> list[Verdict]:
        """Return the verdicts (with this seed) on a policy, of the registry and of files, newest first, at least one.

        Raises UsageError where there is none.
        """
        files = [verdict_file.read(path) for path in sorted(self.out.glob(f"verdict-{policy.digest[:8]}-*.json"))]
        kept = [] if self._run is None else self._run.registry.verdicts(policy.digest)
        return self._newest(policy, [each for each in [*kept, *files] if each.digest == policy.digest], seed, "known")

    def _newest(self, policy: Judged, found: list[Verdict], seed: int | None, how: str) -> list[Verdict]:
        if not found:
            raise UsageError(f"No verdict on {self.name(policy)} is {how} in {self._place()}: judge it first.")
        some = [verdict for verdict in found if seed in (None, verdict.seed)]
        if not some:
            raise unknown(f"verdict on {self.name(policy)} with seed", str(seed), [str(each.seed) for each in found])
        return sorted(some, key=lambda verdict: -verdict.judged_at)

    def _place(self) -> str:
        return str(self.out) if self._run is None else str(self._run.run_dir)

    def room(self) -> Path:
        """Return the directory for a verdict's files, made; UsageError where nothing can be written."""
        return verdict_file.room(self.out)

    # Trials

    def trial(self, verdicts: Sequence[Verdict], word: str) -> tuple[Trial, Verdict, bool]:
        """Return the trial of an index (in the first verdict), or of an episode's id; its verdict; if the baseline's.

        Raises UsageError where there is none, or more than one.
        """
        first = verdicts[0]
        if word.isdecimal() and int(word) < len(first.trials):
            return first.trials[int(word)], first, False
        made: dict[str, tuple[Trial, Verdict, bool]] = {}
        for verdict in reversed(verdicts):
            made |= {trial.episode: (trial, verdict, True) for trial in verdict.rivals}
            made |= {trial.episode: (trial, verdict, False) for trial in verdict.trials}
        found = [id_ for id_ in made if id_.startswith(word)]
        if len(found) != 1:
            raise UsageError(
                f"{word!r} names {len(found)} trials of the verdict with seed {first.seed}: give an index from 0 to "
                f"{len(first.trials) - 1}, or what one episode's id begins with."
            )
        return made[found[0]]

    def rerun(self, trial: Trial, policy: Judged, verdict: Verdict) -> tuple[Trial, bool]:
        """Return a trial of a verdict played again, alone, and whether it is the same to the last bit."""
        ready = policy if isinstance(policy, Policy) else load_artifact(policy)
        gate = SafetyGate(corrected(self.task, verdict.correction), self.config)
        again = gate.rerun(trial, ready, self.suite)
        if trial.chain:
            return again, again.chain == trial.chain
        return again, (again.total, again.length, again.failed) == (trial.total, trial.length, trial.failed)

    def knows(self, episode: str) -> bool:
        """Say whether the run directory knows an episode, so that it can be forked there."""
        verdicts = [] if self._run is None else self._run.registry.verdicts()
        return any(trial.episode == episode for verdict in verdicts for trial in verdict.trials)

    # Commands

    def _words(self, policy: Judged, seed: int) -> list[str]:
        return ["flywheel", "gate", "--policy", self._named[policy.digest][0], *self._home(), "--seed", str(seed)]

    def _home(self) -> list[str]:
        home = ["--task", self._reference] if self._run is None else ["--run-dir", str(self._run.run_dir)]
        return [*home, *([] if self._spec is None else ["--spec", str(self._spec)])]

    def _where(self) -> list[str]:
        return [] if self._out is None else ["--out", str(self._out)]

    def serving(self, policy: Judged) -> str:
        """Return the command that puts a policy into service, if the gate lets it pass there."""
        task, home, file = self._reference, Path("RUN_DIR"), Path(self._named[policy.digest][0])
        if self._run is not None:
            task, home = self._run.config.task, self._run.run_dir
        if isinstance(policy, Artifact):
            file = (file if self._run is None else home / POLICIES / policy.digest) / NETWORK
        return shlex.join(["flywheel", "policies", "add", str(file), "--task", task, "--run-dir", str(home)])

    def forking(self, trial: Trial) -> str:
        """Return the command that goes on from shortly before a trial's end."""
        at = str(max(0, trial.length - 20))
        return shlex.join(["flywheel", "fork", trial.episode[:SHORT], "--at", at, *self._home()])


def _called(artifact: Artifact) -> str:
    return f"policy {artifact.digest[:8]} (version {artifact.version})"


def _call(method: Callable[..., Any], *arguments: Any) -> Any:
    return method(*arguments)


def _settled_until(run_dir: Path) -> float:
    """Return before when every episode of production is over, as far as files tell: none was longer than the longest.

    Of those that began later only short ones are over, and failed ones are short.
    """
    with intake.open_readonly(run_dir) as store:
        last = store.outcomes("production", OUTCOMES)
    longest = max((each.ended_at - each.started_at for each in last), default=0.0)
    return max((each.ended_at for each in last), default=0.0) - longest
