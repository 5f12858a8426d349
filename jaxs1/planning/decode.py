"""The real decode chunk, compiled for devices that are not here: what it holds, what it copies.

python -m jaxs1.plan --decode --target h200:1x1 --impl triton --sequences 8 --context 4096
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxs1.config import ComputeConfig, MeshConfig
from jaxs1.decoding.decode_loop import CompiledFunctions
from jaxs1.decoding.decode_state import NewSequence, rows_of
from jaxs1.decoding.outputs import SamplingParams
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model import decode, kv_cache, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import check_divisible, make_sharding_rules
from jaxs1.planning.estimate import local_bytes
from jaxs1.planning.hlo import Collective, collectives
from jaxs1.planning.targets import Target

#: A copy of so many bytes in a step is one of weights or of pages.
LARGE = 1 << 20


@dataclass(frozen=True)
class DecodeProgram:
    """What the compiler says of one chunk on one device; sizes in bytes.

    Args:
        weights, cache: arguments that stay
        in_place: outputs that take over an argument's memory
        temporaries: what else lives within a chunk
        copies: of at least `LARGE` bytes in every step, by their result types
        copies_once: likewise, once in a chunk
        launches: what the host starts on a GPU for an entire chunk, by kind; empty elsewhere
        collectives: of one step, by kind
        floor: least seconds of a step: weights, and all sequences' full contexts, at the memory's
            data-sheet speed
    """

    weights: float
    cache: float
    in_place: float
    temporaries: float
    copies: list[str]
    copies_once: list[str]
    launches: dict[str, int]
    collectives: dict[str, Collective]
    floor: float

    @property
    def total(self) -> float:
        """Bytes that a device needs."""
        return self.weights + self.cache + self.temporaries

    @property
    def is_one_graph(self) -> bool:
        """Whether the loop is a single CUDA graph: the host starts it and waits for its end."""
        return "kCommandBuffer" in self.launches and "kWhile" not in self.launches


def compile_decoding(
    a: Architecture,
    target: Target,
    devices: list[jax.Device],
    *,
    impl: str,
    sequences: int,
    context: int,
    steps: int,
) -> DecodeProgram:
    """Compile the decode loop that `jaxs1.generate` would run.

    Args:
        a: architecture of the model
        target: accelerators to compile for
        devices: compile-only devices of the target, which share one copy of the model
        impl: implementation of the decode step
        sequences: sequences decoded at the same time
        context: tokens that each of them can hold
        steps: decode steps of one call

    Raises:
        UserError: a model that these devices or this implementation do not take.
    """
    cpu = target.accelerator.platform == "cpu"
    dtype: Any = "float32" if cpu else "bfloat16"
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=len(devices)), devices)
    check_divisible(a, rules)
    decode.check(impl, a, rules, dtype=dtype, sequences=sequences)
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    model = transformer.abstract(a, compute, rules)
    pages = pages_for(context)
    pool = (a.num_kv_heads, sequences * pages + 1, kv_cache.PAGE, a.head_dim)
    where = rules.sharding(kv_cache.AXES)
    layer: Any = jax.ShapeDtypeStruct(pool, jnp.dtype(dtype), sharding=where)
    cache = kv_cache.KVCache([layer] * a.num_layers, [layer] * a.num_layers)
    params = abstract_params(model)
    replicated = rules.sharding(())
    state, is_newline_V = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=replicated),
        _abstract_state(a, sequences, context, pages),
    )
    chunk: Any = CompiledFunctions(model, impl, steps).chunk
    lowered = chunk.lower(
        params,
        cache,
        state,
        is_newline_V,
        rows=sequences,
        pages=pages,
        kinds=SamplingFlags(sampled=False, filtered=False, penalised=False),
    )
    program, launched = compile_and_count_launches(lowered, target.accelerator.platform)
    memory, text = program.memory_analysis(), program.as_text()
    copies, copies_once = large_copies(text)
    weights, held = local_bytes(params), local_bytes(cache)
    # of an embedding that is not the head only a few rows are read
    unread = 0 if a.tie_word_embeddings else local_bytes(params["embedding"])
    return DecodeProgram(
        weights=weights,
        cache=held,
        in_place=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        copies=copies,
        copies_once=copies_once,
        launches=launched,
        collectives=collectives(text),
        floor=(weights - unread + held) / target.accelerator.bandwidth,
    )


def compile_and_count_launches(lowered: Any, platform: str) -> tuple[Any, dict[str, int]]:
    """A lowered program compiled, and on a GPU what the host starts to run it, by kind.

    XLA tells the latter only in the files that it writes for debugging.
    """
    if platform != "gpu":
        return lowered.compile(), {}
    with tempfile.TemporaryDirectory() as folder:
        program = lowered.compile(compiler_options={"xla_dump_to": folder})
        (path,) = Path(folder).glob("*thunk_sequence_after_thunk_passes.txt")
        return program, launches(path.read_text())


def launches(thunks: str) -> dict[str, int]:
    """Number of each kind of thunk that is not inside another one; a command buffer is a graph."""
    return dict(Counter(re.findall(r"^\d+: (k\w+)", thunks, re.M)))


def large_copies(text: str) -> tuple[list[str], list[str]]:
    """Copies of at least `LARGE` bytes in an optimized HLO module: in its loops, and outside.

    A padded copy is one too.
    What only goes from one memory of a device to another (TPU: `S(1)`) is on its way to be read.
    """
    bits = {"pred": 8, "bf16": 16}
    copies: tuple[list[str], list[str]] = ([], [])
    inside = True
    for line in text.splitlines():
        inside &= not line.startswith("ENTRY")  # the computation that all others come before
        found = re.search(r"= \(?(\w+)\[([\d,]*)\](.*?) (?:copy|pad)(-start)?\(", line)
        if not found or (found[4] and "S(1)" in found[3]):
            continue
        kind, shape = found[1], found[2]
        width = bits.get(kind) or int(re.sub(r"\D", "", kind) or 0)
        if np.prod([int(n) for n in shape.split(",") if n], dtype=float) * width / 8 >= LARGE:
            copies[not inside].append(f"{kind}[{shape}]")
    return copies


def abstract_params(model: transformer.Transformer) -> Any:
    """Shapes and layouts of `decode.unstack`'s result."""
    stacked, layouts = transformer.parameters(model), decode.shardings(model)
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked["layers"])
    tree = {**stacked, "layers": [layer] * model.architecture.num_layers}
    return jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree, layouts
    )


def _abstract_state(a: Architecture, sequences: int, context: int, pages: int) -> Any:
    """Slots of the right shapes, without a tokenizer, and the table of line breaks."""
    is_newline_V = np.zeros(a.vocab_size, bool)
    thinking = ThinkingParams(max=0, max_answer_tokens=1, min_answer_tokens=1)
    thinking_ids = TokenizedThinking(
        thinking, start=(), ends=((0,),), resume=(1,), stops=((0,),), reopen=(), line_break=(),
        close=(0,), answer_prefix=(), waits=((0,),),
    )  # fmt: skip
    start = NewSequence(thinking_ids, [0], [1], SamplingParams(), seed=0, sample=0)
    rows = rows_of(
        [start], sequences, context=max(context, 8), max_pages=pages, is_newline_V=is_newline_V
    )
    return rows, is_newline_V
