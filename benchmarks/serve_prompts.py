"""Parts of `benchmarks.serve` with long prompts: prefix cache, and prefill next to streams."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from typing import Any

from benchmarks.serve_bench import Bench, body_of, quantiles
from benchmarks.serve_client import Server
from jaxs1.model.kv_cache import PAGE

SHORT = {"budget_tokens": 8, "max_answer_tokens": 8}


def text_of(rng: random.Random, length: int) -> str:
    """Words of about `length` characters."""
    return " ".join(str(rng.randrange(10**6)) for _ in range(length // 7))


def asking(system: str, question: str) -> dict[str, Any]:
    """A short request behind a system message."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return body_of(1, messages=messages, thinking=SHORT)


async def token_count(server: Server, text: str) -> int:
    """Tokens of a text."""
    reply = await server.ask({"prompt": text}, path="/tokenize")
    return json.loads(reply.data)["count"]


async def fitting(server: Server, rng: random.Random, tokens: int) -> str:
    """A text of about so many tokens."""
    text = text_of(rng, tokens * 8)
    return text[: len(text) * tokens // await token_count(server, text)]


async def prefix_cache(bench: Bench) -> dict[str, Any]:
    """Long system messages, cold and warm; then 50 requests at once with a new one."""
    server = await asyncio.to_thread(Server, bench.model, context=bench.longest)
    rng, tokens = random.Random(6), bench.longest * 7 // 8
    cold, warm, systems = [], [], []
    for _ in range(8):
        systems.append(await fitting(server, rng, tokens))
        cold.append(await server.ask(asking(systems[-1], "What is 1 + 2?")))
    for i in range(50):
        warm.append(await server.ask(asking(systems[-1], f"What is {i} + 3?")))

    def hits(seen: list[Any], prefix: int) -> float:
        """Share of the full pages of the prefix that were found."""
        found = sum(s.usage["prompt_tokens_details"]["cached_tokens"] for s in seen)
        return round(found / (len(seen) * (prefix // PAGE * PAGE)), 3)

    length = await token_count(server, systems[-1])
    system = await fitting(server, rng, tokens)
    burst = await asyncio.gather(
        *(server.ask(asking(system, f"What is {i} + 3?")) for i in range(50))
    )
    burst_hits = hits(list(burst), await token_count(server, system))
    await asyncio.to_thread(server.end)
    times = [statistics.median(s.first for s in seen) for seen in (cold, warm)]
    return {
        "prefix_tokens": length, "hits": hits(warm, length), "hits_of_50_at_once": burst_hits,
        "ttft_cold_s": round(times[0], 4), "ttft_warm_s": round(times[1], 4),
        "ttft_ratio": round(times[1] / times[0], 3),
    }  # fmt: skip


async def fair_prefill(bench: Bench) -> dict[str, Any]:
    """Streams and short requests next to prompts that fill the context."""
    server = await asyncio.to_thread(Server, bench.model, context=bench.longest)
    rng, tokens = random.Random(7), bench.longest * 7 // 8
    long = [asking(await fitting(server, rng, tokens), "What is 1 + 2?") for _ in range(4)]
    thinking = {"budget_tokens": 600, "min_tokens": 600, "max_answer_tokens": 16}

    async def streams(prompts: list[dict[str, Any]]) -> tuple[list[float], list[Any], list[Any]]:
        others = [asyncio.create_task(server.ask(body_of(i, thinking=thinking))) for i in range(6)]
        await asyncio.sleep(0.2)
        prefills = [asyncio.create_task(server.ask(body)) for body in prompts]
        await asyncio.sleep(0.02)
        short = [asyncio.create_task(server.ask(body_of(i, thinking=SHORT))) for i in range(6)]
        seen = await asyncio.gather(*others)
        gaps = [gap for s in seen for gap in s.gaps]
        return gaps, await asyncio.gather(*prefills), await asyncio.gather(*short)

    await streams([])
    without, _, _ = await streams([])
    gaps, prefills, short = await streams(long)
    await asyncio.to_thread(server.end)
    return {
        "prompt_tokens": [s.usage["prompt_tokens"] for s in prefills],
        "gap_of_streams_s": quantiles(gaps), "largest_gap_s": round(max(gaps), 3),
        "gap_without_s": quantiles(without), "largest_gap_without_s": round(max(without), 3),
        "ttft_of_long_s": round(statistics.median(s.first for s in prefills), 3),
        "ttft_of_short_s": round(statistics.median(s.first for s in short), 3),
    }  # fmt: skip
