"""What a span costs, what is lost at 2,000 a second, and what tracing adds to the p99 of a decision: T5 of time_travel.

python -m experiments.time_travel --only T5             # some twenty minutes
python -m experiments.time_travel --only T5 --quick     # a rough answer in one
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flywheel.config import DeployConfig, TraceConfig
from flywheel.deploy.door import Door, Receive
from flywheel.deploy.service import Service
from flywheel.deploy.traces import Traces
from flywheel.records import Steps
from flywheel.trace.context import EpisodeScope, headers
from flywheel.trace.outlet import Outlet
from flywheel.trace.row import AwayError, Row, packed, unpacked
from flywheel.trace.spans import Tracer
from flywheel.trace.spanstore import SpanStore, open_readonly
from tests.deploy.conftest import NOW, Links, World

ATTRIBUTES: dict[str, Any] = {
    "site": "Berlin", "shard": 7, "is_live": True, "speed": 0.25, "angle": -0.125, "load": 3, "zone": "a", "retries": 0,
    "height": 1.5, "mode": "auto", "battery": 0.875, "lap": 12,
}  # fmt: skip
CLOCKS: dict[str, Callable[[], float]] = {"CPU": time.process_time, "wall": time.perf_counter}
"""How time is taken: all that this process does, by any thread, which other programs on the machine don't disturb; and
what a clock on the wall shows."""
STEPS = 50
"""Requests of one episode."""
PER_S = 400.0
"""Requests a second, at random moments: so few that one rarely waits for another, and the p99 is of decisions."""
SEED = 1


def cost(num_spans: int = 20_000) -> list[dict[str, Any]]:
    """Measure a span with twelve attributes and one metric, on the thread that makes it, kept in a run directory."""
    with tempfile.TemporaryDirectory() as directory:
        with Tracer.to_run_dir(directory, TraceConfig(max_waiting=2 * num_spans)) as tracer:
            seconds = []
            for _ in range(num_spans):
                began = time.perf_counter()
                with tracer.span("prediction", **ATTRIBUTES) as span:
                    span.log_metric("prediction_value", 0.3)
                seconds.append(time.perf_counter() - began)
            tracer.flush(60.0)
        counts, stored = tracer.counts, _stored(Path(directory))
    micros = 1e6 * np.array(seconds)
    low, high = _quantile_interval(micros, 0.5)
    case = f"cost of a span at the median, µs (p99 {np.quantile(micros, 0.99):.0f}; {stored} of {counts.made} stored)"
    return [_row(case, float(np.median(micros)), [low, high], "<= 60", high <= 60, num_spans)]


def losses(per_s: int = 2_000, seconds: float = 60.0) -> list[dict[str, Any]]:
    """Make so many spans a second, with a store that is there and with one that is away for half the time."""
    return [
        _lose(f"lost at {per_s} spans a second for {seconds:g} s", per_s, seconds, away_s=0.0),
        _lose(f"the same, the store away for {seconds / 2:g} s of it", per_s, seconds, away_s=seconds / 2),
    ]


def _lose(case: str, per_s: int, seconds: float, away_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, _store(Path(directory)) as keep:
        back_at = time.monotonic() + away_s

        def sink(rows: Sequence[Row]) -> int:
            if time.monotonic() < back_at:
                raise AwayError("away")
            return keep(rows)

        with Tracer(sink) as tracer:
            made, began = 0, time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                for _ in range(int(passed * per_s) - made):
                    with tracer.span("prediction", **ATTRIBUTES) as span:
                        span.log_metric("prediction_value", 0.3)
                    made += 1
                time.sleep(0.001)
            tracer.flush(60.0)
        counts = tracer.counts
        stored = keep([])
    exact = counts.made == made == stored + counts.lost and counts.waiting == 0
    told = f"{case}: {made} made, {stored} stored, {counts.lost} counted as lost"
    return _row(told, counts.lost, None, "0, or exactly counted", exact, made)


def p99(blocks: int = 1500, block_s: float = 0.1) -> list[dict[str, Any]]:
    """Compare decisions with and without tracing, in one process, block by block, at the default share and at all."""
    rows = []
    for share, words in {TraceConfig().sample_share: "the default share of episodes", 1.0: "every episode"}.items():
        for clock, seconds in CLOCKS.items():
            with_, without = asyncio.run(_decide(share, blocks, block_s, seconds))
            ratio, (low, high), bound = _ratio(with_, without, 0.99)
            median, _, _ = _ratio(with_, without, 0.5)
            num = sum(map(len, with_)) + sum(map(len, without))
            p50, top = 1e6 * np.quantile(np.concatenate(without), [0.5, 0.99])
            case = (
                f"p99 of a decision in {clock} seconds, {words} ({share:g}) traced / none traced "
                f"(p50 {median:.3f}; none traced: p50 {p50:.0f} µs, p99 {top:.0f} µs)"
            )
            rows.append(_row(case, ratio, [low, high], "<= 1.05", bound <= 1.05, num))
    return rows


class _Away(Links):
    """Takes steps and forgets them: what is measured is the replica."""

    async def append(self, steps: Steps) -> None:
        pass


async def _decide(
    share: float, blocks: int, block_s: float, clock: Callable[[], float]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the seconds of each request, by block, with and without tracing.

    The two alternate, so that what else the machine does meets both; whatever tracing causes later is made to happen
    while requests are traced.
    """
    with tempfile.TemporaryDirectory() as directory, _store(Path(directory)) as keep:
        world = World(Path(directory))
        world.served(now=NOW)
        config = TraceConfig(sample_share=share)
        outlets = [Outlet(keep, max_waiting=config.max_waiting, flush_s=60.0) for _ in range(2)]
        traces = Traces(share, *outlets)
        links = _Away(world.registry)
        services = [Service(DeployConfig(), links, links, time.time, given) for given in (traces, None)]
        for service in services:
            await service.start()
        doors = [_Caller(Door(service), world.token, clock) for service in services]
        found: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
        for caller in doors:
            await caller.call(1.0)
        for block in range(blocks):
            for which in (0, 1) if block % 2 else (1, 0):
                if which == 0:
                    traces.flush(0.0)  # the spans of the traced block before are handed over during this one
                found[which].append(await doors[which].call(block_s))
                if which == 0:
                    traces.make()
        await asyncio.to_thread(traces.flush, 60.0)
        counts = traces.counts
        for service in services:
            await service.stop()
        world.registry.close()
        assert counts.lost == counts.waiting == 0 and counts.made > 0, counts
    return found


class _Caller:
    """Calls a door's ASGI app at random moments, as many clients would.

    A request's time begins at its own moment, whatever the event loop was doing then: earlier requests, or spans.
    """

    def __init__(self, door: Door, token: str, clock: Callable[[], float]) -> None:
        self._door, self._token, self._clock, self._num = door, token, clock, 0
        self._rng = np.random.default_rng(SEED)

    async def call(self, seconds: float) -> NDArray[np.float64]:
        """Return the seconds of each request of a block."""
        taken: list[float] = []
        due = self._clock()
        until = due + seconds
        while due < until:
            self._num += 1
            name, before = f"{id(self)}-{self._num}", dict[str, Any]()
            with EpisodeScope(name):
                above = headers()
            for t in range(STEPS):
                row = {"episode": name, "t": t, "observation": self._rng.normal(0, 0.05, 4).tolist(), **before}
                scope, receive = self._request(json.dumps({"steps": [row]}).encode(), above)
                due += self._rng.exponential(1.0 / PER_S)
                while self._clock() < due:
                    await asyncio.sleep(0)
                answered, (decision,) = await self._ask(scope, receive)
                before = {"digest": decision["digest"], "action": decision["raw_action"], "reward": 1.0}
                taken.append(answered - due)
        return np.array(taken)

    def _request(self, body: bytes, above: dict[str, str]) -> tuple[dict[str, Any], Receive]:
        scope = {
            "type": "http", "path": "/v1/act", "method": "POST",
            "headers": [
                (b"host", b"127.0.0.1:8000"), (b"authorization", f"Bearer {self._token}".encode()),
                (b"content-length", str(len(body)).encode()), (b"content-type", b"application/json"),
                *((name.encode(), value.encode()) for name, value in above.items()),
            ],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        return scope, receive

    async def _ask(self, scope: dict[str, Any], receive: Receive) -> tuple[float, list[dict[str, Any]]]:
        """Return when the last byte of the answer was sent, and the decisions in it."""
        sent: list[Any] = []
        answered = 0.0

        async def send(message: Any) -> None:
            nonlocal answered
            sent.append(message)
            answered = self._clock()

        await self._door(scope, receive, send)
        assert sent[0]["status"] == 200, sent
        return answered, json.loads(sent[1]["body"])["decisions"]


@contextmanager
def _store(directory: Path) -> Iterator[Callable[[Sequence[Row]], int]]:
    """Yield a sink to a process that owns a store of spans, as on Ray; no rows at all ask for the number of spans."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    owner = context.Process(target=_own, args=(there, str(directory)), daemon=True)
    owner.start()

    def send(rows: Sequence[Row]) -> int:
        here.send_bytes(packed(rows))
        return int(here.recv_bytes())

    send([])
    try:
        yield send
    finally:
        here.close()
        owner.join(10)


def _own(pipe: Connection, directory: str) -> None:
    with SpanStore(directory, 10**7) as store:
        while True:
            try:
                rows = unpacked(pipe.recv_bytes())
            except EOFError:
                return
            store.append(rows)
            pipe.send_bytes(str(len(rows) if rows else store.count()).encode())


def _stored(directory: Path) -> int:
    with open_readonly(directory) as store:
        return store.count()


def _ratio(
    one: list[NDArray[np.float64]], other: list[NDArray[np.float64]], q: float
) -> tuple[float, tuple[float, float], float]:
    """Return the ratio of two quantiles, its 95 % interval and one-sided 95 % bound, by resampling pairs of blocks."""
    rng = np.random.default_rng(SEED)

    def ratio(blocks: NDArray[np.int64]) -> float:
        a, b = (np.concatenate([side[i] for i in blocks]) for side in (one, other))
        return float(np.quantile(a, q) / np.quantile(b, q))

    again = [ratio(rng.integers(len(one), size=len(one))) for _ in range(1000)]
    low, bound, high = np.quantile(again, [0.025, 0.95, 0.975])
    return ratio(np.arange(len(one))), (float(low), float(high)), float(bound)


def _quantile_interval(values: NDArray[np.float64], q: float) -> tuple[float, float]:
    """Return the 95 % interval of a quantile, by the order statistics on either side of it."""
    n = len(values)
    half = 1.96 * np.sqrt(n * q * (1 - q))
    ordered = np.sort(values)
    return float(ordered[max(0, int(n * q - half))]), float(ordered[min(n - 1, int(n * q + half) + 1)])


def _row(case: str, value: float, interval: Any, goal: str, passed: bool, runs: int) -> dict[str, Any]:
    rounded = None if interval is None else [round(side, 4) for side in interval]
    return {
        "id": "T5", "case": case, "value": round(value, 4), "interval": rounded, "goal": goal, "passed": bool(passed),
        "runs": runs, "seed": SEED,
    }  # fmt: skip


def tracing(_: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of T5; they need no seed but the one of when requests come."""
    yield from cost(5_000 if quick else 20_000)
    yield from losses(seconds=8.0 if quick else 60.0)
    yield from p99(blocks=60 if quick else 1500)
