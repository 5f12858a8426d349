"""Compile the real decode loop ahead of time: its memory, its copies, and its launches on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxs1.decoding.decode_loop import NO_LIMIT, CompiledFunctions
from jaxs1.decoding.decode_state import empty_rows
from jaxs1.decoding.loading import quantized_linear
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.model import backends, kv_cache, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.backends import BACKENDS
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.decode_params import abstract_params, loading_peak
from jaxs1.model.sharding import check_divisible, local_bytes, make_sharding_rules
from jaxs1.model.transformer import Params, Transformer
from jaxs1.planning.compile import compile_program
from jaxs1.planning.hlo import Collective, collectives, large_copies
from jaxs1.planning.targets import Target


@dataclass(frozen=True)
class DecodeProgram:
    """What the compiler reports of one call of the decode loop on one device; sizes in bytes.

    Args:
        weights: parameters of the model
        cache: pages of the KV cache
        loading_peak: most bytes in use while the weights are loaded, layer by layer
        in_place: outputs that reuse the memory of an argument
        temporaries: everything else that lives within a call
        copies: result types of the large copies in every step (`hlo.large_copies`)
        copies_once: result types of the large copies outside the loop
        launches: number of launches by the host for a call, by kind; empty except on GPUs
        collectives: exchanges of one step, by kind
        floor: lower bound of a step [s]: reading the weights and the full contexts of all
            sequences once, at the data sheet's bandwidth
    """

    weights: float
    cache: float
    loading_peak: float
    in_place: float
    temporaries: float
    copies: list[str]
    copies_once: list[str]
    launches: dict[str, int]
    collectives: dict[str, Collective]
    floor: float

    @property
    def decoding_peak(self) -> float:
        """Bytes in use while decoding."""
        return self.weights + self.cache + self.temporaries

    @property
    def peak(self) -> float:
        """Bytes that a device needs; the cache is allocated after the weights are loaded."""
        return max(self.decoding_peak, self.loading_peak)

    @property
    def is_one_graph(self) -> bool:
        """Whether the loop is a single CUDA graph, which the host launches once."""
        return "kCommandBuffer" in self.launches and "kWhile" not in self.launches


def compile_decoding(
    a: Architecture,
    target: Target,
    devices: list[jax.Device],
    *,
    impl: str,
    int8: bool = False,
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
        int8: whether the matrices are quantized
        sequences: sequences decoded at the same time
        context: tokens that each of them can hold
        steps: decode steps of one call

    Raises:
        UserError: the devices or the implementation do not support the model.
    """
    cpu = target.accelerator.platform == "cpu"
    dtype: Any = "float32" if cpu else "bfloat16"
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=len(devices)), devices)
    check_divisible(a, rules)
    backends.check(impl, a, rules, dtype=dtype, sequences=sequences)
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    linear = quantized_linear(impl) if int8 else BACKENDS[impl].linear
    model = transformer.abstract(a, compute, rules, linear=linear)
    pages = pages_for(context)
    params, cache = abstract_params(model), abstract_cache(model, sequences * pages + 1)
    flags = SamplingFlags(sampled=False, filtered=False, penalised=False)
    functions = CompiledFunctions(model, impl, steps)
    lowered = lower_steps(functions, params, cache, sequences=sequences, pages=pages, flags=flags)
    program = compile_program(lowered, target.accelerator.platform)
    memory = program.executable.memory_analysis()
    copies, copies_once = large_copies(program.text)
    weights, cache_bytes = local_bytes(params), local_bytes(cache)
    # a step reads only a few rows of an embedding that is not the head
    unread = 0.0 if a.tie_word_embeddings else local_bytes(params["embedding"])
    if a.experts is not None:  # and no more experts than all sequences can choose
        share = min(1, sequences * a.experts.per_token / a.experts.count)
        unread += (1 - share) * a.expert_parameters / len(devices) * jnp.dtype(dtype).itemsize
    return DecodeProgram(
        weights=weights,
        cache=cache_bytes,
        # and the piece that is being read, at most an entire parameter
        loading_peak=loading_peak(model) + max(map(local_bytes, jax.tree.leaves(params))),
        in_place=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        copies=copies,
        copies_once=copies_once,
        launches=program.launches,
        collectives=collectives(program.text),
        floor=(weights - unread + cache_bytes) / target.accelerator.bandwidth,
    )


def abstract_cache(model: Transformer, num_pages: int) -> kv_cache.KVCache:
    """Shapes and shardings of a KV cache in the compute dtype, of so many pages with page 0."""
    a = model.architecture
    shape = (a.num_kv_heads, num_pages, kv_cache.PAGE, a.head_dim)
    where = model.rules.sharding(kv_cache.AXES)
    layer: Any = jax.ShapeDtypeStruct(shape, jnp.dtype(model.compute.dtype), sharding=where)
    return kv_cache.KVCache([layer] * a.num_layers, [layer] * a.num_layers)


def lower_steps(
    functions: CompiledFunctions,
    params: Params,
    cache: kv_cache.KVCache,
    *,
    sequences: int,
    pages: int,
    flags: SamplingFlags,
) -> Any:
    """The decode loop, lowered for a full batch.

    Args:
        functions: of the model
        params: shapes and shardings of its parameters
        cache: those of its cache
        sequences: rows of the batch
        pages: pages of each of them
        flags: what is compiled of sampling
    """
    a, replicated = functions.model.architecture, functions.model.rules.sharding(())
    is_newline_V = np.zeros(a.vocab_size, bool)
    rows = empty_rows(sequences, max_pages=pages, is_newline_V=is_newline_V)
    decode_state, is_newline_V = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=replicated),
        (rows, is_newline_V),
    )
    decode_steps: Any = functions.decode_steps
    return decode_steps.lower(
        params,
        cache,
        decode_state,
        is_newline_V,
        NO_LIMIT,
        np.bool_(False),
        rows=sequences,
        pages=pages,
        flags=flags,
    )
