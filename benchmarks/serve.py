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
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.serve_bench import Bench
from benchmarks.serve_faults import engine_fault, leaving, malformed, sigterm, slow_clients
from benchmarks.serve_load import budgets, compilations, full_queue, latency, soak, throughput
from benchmarks.serve_prompts import fair_prefill, prefix_cache

PARTS: dict[str, Callable[[Bench], Coroutine[Any, Any, dict[str, Any]]]] = {
    part.__name__: part
    for part in (
        throughput, budgets, latency, leaving, full_queue, malformed, slow_clients, compilations,
        prefix_cache, fair_prefill, engine_fault, soak, sigterm,
    )
}  # fmt: skip


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
    parser.add_argument("--soak", type=float, default=600, help="duration of the soak [s]")
    arguments = parser.parse_args()
    bench = Bench(arguments.model, quick=arguments.quick, soak=arguments.soak)
    try:
        asyncio.run(_run(bench, arguments.parts.split(",")))
    finally:
        if bench.server.process.poll() is None:
            bench.server.end()


if __name__ == "__main__":
    main()
