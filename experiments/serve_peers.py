"""What `bench_serve` compares with: the same policy behind FastAPI as one would write it, bare and on stock Ray Serve.

Both check a token and validate the same body by pydantic, decide by the network in ONNX Runtime and a draw from its
softmax, and answer what Flywheel's replicas answer. Nothing is logged, remembered or drawn again.

`main` takes bare or stock, a port, a digest and the network's file; the token is the first line of its input.
"""
# Serve sends the class over by value, without the names that annotations would be looked up by if they were text.

import hmac
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Step(BaseModel):
    """One observation that wants an action."""

    model_config = ConfigDict(extra="forbid")
    episode: Annotated[str, Field(min_length=1, max_length=128)]
    t: Annotated[int, Field(ge=0, lt=2**31)]
    observation: Annotated[list[float], Field(min_length=4, max_length=4)]
    reward: float | None = None
    digest: Digest | None = None
    action: int | None = None


class ActRequest(BaseModel):
    """Body of POST /v1/act."""

    model_config = ConfigDict(extra="forbid")
    steps: Annotated[list[Step], Field(max_length=1024)]


class Decision(BaseModel):
    """One answer."""

    episode: str
    t: int
    digest: str
    action: int
    raw_action: int
    logp: float


class ActAnswer(BaseModel):
    """Answer of POST /v1/act."""

    decisions: list[Decision]


Authorization = Annotated[str, Header()]
Decide = Callable[[ActRequest, str], ActAnswer]


def decider(network: bytes, digest: str, token: str) -> Decide:
    """Return how a request with an Authorization header is decided."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    name, expected, rng = session.get_inputs()[0].name, f"Bearer {token}".encode(), np.random.default_rng()

    def decide(request: ActRequest, authorization: str) -> ActAnswer:
        if not hmac.compare_digest(authorization.encode(), expected):
            raise HTTPException(401, "The token is missing or wrong.")
        steps = request.steps
        logits = session.run(None, {name: np.array([step.observation for step in steps], np.float32)})[0]
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        actions = (chances.cumsum(axis=1) < rng.random((len(steps), 1))).sum(axis=1)
        logps = np.log(chances[np.arange(len(steps)), actions])
        drawn = zip(steps, actions.tolist(), logps.tolist(), strict=True)
        return ActAnswer(
            decisions=[
                Decision(episode=step.episode, t=step.t, digest=digest, action=action, raw_action=action, logp=logp)
                for step, action, logp in drawn
            ]
        )

    return decide


def bare(port: int, decide: Decide) -> None:
    """Serve by uvicorn until this process is ended."""
    import uvicorn

    app = FastAPI()

    @app.post("/v1/act")
    async def act(request: ActRequest, authorization: Authorization = "") -> ActAnswer:
        return decide(request, authorization)

    uvicorn.run(app, host="127.0.0.1", port=port, http="httptools", loop="uvloop", access_log=False, log_level="error")


def stock(port: int, given: tuple[Any, ...]) -> None:
    """Serve by Ray Serve as it comes, on a Ray of its own, until the input ends."""
    for name in [name for name in os.environ if name.startswith("RAY_SERVE_")]:
        del os.environ[name]
    import ray
    from ray import serve

    api = FastAPI()

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    @serve.ingress(api)
    class Stock:
        def __init__(self) -> None:
            self._decide = decider(*given)

        @api.post("/v1/act")
        async def act(self, request: ActRequest, authorization: Authorization = "") -> ActAnswer:
            return self._decide(request, authorization)

    ray.init(
        address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Stock.bind())  # type: ignore[attr-defined]
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    """Serve one of the two."""
    kind, port, digest, path = sys.argv[1:]
    given = Path(path).read_bytes(), digest, sys.stdin.readline().strip()
    if kind == "bare":
        bare(int(port), decider(*given))
    else:
        stock(int(port), given)
