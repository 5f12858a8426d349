"""Parts of `benchmarks.serve`: clients that leave or are slow, wrong bodies, signals, a fault."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.serve_bench import Bench, body_of, quantiles
from benchmarks.serve_client import Seen, Server, clients

#: Lets the engine fail in its n-th run; in the process of the benchmark's own server only.
FAULT = """
import itertools
from jaxs1.decoding.engine import Engine
runs, end = itertools.count(), Engine.end
Engine.end = lambda engine: end(engine) if next(runs) < 40 else 1 / 0
"""


async def leaving(bench: Bench) -> dict[str, Any]:
    """Half of 200 clients leave at one moment, both ways of answering; the others complete."""
    server, count = bench.server, 200 if not bench.quick else 40
    long = {"budget_tokens": 300, "min_tokens": 300}

    def ask(i: int) -> asyncio.Task[Seen]:
        leaves, stream = i % 2 == 0, i % 4 < 2
        body = body_of(i, stream=stream, **({"thinking": long} if leaves else {}))
        return asyncio.create_task(server.ask(body))

    async def load() -> float:
        running = await server.metric("vllm:num_requests_running")
        return running + await server.metric("vllm:num_requests_waiting")

    tasks = [ask(i) for i in range(count)]
    while await load() + sum(task.done() for task in tasks) < 0.9 * count:
        await asyncio.sleep(0.02)
    cancelled = await server.metric("jaxs1:requests_cancelled_total")
    leavers, stayers = tasks[::2], tasks[1::2]
    left = sum(not task.done() for task in leavers)
    for task in leavers:
        task.cancel()
    begin = time.monotonic()
    while await load() > sum(not task.done() for task in stayers):
        await asyncio.sleep(0.01)
    free = time.monotonic() - begin
    seen = await asyncio.gather(*stayers)
    while await server.metric("vllm:kv_cache_usage_perc") > 0:
        await asyncio.sleep(0.01)
    cancelled = await server.metric("jaxs1:requests_cancelled_total") - cancelled
    return {
        "clients": count, "left": left, "free_after_s": round(free, 3), "cancelled": cancelled,
        "unaffected": sum(s.status == 200 and bool(s.done or s.data) for s in seen),
    }  # fmt: skip


async def malformed(bench: Bench) -> dict[str, Any]:
    """10,000 malformed bodies; /health is asked all the time."""
    rng = random.Random(3)
    good = json.dumps(body_of(1, stream=False, max_tokens=1)).encode()
    kinds: list[Callable[[], bytes]] = [
        lambda: good[: rng.randrange(len(good))],
        lambda: b"[" * rng.randrange(100_000),
        lambda: good.replace(b"1.0", b"1e400").replace(b'"seed"', b'"sneed"')[:-1] + b",}",
        lambda: good.replace(b'"role"', b"NaN"),
        lambda: good.replace(b"user", b"\\ud800"),
        lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(200))),
        lambda: good.replace(b"64", rng.choice([b'"64"', b"-9", b"6.4", b"[]", b"null,1"])),
    ]
    statuses: dict[int, int] = {}
    health: list[float] = []
    before = bench.server.memory()

    async def some(count: int) -> None:
        for _ in range(count):
            seen = await bench.server.ask(rng.choice(kinds)())
            statuses[seen.status] = statuses.get(seen.status, 0) + 1

    async def look() -> None:
        while True:
            seen = await bench.server.ask(b"", path="/health")
            assert seen.status == 200
            health.append(seen.seconds)
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    await asyncio.gather(*(some(500) for _ in range(20)))
    looking.cancel()
    return {
        "statuses": statuses, "health_s": quantiles(health),
        "memory_growth_mb": round(bench.server.memory() - before, 1),
    }  # fmt: skip


async def slow_clients(bench: Bench) -> dict[str, Any]:
    """20 clients next to 20 equal ones, then next to 20 that do not read and 50 slow bodies."""
    server = await asyncio.to_thread(Server, bench.model, "--body_timeout", "6")
    await clients(server, 40, 1, body_of)
    ratios, growth, held, statuses = [], [], [], []

    async def normal() -> float:
        seen = await clients(server, 20, 3, body_of)
        assert all(s.done for s in seen)
        return statistics.mean(s.seconds for s in seen)

    for _ in range(1 if bench.quick else 4):
        others = asyncio.create_task(clients(server, 20, 1, body_of))
        usual = await normal()
        await others
        before, release = server.memory(), asyncio.Event()
        readers = [asyncio.create_task(server.hold(body_of(i), release)) for i in range(20)]
        bodies = [asyncio.create_task(server.trickle()) for _ in range(50)]
        ratios.append(round(await normal() / usual, 3))
        growth.append(round(server.memory() - before, 1))
        release.set()
        held += await asyncio.gather(*readers)
        statuses += await asyncio.gather(*bodies)
    await asyncio.to_thread(server.end)
    return {
        "time_of_the_others": statistics.median(ratios), "ratios": ratios,
        "memory_growth_mb": growth, "streams_complete_when_read": [sum(held), len(held)],
        "slow_bodies_refused_with_408": [statuses.count(408), len(statuses)],
    }  # fmt: skip


async def sigterm(bench: Bench) -> dict[str, Any]:
    """SIGTERM while 60 stream: no stream is cut, new ones are refused, exit status 0."""
    streams = [asyncio.create_task(bench.server.ask(body_of(i))) for i in range(60)]
    await asyncio.sleep(1)
    bench.server.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.05)
    try:
        new = (await bench.server.ask(body_of(1))).status
    except OSError:
        new = 0
    seen = await asyncio.gather(*streams)
    status = await asyncio.to_thread(bench.server.process.wait, 60)
    finished = sum(s.done and bool(s.thinking) for s in seen)
    return {"streams": 60, "finished": finished, "new": new, "exit_status": status}


async def engine_fault(bench: Bench) -> dict[str, Any]:
    """The engine fails while 40 streams and 20 complete replies are under way."""
    server = await asyncio.to_thread(Server, bench.model, before=FAULT)
    long = {"budget_tokens": 300, "min_tokens": 300}
    bodies = [body_of(i, stream=i % 3 > 0, thinking=long) for i in range(60)]
    seen = await asyncio.gather(*map(server.ask, bodies))
    begin = time.monotonic()
    status = await asyncio.to_thread(server.process.wait, 60)
    return {
        "streams_with_error": sum(b"internal_error" in s.data for s in seen if s.status == 200),
        "statuses": {n: sum(s.status == n for s in seen) for n in {s.status for s in seen}},
        "complete": sum(s.done and bool(s.thinking) for s in seen),
        "exit_status": status, "exit_after_s": round(time.monotonic() - begin, 2),
    }  # fmt: skip
