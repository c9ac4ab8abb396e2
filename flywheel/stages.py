"""The loop's Stages over the rooms: forwards each arrow, tells what happens, and times it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import archive, beginning, causes, foreign, growth, interrupt, predicting, told
from flywheel.analyze.diagnose import split
from flywheel.analyze.recovery import conclude, mean_before, span_shown
from flywheel.analyze.strategy import decision
from flywheel.candidates import Candidate
from flywheel.cluster import Rooms, Serving, ask, start
from flywheel.config import Config
from flywheel.consider import ANALYZED, LOOK_S, Considering, about
from flywheel.console import Say
from flywheel.errors import LostError
from flywheel.facts import plain
from flywheel.feeding import Feed
from flywheel.following import Following, failure_rate
from flywheel.gate.judge import terms
from flywheel.gate.sequential import bounds
from flywheel.meters import readings
from flywheel.meters.on_ray import Recorder
from flywheel.policy import NETWORK
from flywheel.preflight import check_cpus, check_passed
from flywheel.records import Artifact, Episode, Plan, Probe, Progress, Release, Signal, Spec, Turn, Verdict
from flywheel.simulate.corrected import corrected
from flywheel.task import Task, span_of, spec_of
from flywheel.trace.context import DIGEST, RELEASE, VERDICT
from flywheel.trace.turns import TurnSpans
from flywheel.train.ending import deserves_verdict, ending, is_quiet, is_whole
from flywheel.train.recipe import spec_for, still_hard
from flywheel.tryout import try_out

LOST = 3
"""Times in a row that a round of training is begun again because its trainer was lost."""
PAUSE_S = 30.0
"""Seconds between two turns of a run without end that hold while no policy is in service to look at."""


@contextmanager
def opened(task: Task, config: Config, run_dir: Path, say: Say) -> Iterator[OnRay]:
    """Start every room on a local Ray, yield the Stages over them, and end all of it. Raises as `cluster.start`."""
    if not config.address:
        check_cpus(config, config.num_cpus or os.cpu_count() or 1)  # before anything is started or written
    check_passed(config.train)
    beginning.chosen(config, spec_for(task, spec_of(task), config.train), run_dir)
    with start(task, config, run_dir, say) as rooms:
        stages = OnRay(task, config, run_dir, rooms)
        try:
            yield stages
        finally:
            stages.following.close()


class OnRay:
    """Stages over rooms that are actors."""

    def __init__(self, task: Task, config: Config, run_dir: Path, rooms: Rooms) -> None:
        """Go on with the run directory's journal, if there is one."""
        self._task, self._config, self._run_dir, self._rooms, self._say = task, config, run_dir, rooms, rooms.say
        self._spec = spec_for(task, spec_of(task), config.train)
        self._begin_from = beginning.chosen(config, self._spec, run_dir)
        self._turns = archive.read_turns(run_dir)
        self._cause: dict[str, Any] = {}  # what this turn's evidence says of why production changed
        self._seeds = np.random.SeedSequence([config.seed, len(self._turns)])
        self._seconds: dict[str, float] = defaultdict(float)
        self._meters = Recorder(rooms.place.name)
        self._spans = TurnSpans(str(run_dir))
        self._feed = Feed(config.train, ask, rooms, partial(self._say, "train"))
        self._considering = Considering(task, config, run_dir, rooms, self._spec, self._seed)
        self._suite = growth.Suite(task, config.gate, run_dir, ask, rooms, self._say)
        self._foresight = predicting.Foresight(task, config.gate, config.analyze, run_dir, ask, rooms, self._say)
        self.following = Following(config, run_dir, rooms.place.name, self._say, self._meters)
        rooms.begin_training()

    def numbers(self) -> range:
        """Return the numbers of the turns to come: a run directory goes on where its journal ends."""
        return archive.to_come(self._turns, self._config)

    def begun(self, number: int) -> Turn | None:
        """Return this turn as far as an earlier start had brought it; a verdict that no longer holds is none."""
        self._say.turn = number
        turn = archive.read_draft(self._run_dir)
        if turn is None or turn.number != number:
            return None
        self._cause = causes.kept(turn)
        is_begun = turn.release is not None or (turn.plan.strategy == "rollback_and_retrain" and not self._held())
        if turn.artifact is None and not is_begun:
            return None  # a plan alone is made again, from what production shows now
        if turn.verdict is not None and not turn.is_released:
            stale = turn.verdict.valid_until < time.time() or turn.verdict.baseline != self._champion()
            stale |= (turn.verdict.config, turn.verdict.simulator) != self._terms(turn.plan)
            turn = dataclasses.replace(turn, verdict=None if stale else turn.verdict)
        done = {"trained": turn.artifact, "judged": turn.verdict, "released": turn.release}
        stages = ", ".join(stage for stage, record in done.items() if record is not None)
        self._say("start", f"turn {number} goes on ({turn.plan.strategy}; already {stages})")
        return turn

    def keep(self, turn: Turn) -> Turn:
        """Write down a turn that is under way."""
        turn = dataclasses.replace(turn, evidence={**turn.evidence, **self._cause})
        archive.keep_draft(self._run_dir, turn)
        return turn

    # Analyze

    def analyze(self, number: int) -> Turn:
        """Begin a turn: decide what to do from the journal, the open signals and what production showed."""
        with self._timed("analyze"):
            made = decision(self._considering.facts(number, self._turns))
            plan = beginning.from_it(made.plan, self._begin_from, ask, self._rooms)
        self._cause = {} if made.facts.cause is None else {causes.CAUSE: made.facts.cause}
        self._say("analyze", f"turn {number} is {plan.strategy}: {'; '.join(plan.reasons)}")
        return Turn(number=number, plan=plan, decision=plain(made))

    # Train

    def begin(self, plan: Plan) -> Probe | None:
        """Set the trainer on the plan; in quiet times return the probe of the policy in service."""
        with self._timed("train"):
            self._suite.grow(foreign.middle(plan.parameters), plan.correction)
            self._hard = self._suite.hard(self._turns)
            self._begin_round(plan)
            self._probe_seed = self._seed()
            champion, probe = self._champion(), None
            if champion is not None and is_quiet(plan):
                rival = ask(self._rooms.registry.bundle, champion)
                probe = self._look(plan, rival.files[NETWORK], rival.artifact.spec)
                self._hard = tuple(dict.fromkeys((*self._hard, *probe.edge_failed)))
            given = self._config.train, self._task.return_range, self._before(), self._config.loop.recovered_share
            self._ending = ending(plan, probe, *given)
            self._candidate = Candidate(self._ending, ask, self._rooms, self._config.seed, self._say, self._look)
            self.following.begin(self.numbers()[0], plan, probe, self._ending)
            return probe

    def _terms(self, plan: Plan) -> tuple[str, str]:
        return terms(corrected(self._task, plan.correction), self._config.gate, foreign.middle(plan.parameters))

    def _begin_round(self, plan: Plan) -> None:
        ask(self._rooms.registry.set_terms, *self._terms(plan))
        files = None if plan.warm_start is None else self._rooms.registry.files.remote(plan.warm_start)
        ask(self._rooms.trainer.begin, plan, files, self._suite.opened())
        self._give(plan)

    def _give(self, plan: Plan) -> None:
        self._feed.give([*(turn.plan for turn in self._turns), plan])

    def _train(self, plan: Plan) -> Progress:
        """Train one iteration; where the trainer was lost, the round begins again, LOST times in a row at most."""
        num_lost = 0
        while True:
            try:
                progress: Progress = ask(self._rooms.trainer.advance, self._hard)
            except LostError as error:
                num_lost += 1
                if num_lost > LOST:
                    raise
                self._say("train", f"{error} It begins again.")
                self._begin_round(plan)
            else:
                return progress

    def advance(self, plan: Plan) -> tuple[Progress, Probe]:
        """Train to the next probe and try the weights; after the very first one Serve starts beside the training."""
        began = time.time()
        with self._timed("train"):
            self._give(plan)
            for _ in range(self._config.train.probe_every):
                progress = self._train(plan)
        self._rooms.begin_serving()
        with self._timed("train"):
            probe = self._look(plan, progress.network, max_failed=self._config.train.probe_max_failed)
        self._hard = still_hard(self._hard, probe, self._config.train)
        self._rooms.spans.put(self._spans.trained(progress, probe, began, time.time()))
        return self.following.seen(progress, probe), probe

    def _look(self, plan: Plan, network: bytes, spec: Spec | None = None, max_failed: int | None = None) -> Probe:
        seed, episodes = self._probe_seed, self._config.train.probe_episodes
        worlds, suite = foreign.middle(plan.parameters), self._suite.opened()
        given = network, spec or self._spec, seed, worlds, episodes, max_failed, suite, plan.correction, plan.parameters
        probe: Probe = ask(self._rooms.gate.probe, *given)
        return probe

    def enough(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> bool:
        """Say whether this round's training is over: on two good probes, since the first one may have been luck."""
        if (rival is not None and self._is_alarmed()) or self._held():
            by = "a person holds the wheel, which ends the" if self._held() else "an alarm of production ends the quiet"
            self._say("train", f"{by} round")
            return True
        over = self._ending.is_over(progress, probe)
        if rival is None:
            self._probe_seed = self._seed()
            is_best = self._ending.is_worth_keeping(progress, probe)
            if over or (is_best and is_whole(probe, self._config.train)):
                probe = self._ending.whole(self._look(plan, progress.network))
                over, is_best = self._ending.is_over(progress, probe), self._ending.is_worth_keeping(progress, probe)
            if is_best and not over:
                self._candidate.keep(plan, progress, probe)
        if over:
            self.following.over(progress, probe)
        return over

    def _is_alarmed(self) -> bool:
        """Say whether production has raised an alarm about the release in service."""
        return bool(about(self._release(), ask(self._rooms.serving.observer.signals)))

    def export(self, plan: Plan, progress: Progress, probe: Probe, rival: Probe | None) -> Artifact | None:
        """Write the candidate as an artifact and register it, if it deserves a verdict."""
        if not deserves_verdict(probe, rival) or (rival is not None and self._is_alarmed()) or self._held():
            return None
        with self._timed("export"):
            artifact = self._candidate.write(plan, progress, probe)
            self._spans.tell({DIGEST: artifact.digest})
        return artifact

    # Gate and deploy

    def judge(self, plan: Plan, artifact: Artifact) -> Verdict:
        """Let the gate judge in the worlds that production showed; the verdict comes back signed and recorded."""
        with self._timed("gate"):
            self._say("gate", f"judging policy {artifact.digest[:8]}", passing=True)
            champion = self._champion()
            registry = self._rooms.registry
            known: Verdict | None = ask(registry.verdict, artifact.digest)
            if known is not None and known.outcome == "fail" and known.baseline == champion:
                return known  # an earlier start was cut off right after it; a refusal isn't asked about again
            self._suite.grow(foreign.middle(plan.parameters), plan.correction)
            self._foresight.look(artifact.digest, champion, plan.signals, self._config.seed)
            candidate = registry.bundle.remote(artifact.digest)
            baseline = None if champion is None else registry.bundle.remote(champion)
            ask(registry.set_terms, *self._terms(plan))
            suite, tries = ask(registry.scenarios), ask(registry.spend, artifact.digest)
            doubt = self._foresight.question(worlds := foreign.middle(plan.parameters), plan.correction)
            given = (worlds, self._seed(), suite, tries, doubt, plan.correction, plan.parameters)
            verdict = ask(self._rooms.gate.judge, candidate, baseline, *given)
            signed: Verdict = ask(registry.record, verdict)
            self._spans.tell({DIGEST: signed.digest, VERDICT: signed.outcome})
        self._say("gate", told.verdict(signed))
        return signed

    def release(self, verdict: Verdict) -> Release | None:
        """Put a judged digest into service, beside a champion on evidence; Refused unless its verdict passed."""
        with self._timed("deploy"):
            if why := self._held():
                self._say("deploy", f"policy {verdict.digest[:8]} is not released: a person holds the wheel ({why})")
                return None
            serving = self._rooms.serving  # up before anything is promoted
            if (champion := self._champion()) is None:
                return self._announce(serving, ask(self._rooms.registry.promote, verdict.digest))
            begun = archive.read_draft(self._run_dir)
            if begun is not None and self._foresight.looked != verdict.digest:  # judged before a restart
                self._foresight.look(verdict.digest, champion, begun.plan.signals, self._config.seed)
            is_promoted = try_out(self._rooms, verdict, self._foresight.is_slow).state == "promoted"
            return self._announce(serving, self._release()) if is_promoted else None

    def rollback(self, plan: Plan) -> Release:
        """Put the previous policy back into service and condemn the present one."""
        with self._timed("deploy"):
            serving, present = self._rooms.serving, self._release()
            if present.digest == plan.warm_start:  # an earlier start was cut off right after it
                return self._announce(serving, present)
            return self._announce(serving, ask(self._rooms.registry.rollback))

    def _announce(self, serving: Serving, release: Release) -> Release:
        """Let the observer watch the release and every replica answer with it; raise FlywheelError if one does not."""
        self._spans.tell({DIGEST: release.digest, RELEASE: release.released_at})
        ask(serving.observer.release, release, self._task.limits.max_failure_rate)
        serving.deployment.confirm(release.digest)
        self._say("deploy", f"policy {release.digest[:8]} answers at {serving.deployment.url}")
        self._rooms.produce()
        return release

    # Observe

    def observe(self, plan: Plan) -> Mapping[str, Any]:
        """Wait until production says something: a signal that the plan hasn't held for, a recovery, enough episodes."""
        before = self._before()
        evidence: dict[str, Any] = {"recovered": False, "stopped": False, "before": before, **self._cause}
        evidence |= self._foresight.evidence()
        champion = self._champion()
        try:
            with self._timed("observe"):
                if champion is not None:
                    evidence |= self._watch(champion, before, plan.signals if plan.strategy == "hold" else ())
                    if not evidence.get("signals"):
                        self._confirm()
                elif plan.strategy == "hold":
                    self._pause()
        except KeyboardInterrupt:  # what the turn did is done: it belongs into the journal before the run ends
            interrupt.handled()
            evidence["stopped"] = True
        seconds = {stage: round(value, 3) for stage, value in self._seconds.items()}
        self._seconds.clear()
        is_over = self._config.forever or evidence["recovered"]  # one without end counts no turns
        return evidence | {"seconds": seconds, archive.LEFT: 0 if is_over else len(self.numbers()) - 1}

    def _pause(self) -> None:
        """Wait where there is nothing to do or to look at: for as long as a person holds the wheel, else a while."""
        until = time.monotonic() + (PAUSE_S if self._config.forever else 0.0)
        while (why := self._held()) or time.monotonic() < until:
            if why:
                self._say("observe", f"a person holds the wheel: {why}", passing=True)
            time.sleep(LOOK_S)

    def _watch(self, champion: str, before: float | None, held: tuple[Signal, ...]) -> Mapping[str, Any]:
        """Look at what the monitors have read of the release, from now on if it was watched in an earlier turn."""
        observer, release = self._rooms.serving.observer, self._release()
        self._rooms.produce()
        begun, _ = ask(observer.heard, 0)
        span = span_of(self._task)
        if span is None and before is not None:
            span = span_shown(self._recent(), before)
        while True:
            if (now := self._release()) != release:  # somebody put another policy into service
                release, champion, begun = now, now.digest, 0
            known = about(release, raised := ask(observer.signals))
            signals = [signal for signal in known if signal not in held]
            num_read, outcomes = ask(observer.heard, ANALYZED)
            new = outcomes[max(0, len(outcomes) - (num_read - begun)) :]
            found = conclude(new, num_read - begun, signals, before, self._config.loop, span)
            if found is not None:
                found |= failure_rate(new)
                self._say("observe", told.production(found, signals, champion, known))
                good, _ = split(self._recent(champion), signals)
                return found if not signals else found | {"before": mean_before(good, before)}
            self._say("observe", f"{num_read - begun} episodes on policy {champion[:8]}", passing=True)
            self._rooms.production.check()
            ask(observer.wait, signals=len(raised), timeout_s=LOOK_S)

    def _confirm(self) -> None:
        """Fill the gate's error budget again where production shows that the policy in service keeps the limit."""
        registry, champion = self._rooms.registry, self._champion()
        if not ask(registry.tries):
            return
        shown = ask(self._rooms.serving.store.summary).get(champion, {"failed": 0, "episodes": 0, "lost": 0})
        num_failed, num = int(shown["failed"]), int(shown["episodes"] - shown["lost"])
        bound = bounds(num_failed, num, self._config.gate.error)[1]
        if bound < self._task.limits.max_failure_rate:
            rate = f"{num_failed} of {num:,} episodes failed, so less than {bound:.1%} do"
            ask(registry.refill, f"production confirms policy {str(champion)[:8]}: {rate}")
            self._say("observe", f"production confirms policy {str(champion)[:8]}, which fills the gate's error budget")

    def record(self, turn: Turn) -> None:
        """Write the turn to the journal, durably."""
        archive.append_turn(self._run_dir, turn)
        self._rooms.spans.put(self._spans.end(turn, time.time()))
        self._turns.append(turn)
        self.following.turned(turn)

    # Asking

    def _before(self) -> float | None:
        """Return the mean return before a change that isn't cured yet."""
        return self._turns[-1].evidence.get("before") if self._turns else None

    def _held(self) -> str:
        return archive.held(self._run_dir)

    def _champion(self) -> str | None:
        champion: str | None = ask(self._rooms.registry.champion)
        return champion

    def _release(self) -> Release:
        release: Release = ask(self._rooms.registry.releases)[-1]
        return release

    def _recent(self, digest: str | None = None) -> list[Episode]:
        episodes: list[Episode] = ask(self._rooms.serving.store.recent, ANALYZED, None, digest)
        return episodes

    def _seed(self) -> int:
        return int(self._seeds.spawn(1)[0].generate_state(1)[0])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began, error = time.monotonic(), None
        self._rooms.spans.put(self._spans.enter(self.numbers()[0], stage, time.time()))
        try:
            yield
        except Exception as raised:
            error = raised
            raise
        finally:
            seconds = time.monotonic() - began
            self._seconds[stage] += seconds
            self._meters.record(readings.of_stage(stage, seconds))
            self._rooms.spans.put(self._spans.leave(time.time(), error))
            spans = self._rooms.spans.counts()
            self._meters.record(readings.of_spans(spans.sent, spans.lost))
