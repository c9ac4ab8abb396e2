"""A run, finished or alive, opened to be looked at: `tp = flywheel.connect("runs/x")`, or a page's URL. Without Ray.

What it reads is what the owners have made durable; only a saved scenario is written, by the owner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from flywheel import archive, owner, sqlite
from flywheel.config import Config
from flywheel.deploy import registry as registries
from flywheel.errors import UsageError, unknown
from flywheel.gate.trials import Situation, play_situations, situation_of
from flywheel.known import Policies, Worlds, last_worlds, worlds_of
from flywheel.observe.observer import SIGNALS
from flywheel.policy import TOLERANCE, activation_of, read_trained_on, read_weights
from flywheel.records import Episode, Parameters, Signal, Trial, Verdict
from flywheel.remote.travel import TIMEOUT_S, Remote
from flywheel.simulate.corrected import corrected
from flywheel.store import intake
from flywheel.tapes import SUITE, Difference, Scenario, chain, short
from flywheel.task import Task, task_digest
from flywheel.tasks import load as load_task
from flywheel.trace.contract import Forked, Row, TimeTravel, check_question, checked_id, trial_row, whole
from flywheel.trace.diverge import against_policy, first_difference, recheck, values_part
from flywheel.trace.edits import matching
from flywheel.trace.fork import Fork
from flywheel.trace.residuals import against_simulator, nearest, noise_of, residuals
from flywheel.trace.result import Result
from flywheel.trace.shift import Shift, find
from flywheel.trace.snapshots import NotReproducible, Opening
from flywheel.trace.spans import Span, Tracer
from flywheel.trace.values import Values, critic

REFERENCE = 50
"""Episodes that tell what noise is."""
KEPT = 32
"""Trials that are kept after they were played again."""


WORDS = ("failed", "fine", "lost", "production", "gate")
"""What `episodes(where=…)` understands, besides `policy=` and what a digest begins with."""


def connect(where: str | Path, token: str = "", *, timeout_s: float = TIMEOUT_S) -> Connection | Remote:
    """Return a run opened for time travel: a run directory, or one that is elsewhere by the address of its page.

    Args:
        where: the directory, or a URL such as http://127.0.0.1:8700, where `flywheel page` shows it.
        token: for a URL: what is in keys/page.token of the run directory, or in keys/operate.token, which lets save
            scenarios and keep spans, too. A page on this machine is read without one.
        timeout_s: for a URL: seconds that one answer may take.

    Raises UsageError when there is no such directory, its task can't be loaded, or the page is of another version;
    Refused for a token that opens nothing; FlywheelError where nothing answers.
    """
    if isinstance(where, str) and where.strip().lower().startswith(("http://", "https://")):
        return Remote(where, token, timeout_s)
    if token:
        raise UsageError(
            f"{where} is opened as a run directory, which takes no token; one goes with http:// addresses."
        )
    return Connection(Path(where))


class Connection(TimeTravel):
    """One run directory: its episodes, and what can be done with them."""

    def __init__(self, run_dir: Path) -> None:
        """Open it; registry and store are opened when they are first asked for."""
        self.run_dir = run_dir
        found = archive.read_config(run_dir)
        self.config: Config = found["config"]
        self.task: Task = load_task(self.config.task)
        self._is_as_it_was = found["task_digest"] == task_digest(self.task)
        self._played: dict[str, Episode] = {}

    def close(self) -> None:
        """Close the registry's file, and hand over spans that wait; both are opened again when they are asked for."""
        tracer: Tracer | None = self.__dict__.pop("_tracer", None)
        if tracer is not None:
            tracer.close()
        registry: registries.Registry | None = self.__dict__.pop("registry", None)
        self.__dict__.pop("policies", None)
        if registry is not None:
            registry.close()

    def __enter__(self) -> Self:
        """Return this connection, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # What there is

    @cached_property
    def registry(self) -> registries.Registry:
        """The registry, for its reading methods only."""
        return registries.open_readonly(self.run_dir)

    @cached_property
    def policies(self) -> Policies:
        """The policies by digest."""
        return Policies(self.registry)

    @property
    def parameters(self) -> Parameters:
        """The simulator's parameters as production showed them last: the middle of the last plan's ranges."""
        return self._worlds[1]

    @property
    def _worlds(self) -> Worlds:
        """The worlds that a candidate is judged in now: the task, with what they correct, and their parameters."""
        return last_worlds(self.task, archive.read_turns(self.run_dir))

    def parameters_of(self, digest: str) -> Parameters:
        """Return the parameters of the worlds that a policy was trained and judged for."""
        return worlds_of(self.task, self.registry.artifact(digest))[1]

    def episodes(self, where: str = "", *, limit: int | None = 50) -> list[Row]:
        """Return the last episodes of production and of the gate's trials, newest first.

        `where` is words that all have to be true of one: failed, fine, lost, production, gate, policy=DIGEST.
        """
        words = where.split()
        for word in words:
            if word not in WORDS and not word.startswith("policy="):
                raise unknown("kind of episode", word, [*WORDS, "policy=DIGEST"])
        rows = [row for row in self._rows(words) if all(_fits(row, word) for word in words)]
        rows.sort(key=lambda row: (row.started_at, row.id), reverse=True)
        return rows[: None if limit is None else whole("limit", limit, least=0)]

    def _rows(self, words: Sequence[str] = ()) -> Iterator[Row]:
        if "gate" not in words and (self.run_dir / intake.FILE).exists():
            with intake.open_readonly(self.run_dir) as store:
                for o in store.outcomes("production"):
                    yield Row(
                        id=o.id, origin="production", digest=o.digest, scenario="", total=o.total,
                        num_steps=o.num_steps, failed=o.failed, end=o.end, started_at=o.started_at,
                        ended_at=o.ended_at,
                    )  # fmt: skip
        if "production" not in words and "lost" not in words:
            for verdict, trial in self._trials():
                yield trial_row(verdict, trial)

    def _trials(self) -> Iterator[tuple[Verdict, Trial]]:
        if sqlite.is_made(self.run_dir / registries.FILE):
            yield from ((verdict, trial) for verdict in self.registry.verdicts() for trial in verdict.trials)

    def episode(self, id_: str) -> Episode:
        """Return the episode that an id, or what it begins with, names: production's, or a trial played again.

        Raises UsageError when there is none, or more than one; NotReproducible when a trial that is played again isn't
        what its verdict says.
        """
        return self._opened(id_)[0]

    def _opened(self, id_: str) -> tuple[Episode, Opening]:
        """Return an episode and how its world began."""
        with contextlib.ExitStack() as stack:
            id_, store = checked_id(id_), None
            if (self.run_dir / intake.FILE).exists():
                store = stack.enter_context(intake.open_readonly(self.run_dir))
                if store.holds(id_):  # the whole id needs no look at all the others
                    return store.read([id_])[0], Opening()
            trials = {trial.episode: (verdict, trial) for verdict, trial in self._trials()}
            found = matching("episode", id_, [*(store.ids(origin="production") if store else ()), *trials])
            if store is not None and found not in trials:
                return store.read([found])[0], Opening()
        verdict, trial = trials[found]
        suite = {SUITE + scenario.name: scenario for scenario in self.scenarios()}
        if trial.scenario.startswith(SUITE) and trial.scenario not in suite:
            raise NotReproducible(
                f"Trial {short(found)} is of scenario {trial.scenario.removeprefix(SUITE)!r}, which was dropped since."
            )
        situation = situation_of(self.task, trial, tuple(suite.values()))
        named = {case.name: case.parameters for case in self.task.edge_cases}
        named |= {name: scenario.parameters for name, scenario in suite.items()}
        opening = Opening(
            state=situation.state,
            before=None if situation.lead is None else situation.lead.before,
            num_before=0 if situation.lead is None else len(situation.lead.actions),
            own=named.get(trial.scenario, {}),
            correction=verdict.correction,
        )
        if found not in self._played:
            self._played = dict(list(self._played.items())[-KEPT:]) | {found: self._again(verdict, trial, situation)}
        return self._played[found], opening

    def _again(self, verdict: Verdict, trial: Trial, situation: Situation) -> Episode:
        policy = self.policies[verdict.digest]
        task = corrected(self.task, verdict.correction)
        (episode,) = play_situations(task, policy, [situation], lockstep=1, now=verdict.judged_at)
        same = chain(episode) == trial.chain if trial.chain else episode.total == trial.total
        if not same:
            raise NotReproducible(
                f"Trial {short(trial.episode)} comes out otherwise now ({episode.total:g} after {episode.num_steps} "
                f"steps for {trial.total:g} after {trial.length}): the environment or a library is another one."
            )
        return episode

    def values(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what the critics of an episode's policies expected at each observation, float64[T + 1].

        In the rewards of training (`train.reward_scale` times production's), discounted. None where a policy has no
        critic, as one that was trained elsewhere.
        """
        digests = [*episode.digests, *episode.digests[-1:]]
        found = np.full(len(digests), np.nan)
        for digest in dict.fromkeys(digest for digest in digests if digest):
            values = self._critic(digest)
            if values is None:
                return None
            mine = np.array([each == digest for each in digests])
            found[mine] = values(episode.observations[mine])
        return found

    def _critic(self, digest: str) -> Values | None:
        files = self.registry.files(digest)
        trained_on = read_trained_on(files)
        # of a network of the user's own the weights don't tell what is between them
        return None if "network" in trained_on else critic(read_weights(files), activation_of(trained_on))

    def residuals(self, episode: Episode) -> NDArray[np.float64] | None:
        """Return what the world did in each step minus what the simulator does there, float64[T, S] of the state.

        At the parameters that its policy was trained for. None where the task can't put the simulator into a state.
        """
        if self.task.set_state is None or self.task.observed_state is None:
            return None
        task, parameters = self._worlds_of(episode)
        return residuals(task, [episode], parameters)[0]

    def _worlds_of(self, episode: Episode) -> Worlds:
        return worlds_of(self.task, self.registry.artifact(next(filter(None, episode.digests))))

    # What can be done

    @cached_property
    def _tracer(self) -> Tracer:
        return Tracer.to_run_dir(self.run_dir)

    def trace(self, name: str, /, **attributes: Any) -> Span:
        """Return a span for a `with`, kept beside the run; spans that begin in it are its children.

        `span.log_metric(name, value)` notes a number in it. It is on the disk when this connection is closed, or soon
        after its end; one that is lost costs nothing else.
        """
        return self._tracer.span(name, **attributes)

    def fork_episode(self, id_: str, at: int = 0) -> Fork:
        """Return an episode as a fork that stands before its action `at`; edit it, and `replay` it.

        One of production goes on in the simulator as it was calibrated last, or as its policy was trained in, whichever
        makes the episode's own transitions better. Raises as `episode`, and NotReproducible where nothing leads there.
        """
        episode, opening = self._opened(id_)
        self._insist(episode)
        worlds = [self._worlds, self._worlds_of(episode)]
        is_hidden = self.task.set_state is None or self.task.observed_state is None
        is_known = episode.seed is not None or worlds[0] == worlds[1] or is_hidden
        task, parameters = worlds[0] if is_known else nearest(episode, worlds)
        task = task if episode.seed is None else self.task
        return Fork(task, episode, at, self.policies, parameters=parameters, opening=opening)

    def diverge(
        self, one: str, other: str = "", *, policy: str = "", beyond: float | None = None, exact: bool = False
    ) -> Difference | None:
        """Return the first step where two episodes part; `beyond` asks where what the critic expects of them does.

        Of one episode alone: where `policy` would have acted otherwise, or else where it is not what it should have
        been: each of its decisions is made again (`exact`: to the last bit, which takes the kind of machine that made
        them), and then its world is compared with the simulator, to the last bit from its seed, or transition by
        transition beyond the noise of the release's first episodes.
        """
        check_question(other, policy, beyond, exact)
        episode, opening = self._opened(one)
        if other and beyond is not None:
            values = self._critic(episode.digests[0])
            if values is None:
                raise UsageError(f"Policy {episode.digests[0][:12]} has no critic, so it expects nothing.")
            return values_part(episode, self.episode(other), values, beyond)
        if other:
            return first_difference(episode, self.episode(other))
        if policy:
            return against_policy(episode, self.policies[matching("policy", policy, self.policies)])
        found = recheck(episode, self.policies, tolerance=0.0 if exact else TOLERANCE)
        if found is not None:
            return found
        try:
            self._insist(episode)
            task, parameters = self._worlds_of(episode)
            noise = None if episode.seed is not None else noise_of(task, self._first(episode), parameters)
            task = task if episode.seed is None else self.task
            return against_simulator(task, episode, parameters, noise=noise, opening=opening)
        except NotReproducible as error:
            raise NotReproducible(f"Each decision is made again as it was. {error}") from error

    def _insist(self, episode: Episode) -> None:
        """Raise NotReproducible for an episode that another simulator than today's is to go on with, or judge."""
        if episode.seed is None and not self._is_as_it_was:
            raise NotReproducible(
                f"Task {self.task.name} is not what it was when {self.run_dir} was begun, so its simulator says "
                f"nothing of episode {short(episode.id)}: use the version that made it."
            )

    def _first(self, episode: Episode) -> list[Episode]:
        """Return the first whole episodes of production with an episode's policy, without itself."""
        with intake.open_readonly(self.run_dir) as store:
            some = store.following(episode.digests[0], 0.0, n=REFERENCE + 1)
        return [e for e in some if e.id != episode.id and e.end != "lost"][:REFERENCE]

    def signals(self) -> list[Signal]:
        """Return every signal that was raised, oldest first."""
        with intake.open_readonly(self.run_dir) as store:
            return msgspec.json.decode(store.noted(SIGNALS) or "[]", type=list[Signal])

    def shift(self) -> Shift | None:
        """Return where the last shift of the world began to show: the episode, the step, why, and how to fork there.

        None where no monitor has seen one.
        """
        shifts = [signal for signal in self.signals() if signal.kind == "shift_detected"]
        if not shifts:
            return None
        signal = shifts[-1]
        with intake.open_readonly(self.run_dir) as store:
            of_policy = [o for o in store.outcomes("production") if o.digest == signal.digest]
            mine = [o.id for o in of_policy if o.started_at >= signal.evidence["released_at"]]
            if signal.since_episode not in mine:
                raise UsageError(
                    f"The store no longer holds {signal.since_episode}, where the shift's evidence begins."
                )
            begin = mine.index(signal.since_episode)
            before, since = (
                store.read(store.kept(some)) for some in (mine[max(0, begin - REFERENCE) : begin], mine[begin:])
            )
        task, parameters = worlds_of(self.task, self.registry.artifact(signal.digest))
        found = find(task, signal, before, since, parameters)
        if found.step is None:
            return found
        words = ["flywheel", "fork", found.episode, "--at", str(found.step), "--run-dir", str(self.run_dir)]
        return dataclasses.replace(found, link=shlex.join(words))

    # The gate's suite

    def scenarios(self) -> tuple[Scenario, ...]:
        """Return the scenarios that every candidate must master, oldest first."""
        return self.registry.scenarios()

    def save_scenario(self, of: Forked | Result, name: str) -> Scenario:
        """Make a fork a scenario of the gate's suite, which every candidate from now on must master.

        Where training can begin there it does, too. Goes to the wheel that is up in this run directory, or takes its
        lock. Raises UsageError when the name is taken, or a process holds the directory that can't be talked to.
        """
        scenario = dataclasses.replace(of.scenario(), name=name, saved_at=time.time())
        with owner.opened(self.task, self.config.task, self.run_dir) as writer:
            saved: Scenario = writer.registry.save_scenario(scenario)
        return saved

    def drop_scenario(self, name: str) -> None:
        """Take a scenario out of the gate's suite; UsageError, with the nearest name, when there is none."""
        with owner.opened(self.task, self.config.task, self.run_dir) as writer:
            writer.registry.drop_scenario(name)


def _fits(row: Row, word: str) -> bool:
    if word.startswith("policy="):
        return row.digest.startswith(word.removeprefix("policy="))
    return {
        "failed": row.failed,
        "fine": not row.failed and row.end != "lost",
        "lost": row.end == "lost",
        "production": row.origin == "production",
        "gate": row.origin == "gate",
    }[word]
