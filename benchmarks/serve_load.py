"""Parts of `benchmarks.serve`: throughput, latency, budgets, compilations, queue, soak."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any

from benchmarks.serve_bench import Bench, body_of, quantiles
from benchmarks.serve_client import ROWS, WAITING, Seen, Server, clients


async def throughput(bench: Bench) -> dict[str, Any]:
    """200 clients x 3 requests and `Engine.run` on the same requests, in turns.

    The client is in another process than the server, on the same cores: its time is told apart.
    """
    alone, served, seen = [], [], []
    await clients(bench.server, ROWS, 2, body_of)
    for _ in range(1 if bench.quick else 4):
        alone.append(bench.engine_alone())
        begin, server, client = time.monotonic(), bench.server.cpu(), time.process_time()
        seen = await clients(bench.server, 200 if not bench.quick else 40, 3, body_of)
        seconds = time.monotonic() - begin
        tokens = sum(s.usage.get("completion_tokens", 0) for s in seen)
        cpu = (bench.server.cpu() - server, time.process_time() - client)
        served.append((tokens / seconds, *(x / tokens for x in cpu)))
    shares = [round(x[0] / y[0], 3) for x, y in zip(served, alone, strict=True)]
    return {
        "requests": len(seen), "complete": sum(s.done for s in seen),
        "tokens_per_s": [round(x[0]) for x in served],
        "engine_tokens_per_s": [round(x[0]) for x in alone],
        "share": statistics.median(shares), "shares": shares,
        "cpu_us_per_token": {
            "engine alone": [round(1e6 * x[1]) for x in alone],
            "server": [round(1e6 * x[1]) for x in served],
            "client": [round(1e6 * x[2]) for x in served],
        },
        "events": sum(1 + len(s.gaps) for s in seen),
        "ttft_s": quantiles([s.first for s in seen if s.first]),
        "gap_s": quantiles([g for s in seen for g in s.gaps]),
        "end_to_end_s": quantiles([s.seconds for s in seen if s.done]),
        "memory_mb": round(bench.server.memory()),
    }  # fmt: skip


async def budgets(bench: Bench) -> dict[str, Any]:
    """Random budgets, Waits, n and max_tokens: every one is exact, no answer is empty."""
    rng = random.Random(1)
    bodies = []
    for i in range(150):
        thinking = {"budget_tokens": rng.randrange(65), "num_waits": rng.randrange(3),
                    "max_answer_tokens": 16}  # fmt: skip
        bodies.append(
            body_of(i, thinking=thinking, n=rng.choice([1, 2]), max_tokens=rng.randint(8, 90))
        )
    wrong, empty, choices = 0, 0, 0
    semaphore = asyncio.Semaphore(30)

    async def one(body: dict[str, Any]) -> None:
        nonlocal wrong, empty, choices
        async with semaphore:
            seen = await bench.server.ask(body)
        assert seen.status == 200, seen.data
        wrong += seen.usage["completion_tokens"] > body["n"] * body["max_tokens"]
        for thinking in seen.thinking:
            choices += 1
            wrong += thinking["tokens"] > body["thinking"]["budget_tokens"]
            wrong += thinking["waits"] > body["thinking"]["num_waits"]
        tokens = seen.usage["completion_tokens_details"]["reasoning_tokens"]
        empty += seen.usage["completion_tokens"] == tokens

    await asyncio.gather(*map(one, bodies))
    return {"choices": choices, "not_exact": wrong, "without_an_answer": empty}


async def latency(bench: Bench) -> dict[str, Any]:
    """One client while 15 others stream."""
    long = {"budget_tokens": 300, "min_tokens": 300, "max_answer_tokens": 16}
    short = {"budget_tokens": 8, "max_answer_tokens": 8}
    others = [
        asyncio.create_task(bench.server.ask(body_of(i, thinking=long))) for i in range(ROWS - 1)
    ]
    await asyncio.sleep(0.05)
    seen = []
    while sum(not task.done() for task in others) > ROWS - 3:
        seen.append(await bench.server.ask(body_of(len(seen), thinking=short)))
    streams = await asyncio.gather(*others)
    return {
        "requests": len(seen),
        "ttft_s": quantiles([s.first for s in seen if s.first]),
        "gap_of_the_others_s": quantiles([g for s in streams for g in s.gaps]),
    }


async def compilations(bench: Bench) -> dict[str, Any]:
    """1,000 mixed requests after ready."""
    rng = random.Random(4)
    before = await bench.server.metric("jaxs1:compilations_total")

    def make(i: int) -> dict[str, Any]:
        content = "word " * rng.choice([1, 20, 60])
        return body_of(
            i, messages=[{"role": "user", "content": content}], n=rng.choice([1, 1, 3]),
            temperature=rng.choice([0, 1.0]), top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.1]), stream=rng.random() < 0.5,
            thinking={"budget_tokens": rng.randrange(40), "max_answer_tokens": 8},
        )  # fmt: skip

    seen = await clients(bench.server, 20, 50 if not bench.quick else 10, make)
    after = await bench.server.metric("jaxs1:compilations_total")
    failed = [s for s in seen if s.status != 200]
    return {"requests": len(seen), "failed": len(failed), "compilations": after - before}


async def full_queue(bench: Bench) -> dict[str, Any]:
    """500 at once: the others are refused early, and get through when they retry."""
    server = await asyncio.to_thread(Server, bench.model, "--max_waiting", str(WAITING))
    await clients(server, ROWS, 1, body_of)
    first: list[Seen] = []
    attempts = 0

    async def one(i: int) -> Seen:
        nonlocal attempts
        seen = await server.ask(body_of(i))
        first.append(seen)
        attempts += 1
        while seen.status == 429:
            await asyncio.sleep(seen.retry_after * random.uniform(0.5, 1.5))
            seen = await server.ask(body_of(i))
            attempts += 1
        return seen

    last = await asyncio.gather(*map(one, range(500)))
    trivial = await asyncio.gather(*(server.ask(b"", path="/live") for _ in range(500)))
    await asyncio.to_thread(server.end)
    refused = [s for s in first if s.status == 429]
    return {
        "served": sum(s.status == 200 for s in first), "refused": len(refused),
        "refused_after_s": quantiles([s.seconds for s in refused]),
        "refused_after_sending_s": quantiles([s.answered for s in refused]),
        "live_of_500_at_once_s": quantiles([s.seconds for s in trivial]),
        "retry_after": sum(s.retry_after > 0 for s in refused),
        "attempts": attempts, "complete_in_the_end": sum(s.done for s in last),
    }  # fmt: skip


async def soak(bench: Bench) -> dict[str, Any]:
    """All of it for minutes: memory does not grow, pages and rows are free at the end."""
    server = await asyncio.to_thread(Server, bench.model)
    end, memory, statuses = time.monotonic() + bench.soak, [], {}
    rng = random.Random(5)

    async def one(client: int) -> None:
        i = client
        while time.monotonic() < end:
            i += 20
            thinking = {"budget_tokens": rng.randrange(64), "num_waits": rng.randrange(3),
                        "max_answer_tokens": 32}  # fmt: skip
            leaves = rng.randrange(1, 4) if rng.random() < 0.1 else None
            body = body_of(i, thinking=thinking, n=rng.choice([1, 1, 2]))
            body["stream"] = leaves is not None or rng.random() < 0.7
            if rng.random() < 0.05:
                body["thinking_bugdet"] = 1  # refused
            seen = await server.ask(body, leave_after=leaves)
            statuses[seen.status] = statuses.get(seen.status, 0) + 1

    async def sample() -> None:
        while time.monotonic() < end:
            memory.append((time.monotonic(), server.memory()))
            await asyncio.sleep(2)

    await asyncio.gather(sample(), *map(one, range(20)))
    await asyncio.sleep(1)
    used = await server.metric("vllm:kv_cache_usage_perc")
    status = await asyncio.to_thread(server.end)
    late = [m for m in memory if m[0] > end - bench.soak * 0.9]  # behind the first tenth
    half = len(late) // 2
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope
    return {
        "minutes": round(bench.soak / 60, 1), "statuses": statuses,
        "mb_per_minute": round(60 * slope, 2),
        "mean_mb_of_each_half": [
            round(statistics.mean(mb for _, mb in part), 1) for part in (late[:half], late[half:])
        ],
        "pages_in_use": used, "exit_status": status,
    }  # fmt: skip
