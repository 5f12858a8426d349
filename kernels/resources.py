"""What the compiler makes of the kernels: python -m kernels.resources. No GPU needed.

Compiles every kernel for several GPU generations and reads its machine code: registers, spills,
shared memory, 16-byte loads, asynchronous copies and tensor-core instructions. Also counts the
programs of a launch and those resident on an SM. Spills, loads of less than 16 bytes and missing
tensor-core instructions are slow on every device of that generation.
"""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import triton

from jaxs1.config import UserError, parse, run_command
from kernels import decode
from kernels.int8 import Int8
from kernels.launch import Array, Launch, ceil_div
from kernels.shapes import BATCHES, MODELS, PAGE, Shape
from kernels.xla_call import CAPABILITIES, compile_launch

#: Shared memory that one program can have, by compute capability [bytes].
SHARED_LIMIT = {
    80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10
}  # fmt: skip
#: Most threads and programs resident on an SM, by compute capability.
THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
PROGRAMS_LIMIT = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32, 120: 24}
#: Registers of an SM, allocated to a warp in steps of 256.
REGISTERS = 64 << 10
#: Shared memory that the system reserves for each program [bytes].
RESERVED = 1 << 10
#: Tensor-core instructions, by generation: Blackwell, Hopper, Ampere.
_TENSOR_CORE = {"tcgen05": r"\bUTC\w*MMA", "wgmma": r"\bHGMMA", "mma": r"\bHMMA"}


@dataclass(frozen=True)
class Usage:
    """Resources of one kernel, compiled for one shape and compute capability.

    Args:
        kernel: name of the kernel
        batch: number of sequences
        capability: compute capability, e.g. 90
        registers: registers of a thread
        spills: registers of a thread spilled to memory [bytes]
        shared: shared memory of a program [bytes]
        programs: programs of a launch
        resident: programs that fit on an SM at a time, by shared memory, registers and threads
        wide_loads: number of loads of 16 bytes a thread, including asynchronous ones
        loads: number of all loads from global memory
        async_copies: number of asynchronous copies to shared memory
        tensor_core: kind and number of tensor-core instructions; "" if there are none
    """

    kernel: str
    batch: int
    capability: int
    registers: int
    spills: int
    shared: int
    programs: int
    resident: int
    wide_loads: int
    loads: int
    async_copies: int
    tensor_core: str


@dataclass(frozen=True)
class Resources:
    """Registers, spills, shared memory and instructions of every kernel, from the compiler alone.

    Args:
        model: published model, e.g. qwen2.5-32b
        devices: number of tensor-parallel devices that share it
        batches: batch sizes
        context: longest sequence [tokens]
        capabilities: compute capabilities, e.g. 90 for sm_90
        weights: int8 compiles the kernels for quantized matrices
        markdown: print a Markdown table
    """

    model: str = "qwen2.5-32b"
    devices: int = 1
    batches: list[int] = field(default_factory=lambda: [1, 32])
    context: int = 32768
    capabilities: list[int] = field(default_factory=lambda: [80, 90, 100])
    weights: Literal["bfloat16", "int8"] = "bfloat16"
    markdown: bool = False

    def __post_init__(self) -> None:
        """Reject what cannot be compiled."""
        find_model(self.model)
        low, high = BATCHES
        for batch in self.batches:
            if not low <= batch <= high:
                raise UserError(f"batches={batch}: must be {low} to {high}")
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise UserError(f"capabilities={capability}: must be among {CAPABILITIES}")
        if self.context < 1:
            raise UserError(f"context={self.context}: must be at least 1")


def find_model(name: str) -> Shape:
    """A published model's shape; raises UserError where there is none of that name."""
    if name not in MODELS:
        raise UserError(f"model={name}: must be one of {', '.join(MODELS)}")
    return MODELS[name]


def abstract_layer(
    shape: Shape, batch: int, context: int, dtype: Any = jnp.bfloat16
) -> tuple[dict[str, Any], tuple]:
    """Weights, and the other arguments, of `kernels.decode.layer` as shapes."""
    D, F, N, K, H = shape.width, shape.mlp, shape.heads, shape.kv_heads, shape.head_dim

    def array(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def int32(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.int32)

    def linear(heads: int) -> dict[str, Any]:
        bias = {"bias": array(heads, H)} if shape.bias else {}
        return {"kernel": matrix((D,), (heads, H)), **bias}

    def matrix(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Any:
        return _matrix(shape, inputs, outputs, dtype)

    out = {"kernel": matrix((N, H), (D,))}
    attn = {"q": linear(N), "k": linear(K), "v": linear(K), "o": out}
    if shape.qk_norm:
        attn |= {"q_norm": {"scale": array(H)}, "k_norm": {"scale": array(H)}}
    weights = {
        "attn_norm": {"scale": array(D)},
        "attn": attn,
        "mlp_norm": {"scale": array(D)},
        "mlp": {
            "gate": {"kernel": matrix((D,), (F,))},
            "up": {"kernel": matrix((D,), (F,))},
            "down": {"kernel": matrix((F,), (D,))},
        },
    }
    pages = ceil_div(context, PAGE)
    pool = array(K, 1 + batch * pages, PAGE, H)
    return weights, (array(batch, D), int32(batch), pool, pool, int32(batch, pages))


def abstract_head(shape: Shape, dtype: Any = jnp.bfloat16) -> Any:
    """The output matrix of `kernels.decode.logits` as shapes."""
    D, V = shape.width, shape.vocabulary
    if shape.tied and shape.weight_bytes != 1:
        return jax.ShapeDtypeStruct((V, D), dtype)
    return _matrix(shape, (D,), (V,), dtype)


def _matrix(shape: Shape, inputs: tuple[int, ...], outputs: tuple[int, ...], dtype: Any) -> Any:
    """A weight, or its `Int8`, as shapes."""
    if shape.weight_bytes != 1:
        return jax.ShapeDtypeStruct((*inputs, *outputs), dtype)
    values = jax.ShapeDtypeStruct((*outputs, *inputs), jnp.int8)
    return Int8(values, jax.ShapeDtypeStruct(outputs, jnp.float32))


def launches(shape: Shape, batch: int, context: int) -> list[tuple[Launch, list[str | None]]]:
    """The launches of a layer and the head, and the dtypes of their inputs and outputs."""
    found: list[tuple[Launch, list[str | None]]] = []

    def record(launch: Launch, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        dtypes = [None if x is None else str(x.dtype) for x in inputs]
        outputs = tuple(jnp.zeros(size, jnp.dtype(dtype)) for size, dtype in launch.outputs)
        found.append((launch, dtypes + [str(y.dtype) for y in outputs]))
        return outputs

    weights, rest = abstract_layer(shape, batch, context)
    w = abstract_head(shape)
    scale = weights["attn_norm"]["scale"]

    def everything(weights: Any, rest: Any, scale: Any, w: Any) -> Any:
        rotation = partial(decode.plain_rotation, **shape.rope)
        x_BD, *_ = decode.layer(weights, *rest, eps=shape.eps, rotation=rotation, run=record)
        return decode.logits(x_BD, scale, w, eps=shape.eps, tied=shape.tied, run=record)

    jax.eval_shape(everything, weights, rest, scale, w)
    return found


def usage(launch: Launch, dtypes: Sequence[str | None], batch: int, capability: int) -> Usage:
    """Compile one launch and read its machine code."""
    compiled = compile_launch(launch, dtypes, capability)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text))

    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{tool} prints no resource usage of {launch.name}: {text[:200]}")
    registers, stack, local = map(int, found.groups())
    kinds = {kind: count(pattern) for kind, pattern in _TENSOR_CORE.items()}
    return Usage(
        kernel=launch.name.removesuffix("_kernel"),
        batch=batch,
        capability=capability,
        registers=registers,
        spills=stack + local,
        shared=compiled.metadata.shared,
        programs=math.prod(launch.grid),
        resident=resident_programs(compiled.metadata.shared, registers, launch.warps, capability),
        wide_loads=count(r"\bLDG\.E[.\w]*128") + count(r"\bLDGSTS\.E[.\w]*128"),
        loads=count(r"\bLDG\.") + count(r"\bLDGSTS\."),
        async_copies=count(r"\bLDGSTS\.") + count(r"\bUTMALDG"),
        tensor_core=" ".join(f"{kind} {n}" for kind, n in kinds.items() if n),
    )


def resident_programs(shared: int, registers: int, warps: int, capability: int) -> int:
    """Programs that fit on an SM at a time: CUDA's occupancy, computed.

    Args:
        shared: shared memory of a program [bytes]
        registers: registers of a thread
        warps: warps of a program
        capability: compute capability, e.g. 90
    """
    by_memory = (SHARED_LIMIT[capability] + RESERVED) // (shared + RESERVED)
    by_registers = REGISTERS // (warps * 256 * ceil_div(registers, 8))
    by_threads = THREADS[capability] // (32 * warps)
    return min(by_memory, by_registers, by_threads, PROGRAMS_LIMIT[capability])


def survey(shape: Shape, batches: Sequence[int], context: int, capabilities: Sequence[int]) -> Any:
    """Yield the `Usage` of every distinct kernel."""
    for capability in capabilities:
        for batch in batches:
            done = set()
            for launch, dtypes in launches(shape, batch, context):
                if launch.name not in done or launch.name == "projection_kernel":
                    done.add(launch.name)
                    yield usage(launch, dtypes, batch, capability)


def table(rows: Sequence[Usage], *, markdown: bool) -> Any:
    """A rich table, or Markdown text."""
    heads = ("kernel", "sm", "batch", "registers", "spills", "shared KiB", "programs",
             "resident per SM", "16-byte loads", "async copies", "tensor core")  # fmt: skip
    cells = [
        (u.kernel, str(u.capability), str(u.batch), str(u.registers), str(u.spills),
         f"{u.shared / 1024:.1f}", str(u.programs), str(u.resident),
         f"{u.wide_loads} of {u.loads}", str(u.async_copies), u.tensor_core or "none") for u in rows
    ]  # fmt: skip
    if markdown:
        lines = [heads, tuple("---" for _ in heads), *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    from rich.table import Table

    drawn = Table(*heads)
    for line in cells:
        drawn.add_row(*line)
    return drawn


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(Resources, argv, command="python -m kernels.resources")
    try:
        shape = MODELS[options.model].split(options.devices)
    except ValueError as error:
        raise UserError(f"devices={options.devices}: {error}") from None
    if options.weights == "int8":
        shape = dataclasses.replace(shape, weight_bytes=1)
    rows = list(survey(shape, options.batches, options.context, options.capabilities))
    drawn = table(rows, markdown=options.markdown)
    if options.markdown:
        print(drawn)
        return
    from rich.console import Console

    split = f", one of {options.devices} devices" if options.devices > 1 else ""
    Console(width=120).print(f"{options.model}{split}, triton {triton.__version__}", drawn)


if __name__ == "__main__":
    run_command(main)
