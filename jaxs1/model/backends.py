"""Implementations of the decode step, as `BACKENDS[name]`: a layer, the logits, their requirements.

"xla" is the reference. Only layers with its attention take several new tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxs1.config import UserError
from jaxs1.devices import compute_capability
from jaxs1.model import kv_cache, ops
from jaxs1.model.architecture import Architecture
from jaxs1.model.decode_params import abstract_params
from jaxs1.model.linear import LINEAR
from jaxs1.model.paged_attention import paged_attention_pallas, paged_attention_xla
from jaxs1.model.sharding import ShardingRules
from jaxs1.model.transformer import Params, Transformer

#: (weights, x_BTD, k_pages, v_pages) -> (x_BTD, k_pages, v_pages)
Layer = Callable[[Params, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
#: XLA options of a program, by name.
Options = dict[str, str | bool]


class Backend(Protocol):
    """An implementation of the decode step.

    Attributes:
        linear: implementation of products with weights that the model must be built with; where it
            is xla, int8 works as well
    """

    linear: str

    def layer(self, model: Transformer, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
        """A function that computes any layer for these positions and pages."""

    def logits(self, model: Transformer, params: Params, x_BD: jax.Array) -> jax.Array:
        """Float32 logits [B, V] from the output of the last layer."""

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """Raise ValueError with the reason if these shapes, devices or dtype are not supported."""

    def compiler_options(self) -> Options:
        """XLA options of the program that contains the step."""


class Xla:
    """The layers of the training model over a paged cache, with XLA's operators: the reference."""

    linear = "xla"

    def layer(self, model: Transformer, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
        """See `Backend`."""
        return _cached_layer(
            model, positions_BT, table_BM, attention=paged_attention_xla, append=kv_cache.append
        )

    def logits(self, model: Transformer, params: Params, x_BD: jax.Array) -> jax.Array:
        """See `Backend`."""
        a = model.architecture
        hidden = ops.rms_norm(x_BD, params["final_norm"]["scale"], a.rms_norm_eps)
        linear = LINEAR[model.build.linear]
        return linear.logits(hidden, _head(model, params), tied=a.tie_word_embeddings)

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """See `Backend`. XLA supports everything."""

    def compiler_options(self) -> Options:
        """See `Backend`."""
        return {}


class Bf16x3(Xla):
    """`Xla` in float32 over weights in bfloat16, for CPUs that multiply bfloat16."""

    linear = "bf16x3"

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """See `Backend`."""
        if rules.mesh.size > 1:
            raise ValueError(f"{rules.mesh.size} devices share the model: it needs a single one")
        if dtype != "float32":
            raise ValueError(f"dtype={dtype}: it computes in float32 with weights in bfloat16")


class Pallas(Xla):
    """`Xla` with Pallas's paged attention for TPU; every device attends for its own heads."""

    def layer(self, model: Transformer, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
        """See `Backend`."""
        spec = model.rules.spec
        heads, pages = spec((None, None, "heads", None)), spec(kv_cache.AXES)
        attention = model.rules.shard_map(
            paged_attention_pallas, (heads, pages, pages, P(), P()), heads
        )
        return _cached_layer(
            model, positions_BT, table_BM, attention=attention, append=kv_cache.append_one
        )

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """See `Backend`."""
        platform = rules.mesh.devices.flat[0].platform
        if platform != "tpu":
            raise ValueError(f"device={platform}: Pallas's paged attention runs on TPUs")


class Triton:
    """Five Triton kernels per layer, for NVIDIA GPUs."""

    linear = "xla"

    def kernels(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The kernels' layer and logits. They are imported late: Triton is an extra."""
        from kernels import decode

        return decode.layer, decode.logits

    def layer(self, model: Transformer, positions_BT: jax.Array, table_BM: jax.Array) -> Layer:
        """See `Backend`."""
        a, rules = model.architecture, model.rules
        function = partial(
            self.kernels()[0],
            eps=a.rms_norm_eps,
            rotation=partial(a.rope.table, head_dim=a.head_dim),
            axis_name="tensor" if rules.mesh.size > 1 else None,
            compute_capability=compute_capability(rules.mesh.devices.flat[0]),
        )
        weight_specs = jax.tree.map(lambda x: x.sharding.spec, abstract_params(model)["layers"][0])
        pages = rules.spec(kv_cache.AXES)
        specs = (weight_specs, P(), P(), pages, pages, P())
        run = rules.shard_map(function, specs, (P(), pages, pages))

        def layer(
            weights: Params, x_B1D: jax.Array, k_pages: jax.Array, v_pages: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            x_BD, k_pages, v_pages = run(
                weights, x_B1D[:, 0], positions_BT[:, 0], k_pages, v_pages, table_BM
            )
            return x_BD[:, None], k_pages, v_pages

        return layer

    def logits(self, model: Transformer, params: Params, x_BD: jax.Array) -> jax.Array:
        """See `Backend`."""
        a, rules = model.architecture, model.rules
        function = partial(
            self.kernels()[1],
            eps=a.rms_norm_eps,
            tied=a.tie_word_embeddings,
            compute_capability=compute_capability(rules.mesh.devices.flat[0]),
        )
        head = jax.tree.map(lambda x: x.sharding.spec, _head(model, abstract_params(model)))
        run = rules.shard_map(function, (P(), P(), head), rules.spec((None, "vocab")))
        return run(x_BD, params["final_norm"]["scale"], _head(model, params))

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """See `Backend`."""
        device, parts = rules.mesh.devices.flat[0], rules.mesh.size
        capability = compute_capability(device)
        if capability is None:
            raise ValueError(f"device={device.platform}: Triton kernels run on NVIDIA GPUs")
        try:
            from kernels import decode
        except ImportError as error:
            raise ValueError(f"{error}: pip install 'jaxs1[cuda]'") from None
        decode.check(
            batch=sequences,
            width=a.hidden_size,
            mlp=a.intermediate_size // parts,
            heads=a.num_heads // parts,
            kv_heads=a.num_kv_heads // parts,
            head_dim=a.head_dim,
            page=kv_cache.PAGE,
            dtype=dtype,
            compute_capability=capability,
        )

    def compiler_options(self) -> Options:
        """See `Backend`. The whole loop becomes one CUDA graph."""
        from kernels.xla_call import CUDA_GRAPH_OPTIONS

        return CUDA_GRAPH_OPTIONS


class InterpretedTriton(Triton):
    """The same kernels in Triton's interpreter on a CPU: slow, for tests."""

    def kernels(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """See `Triton`."""
        from kernels import decode

        return decode.layer_interpreted, decode.logits_interpreted

    def check(self, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
        """See `Backend`."""

    def compiler_options(self) -> Options:
        """See `Backend`."""
        return {}


BACKENDS: dict[str, Backend] = {
    "xla": Xla(),
    "bf16x3": Bf16x3(),
    "pallas": Pallas(),
    "triton": Triton(),
    "triton-interpreted": InterpretedTriton(),
}


def check(impl: str, a: Architecture, rules: ShardingRules, *, dtype: str, sequences: int) -> None:
    """Check that a backend can run, before anything is loaded or compiled.

    Args:
        impl: a name in `BACKENDS`
        a: shapes of the model
        rules: mesh of the devices, which may be absent (compile-only)
        dtype: dtype of computation and cache
        sequences: maximum number of sequences decoded at a time

    Raises:
        UserError: names what is not supported, and what is.
    """
    try:
        if a.experts is not None and impl != "xla":
            raise ValueError("only xla decodes a mixture of experts")
        BACKENDS[impl].check(a, rules, dtype=dtype, sequences=sequences)
    except ValueError as error:
        raise UserError(f"impl={impl}: cannot run here ({error}); give --impl xla") from None


def _cached_layer(
    model: Transformer,
    positions_BT: jax.Array,
    table_BM: jax.Array,
    *,
    attention: Callable[..., jax.Array],
    append: Callable[..., jax.Array],
) -> Layer:
    """A layer of the training model whose `attend` reads and appends to the cache."""
    a = model.architecture
    rope = a.rope.table(positions_BT[..., None], a.head_dim)
    real_BT = positions_BT != kv_cache.PAD_POSITION
    graph, shapes = nnx.split(model.layers)

    def layer(
        weights: Params, x_BTD: jax.Array, k_pages: jax.Array, v_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal k_pages, v_pages
            k_pages = append(k_pages, k, table_BM, positions_BT)
            v_pages = append(v_pages, v, table_BM, positions_BT)
            return attention(q, k_pages, v_pages, table_BM, positions_BT)

        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, weights)
        x_BTD, _ = nnx.merge(graph, state)(x_BTD, rope, attend, real_BT)
        return x_BTD, k_pages, v_pages

    return layer


def _head(model: Transformer, params: Params) -> jax.Array:
    """The output matrix as stored; of a tied model the embedding."""
    return params["embedding" if model.architecture.tie_word_embeddings else "lm_head"]
