"""What clients send and get, and how a wrong field is named. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from flywheel.deploy.nested import wire_type
from flywheel.errors import FlywheelError
from flywheel.spaces import Leaves
from flywheel.trace.row import MAX_BODY, MAX_SPAN, TELL, TellRequest, is_heavy

EpisodeId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Step = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
At = Annotated[float, msgspec.Meta(ge=0, le=2**33)]
Seal = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
MAX_RUNNING = 1024
"""Most running episodes that one request may tell of."""
RawAction = int | float | list[float]
Seen = TypeVar("Seen")
"""An observation as the environment gives it: for one flat Box list[float]."""
T = TypeVar("T")


class RejectedError(FlywheelError):
    """A request that is not carried out, nothing stored: the HTTP status, the sentence, and the field that is wrong.

    `wait_s` are the seconds after which the same request may come again, 0 where nothing is known of that.
    """

    def __init__(self, status: int, sentence: str, field: str = "", *, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.field, self.wait_s = status, sentence, field, wait_s


class ActRow(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True, gc=False):
    """One observation that wants an action. From t = 1 on it repeats digest and raw action of the answer before."""

    episode: EpisodeId
    t: Step
    observation: Seen
    reward: float | None = None
    """Of the action before; left out at t = 0, null where it isn't known."""
    digest: Digest | None = None
    action: RawAction | None = None


class ResentRow(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True, gc=False):
    """A step that was lost on the way: as it was, with the digest and raw action of its own answer."""

    episode: EpisodeId
    t: Step
    observation: Seen
    digest: Digest
    action: RawAction
    reward: float | None = None


class EndRow(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True, gc=False):
    """An episode's end: `t` is its number of steps, the observation its last, digest and action those of step t - 1."""

    episode: EpisodeId
    t: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    observation: Seen
    digest: Digest
    action: RawAction
    terminated: bool
    truncated: bool
    reward: float | None = None


class ActRequest(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/act."""

    steps: list[ActRow[Seen]]


class EndRequest(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/end."""

    episodes: list[EndRow[Seen]] = []
    resend: list[ResentRow[Seen]] = []


class Decision(msgspec.Struct, frozen=True, gc=False):
    """One answer: `action` goes into the environment; `raw_action` and `digest` are repeated with the next call."""

    episode: str
    t: int
    digest: str
    action: Any
    """A number, or (nested) lists in the action's shape."""
    raw_action: RawAction
    """A number, or a flat list."""
    logp: float


class ActAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/act, a decision for each step in the same order."""

    decisions: list[Decision]


class EndAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/end: an id in neither place was not heard of; end it again."""

    acknowledged: list[str]
    """Episodes that are durable now."""
    missing: dict[str, list[int]]
    """Steps to send again, by episode."""


class RewardRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A reward that comes late: of the action at `t`, whose reward was null or left out."""

    episode: EpisodeId
    t: Step
    reward: float


class RewardsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/rewards."""

    rewards: list[RewardRow]


class RewardsAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/rewards: how many are durable now, which is all of them."""

    accepted: int


class LeasesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/leases: how many episodes a client wants to act in by itself."""

    num: Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Lease(msgspec.Struct, frozen=True, gc=False):
    """An episode that a client may act in by itself: whose it is and how it is drawn, as step 0 would fix it."""

    episode: str
    digest: str
    """Policy that acts in all of it."""
    draw_key: Annotated[int, msgspec.Meta(ge=0)]
    """Below 2**64."""
    given_at: float
    """UTC epoch seconds of the server's clock."""
    seal: str
    """Proves episode, digest and given_at when the episode comes back."""


class LeasesAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/leases."""

    leases: list[Lease]
    max_body: int
    """Bytes of one request at most: a whole episode has to fit."""


class EpisodeRow(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True, gc=False):
    """A whole episode that a client acted by itself: T actions, T + 1 observations, and what its lease says."""

    episode: EpisodeId
    digest: Digest
    given_at: At
    seal: Seal
    started_at: At
    ended_at: At
    observations: Annotated[list[Seen], msgspec.Meta(min_length=2)]
    raw_actions: Annotated[list[RawAction], msgspec.Meta(min_length=1)]
    rewards: Annotated[list[float | None], msgspec.Meta(min_length=1)]
    """[T], null where not known (yet)."""
    terminated: bool
    truncated: bool


class RunningRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An episode that a client acts in by itself, and that isn't acknowledged yet: over or not, it holds its place."""

    episode: EpisodeId
    digest: Digest
    given_at: At
    seal: Seal
    age_s: At
    """Seconds since it began, whatever the client's clock says."""


class EpisodesRequest(msgspec.Struct, Generic[Seen], frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/episodes."""

    episodes: list[EpisodeRow[Seen]]
    running: Annotated[list[RunningRow], msgspec.Meta(max_length=MAX_RUNNING)] = []
    """What has begun, those in `episodes` included: to be told when it begins, and again every 2 seconds."""


class EpisodesAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/episodes; each episode is in one of the two."""

    acknowledged: list[str]
    """Episodes that are durable now."""
    refused: dict[str, str]
    """Why each of the others is not kept: sending it again helps nothing."""


class StatusAnswer(msgspec.Struct, frozen=True):
    """Answer of GET /v1/policy: who answers at this replica, and how many steps it decided, holds and dropped."""

    digest: str | None
    version: int
    admissible: list[str]
    challenger: str | None
    share: float
    control: str | None
    """The former policy that `control_share` of new episodes stay on; null where there is none."""
    control_share: float
    trouble: str
    decisions: int
    waiting: int
    dropped: int


class PolicyAnswer(msgspec.Struct, frozen=True):
    """Answer of GET /v1/policies/{digest}."""

    artifact: dict[str, Any]
    """The artifact's record, for people: an infinite bound is null in JSON. The Spec that counts is in the manifest."""
    files: dict[str, bytes]
    """What acting needs, by name: the network, and manifest.json, which covers it and whose sha256 is the digest."""
    verdict: str
    """The signed verdict as canonical JSON, in which NaN and Infinity may stand; the signature covers all the rest."""


class KeyAnswer(msgspec.Struct, frozen=True):
    """Answer of GET /v1/key: what verdicts are proven with."""

    public: str
    """Ed25519 public key, hex."""
    task: str
    """Digest of the task that every verdict has to be about."""


class ServedAnswer(msgspec.Struct, frozen=True):
    """Answer of GET /v1/served: who answered at a time."""

    at: float
    champion: str | None
    challenger: str | None
    share: float
    """Share of new episodes that the challenger was given; 0 in the shadow."""
    control: str | None
    control_share: float
    """The former policy that this share of new episodes stayed on; null and 0 where there was none."""


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/rollback."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    digest: Digest | None = None
    """The policy that is meant, so that a retry does no harm; without it whatever is in service is rolled back."""


class RollbackAnswer(msgspec.Struct, frozen=True):
    """Answer of POST /v1/rollback."""

    rolled_back: str
    digest: str
    """The policy in service now."""


class HealthAnswer(msgspec.Struct, frozen=True):
    """Answer of GET /v1/health."""

    status: Literal["ok"]
    digest: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What a request that is not carried out is answered with."""

    error: str
    """What is wrong and what to do, as a sentence."""
    field: str
    """Where in the request, "" where that is no place in it."""


# Bodies as bytes

_AT = re.compile(r" - at `\$\.?(.*)`$")
Media = Literal["application/json", "application/msgpack"]
JSON: Media = "application/json"
MSGPACK: Media = "application/msgpack"
_JSON, _MSGPACK = JSON.encode(), MSGPACK.encode()


def media_of(header: bytes) -> Media:
    """Return how bytes are written by what a Content-Type or an Accept header names: msgpack by name alone."""
    return JSON if header == _JSON or _MSGPACK not in header.lower() else MSGPACK


def encode(answer: Any, media: Media) -> bytes:
    """Return an answer as bytes. Infinity and NaN are null in JSON."""
    return msgspec.msgpack.encode(answer) if media == MSGPACK else msgspec.json.encode(answer)


class Reading(Generic[T]):
    """Reads bodies of one type; strict: no text or boolean passes for a number, no unknown field for a typo."""

    def __init__(self, kind: Any) -> None:
        """Make its decoders."""
        self.kind = kind
        self._json: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._msgpack: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def decoder(self, media: Media) -> Callable[[bytes], T]:
        """Return what decodes a body."""
        return self._msgpack.decode if media == MSGPACK else self._json.decode


@dataclass(frozen=True, slots=True)
class Wire:
    """How requests are read where policies observe a certain space."""

    act: Reading[ActRequest[Any]]
    end: Reading[EndRequest[Any]]
    episodes: Reading[EpisodesRequest[Any]]


@lru_cache(maxsize=8)
def wire(leaves: Leaves) -> Wire:
    """Return what reads observations of these leaves."""
    kinds: tuple[Any, Any, Any] = (ActRequest, EndRequest, EpisodesRequest)
    act, end, episodes = (kind[wire_type(leaves)] for kind in kinds)
    return Wire(Reading(act), Reading(end), Reading(episodes))


REWARDS: Reading[RewardsRequest] = Reading(RewardsRequest)
LEASES: Reading[LeasesRequest] = Reading(LeasesRequest)
ROLLBACK: Reading[RollbackRequest] = Reading(RollbackRequest)


def parse(body: bytes, reading: Reading[T], media: Media = JSON) -> T:
    """Return the request in a body; raise RejectedError with the field named when its shape or a type is wrong."""
    try:
        return reading.decoder(media)(body)
    except msgspec.ValidationError as error:
        raise _named(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if media == MSGPACK:
            raise RejectedError(400, f"The body is not msgpack: {error}.") from error
        return _lenient(body, reading, error)


def parse_spans(body: bytes) -> TellRequest:
    """Return a program's spans; raise RejectedError with the field named when anything about them is wrong."""
    if len(body) > MAX_BODY:
        raise RejectedError(413, f"The body is longer than {MAX_BODY} bytes. Send fewer spans a request.")
    try:
        request = TELL.decode(body)
    except msgspec.ValidationError as error:
        raise _named(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedError(400, f"The body is not JSON: {error}.") from error
    if is_heavy(len(body), len(request.spans)):
        raise RejectedError(413, f"spans: Expected at most {MAX_SPAN} bytes a span in the mean.", "spans")
    return request


def _lenient(body: bytes, reading: Reading[T], error: Exception) -> T:
    """Name the field of a NaN or an infinity, which Python writes into JSON and strict JSON doesn't have."""
    try:
        plain = json.loads(body)
        json.dumps(plain, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        raise RejectedError(400, f"The body is not JSON: {error}.") from error
    try:
        found: T = msgspec.convert(plain, reading.kind)
    except msgspec.ValidationError as wrong:
        raise _named(wrong) from wrong
    return found


def _named(error: msgspec.ValidationError) -> RejectedError:
    text = str(error)
    place = _AT.search(text)
    field = place.group(1) if place else ""
    return RejectedError(422, f"{field or 'The body'}: {_AT.sub('', text)}.", field)
