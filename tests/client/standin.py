"""The part of the HTTP API that a door may not have yet, for tests: what the door answers itself, it answers."""

from __future__ import annotations

import hashlib
import hmac
import threading
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from flywheel import verdicts
from flywheel.deploy.door import Door, Receive, Scope, Send
from flywheel.deploy.wire import RejectedError
from flywheel.draws import bucket, draw_key, draws
from flywheel.errors import Refused
from flywheel.policy import bundle, load
from flywheel.records import Episode
from tests.deploy.conftest import NOW, World

PACKED = b"application/msgpack"


class Network:
    """What stands between clients and the door: it counts requests, and can be told to spoil some."""

    def __init__(self, door: Door, world: World) -> None:
        self._door, self._world = door, world
        self._changed = threading.Condition()
        self.asked: list[str] = []
        """Path of each request that came."""
        self.spoil: dict[str, Callable[[int, bytes], tuple[int, bytes]]] = {}
        """By path, what is done to status and body of its answers, which say msgpack or JSON as asked for."""
        self.uploaded: dict[str, Episode] = {}

    def wait_for(self, path: str, times: int = 1) -> None:
        """Return when so many requests to a path came."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked.count(path) >= times, 30), self.asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._door(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, answer, headers = await self._answer(scope, body)
        if scope["path"] in self.spoil:
            status, answer = self.spoil[scope["path"]](status, answer)
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        with self._changed:
            self.asked.append(scope["path"])
            self._changed.notify_all()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Scope, body: bytes) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._door(scope, receive, send)
        status, answer, headers = sent[0]["status"], sent[1]["body"], sent[0]["headers"]
        if status != 404 or not answer.startswith(b'{"error":"There is no /v1/'):
            return status, answer, headers
        given = dict(scope["headers"])
        try:
            asked = written_as(given.get(b"content-type")).decode(body) if body else {}
            status, found = 200, StandIn(self._world, self.uploaded).answer(scope["path"], asked)
        except RejectedError as error:
            status, found = error.status, {"error": error.sentence, "field": ""}
        wanted = PACKED if given.get(b"accept") == PACKED else b"application/json"
        return status, written_as(wanted).encode(found), [(b"content-type", wanted)]


def written_as(media: bytes | None) -> Any:
    """Return what encodes and decodes bodies."""
    return msgspec.msgpack if media == PACKED else msgspec.json


class StandIn:
    """Answers leases, episodes, policies, key and rewards from a registry, as the real door does."""

    def __init__(self, world: World, uploaded: dict[str, Episode]) -> None:
        self._registry, self._run_key, self._uploaded = world.registry, world.registry.keys.run, uploaded

    def answer(self, path: str, asked: Any) -> dict[str, Any]:
        """Return the answer to a request, or raise RejectedError."""
        if path == "/v1/leases":
            return {"leases": [self._lease(uuid.uuid4().hex) for _ in range(asked["num"])]}
        if path == "/v1/key":
            return {"public": self._registry.keys.public.hex(), "task": self._registry.task}
        if path == "/v1/episodes":
            return self._upload(asked["episodes"])
        if path == "/v1/rewards":
            return {"accepted": len(asked["rewards"])}
        if path.startswith("/v1/policies/"):
            return self._policy(path.rpartition("/")[2])
        raise RejectedError(404, f"There is no {path}.")

    def _seal(self, episode: str, digest: str, given_at: float) -> str:
        return hmac.digest(self._run_key, f"{episode} {digest} {given_at}".encode(), hashlib.sha256).hex()

    def _lease(self, episode: str) -> dict[str, Any]:
        admission = self._registry.admission()
        is_tried = bucket(self._run_key, episode) < admission.share
        digest = admission.challenger if is_tried and admission.challenger else admission.champion
        if digest is None:
            raise RejectedError(503, "No policy is in service yet.")
        return {
            "episode": episode, "digest": digest, "draw_key": draw_key(self._run_key, episode), "given_at": NOW,
            "seal": self._seal(episode, digest, NOW),
        }  # fmt: skip

    def _policy(self, digest: str) -> dict[str, Any]:
        if digest not in self._registry.admission().known:
            raise RejectedError(404, f"There is no policy {digest}.")
        if digest in self._registry.condemned():
            raise RejectedError(410, f"Policy {digest[:12]} may not act any more.")
        verdict, found = self._registry.verdict(digest), self._registry.bundle(digest)
        assert verdict is not None
        return {"artifact": {"digest": digest}, "files": dict(found.files), "verdict": verdicts.encode(verdict)}

    def _upload(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        acknowledged, refused = [], {}
        for row in rows:
            try:
                found = self._prove(row)
            except Refused as error:
                refused[row["episode"]] = str(error)
                continue
            self._uploaded[found.id] = found
            acknowledged.append(found.id)
        return {"acknowledged": acknowledged, "refused": refused}

    def _prove(self, row: dict[str, Any]) -> Episode:
        if row["seal"] != self._seal(row["episode"], row["digest"], row["given_at"]):
            raise Refused("It was not begun under a lease of this run.")
        policy = load(bundle(self._registry.artifact(row["digest"])))
        num, key = len(row["raw_actions"]), draw_key(self._run_key, row["episode"])
        observations = np.array(row["observations"], policy.spec.observation_dtype)
        uniform = draws(np.full(num, key, np.uint64), np.arange(num), policy.spec.num_draws)
        actions, logps = policy.act(observations[:-1], uniform)
        if len(observations) != num + 1 or not np.array_equal(actions, row["raw_actions"]):
            raise Refused("The policy never gave this action there.")
        return Episode(
            id=row["episode"], origin="production", task=self._registry.task, parameters={}, draw_key=key,
            digests=(row["digest"],) * num, observations=observations, raw_actions=actions,
            rewards=np.array(row["rewards"], np.float64), logps=logps,
            end="terminated" if row["terminated"] else "truncated", failed=False, started_at=row["started_at"],
            ended_at=row["ended_at"],
        )  # fmt: skip
