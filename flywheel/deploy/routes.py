"""The routing table: all that can be asked over HTTP, of which /v1/openapi.json is made. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flywheel.deploy import wire
from flywheel.tokens import Scope
from flywheel.trace.row import TellAnswer, TellRequest

AWAY = "the registry or the observer is away, or no policy is in service yet: send the same request again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One thing that can be asked."""

    name: str
    """What the door calls it."""
    method: Literal["GET", "POST"]
    path: str
    """With at most one {name} in it, as its last part."""
    scopes: tuple[Scope, ...] = ()
    """Those one of which a token has to have; () lets everybody in."""
    about: str
    """What is true when it is answered by 200, as a sentence."""
    takes: Any = None
    """Type of its body; None where it has none."""
    gives: Any
    """Type of its answer; None where that is not ours."""
    fails: Mapping[int, str] = field(default_factory=dict)
    """Statuses of its own, beside those of tokens, bodies and unknown paths, and what each means, as a clause."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Numbers that may be in its query, and what each means, as a clause."""
    has_msgpack: bool = True
    """Whether bodies may be msgpack, too."""


ROUTES = (
    Route(
        name="act",
        method="POST",
        path="/v1/act",
        scopes=("act",),
        about="Each step has its decision, by the policy that its episode began with.",
        takes=wire.ActRequest,
        gives=wire.ActAnswer,
        fails={409: "the same step came before with other content, which is kept aside", 503: AWAY},
    ),
    Route(
        name="end",
        method="POST",
        path="/v1/end",
        scopes=("act",),  # who begins an episode has to be able to end it
        about="Acknowledged episodes are durable; of the others the missing steps are named.",
        takes=wire.EndRequest,
        gives=wire.EndAnswer,
        fails={409: "it contradicts what was answered", 503: AWAY},
    ),
    Route(
        name="rewards",
        method="POST",
        path="/v1/rewards",
        scopes=("act", "ingest"),
        about="Rewards of steps whose reward was not known are durable; the same again changes nothing.",
        takes=wire.RewardsRequest,
        gives=wire.RewardsAnswer,
        fails={
            404: "nobody knows the step that is named; what else could be is kept",
            409: "the step that is named has another reward, and this one is kept aside; what else could be is kept",
            503: AWAY,
        },
    ),
    Route(
        name="leases",
        method="POST",
        path="/v1/leases",
        scopes=("act",),
        about="A client may act in these episodes by itself: policy and draws are fixed, as by their first step.",
        takes=wire.LeasesRequest,
        gives=wire.LeasesAnswer,
        fails={503: AWAY},
    ),
    Route(
        name="episodes",
        method="POST",
        path="/v1/episodes",
        scopes=("ingest", "act"),
        about="Whole episodes that were acted under leases are proven and durable, or refused one by one; those that "
        "run hold their places in the order of start.",
        takes=wire.EpisodesRequest,
        gives=wire.EpisodesAnswer,
        fails={503: AWAY},
    ),
    Route(
        name="spans",
        method="POST",
        path="/v1/spans",
        scopes=("ingest", "act"),  # a client tells of its own episodes, too
        about="Spans that a program made are on their way to the run directory, as far as there is room.",
        takes=TellRequest,
        gives=TellAnswer,
        fails={404: "no spans are kept here"},
        has_msgpack=False,
    ),
    Route(
        name="policy",
        method="GET",
        path="/v1/policy",
        scopes=("read", "act"),
        about="Which policy answers at this replica.",
        gives=wire.StatusAnswer,
        fails={503: AWAY},
    ),
    Route(
        name="policies",
        method="GET",
        path="/v1/policies/{digest}",
        scopes=("read", "act"),
        about="The files of a policy that was ever released or tried, and its signed verdict; @champion, @challenger "
        "and @previous stand for digests.",
        gives=wire.PolicyAnswer,
        fails={404: "there is no such policy", 410: "it is condemned, and may not act any more", 503: AWAY},
    ),
    Route(
        name="key",
        method="GET",
        path="/v1/key",
        scopes=("read", "act"),
        about="What a verdict is proven with.",
        gives=wire.KeyAnswer,
        fails={503: AWAY},
    ),
    Route(
        name="served",
        method="GET",
        path="/v1/served",
        scopes=("read",),
        about="Who answered at a time.",
        gives=wire.ServedAnswer,
        fails={422: "the time is no number", 503: AWAY},
        query={"at": "UTC epoch seconds; now, where it is left out"},
    ),
    Route(
        name="rollback",
        method="POST",
        path="/v1/rollback",
        scopes=("operate",),
        about="The policy in service is condemned and the one before it back, on every replica within 2 seconds.",
        takes=wire.RollbackRequest,
        gives=wire.RollbackAnswer,
        fails={409: "there is nothing to go back to, or another policy serves than is meant", 503: AWAY},
    ),
    Route(
        name="health",
        method="GET",
        path="/v1/health",
        about="A policy is in service at this replica.",
        gives=wire.HealthAnswer,
        fails={503: "none is"},
    ),
    Route(
        name="openapi",
        method="GET",
        path="/v1/openapi.json",
        about="All of this, as OpenAPI 3.1, with the observations and actions of the policy in service.",
        gives=None,
        has_msgpack=False,
    ),
)
