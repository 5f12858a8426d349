"""Part cublas: the same products and memory ceilings through torch, in a separate process.

JAX has allocated most of the GPU's memory by then. The child fits into the rest (5 %, 4 GB on an
80 GB card; it needs about 2.5), so it may run at any point in the order, and JAX keeps its pool,
which it could not get back in one piece. JAX is idle meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

#: Seconds after which the child is stopped.
LONGEST = 90
ROUNDS, SAMPLES = 8, 9


def cublas(ctx: Any) -> None:
    """Run the child; record each of its facts as it arrives."""
    from benchmarks.gpu_parts.context import ROOT
    from kernels.benchmarking.timing import ROTATED

    settings = {
        "device": "cuda" if ctx.on_gpu else "cpu",
        "products": products(ctx.shape),
        "batches": ctx.batches,
        "rotated": min(ROTATED, 256 << 20),
        "copied": ctx.ceiling_sizes.get("size", 1 << 29),
    }
    command = [sys.executable, "-m", "benchmarks.gpu_parts.cublas", json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        begin = time.monotonic()
        error = None
        for line in child.stdout:
            figures = json.loads(line)
            error = figures.get("error", error)
            if "fact" in figures:
                ctx.facts.add(figures.pop("fact"), **figures)
            if time.monotonic() - begin > LONGEST:
                child.kill()
                error = f"stopped after {LONGEST} s"
    if error or child.returncode:
        raise RuntimeError(error or f"torch's process ended with status {child.returncode}")


def cublas_programs(_: Any) -> Iterator[Any]:
    """No JAX programs: torch calls cuBLAS."""
    return iter(())


def products(shape: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's products and of the head."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "qkv": (shape.width, q + 2 * kv),
        "out": (q, shape.width),
        "gate_up": (shape.width, 2 * shape.mlp),
        "down": (shape.mlp, shape.width),
        "head": (shape.width, shape.vocabulary),
    }


# --- the child ------------------------------------------------------------------------------


def child(settings: dict[str, Any]) -> None:
    """Print facts, one JSON object per line."""
    import torch

    device = settings["device"]
    if device == "cuda" and not torch.cuda.is_available():
        _print(error=f"torch {torch.__version__} finds no CUDA device")
        return
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else None
    _print(fact="torch", version=torch.__version__, free_bytes=free)
    _time_memory(settings["copied"], device)
    for name, (k, n) in settings["products"].items():
        for layout in ("outputs first", "inputs first"):
            _time_product(name, layout, k, n, settings)


def _time_memory(num_bytes: int, device: str) -> None:
    import torch

    x = torch.randint(0, 1 << 30, (num_bytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(x)
    seconds = _timed(lambda: target.copy_(x), device)
    _print(fact="torch copy", per_second=2 * num_bytes / seconds)
    _print(fact="torch read", per_second=num_bytes / _timed(lambda: x.sum(), device))


def _time_product(name: str, layout: str, k: int, n: int, settings: dict[str, Any]) -> None:
    import torch

    device = settings["device"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sizes = (n, k) if layout == "outputs first" else (k, n)
    copies = max(1, -(-settings["rotated"] // (2 * k * n)))
    weights = [torch.randn(sizes, device=device, dtype=dtype) for _ in range(copies)]
    if layout == "outputs first":
        weights = [w.T for w in weights]
    for batch in settings["batches"]:
        x = torch.randn((batch, k), device=device, dtype=dtype)
        seconds = _timed(lambda x=x: [x @ w for w in weights], device) / copies
        _print(fact=f"cuBLAS {name}, batch {batch}, {layout}", kernel=name, batch=batch,
             layout=layout, median=seconds, bytes=2 * k * n)  # fmt: skip


def _timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call: the median of samples; on a GPU many calls in one graph."""
    import torch

    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(ROUNDS):
            call()
    found = []
    for _ in range(SAMPLES):
        first, last = torch.cuda.Event(True), torch.cuda.Event(True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) / 1e3 / ROUNDS)
    return sorted(found)[len(found) // 2]


def _print(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
