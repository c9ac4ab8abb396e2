"""Every knob: one frozen dataclass per room, and Config that holds them.

Under each field stands its unit and why its default is what it is. The same dataclasses are the Python
interface, the `flywheel.toml` file and the command line; the last one that speaks wins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flywheel.producing import TrafficConfig
from flywheel.replaying import ReplayConfig
from flywheel.tracing import TraceConfig as TraceConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The trainer: RLlib on parallel env runners."""

    algorithm: Literal["ppo", "appo", "dqn", "sac"] = "ppo"
    """PPO learns in simulation, APPO, too, without waiting for the slowest of many runners; DQN (discrete actions) and
    SAC (bounded box actions) also from production's episodes in the store, for changes that no parameter explains"""
    num_runners: int = 2
    """env runner processes; each claims half a CPU, so that two and the learner fit 2 CPUs"""
    worlds_per_runner: int = 16
    """worlds each runner steps in lockstep; 32 in all were measured best for small tasks"""
    steps_per_world: int = 32
    """steps of each world in one iteration: 1,024 in all, as tuned for CartPole"""
    num_epochs: int = 15
    """passes over one iteration's steps: with minibatches of 256, 10 passes needed twice the steps of 20"""
    minibatch_size: int = 128
    """rows; with 15 passes some 120 updates an iteration, 0.2 ms each"""
    lr: float = 1e-3
    """learning rate of Adam"""
    lr_warm: float = 0.0
    """learning rate at which a round that goes on from a policy begins; 0 begins it with `lr`, too, which small tasks
    stand and others forget by what they knew"""
    lr_end: float = 0.0
    """learning rate after `max_steps` steps of a round, reached in a straight line; 0 keeps `lr`, as small tasks can"""
    gamma: float = 0.99
    """discount per step: sees 100 steps ahead; 0.95 did not learn a pole of 2.0 in 60,000 steps"""
    lambda_: float = 0.95
    """GAE's lambda; 0.8 needed two thirds more steps, from scratch and in a changed world"""
    reward_scale: float = 1.0
    """factor on rewards in training only: returns of hundreds or thousands swamp the critic's loss"""
    step_cost: float = 0.0
    """reward that each step costs, in training only and before `reward_scale`: for tasks in which running out of time
    is failing, which PPO would not mind otherwise"""
    entropy: float = 0.0
    """entropy bonus; a Plan may multiply it (or start it, see exploration_entropy)"""
    exploration_entropy: float = 0.04
    """entropy bonus that stands for 1 when a Plan asks for more exploration than `entropy` gives: twice as much raised
    the entropy by a tenth, and cost a nearly good policy no steps. It weighs the same at any `reward_scale`, as PPO's
    advantages are standardized"""
    exploration_share: float = 0.1
    """share of `max_steps` in which more exploration comes down to none, in a straight line: a bonus of 0.02 that
    stayed took a nearly good policy 1.7 times the steps until it was good"""
    hidden: tuple[int, ...] = (64, 64)
    """units of the policy's and the critic's hidden layers"""
    activation: Literal["tanh", "relu"] = "tanh"
    """function between the layers"""
    max_steps: int = 100_000
    """environment steps after which a round gives up and lets the gate judge what it has; three times what any of 14
    rounds on CartPole needed"""
    min_steps: int = 4_096
    """environment steps before the first probe can end a round"""
    quiet_steps: int = 16_384
    """environment steps after which a round in quiet times gives up beating the policy in service"""
    edge_case_share: float = 0.25
    """share of training worlds whose episodes begin in one of the task's edge cases (0 if it has none)"""
    probe_every: int = 1
    """iterations from one probe to the next; more where episodes are long and iterations short"""
    probe_episodes: int = 200
    """fresh episodes of one probe: at most one may fail"""
    probe_max_failed: int = 1
    """failed episodes a probe that ends training may show"""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """for algorithms other than PPO"""
    warm_start: str = ""
    """policy that training begins with, instead of fresh weights: its digest, or its directory in any run directory"""
    runner: Literal["auto", "own", "rllib"] = "auto"
    """whose env runner samples: our own, or RLlib's, which is a fifteenth as fast; auto takes RLlib's where
    `train.rllib` asks for what only that one does, and says so"""
    rllib: Mapping[str, Any] = field(default_factory=dict)
    """RLlib's own settings, for anything else: clip_param=0.1 (values in JSON); what Flywheel sets itself is refused"""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """who is given the curves of rounds and turns: `tensorboard/` in the run directory, MLflow, W&B; none is fine"""


@dataclass(frozen=True, slots=True)
class GateConfig:
    """The safety gate."""

    num_sims: int = 100
    """simulations of the first look"""
    batch: int = 50
    """simulations of each further look while a question is open; a tenth of those before, where that is more"""
    max_sims: int = 1000
    """simulations after which an open question stays open: inconclusive"""
    timeout_s: float = 600.0
    """seconds after which a verdict is inconclusive"""
    budget: float = 0.1
    """error budget: bounds the probability that any policy at a limit passes, of all that are judged until production
    confirms a release; half of it is the first one's, a sixth the second's, 1 / ((n + 1) (n + 2)) the n-th after it"""
    error: float = 0.05
    """error of intervals, and of refusals: a policy that keeps 0.4 of a limit's odds is refused at most so often"""
    compare_sims: int = 300
    """most pairs of nominal worlds in which it is found out whether a candidate is less safe than the one in service"""
    stress_sims: int = 200
    """pairs of worlds at the edge of what the policy in service masters, in which a candidate is compared with it; 0
    leaves it out, for a reward that is worth being less safe out there"""
    search_sims: int = 500
    """simulations of the search for failures at the end of a verdict that would pass; 0 leaves it out"""
    edge_trials: int = 4
    """simulations of each named edge case"""
    edge_max_failed: int = 0
    """of those, how many may fail; a task of which good policies fail now and then needs more of both"""
    probe_edge_trials: int = 40
    """simulations of each edge case in a probe: more than the verdict's, so that what ends training also passes"""
    probe_edge_max_failed: int = 0
    """of those, how many may fail"""
    suite_open: int = 8
    """most open scenarios that failures of production become by themselves, the most frequent ones first; 0 is none"""
    probe_first: int = 20
    """episodes of a probe's first look: one that shows more failures than may end training is broken off"""
    latency_calls: int = 500
    """timed decisions of the cost check"""
    valid_s: float = 86_400.0
    """seconds for which a verdict allows a promotion"""
    lockstep: int = 256
    """most worlds stepped at once; ONNX Runtime's rows were bit-equal up to this batch"""
    workers: int = 0
    """processes that simulate, which changes no verdict; 0: one a CPU, or the gate's own alone where that is quick"""


@dataclass(frozen=True, slots=True)
class DeployConfig:
    """Ray Serve and the policy's replicas."""

    host: str = "127.0.0.1"
    """address the HTTP ingress binds to; anything but loopback needs a front with TLS"""
    port: int = 8000
    """HTTP port; 0 picks a free one"""
    num_replicas: int = 1
    """policy replicas; one answers 1,900 requests a second of 8 clients on 2 cores"""
    haproxy: bool = True
    """Ray Serve's HAProxy ingress (Linux); off uses its Python proxy, ten times slower"""
    flush_s: float = 0.1
    """seconds a replica gathers steps before it sends them to the observer: a message takes as much of the machine as
    a dozen decisions; an episode's end sends at once"""
    poll_s: float = 1.0
    """seconds between a replica's looks at the registry, which heal a missed reload"""
    max_batch: int = 1024
    """decisions one request may ask for"""
    max_body: int = 8 * 2**20
    """bytes of a request's body"""
    quota: float = 10_000.0
    """requests a second that a replica takes of a token without a quota of its own: more than it can answer"""
    quota_burst_s: float = 2.0
    """seconds of its quota that a token may use up at once: clients come in bursts"""
    max_queue: int = 200_000
    """steps a replica keeps while the observer is away; beyond it steps are counted as not logged"""
    shadow_decisions: int = 256
    """decisions of production that a challenger has to answer beside the champion, without a crash or a NaN, before it
    is given an episode: a second of 64 clients; 0 leaves the shadow out"""
    ramp: tuple[float, ...] = (0.01, 0.1, 0.5)
    """shares of new episodes that a challenger is given, one after another. A known champion makes each of its episodes
    say more: of a challenger that fails twice as often, twice as many are needed at 0.5 as at 0.1"""
    ramp_first: int = 20
    """the challenger's outcomes after which the first share is left"""
    canary_margin: float = 0.02
    """how much oftener than the champion a challenger may fail, at most, and be promoted; it is promoted where it
    surely doesn't, and most of that evidence lifts it to the last share"""
    incident_margin: float = 0.1
    """the same where an open incident condemns the champion, as it fails oftener than it may: each of its episodes
    costs, and the gate compared both in the changed world already; there, promoting what is worse may be as likely as
    `rollback_error`"""
    rollback_error: float = 0.05
    """probability that a challenger is ever rolled back that fails no oftener than the champion"""
    promote_error: float = 0.005
    """probability that one is ever promoted that fails oftener by the margin; from then on monitors watch it as they
    do any champion, and it can be rolled back like one"""
    lost_error: float = 0.01
    """probability that a canary is stopped because one arm's episodes are lost oftener, where they aren't"""
    split_error: float = 1e-4
    """probability that it is stopped because its share of episodes isn't the one that it was given, where it is: hardly
    ever, as half or twice the share shows within some hundred episodes all the same"""
    canary_episodes: int = 2000
    """the challenger's outcomes after which the champion is kept if nothing is certain"""
    canary_timeout_s: float = 86_400.0
    """seconds after which it is, however few there were; promotion takes a verdict that is still valid, too"""
    settle_s: float = 2.0
    """seconds after a change of the share whose episodes count for nothing, as not every replica may know of it: two
    looks at the registry; longer where a replica is seen to know of it later"""
    control_share: float = 0.1
    """share of new episodes that stays on the policy that was in service before a release which answers no alarm, so
    that a bad release and a changed world can be told apart; a smaller one takes longer to tell, 0 tells nothing"""
    control_episodes: int = 2000
    """the control's outcomes after which all episodes are the champion's, unless an alarm about it is open: as many as
    tell a failure rate of 8 % from one of 2 % by the side of such a share"""
    on_fail: Literal["rollback", "freeze"] = "rollback"
    """what becomes of a challenger that fails oftener, crashes or answers NaN: `rollback` condemns it; `freeze` gives
    it no more episodes, and leaves the rest to a person"""
    approve: str = ""
    """module:function that is asked before a challenger is promoted: True, False, or None to be asked again; `person`
    waits for `flywheel canary approve`, or the same on the page; empty asks nobody"""


@dataclass(frozen=True, slots=True)
class ObserveConfig:
    """The observer and its monitors."""

    episode_timeout_s: float = 30.0
    """seconds without a step after which an open episode is lost"""
    wait_s: float = 0.2
    """seconds an end waits for other replicas' steps: two flush intervals"""
    lease_wait_s: float = 3.0
    """seconds an outcome waits for word of episodes that began before it, from when clients first act by themselves
    (`Local`): they tell what runs at once, and again every 2 seconds at most"""
    false_alarm_episodes: float = 10_000.0
    """mean number of episodes between false alarms of all monitors together (at least): one budget, most of it for
    `failed`, whose delays cost failures"""
    baseline_episodes: int = 100
    """episodes of a release from which the monitors of the world and of inputs learn what is normal, of each stratum"""
    reward_window_s: float = 0.0
    """seconds after an episode's end for which its outcome waits where a reward isn't known yet, and all that began
    after it; 0 has it read at once. Later rewards are kept and learnt from, and alarm nobody"""
    reward_default: float | None = None
    """what a reward counts as that isn't known when its window is over, to monitors and to the task's `failed`; None
    leaves it out. The episode keeps it as unknown, and a return in a table is over the known ones"""
    open_mib: float = 256.0
    """MiB of open episodes, half a million steps of CartPole; beyond it the one of which nothing was heard for longest
    is given out as lost, and its client sends it again at its end"""
    max_waiting: int = 20_000
    """outcomes that wait for one that began before them; beyond it the oldest running one is passed by, unread"""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The replay store."""

    group_s: float = 0.005
    """seconds over which appends share one durable commit"""
    seal_after_s: float = 3600.0
    """seconds after an episode's end, when late rewards have come, from which its steps go to a sealed Parquet file"""
    most_gib: float = 20.0
    """GiB of episodes on the disk, some three million of 200 small steps, beyond which old ones are thinned"""
    keep_share: float = 0.2
    """share that a thinning keeps of the episodes that did not fail; those that failed stay in any case"""
    keep_whole_s: float = 172_800.0
    """seconds after its end for which an episode is never thinned: twice what a challenger is tried for"""


@dataclass(frozen=True, slots=True)
class AnalyzeConfig:
    """Diagnosis, calibration and strategy."""

    episodes: int = 40
    """most recent changed episodes that calibration reads"""
    min_transitions: int = 200
    """transitions that calibration waits for"""
    patience_s: float = 10.0
    """seconds to wait for those transitions before the fit makes do with what there is"""
    explained: float = 0.9
    """share of the residual a fit must remove before its parameters are believed"""
    explained_episodes: float = 0.7
    """the same of a fit to whole episodes: share of the distance between production's and the simulator's statistics"""
    corrected: float = 0.8
    """share of what the simulator misses that a correction must remove before the gate judges by it, in episodes that
    it was not fitted to; where no parameter explains the change"""
    follow_rewards: bool = False
    """whether rewards that changed say what is wanted now; if not, they count as broken until the task says so"""
    simulations: int = 1000
    """episodes that a fit to whole episodes may simulate: six rounds of some 120, and two checks"""
    simulated_steps: int = 150_000
    """steps that those episodes may have in all (by the mean length seen): 6 s of a world that takes 40 µs a step"""
    widen: float = 0.05
    """relative half-width of the training range around a calibrated value"""
    cooldown_s: float = 15.0
    """seconds after a release or a hold in which nothing else is done about the same cause, unless outcomes get worse:
    the new release's monitors read some 100 episodes first"""
    most_rounds: int = 1000
    """rounds of training in a day, half of which quiet times may use: one after another without end takes 86 s each; 0
    counts none"""
    sim_gap: float = 0.005
    """how much oftener production may fail than the gate foretold, before that contradicts it: a tenth of the usual
    limit, as what the gate's few hundred trials leave open comes on top"""
    sim_loss: float = 0.02
    """how much less the return may be than foretold, as a share of the range of returns: no simulator is exact"""


@dataclass(frozen=True, slots=True)
class PageConfig:
    """The page on which people watch and operate a wheel."""

    host: str = "127.0.0.1"
    """address that `flywheel page` binds to; on anything but loopback even reading needs a token"""
    port: int = 8700
    """its HTTP port; 0 picks a free one"""
    max_streams: int = 100
    """open pages that are told what happens as it happens; one more is asked to come again"""
    stream_s: float = 900.0
    """seconds after which such a stream ends; the browser goes on with a new one where it was"""
    look_s: float = 0.5
    """seconds between two looks at the run directory for all of them"""
    heartbeat_s: float = 15.0
    """seconds of silence after which a stream says that it is there: proxies end silent ones after 30 or 60"""
    max_body: int = 64 * 2**10
    """bytes of a request's body: the largest one names an episode and some edits"""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """When a turn begins and when the run is over."""

    observe_episodes: int = 400
    """episodes of production after which a quiet turn ends"""
    recovered_episodes: int = 50
    """episodes on the new release that decide whether production is good again"""
    recovered_share: float = 0.95
    """share of the return before the change that counts as good again: what may be missing is the rest's share of the
    range of returns, where the task gives one"""


@dataclass(frozen=True, slots=True)
class Config:
    """All of it; the resolved one is written to the run directory as config.json."""

    task: str = "cartpole"
    """a built-in task, or module:attribute of your own"""
    env: str = ""
    """a Gymnasium id to make a task of (or module:Id-v0), instead of a task; what failing is gets measured"""
    env_failed_below: float | None = None
    """return below which an episode of --env counts as failed; None measures policies that look at nothing and takes
    the middle between the best one's mean and the id's reward threshold; needed where that says nothing"""
    env_max_failure_rate: float | None = None
    """share of --env's episodes that may fail; None takes a task's default, 0.05"""
    turns: int = 4
    """turns of the wheel before the run ends by itself; counted on after a stop or a crash, so that the same command
    finishes what is left of them, the turn under way among it (and takes one at least), and anew after such an end"""
    run_dir: str = ""
    """directory of the run; empty makes runs/<task>-<time>; an existing one is gone on with"""
    seed: int = 0
    """root of every seed; 0 takes a fresh one and prints it"""
    drift: bool = True
    """let the simulated production's world change"""
    num_cpus: int = 0
    """CPUs the local Ray may use; 0 takes all of the machine's"""
    address: str = ""
    """Ray cluster to attach to (auto, or host:port): serving goes on there when the run ends; empty starts a Ray of
    its own, which ends with the run"""
    name: str = ""
    """what tells this wheel from others on the same cluster; empty takes the run directory's name"""
    sim_resource: str = "sim"
    """custom resource of the cluster's nodes that simulate and train; where no node has it, any node does"""
    forever: bool = False
    """turn the wheel for as long as there is reason to; SIGTERM or Ctrl-C ends it"""
    train: TrainConfig = field(default_factory=TrainConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    analyze: AnalyzeConfig = field(default_factory=AnalyzeConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    page: PageConfig = field(default_factory=PageConfig)


def canonical(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces; the form that digests and signatures are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)


def digest(value: Any) -> str:
    """Return the sha256 of a plain value's (or a config dataclass's) canonical JSON, hex."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return hashlib.sha256(canonical(plain).encode()).hexdigest()
