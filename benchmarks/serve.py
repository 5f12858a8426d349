"""Load and faults: the server as a process on this machine, and the engine alone in the same run.

    python -m benchmarks.serve --model demo/sft/hf [--parts throughput,leaving,...]

Every part prints one JSON line with what was reached. Prompts, budgets and seeds are fixed. The
client is a plain asyncio loop in this process, which has the machine's cores to share with the
server: the figures of a two-core machine understate the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.serve_client import LIMITS, ROWS, WAITING, Server, clients
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids


def body_of(i: int, **changes: Any) -> dict[str, Any]:
    """Request number i: 64 thinking tokens, 32 of the answer."""
    thinking = {"budget_tokens": 64, "min_tokens": 64, "max_answer_tokens": 32}
    return {
        "messages": [{"role": "user", "content": f"Make {i % 97} from 1,2,4,{i % 89}"}],
        "thinking": thinking, "seed": i, "temperature": 1.0, "stream": True,
        "stream_options": {"include_usage": True}, **changes,
    }  # fmt: skip


def quantiles(values: list[float]) -> list[float]:
    """Median, 95th and 99th percentile."""
    if len(values) < 2:
        return values
    cuts = statistics.quantiles(values, n=100)
    return [round(cuts[i], 4) for i in (49, 94, 98)]


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
    await asyncio.sleep(0.3)
    seen = []
    while sum(not task.done() for task in others) > ROWS - 3:
        seen.append(await bench.server.ask(body_of(len(seen), thinking=short)))
    streams = await asyncio.gather(*others)
    return {
        "requests": len(seen),
        "ttft_s": quantiles([s.first for s in seen if s.first]),
        "gap_of_the_others_s": quantiles([g for s in streams for g in s.gaps]),
    }


async def leaving(bench: Bench) -> dict[str, Any]:
    """Half of 80 clients leave, both ways of answering; then rows and pages are free again."""
    long = {"budget_tokens": 300, "min_tokens": 300}
    rng = random.Random(2)

    async def one(i: int) -> bool:
        leaves, stream = i % 2 == 0, i % 4 < 2
        body = body_of(i, stream=stream, **({"thinking": long} if leaves else {}))
        work = bench.server.ask(body, leave_after=rng.randrange(1, 4) if leaves else None)
        if leaves and not stream:
            try:
                await asyncio.wait_for(work, rng.uniform(0.05, 0.5))
            except TimeoutError:
                return True
            return False
        return (await work).status == 200

    fine = await asyncio.gather(*map(one, range(80)))
    begin = time.monotonic()
    while await bench.server.metric("vllm:kv_cache_usage_perc") > 0:
        await asyncio.sleep(0.02)
        assert time.monotonic() - begin < 30
    free = time.monotonic() - begin
    cancelled = await bench.server.metric("jaxs1:requests_cancelled_total")
    return {"unaffected": sum(fine), "free_after_s": round(free, 3), "cancelled": cancelled}


async def full_queue(bench: Bench) -> dict[str, Any]:
    """500 at once: as many as run and wait are answered, the others refused early."""
    server = await asyncio.to_thread(Server, bench.model, "--max_waiting", str(WAITING))
    seen = await asyncio.gather(*(server.ask(body_of(i)) for i in range(500)))
    await asyncio.to_thread(server.end)
    refused = [s for s in seen if s.status == 429]
    served = [s for s in seen if s.status == 200]
    return {
        "served": len(served), "refused": len(refused), "others": 500 - len(served) - len(refused),
        "refused_after_s": quantiles([s.seconds for s in refused]),
        "retry_after": sum("retry-after:" in s.headers for s in refused),
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


async def slow_readers(bench: Bench) -> dict[str, Any]:
    """20 clients next to 20 others, and next to 20 that read slowly."""
    before = bench.server.memory()
    alone = (await clients(bench.server, 40, 1, body_of))[:20]
    slow = [asyncio.create_task(bench.server.ask(body_of(i), pause=0.5)) for i in range(20)]
    slowed = await clients(bench.server, 20, 1, body_of)
    growth = bench.server.memory() - before
    await asyncio.gather(*slow)
    times = [statistics.mean(s.seconds for s in seen) for seen in (alone, slowed)]
    return {"mean_s": [round(t, 3) for t in times], "memory_growth_mb": round(growth, 1)}


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


PARTS: dict[str, Callable[[Bench], Coroutine[Any, Any, dict[str, Any]]]] = {
    part.__name__: part
    for part in (
        throughput, budgets, latency, leaving, full_queue, malformed, slow_readers, compilations,
        sigterm,
    )
}  # fmt: skip


class Bench:
    """A server, and the engine alone on the same model.

    Args:
        model: folder
        quick: fewer requests
    """

    def __init__(self, model: str, *, quick: bool):
        self.model, self.quick = model, quick
        self.server = Server(model)
        self._engine: Any = None

    def engine_alone(self, count: int = 600) -> tuple[float, float]:
        """`Engine.run` on the same requests: tokens per second, CPU seconds per token."""
        if self._engine is None:
            self._engine = load_engine(EngineConfig(model=self.model, limits=LIMITS)).engine
            self.engine_alone(count)  # compiles
        thinking = ThinkingParams(max=64, min=64, max_answer_tokens=32)
        tokenizer = self._engine.tokenizer
        requests = [
            Request(
                prompt_ids(body_of(i)["messages"], thinking, tokenizer), thinking,
                SamplingParams(temperature=1.0), seed=i,
            )
            for i in range(count if not self.quick else min(count, 120))
        ]  # fmt: skip
        begin, cpu = time.monotonic(), time.process_time()
        tokens = sum(len(c.tokens) for _, done in self._engine.run(requests) for c in done)
        return tokens / (time.monotonic() - begin), (time.process_time() - cpu) / tokens


async def _run(bench: Bench, parts: list[str]) -> None:
    for name in parts:
        begin = time.monotonic()
        result = await PARTS[name](bench)
        seconds = round(time.monotonic() - begin, 1)
        print(json.dumps({"part": name, **result, "seconds": seconds}), flush=True)


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder of a small model")
    parser.add_argument("--parts", default=",".join(PARTS), help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    arguments = parser.parse_args()
    bench = Bench(arguments.model, quick=arguments.quick)
    try:
        asyncio.run(_run(bench, arguments.parts.split(",")))
    finally:
        if bench.server.process.poll() is None:
            bench.server.end()


if __name__ == "__main__":
    main()
