"""From a folder or a hub id to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from convert.weights import load_params, open_weights
from jaxs1.config import ComputeConfig, MeshConfig, UserError
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.decoding.completer import Completer
from jaxs1.decoding.engine import Engine, Limits
from jaxs1.decoding.pages import pages_for
from jaxs1.decoding.replicas import Replicas
from jaxs1.model import qwen, unrolled
from jaxs1.model.architecture import Architecture
from jaxs1.model.kv_cache import PAGE, token_bytes
from jaxs1.model.sharding import Partition, check_divisible, make_partition

#: Bytes of keys and values on a device that does not say how much memory it has.
DEFAULT_CACHE = 2 << 30
#: Share of a device's free memory that the cache takes.
CACHE_SHARE = 0.9


@dataclass(frozen=True)
class Parallel:
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
        impl: of the decode step; auto: the fastest that is known to be right on this device
        limits: what may be used
        parallel: how it is spread over devices
    """

    model: str = ""
    tokenizer: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    impl: Literal["auto", "xla", "triton", "pallas"] = "auto"
    limits: Limits = field(default_factory=Limits)
    parallel: Parallel = field(default_factory=Parallel)


@dataclass(frozen=True)
class Opened:
    """An engine, and what to call it.

    Args:
        engine: completes requests
        name: of the model
        fingerprint: differs where the weights or the dtype differ
        description: devices, dtype, implementation and limits, for the user
    """

    engine: Completer
    name: str
    fingerprint: str
    description: str


def open_engine(config: EngineConfig) -> Opened:
    """Load a model and make it ready to decode.

    Raises:
        UserError: no such model, a tokenizer that does not fit, devices or memory that do not do.
    """
    if not config.model:
        raise UserError("model='': must name the weights; give --model DIR or a hub id")
    weights = open_weights(config.model)
    tokenizer = load_tokenizer(config.tokenizer or str(weights.side_files))
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
    impl = resolve_impl(config.impl)
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    engines = []
    for partition in _partitions(config.parallel):
        check_divisible(a, partition)
        unrolled.check(impl, a, partition, dtype=dtype, sequences=config.limits.max_sequences)
        model = qwen.abstract(a, compute, partition)
        params = unrolled.unstack(load_params(weights, model), unrolled.shardings(model))
        num_pages = 1 + _cache_pages(a, dtype, config.limits, partition)
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
    engine = engines[0] if len(engines) == 1 else Replicas(engines)
    kind = jax.devices()[0].device_kind
    # what a mesh exchanges is in no graph
    one = unrolled.IMPLS[impl].options() and config.parallel.tensor == 1
    graph = ", a chunk of steps as one CUDA graph" if one else ""
    parallel = config.parallel
    description = (
        f"{config.model}: {a.num_parameters:,} parameters, {dtype}, {impl}{graph}; "
        f"{parallel.replicas} x {parallel.tensor} {kind}; context {engine.context:,}, cache "
        f"{(num_pages - 1) * PAGE:,} tokens, {config.limits.max_sequences} sequences at a time"
    )
    fingerprint = f"{weights.fingerprint()} {dtype}"
    return Opened(engine, config.model, fingerprint, description)


def resolve_impl(name: str) -> str:
    """The implementation of the decode step that a setting stands for.

    Raises:
        UserError: a named one that is not there.
    """
    # triton on NVIDIA once a `make gpu-check` that passed there is committed: benchmarks/gpu
    if name == "auto":
        return "xla"
    if name not in unrolled.IMPLS:
        raise UserError(f"impl={name}: must be auto or one of {', '.join(unrolled.IMPLS)}")
    return name


def _partitions(parallel: Parallel) -> list[Partition]:
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
    return [make_partition(mesh, group) for group in groups]


def _cache_pages(a: Architecture, dtype: Any, limits: Limits, partition: Partition) -> int:
    """Pages of the cache: what was asked for, or what fits, but no more than can be used."""
    context = limits.context or a.max_position_embeddings
    if limits.kv_tokens is not None:
        return pages_for(limits.kv_tokens)
    useful = limits.max_sequences * pages_for(context)
    devices = list(partition.mesh.devices.flat)
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
