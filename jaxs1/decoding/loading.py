"""From a folder or a hub id to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from convert.interface import Weights
from convert.mapping import parameters
from convert.weights import load_decode_params, open_weights
from jaxs1.config import UserError
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.scheduler import Limits
from jaxs1.model import backends, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.backends import BACKENDS
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.kv_cache import PAGE, token_bytes
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import ShardingRules, check_divisible, make_sharding_rules

#: Bytes of keys and values on a device that does not say how much memory it has.
DEFAULT_CACHE = 2 << 30
#: Share of a device's free memory that the cache takes.
CACHE_SHARE = 0.9


@dataclass(frozen=True)
class ParallelConfig:
    """How decoding is spread over devices.

    Args:
        tensor: devices that share one copy of the model
        replicas: copies of the model; requests are shared out among them
    """

    tensor: int = 1
    replicas: int = 1


@dataclass(frozen=True)
class EngineConfig:
    """Which model decodes, and on what.

    Args:
        model: a Hugging Face folder, a hub id, a converted checkpoint, a training run or a step
        tokenizer: Hugging Face folder or hub id; null takes the one of `model`
        dtype: of weights, computation and cache; auto: float32 on a CPU (whose bfloat16 is slow),
            bfloat16 elsewhere
        impl: of the decode step; auto: the fastest that is known to be right on this device.
            bf16x3: float32 over a checkpoint's own bfloat16 weights, in half the memory; auto
            where a CPU multiplies bfloat16 (AMX)
        limits: what may be used
        parallel: how it is spread over devices
    """

    model: str = ""
    tokenizer: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    impl: Literal["auto", "xla", "bf16x3", "triton", "pallas"] = "auto"
    limits: Limits = field(default_factory=Limits)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, and what to call it.

    Args:
        engine: completes requests
        name: of the model
        fingerprint: differs where the weights or the dtype differ
        description: devices, dtype, implementation and limits, for the user
    """

    engine: BaseEngine
    name: str
    fingerprint: str
    description: str


def load_engine(config: EngineConfig) -> LoadedEngine:
    """Load a model and make it ready to decode.

    Raises:
        UserError: no such model, a tokenizer that does not fit, devices or memory that do not do.
    """
    if not config.model:
        raise UserError("model='': must name the weights; give --model DIR or a hub id")
    weights = open_weights(config.model)
    tokenizer = load_tokenizer(config.tokenizer or str(weights.aux_files))
    a = weights.architecture
    if len(tokenizer) > a.vocab_size:
        raise UserError(
            f"tokenizer={config.tokenizer or config.model}: has {len(tokenizer)} tokens, more than "
            f"the model's vocab_size={a.vocab_size}; use the model's own tokenizer"
        )
    platform = jax.devices()[0].platform
    dtype: Any = config.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    impl = resolve_impl(config.impl, dtype, weights, config.parallel)
    linear = BACKENDS[impl].linear
    param_dtype: Any = LINEAR[linear].weight_dtype or dtype
    compute = ComputeConfig(dtype=dtype, param_dtype=param_dtype, remat="none", attention="xla")
    engines = []
    for rules in _partitions(config.parallel):
        check_divisible(a, rules)
        backends.check(impl, a, rules, dtype=dtype, sequences=config.limits.max_num_seqs)
        model = transformer.abstract(a, compute, rules, linear=linear)
        params = load_decode_params(weights, model)
        num_pages = 1 + _cache_pages(a, dtype, config.limits, rules)
        engines.append(
            Engine(
                model,
                params,
                tokenizer,
                config.limits,
                num_pages=num_pages,
                cache_dtype=jnp.dtype(dtype),
                impl=impl,
            )
        )
    engine = engines[0] if len(engines) == 1 else DataParallelEngine(engines)
    kind = jax.devices()[0].device_kind
    # what a mesh exchanges is in no graph
    one = BACKENDS[impl].compiler_options() and config.parallel.tensor == 1
    graph = ", a chunk of steps as one CUDA graph" if one else ""
    parallel = config.parallel
    widths = dtype if param_dtype == dtype else f"{dtype} over weights in {param_dtype}"
    description = (
        f"{config.model}: {a.num_parameters:,} parameters, {widths}, {impl}{graph}; "
        f"{parallel.replicas} x {parallel.tensor} {kind}; context {engine.context:,}, cache "
        f"{(num_pages - 1) * PAGE:,} tokens, {config.limits.max_num_seqs} sequences at a time"
    )
    fingerprint = f"{weights.fingerprint()} {dtype}"
    return LoadedEngine(engine, config.model, fingerprint, description)


def resolve_impl(name: str, dtype: str, weights: Weights, parallel: ParallelConfig) -> str:
    """The implementation of the decode step that a setting stands for.

    Raises:
        UserError: a named one that is not there, or that these weights are too wide for.
    """
    if name not in ("auto", *BACKENDS):
        raise UserError(f"impl={name}: must be auto or one of {', '.join(BACKENDS)}")
    stored = {str(weights.dtype(path)) for path in parameters(weights.architecture)}
    if name != "auto":
        kept = LINEAR[BACKENDS[name].linear].weight_dtype
        if kept is not None and stored != {kept}:
            raise UserError(
                f"impl={name}: keeps weights in {kept}, those of {weights.name} are "
                f"{', '.join(sorted(stored))}; give --impl xla"
            )
        return name
    # triton on NVIDIA once a `make gpu-check` that passed there is committed: benchmarks/gpu
    exact = stored == {"bfloat16"} and dtype == "float32" and parallel.tensor == 1
    return "bf16x3" if exact and _multiplies_bfloat16() else "xla"


def _multiplies_bfloat16() -> bool:
    """Whether this is a CPU with matrix instructions for bfloat16; others may still do it."""
    flags = Path("/proc/cpuinfo")
    has_amx = flags.exists() and " amx_bf16 " in flags.read_text()
    return has_amx and jax.devices()[0].platform == "cpu"


def _partitions(parallel: ParallelConfig) -> list[ShardingRules]:
    """One mesh for every replica."""
    for name, value in vars(parallel).items():
        if value < 1:
            raise UserError(f"parallel.{name}={value}: must be at least 1")
    devices = jax.devices()
    needed = parallel.tensor * parallel.replicas
    if needed > len(devices):
        raise UserError(
            f"parallel.tensor={parallel.tensor} x parallel.replicas={parallel.replicas}: needs "
            f"{needed} devices, there are {len(devices)}; lower one of them"
        )
    mesh = MeshConfig(fsdp=1, tensor=parallel.tensor)
    groups = [devices[i : i + parallel.tensor] for i in range(0, needed, parallel.tensor)]
    return [make_sharding_rules(mesh, group) for group in groups]


def _cache_pages(a: Architecture, dtype: Any, limits: Limits, rules: ShardingRules) -> int:
    """Pages of the cache: what was asked for, or what fits, but no more than can be used."""
    context = limits.max_seq_len or a.max_position_embeddings
    if limits.kv_cache_tokens is not None:
        return pages_for(limits.kv_cache_tokens)
    useful = limits.max_num_seqs * pages_for(context)
    devices = list(rules.mesh.devices.flat)
    stats = devices[0].memory_stats() or {}
    free = DEFAULT_CACHE
    if "bytes_limit" in stats:
        left = stats["bytes_limit"] - stats["bytes_in_use"]
        free = int(CACHE_SHARE * left) * len(devices)
    fitting = free // (token_bytes(a, dtype) * PAGE)
    if fitting < 1:
        raise UserError(
            f"model: its weights leave {free / 1e9:.1f} GB for keys and values, less than a page; "
            "give --parallel.tensor or a smaller model"
        )
    return min(useful, fitting)
