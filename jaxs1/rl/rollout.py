"""Roll-outs: the engines that think under a budget, with the trainer's current weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxs1.config import UserError
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.buckets import Buckets, ladder
from jaxs1.decoding.data_parallel import DataParallelEngine
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.outputs import Completion
from jaxs1.decoding.params import Request
from jaxs1.decoding.scheduler import Limits
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import check_divisible, make_sharding_rules
from jaxs1.model.transformer import Transformer
from jaxs1.rl.weights import make_converter, of_replica


class RolloutEngine:
    """Engines on this process's devices; they have weights and a cache only while they roll out.

    Args:
        model: abstract, as trained
        tokenizer: tokenizer of the model
        limits: limits of each engine
        tensor: devices that share one copy of the model
        num_pages: pages of the cache of an engine, given the model on its devices

    Raises:
        UserError: the devices cannot be divided so.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Any,
        limits: Limits,
        *,
        tensor: int,
        num_pages: Callable[[Transformer], int],
    ):
        devices = list(model.rules.mesh.devices.flat)
        self._convert = make_converter(model, decoding_model(model, devices, tensor))
        groups = [devices[i : i + tensor] for i in range(0, len(devices), tensor)]
        here = jax.process_index()
        groups = [g for g in groups if all(d.process_index == here for d in g)]
        own = sum(d.process_index == here for d in devices)
        if len(groups) * tensor < own:
            raise UserError(
                f"tensor={tensor}: must divide the {own} devices of a process, which rolls out on "
                "its own; lower it, or start fewer processes"
            )
        self._decoders = [decoding_model(model, group, tensor) for group in groups]
        check_divisible(model.architecture, self._decoders[0].rules)
        self._engines = [
            Engine(
                decoder,
                None,
                tokenizer,
                limits,
                num_pages=num_pages(decoder),
                cache_dtype=jnp.dtype(model.compute.dtype),
            )
            for decoder in self._decoders
        ]
        for engine in self._engines:
            engine.buckets = few_programs(limits, engine.scheduler.max_pages)
            engine.release()
        several = len(self._engines) > 1
        self.engine: BaseEngine = DataParallelEngine(self._engines) if several else self._engines[0]

    def load(self, params: Any, frozen: Any) -> None:
        """Take the trainer's weights, which must not be donated until `release`.

        All processes take part; after it each rolls out on its own.
        """
        converted = self._convert(params, frozen)
        for engine, decoder in zip(self._engines, self._decoders, strict=True):
            engine.load_params(of_replica(decoder, converted, decoder.rules))
        jax.block_until_ready(converted)

    def release(self) -> None:
        """Leave the memory of weights and cache to the step."""
        for engine in self._engines:
            engine.release()

    def complete(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The completions of every request."""
        done = dict(self.engine.run(requests))
        return [done[number] for number in range(len(requests))]


def decoding_model(model: Transformer, devices: list[jax.Device], tensor: int) -> Transformer:
    """The model as roll-outs decode it: in the compute dtype, without adapters; abstract.

    Args:
        model: abstract, as trained
        devices: devices of one or more copies
        tensor: devices of a copy
    """
    mesh = MeshConfig(data=len(devices) // tensor, fsdp=1, tensor=tensor)
    dtype = model.compute.dtype
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    rules = make_sharding_rules(mesh, devices)
    return transformer.abstract(model.architecture, compute, rules)


def few_programs(limits: Limits, max_pages: int) -> Buckets:
    """Few sizes: compiling one costs more than a step of a small model saves.

    A batch shrinks to a quarter of its rows once most of its sequences have ended.
    """
    rows = limits.max_num_seqs
    sizes = ladder(rows=rows, pages=max_pages, tokens=limits.prefill_chunk_tokens)
    return Buckets(tuple(sorted({max(1, rows // 4), rows})), sizes.pages, sizes.widths, sizes.flags)
