"""Load an engine: from a folder or a hub id to a model that is ready to decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from convert.interface import Weights
from convert.mapping import parameters
from convert.weights import load_decode_params, open_weights
from jaxs1.config import UserError
from jaxs1.data.tokenizer import check_vocabulary, load_tokenizer
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.scheduler import Limits
from jaxs1.model import backends, transformer
from jaxs1.model.backends import BACKENDS
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.kv_cache import PAGE, token_bytes
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import ShardingRules, check_divisible, make_sharding_rules
from jaxs1.model.transformer import Transformer

#: Bytes of keys and values on a device that does not report its memory.
DEFAULT_CACHE = 2 << 30
#: Fraction of a device's free memory that the cache takes.
CACHE_SHARE = 0.9


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism of decoding.

    Args:
        tensor: number of devices that share one copy of the model (tensor parallelism)
        replicas: number of copies of the model, which share the requests (data parallelism)
    """

    tensor: int = 1
    replicas: int = 1


@dataclass(frozen=True)
class EngineConfig:
    """Model and engine.

    Args:
        model: Hugging Face folder, hub id, converted checkpoint, training run or a step of one
        tokenizer: Hugging Face folder or hub id; null: the tokenizer of `model`
        dtype: dtype of weights, computation and KV cache; auto: float32 on a CPU (where bfloat16 is
            slow), bfloat16 elsewhere
        impl: implementation of the decode step; auto: the fastest that is verified on this device.
            bf16x3 computes in float32 with a checkpoint's own bfloat16 weights, in half the memory;
            auto picks it on CPUs with bfloat16 matrix instructions (AMX)
        weights: int8 quantizes the matrices while they are loaded (8 bits and a scale for each
            output), which halves their memory and the bytes that a step reads; auto keeps them
        limits: limits of the engine
        parallel: parallelism of decoding
    """

    model: str = ""
    tokenizer: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    impl: Literal["auto", "xla", "bf16x3", "triton", "pallas"] = "auto"
    weights: Literal["auto", "int8"] = "auto"
    limits: Limits = field(default_factory=Limits)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine, ready to decode.

    Args:
        engine: completes requests
        fingerprint: differs if the weights or the dtype differ
        description: human-readable summary of devices, dtype, implementation and limits
    """

    engine: BaseEngine
    fingerprint: str
    description: str


class _Numerics(NamedTuple):
    """Resolved implementations, and dtypes of computation and of weights that are not quantized."""

    impl: str
    linear: str
    dtype: Any
    param_dtype: Any

    @property
    def summary(self) -> str:
        """The dtypes, for people and fingerprints."""
        stored = self.linear if LINEAR[self.linear].quantized else str(self.param_dtype)
        return self.dtype if stored == self.dtype else f"{self.dtype} with weights in {stored}"


def load_engine(config: EngineConfig) -> LoadedEngine:
    """Load a model and its tokenizer, and prepare to decode.

    Raises:
        UserError: the model does not exist, the tokenizer does not match it, or there are too few
            devices or too little memory
    """
    if not config.model:
        raise UserError("model='': must name the weights; give --model DIR or a hub id")
    weights = open_weights(config.model)
    tokenizer = _tokenizer(config, weights)
    numerics = _resolve(config, weights)
    engines = [
        _build(config, numerics, weights, tokenizer, rules)
        for rules in _sharding_rules(config.parallel)
    ]
    quantized = " int8" if config.weights == "int8" else ""
    return LoadedEngine(
        engine=engines[0] if len(engines) == 1 else DataParallelEngine(engines),
        fingerprint=f"{weights.fingerprint()} {numerics.dtype}{quantized}",
        description=_describe(config, numerics, engines[0]),
    )


def resolve_impl(name: str, dtype: str, weights: Weights, parallel: ParallelConfig) -> str:
    """The implementation of the decode step for a setting, "auto" resolved.

    Raises:
        UserError: there is no such implementation, or these weights would lose precision in it
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
    # triton on NVIDIA once a passing `make gpu-check` from there is committed in benchmarks/gpu
    exact = stored == {"bfloat16"} and dtype == "float32" and parallel.tensor == 1
    exact &= weights.architecture.experts is None
    return "bf16x3" if exact and _multiplies_bfloat16() else "xla"


def _tokenizer(config: EngineConfig, weights: Weights) -> Any:
    tokenizer = load_tokenizer(config.tokenizer or str(weights.aux_files), weights.aux_files)
    name = config.tokenizer or config.model
    check_vocabulary(tokenizer, name, weights.architecture.vocab_size)
    return tokenizer


def _resolve(config: EngineConfig, weights: Weights) -> _Numerics:
    """Replace "auto" by what fits the device and the weights."""
    dtype: Any = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
    if config.weights == "int8":
        impl: str = "xla" if config.impl == "auto" else config.impl
        return _Numerics(impl, quantized_linear(impl), dtype, dtype)
    impl = resolve_impl(config.impl, dtype, weights, config.parallel)
    linear = BACKENDS[impl].linear
    return _Numerics(impl, linear, dtype, LINEAR[linear].weight_dtype or dtype)


def quantized_linear(impl: str) -> str:
    """The products of a backend with int8 weights; raises `UserError` if it has none."""
    if BACKENDS[impl].linear != "xla":
        raise UserError(
            f"weights=int8: impl={impl} has a form of weights of its own; give --impl xla"
        )
    return "int8"


def _build(
    config: EngineConfig,
    numerics: _Numerics,
    weights: Weights,
    tokenizer: Any,
    rules: ShardingRules,
) -> Engine:
    """Load the weights onto the devices of one replica and allocate its cache."""
    a, impl, dtype = weights.architecture, numerics.impl, numerics.dtype
    check_divisible(a, rules)
    backends.check(impl, a, rules, dtype=dtype, sequences=config.limits.max_num_seqs)
    compute = ComputeConfig(
        dtype=dtype, param_dtype=numerics.param_dtype, remat="none", attention="xla"
    )
    model = transformer.abstract(a, compute, rules, linear=numerics.linear)
    params = load_decode_params(weights, model)
    free = free_for_cache(rules)
    return Engine(
        model,
        params,
        tokenizer,
        config.limits,
        num_pages=1 + cache_pages(model, config.limits, free),
        cache_dtype=jnp.dtype(dtype),
        impl=impl,
    )


def _describe(config: EngineConfig, numerics: _Numerics, engine: Engine) -> str:
    """One line about an engine and its replicas."""
    parallel, impl = config.parallel, numerics.impl
    # collectives cannot be part of a CUDA graph
    is_graph = BACKENDS[impl].compiler_options() and parallel.tensor == 1
    graph = ", each run of decode steps as one CUDA graph" if is_graph else ""
    return (
        f"{config.model}: {engine.model.architecture.size}, "
        f"{numerics.summary}, {impl}{graph}; "
        f"{parallel.replicas} x {parallel.tensor} {jax.devices()[0].device_kind}; "
        f"context {engine.context:,} tokens, cache {engine.scheduler.pages.size * PAGE:,} tokens, "
        f"up to {config.limits.max_num_seqs} sequences at a time"
    )


def _multiplies_bfloat16() -> bool:
    """Whether this is a CPU with matrix instructions for bfloat16."""
    flags = Path("/proc/cpuinfo")
    has_amx = flags.exists() and " amx_bf16 " in flags.read_text()
    return has_amx and jax.devices()[0].platform == "cpu"


def _sharding_rules(parallel: ParallelConfig) -> list[ShardingRules]:
    """The mesh of each replica."""
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


def free_for_cache(rules: ShardingRules, *, unloaded: int = 0) -> int:
    """Bytes that a cache may take, on all devices of a replica together.

    Args:
        rules: mesh of the replica
        unloaded: bytes of weights that each device has yet to load
    """
    devices = list(rules.mesh.devices.flat)
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return DEFAULT_CACHE
    left = stats["bytes_limit"] - stats["bytes_in_use"] - unloaded
    return int(CACHE_SHARE * left) * len(devices)


def cache_pages(model: Transformer, limits: Limits, free: int) -> int:
    """Pages of the cache: as configured, or as many as fit and can be used.

    Args:
        model: abstract, as decoded
        limits: limits of the engine
        free: bytes, from `free_for_cache`

    Raises:
        UserError: not one page fits.
    """
    if limits.kv_cache_tokens is not None:
        return pages_for(limits.kv_cache_tokens)
    a = model.architecture
    useful = limits.max_num_seqs * pages_for(limits.max_seq_len or a.max_position_embeddings)
    fitting = free // (token_bytes(a, model.compute.dtype) * PAGE)
    if fitting < 1:
        raise UserError(
            f"model: its weights leave {free / 1e9:.1f} GB for keys and values, less than a page; "
            "raise --parallel.tensor or use a smaller model"
        )
    return min(useful, fitting)
