"""Everything that crosses a room: frozen records of plain values and NumPy arrays.

N simulations or rows, T steps, ``*o`` and ``*a`` the shape of one observation and of one raw action.
Names in ``_at`` are UTC epoch seconds, ``_s`` seconds, ``num_`` counts. Never an ObjectRef, tensor, handle or callable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flywheel.correction import Calibration as Calibration
from flywheel.correction import Correction as Correction
from flywheel.rounds import Probe as Probe
from flywheel.rounds import Progress as Progress

SCHEMA_VERSION = 1
"""Version of every file format that holds these records; readers keep reading older ones."""

Array = NDArray[Any]
Parameters = Mapping[str, float]
Origin = Literal["production", "gate", "fork", "train"]
End = Literal["terminated", "truncated", "lost"]
Outcome = Literal["pass", "fail", "inconclusive"]
StrategyName = Literal[
    "continue_training", "increase_exploration", "retrain_prioritize_recent", "rollback_and_retrain", "hold"
]
SignalKind = Literal["shift_detected", "degradation", "reward_hacking"]
Stage = Literal["shadow", "canary", "full"]
ELSEWHERE = "trained elsewhere"
"""What an Artifact's `trained_on` says in place of a Plan's strategy when it came as a bare network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How an action is drawn from the policy's outputs; the same in gate, replica, client and replay."""

    kind: Literal["categorical", "multi_categorical", "gaussian"]
    """What it reads: logits[N, A]; those of each sub-action side by side; mean and log deviation, each [N, *a]."""
    greedy: bool = False
    """True: the most likely action (the mean), whatever the draws say."""
    exploration_rate: float = 0.0
    """epsilon in [0, 1]: the share of uniform actions (of each sub-action; not for a Gaussian)."""
    temperature: float = 1.0
    """tau > 0: divides the logits, multiplies the Gaussian's deviation."""
    squashed: bool = False
    """True: a Gaussian's draw goes through tanh, and so lies in (-1, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A part of an observation that is an array or a number by itself."""

    path: tuple[str | int, ...]
    """Keys of Dicts and indices of Tuples that lead to it; () where it is the whole observation."""
    kind: Literal["box", "discrete", "multi_discrete", "multi_binary"]
    shape: tuple[int, ...]
    """Shape in which the environment gives it; () for a number."""
    dtype: str
    nvec: tuple[int, ...] = ()
    """Numbers of values of (flattened) discrete parts, each of which becomes a one-hot vector; empty for others."""
    starts: tuple[int, ...] = ()
    """Their first values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a policy reads and gives: spaces as JSON, and the acting rule."""

    observation_shape: tuple[int, ...]
    """[D] of a flattened observation, which is what is stored, and what policies read."""
    observation_dtype: str
    observation_low: tuple[float, ...]
    """Bounds of the flattened observation, -inf where there is none."""
    observation_high: tuple[float, ...]
    action_kind: Literal["discrete", "multi_discrete", "box"]
    action_shape: tuple[int, ...]
    """() for a discrete action."""
    num_actions: int
    """Number of discrete actions; 0 for other kinds."""
    action_start: int
    """First discrete action."""
    action_low: tuple[float, ...]
    """Flattened bounds of the environment's box action; empty for other kinds."""
    action_high: tuple[float, ...]
    unsquash: bool
    """True: a raw action in [-1, 1] is stretched to the bounds; False: it is clipped to them."""
    rule: Rule
    num_draws: int
    """K: uniform draws one decision takes."""
    observation_leaves: tuple[Leaf, ...] = ()
    """Parts of the environment's own observation in the order of their flattening; () for one flat Box."""
    action_nvec: tuple[int, ...] = ()
    """Number of values of each sub-action of a multi-discrete action."""
    action_starts: tuple[int, ...] = ()
    """First value of each sub-action."""

    @property
    def action_dtype(self) -> type[np.int64] | type[np.float32]:
        """The type of raw actions."""
        return np.float32 if self.action_kind == "box" else np.int64

    @property
    def num_outputs(self) -> int:
        """D: how many numbers the network answers with for one observation."""
        if self.action_kind == "box":
            return 2 * self.num_draws
        return sum(self.action_nvec) or self.num_actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A policy at rest: a directory named by the sha256 of its manifest, which covers every file."""

    digest: str
    version: int
    uri: str
    spec: Spec
    parent: str | None
    trained_on: Mapping[str, Any]
    """Plain values: the Plan's strategy, the simulator's parameters, steps, seed."""
    made_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One simulated episode of the gate; it can be run again alone from `seed`, `parameters` and `scenario`."""

    seed: int
    """What draws the actions, and the world where its scenario doesn't say by which seed that begins."""
    parameters: Parameters
    scenario: str
    """`nominal`, the name of an edge case, or `suite:` and the name of a saved scenario."""
    total: float
    """Undiscounted return. (`return` is a Python keyword.)"""
    length: int
    failed: bool
    margin: float
    """The task's continuous safety margin, NaN where it has none."""
    episode: str
    chain: str = ""
    """`tapes.chain` of the episode, which proves a replay bit for bit; "" in verdicts from before there were any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question put to evidence, and its answer: passed, refused (False) or still open (None)."""

    name: str
    value: float
    interval: tuple[float, float]
    bound: float
    passed: bool | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate says of one digest; nothing is served without a passing, signed one."""

    digest: str
    baseline: str | None
    task: str
    config: str
    simulator: str
    """Digests of the task, of the gate's configuration and of the simulator's parameters."""
    outcome: Outcome
    checks: tuple[Check, ...]
    trials: tuple[Trial, ...]
    seed: int
    """Root of all seeds of this verdict."""
    cost_s: float
    judged_at: float
    valid_until: float
    tries: int = 0
    """Candidates judged before it since production last confirmed a release, which spent of the gate's error budget."""
    rivals: tuple[Trial, ...] = ()
    """The baseline in the same worlds, where it played them: a pair has one scenario, one seed and one parameters."""
    num_played: int = 0
    """Simulations that it took, of both policies, kept or not; 0: not known."""
    correction: Correction | None = None
    """What its worlds did that the task's own simulator doesn't; a trial of it is played again in such."""
    signature: str = ""
    """Ed25519 over the canonical JSON of everything else, hex; empty until the registry's owner signed it."""

    @property
    def num_simulations(self) -> int:
        """How many simulations it took, or, where that is not known, how many are kept."""
        return self.num_played or len(self.trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A digest that answers clients from `released_at` on."""

    digest: str
    stage: Stage
    share: float
    previous: str | None
    released_at: float
    pays_otherwise: bool = field(default=False, compare=False)
    """Whether it was trained for another reward than the one before it: then it acts otherwise because it should."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """Columns over N decisions of any episodes, as a replica saw them.

    A row with `end` other than "no" is an episode's end: `t` is its number of steps, `observations` its
    last observation, `rewards` the reward of its last action; digest, raw action and logp are void there.
    """

    episodes: tuple[str, ...]
    t: NDArray[np.int64]
    digests: tuple[str, ...]
    observations: Array
    """dtype[N, *o]"""
    raw_actions: Array
    """dtype[N, *a], as the policy's distribution gave them, before clipping"""
    logps: NDArray[np.float64]
    draw_keys: NDArray[np.uint64]
    rewards: NDArray[np.float64]
    """float64[N]: of the action before, NaN where it isn't known (always at t = 0)"""
    ends: tuple[Literal["no", "terminated", "truncated"], ...]
    seen_at: NDArray[np.float64]
    repeated_digests: tuple[str, ...] = ()
    """What the client repeated of the answer to t - 1: of two answers to one t, that one was executed. "" where it
    repeated nothing (t = 0, a step that was sent again); () and an empty array where no row says it."""
    repeated_actions: Array = field(default_factory=lambda: np.zeros(0))
    """dtype[N, *a], raw"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward that comes after its step."""

    episode: str
    t: int
    reward: float
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """One whole episode: T actions, T + 1 observations."""

    id: str
    origin: Origin
    task: str
    """Digest of the task."""
    parameters: Parameters
    """The world's, where they are known (simulation); empty in production."""
    draw_key: int
    digests: tuple[str, ...]
    """Length T: which policy gave each action; "" where none did, but a scenario or a fork's edit."""
    observations: Array
    """dtype[T + 1, *o]"""
    raw_actions: Array
    """dtype[T, *a]"""
    rewards: NDArray[np.float64]
    """float64[T], NaN where not known"""
    logps: NDArray[np.float64]
    end: End
    failed: bool
    scenario: str = ""
    seed: int | None = None
    edits: tuple[str, ...] = ()
    parent: tuple[str, int] | None = None
    inclusion: float = 1.0
    """Probability with which an episode like this one is kept."""
    started_at: float = 0.0
    ended_at: float = 0.0

    @property
    def num_steps(self) -> int:
        """T, the number of actions."""
        return len(self.rewards)

    @property
    def total(self) -> float:
        """Undiscounted return over the known rewards."""
        return total if (total := float(self.rewards.sum())) == total else float(np.nansum(self.rewards))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """An alarm of one monitor, with its evidence."""

    kind: SignalKind
    monitor: str
    digest: str
    value: float
    threshold: float
    since_episode: str
    """The episode where the evidence begins (an estimate)."""
    at_episode: str
    """The episode that raised the alarm; everything that began before it had been read or lost."""
    evidence: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do next, and why."""

    strategy: StrategyName
    reasons: tuple[str, ...]
    signals: tuple[Signal, ...] = ()
    sampling: Literal["none", "uniform", "recent", "failed", "production"] = "none"
    """What learns from the store gets: nothing of production, a share of it, the recent of it, its failures more often;
    `production`: only what production showed since the change, as the simulator can't follow it."""
    policies: tuple[str, ...] = ()
    """Digests: of production's steps only theirs are learnt from; () for any policy's."""
    parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Simulator parameters: the range to train in; the gate judges at its middle."""
    warm_start: str | None = None
    """Digest to start training from; None starts afresh."""
    exploration: float = 1.0
    """Factor on the trainer's exploration where this round begins, and from where it comes down to 1 within it."""
    max_steps: int = 0
    """Environment steps that this round may take; 0 leaves it to the trainer's configuration."""
    correction: Correction | None = None
    """What worlds do here that the task's own simulator doesn't: the gate judges, and simulation trains, in such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the wheel, as the journal keeps it."""

    number: int
    plan: Plan
    artifact: Artifact | None = None
    verdict: Verdict | None = None
    release: Release | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: seconds by stage, training metrics, signals that ended the turn, means of production."""
    decision: Mapping[str, Any] = field(default_factory=dict)
    """Plain values of the `facts.Decision` that made the plan; {} in journals from before there were any."""

    @property
    def is_released(self) -> bool:
        """Whether the candidate is in service by this turn's release; a rollback's is another policy's."""
        return self.release is not None and self.artifact is not None and self.release.digest == self.artifact.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A sentence that the wheel said while it turned."""

    at: float
    stage: str
    """`train`, `gate`, `deploy`, `observe`, `analyze`; `start` and `end` of the process that turns the wheel."""
    text: str
    turn: int = 0
    """Number of the turn that was under way, 0 before the first one."""
    passing: bool = False
    """True when the next sentence of its stage takes its place: how far something is."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What the sentence says, as numbers: a training's iteration has `steps`, `return`, `failed`, `probed`."""
