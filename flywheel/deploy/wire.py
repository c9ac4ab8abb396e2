"""What clients send and get, and how a wrong field is named. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from flywheel.deploy.nested import wire_type
from flywheel.errors import FlywheelError
from flywheel.spaces import Leaves
from flywheel.trace.row import MAX_BODY, MAX_SPAN, TELL, TellRequest, is_heavy

EpisodeId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Step = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
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


_AT = re.compile(r" - at `\$\.?(.*)`$")


@dataclass(frozen=True, slots=True)
class Wire:
    """How requests are read where policies observe a certain space."""

    act: msgspec.json.Decoder[ActRequest[Any]]
    end: msgspec.json.Decoder[EndRequest[Any]]


@lru_cache(maxsize=8)
def wire(leaves: Leaves) -> Wire:
    """Return the decoders for observations of these leaves."""
    kinds: tuple[Any, Any] = (ActRequest, EndRequest)
    act, end = (msgspec.json.Decoder(kind[wire_type(leaves)]) for kind in kinds)
    return Wire(act, end)


def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the request in a body; raise RejectedError with the field named when its shape or a type is wrong.

    Strict: no text or boolean passes for a number, no unknown field for a typo.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _named(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _lenient(body, decoder, error)


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


def _lenient(body: bytes, decoder: msgspec.json.Decoder[T], error: Exception) -> T:
    """Name the field of a NaN or an infinity, which Python writes into JSON and strict JSON doesn't have."""
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError):
        raise RejectedError(400, f"The body is not JSON: {error}.") from error
    try:
        return msgspec.convert(plain, decoder.type)
    except msgspec.ValidationError as wrong:
        raise _named(wrong) from wrong


def _named(error: msgspec.ValidationError) -> RejectedError:
    text = str(error)
    place = _AT.search(text)
    field = place.group(1) if place else ""
    return RejectedError(422, f"{field or 'The body'}: {_AT.sub('', text)}.", field)
