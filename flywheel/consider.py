"""Gathers from the rooms what a decision is made from: who serves, what alarms, what the simulator says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel import archive, beside, explaining, foreign, predicting
from flywheel.analyze.diagnose import Diagnosis, enough
from flywheel.analyze.from_episodes import needed
from flywheel.analyze.on_ray import diagnose
from flywheel.analyze.past import open_signals, recall
from flywheel.causes import CAUSE
from flywheel.cluster import Rooms, ask
from flywheel.config import Config
from flywheel.errors import FlywheelError
from flywheel.facts import Facts, Past
from flywheel.records import ELSEWHERE, Artifact, Correction, Episode, Release, Signal, Spec, Turn
from flywheel.remembering import forgotten
from flywheel.simulate.corrected import corrected, correction_of
from flywheel.task import Task

ANALYZED = 500
"""Most recent episodes of a release that an analysis reads, changed and unchanged together."""
LOOK_S = 0.5
"""Seconds between two looks at production when nothing new is heard from the observer."""


class Considering:
    """Knows whom to ask; each call of `facts` asks all of them anew."""

    def __init__(
        self, task: Task, config: Config, run_dir: Path, rooms: Rooms, spec: Spec, seed: Callable[[], int]
    ) -> None:
        """Ask the `rooms` of a run directory; `spec` is of its policies, `seed` the root of what a fit simulates."""
        self._task, self._config, self._run_dir, self._rooms = task, config, run_dir, rooms
        self._spec, self._seed = spec, seed

    def facts(self, number: int, history: Sequence[Turn]) -> Facts:
        """Return what the turn `number` is decided from; where a person holds the wheel nothing is measured for it."""
        registry, held = self._rooms.registry, archive.held(self._run_dir)
        champion: str | None = ask(registry.champion)
        previous: str | None = ask(registry.previous)
        known, form = recall(history, champion, time.time()), self._served_correction(champion)
        present = known.correction if known.is_champion_known or champion is None else form
        contradiction = self._contradiction(known, present)
        signals: Sequence[Signal] = ()
        current: list[Signal] = []
        diagnosis, blame = Diagnosis(calibration=None, obstacle="", num_changed=0), None
        cause: Mapping[str, Any] = {}
        if champion is not None:
            self._rooms.produce()
            signals = ask(self._rooms.serving.observer.signals)
            current = about(ask(registry.releases)[-1], signals)
            if current and not held:
                self._rooms.say("analyze", "fitting the simulator to production since the alarm", passing=True)
                diagnosis = self._diagnose(champion, current, known, present)
                cause = explaining.explain(self._rooms, self._spec, current, history, self._task)
                blame = beside.blamed(self._rooms, self._task, ask(registry.releases)[-1], current)
            elif not held and (doubt := contradiction or self._poorly_paid(history, present)):
                diagnosis, contradiction = self._fit(champion, contradiction, doubt, known, present)
        now = time.time()  # what was waited for before counts for the cooldown
        past = recall(history, champion, now)
        return Facts(
            number=number,
            now=now,
            champion=champion,
            previous=previous,
            condemned=tuple(sorted(ask(registry.condemned))),
            signals=open_signals(history, watched(signals, current), champion),
            past=past,
            calibration=diagnosis.calibration,
            obstacle=diagnosis.obstacle,
            correction=diagnosis.correction,
            no_correction=diagnosis.no_correction,
            contradiction=contradiction,
            cause=cause.get(CAUSE),
            blame="unknown" if blame is None else blame.whose,
            blame_words="" if blame is None else blame.reason,
            nominal=self._task.nominal,
            served=self._served(champion),
            served_correction=form,
            elsewhere=self._elsewhere(champion, previous, past.candidate),
            algorithm=self._config.train.algorithm,
            is_spent=bool(ask(self._rooms.gate.is_spent, ask(registry.tries))),
            held=held,
            config=self._config.analyze,
        )

    def _fit(
        self, champion: str, contradiction: str, doubt: str, past: Past, present: Correction | None
    ) -> tuple[Diagnosis, str]:
        """Return what production shows though nothing alarmed, and what it contradicts: a doubt only if it is new."""
        what = "production contradicts the gate" if contradiction else doubt
        self._rooms.say("analyze", f"fitting the simulator, as {what}", passing=True)
        found = self._diagnose(champion, [], past, present)
        return found, contradiction or (doubt if found.correction not in (None, present) else "")

    def _contradiction(self, past: Past, present: Correction | None) -> str:
        """Return how production contradicts the gate that judges in the worlds trained in last; "" if it does not."""
        config, worlds = self._config, foreign.middle(past.parameters)
        found = predicting.question(
            corrected(self._task, present), config.gate, config.analyze, self._run_dir, ask,
            self._rooms.registry, worlds,
            lambda: ask(self._rooms.serving.observer.settled_until),
        )  # fmt: skip
        return "" if found is None or found.passed is not None else found.note

    def _poorly_paid(self, history: Sequence[Turn], present: Correction | None) -> str:
        """Return that production is not good again where another reward is followed; "" where it is, or none is.

        Of a reward only that is known which production has shown: a policy that was trained for it goes on from there,
        and shows more of it.
        """
        shown = history[-1].evidence if history else {}
        is_followed = self._config.analyze.follow_rewards and present is not None and present.reward is not None
        if not is_followed or shown.get("needed") is None or shown.get("before") is None:
            return ""
        return (
            f"production's mean return is {shown['mean_return']:.0f}, and {shown['needed']:.0f} was needed: it shows "
            "now what is paid where no policy went before"
        )

    def _served(self, champion: str | None) -> Mapping[str, tuple[float, float]]:
        """Return the ranges of the worlds that the policy in service was trained in."""
        if champion is None:
            return {}
        artifact: Artifact = ask(self._rooms.registry.artifact, champion)
        return {name: (low, high) for name, (low, high) in artifact.trained_on.get("parameters", {}).items()}

    def _served_correction(self, champion: str | None) -> Correction | None:
        """Return what the worlds corrected that the policy in service was trained in."""
        trained_on = {} if champion is None else ask(self._rooms.registry.artifact, champion).trained_on
        return correction_of(trained_on)

    def _elsewhere(self, *digests: str | None) -> tuple[str, ...]:
        """Return which of the policies that training might start from were trained elsewhere."""
        known = dict.fromkeys(each for each in digests if each is not None)
        made = {each: ask(self._rooms.registry.artifact, each).trained_on.get("strategy") for each in known}
        return tuple(each for each, strategy in made.items() if strategy == ELSEWHERE)

    def _diagnose(self, champion: str, signals: list[Signal], past: Past, present: Correction | None) -> Diagnosis:
        """Wait until production has shown enough of the change, or at all if none alarmed; fit the simulator to it."""
        serving, deadline = self._rooms.serving, time.monotonic() + self._config.analyze.patience_s
        while True:
            try:
                episodes: list[Episode] = ask(serving.store.recent, ANALYZED, None, champion, learnable=True)
            except FlywheelError as error:  # a damaged segment: the turn is decided without it
                why = f"production's episodes can't be read ({error})"
                return Diagnosis(calibration=None, obstacle=why, num_changed=0)
            is_enough = enough(self._task, episodes, signals, self._config.analyze, is_quiet=not signals)
            if is_enough or time.monotonic() > deadline:
                break
            more = ask(serving.store.count, champion, "production") + 1
            ask(serving.observer.wait, digest=champion, episodes=more, timeout_s=LOOK_S)
        fit = self._rooms.work(diagnose)
        served = ask(self._rooms.registry.bundle, champion)
        task, seen = (self._task, episodes) if needed(self._task) else forgotten(self._task, episodes)
        given = task, seen, signals, self._config.analyze, served, self._seed(), not signals
        found: Diagnosis = ask(fit, *given, foreign.middle(past.parameters), present)
        return found


def about(release: Release, signals: Sequence[Signal]) -> list[Signal]:
    """Return the alarms about a release, and not about an earlier one of the same policy."""
    return [signal for signal in signals if signal.evidence["released_at"] == release.released_at]


def watched(signals: Sequence[Signal], current: Sequence[Signal]) -> list[Signal]:
    """Return the alarms without accusations from before the present release: in service a policy is watched anew."""
    return [signal for signal in signals if signal.kind != "reward_hacking" or signal in current]
