"""Part int8: weights in 8 bits: a layer and the head against float64, and the model's step.

The float64 formula is written out here, with the weights that the integers and scales stand for, so
it shares nothing with the kernels or with the model's code but the table of the rotary embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_parts.context import CheckContext, raise_if
from benchmarks.gpu_parts.decoding import step_programs, time_steps
from benchmarks.random_weights_loop import RandomWeightsLoop
from jaxs1.config import one_line
from jaxs1.model import decode
from jaxs1.model.architecture import Architecture
from jaxs1.model.kv_cache import KVCache
from kernels.bench import LARGEST_ERROR
from kernels.benchmarking.program import Program
from kernels.int8 import Int8

#: Positions of the sequences' new tokens; a page is 64.
POSITIONS = (0, 63, 64, 300)


def int8_programs(ctx: CheckContext) -> Iterator[Program]:
    """Weights, logits and float64 logits of one layer; the model's weights and decode steps."""
    loop = _one_layer(ctx)
    yield from loop.draw_programs()
    yield from (_logits_program(ctx, loop), _exact_program(loop))
    yield from step_programs(ctx, ctx.batches[0], ctx.context, ctx.decode_steps[:1], linear="int8")


def int8(ctx: CheckContext) -> None:
    """Compare logits with float64; then a step of the model, beside part `model`'s in bfloat16."""
    problems = []
    try:
        problems += compare_logits(ctx, _one_layer(ctx).fill())
    except Exception as error:  # the step is still timed
        problems.append(f"comparison with float64: {one_line(error)[:300]}")
    batch, steps = ctx.batches[0], ctx.decode_steps[0]
    medians = time_steps(ctx, batch, ctx.context, [steps], linear="int8")[steps]
    whole = ctx.facts.found(f"step, batch {batch}, decode_steps {steps}").get("unforced_s")
    ctx.facts.add("int8 and unquantized weights", batch=batch, steps=steps,
                  int8_s=medians["unforced"], unquantized_s=whole,
                  ratio=whole and whole / medians["unforced"])  # fmt: skip
    raise_if(problems)


def compare_logits(ctx: CheckContext, loop: RandomWeightsLoop) -> list[str]:
    """Logits of one new token of each sequence, after random keys and values; returns problems.

    The error is the largest difference, divided by the largest logit.
    """
    tokens_B1, positions_B1 = _tokens()
    given = (loop.params, loop.cache, tokens_B1, positions_B1, loop.table_BM)
    found, again = (np.asarray(_logits_program(ctx, loop).compile()(*given)) for _ in range(2))
    expected = np.asarray(_exact_program(loop).compile()(*given))
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    same = found.tobytes() == again.tobytes()
    passed = same and error <= LARGEST_ERROR[ctx.dtype]
    ctx.facts.add("int8 layer and head against float64", difference=error, repeatable=same,
                  sequences=len(POSITIONS), passed=passed)  # fmt: skip
    return [] if passed else [f"logits differ from float64 by {error:.1e}, repeatable: {same}"]


def exact_logits(
    a: Architecture,
    params: Any,
    cache: KVCache,
    tokens_B1: jax.Array,
    positions_B1: jax.Array,
    table_BM: jax.Array,
) -> jax.Array:
    """float64 [B, V], with the weights that `Int8` stands for; traced with 64-bit types."""
    position_B = positions_B1[:, 0]
    head = params["embedding" if a.tie_word_embeddings else "lm_head"]
    x_BD = _dense(jax.tree.map(lambda rows: rows[tokens_B1[:, 0]], params["embedding"]))
    for weights, *pages in zip(params["layers"], cache.k, cache.v, strict=True):
        w = jax.tree.map(_dense, weights, is_leaf=lambda x: isinstance(x, Int8))
        normed_BD = _norm(x_BD, w["attn_norm"], a)
        x_BD += _attention(a, w["attn"], normed_BD, pages, position_B, table_BM)
        normed_BD, mlp = _norm(x_BD, w["mlp_norm"], a), w["mlp"]
        gate, up = (normed_BD @ mlp[name]["kernel"].T for name in ("gate", "up"))
        x_BD += (jax.nn.silu(gate) * up) @ mlp["down"]["kernel"].T
    return _norm(x_BD, params["final_norm"], a) @ _dense(head).T


def _attention(
    a: Architecture, w: Any, x_BD: Any, pages: Any, position_B: Any, table_BM: Any
) -> jax.Array:
    rows, K = jnp.arange(len(x_BD)), a.num_kv_heads
    q, k, v = (
        jnp.einsum("BD,NHD->BNH", x_BD, w[name]["kernel"]) + w[name].get("bias", 0)
        for name in "qkv"
    )
    if "q_norm" in w:
        q, k = _norm(q, w["q_norm"], a), _norm(k, w["k_norm"], a)
    turn = [_dense(part)[:, None] for part in a.rope.table(position_B, a.head_dim)]
    q, k = _rotate(q, *turn), _rotate(k, *turn)
    k_KBXH, v_KBXH = (
        _dense(p[:, table_BM].reshape(K, len(x_BD), -1, a.head_dim))
        .at[:, rows, position_B]
        .set(new.swapaxes(0, 1))
        for p, new in zip(pages, (k, v), strict=True)
    )
    q_BKGH = q.reshape(len(x_BD), K, -1, a.head_dim)
    scores = jnp.einsum("BKGH,KBXH->BKGX", q_BKGH, k_KBXH) * a.head_dim**-0.5
    later = jnp.arange(scores.shape[-1]) > position_B[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(later, -jnp.inf, scores))
    out = jnp.einsum("BKGX,KBXH->BKGH", weights, v_KBXH).reshape(q.shape)
    return jnp.einsum("BNH,DNH->BD", out, w["o"]["kernel"])


def _dense(w: Any) -> jax.Array:
    """A weight in float64."""
    if not isinstance(w, Int8):
        return w.astype(jnp.float64)
    scale = w.scale.astype(jnp.float64)
    return w.values * scale.reshape(*scale.shape, *[1] * (w.values.ndim - scale.ndim))


def _norm(x: jax.Array, weights: Any, a: Architecture) -> jax.Array:
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + a.rms_norm_eps) * _dense(weights["scale"])


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _one_layer(ctx: CheckContext) -> RandomWeightsLoop:
    return RandomWeightsLoop(ctx.slice_of(1), ctx.device, ctx.dtype, rows=len(POSITIONS),
                             context=1 + max(POSITIONS), linear="int8")  # fmt: skip


def _tokens() -> tuple[np.ndarray, np.ndarray]:
    """A new token of each sequence, and its position, [B, 1]."""
    positions_B1 = np.asarray(POSITIONS, np.int32)[:, None]
    return 5 + np.arange(len(POSITIONS), dtype=np.int32)[:, None], positions_B1


def _logits_program(ctx: CheckContext, loop: RandomWeightsLoop) -> Program:
    """(params, cache, tokens, positions, table) -> logits; outside of any graph."""

    def logits(params: Any, cache: Any, tokens_B1: Any, positions_B1: Any, table_BM: Any) -> Any:
        x_B1D, _ = decode.forward(
            loop.model, params, cache, tokens_B1, positions_B1, table_BM, impl=ctx.impl
        )
        return decode.logits(loop.model, params, x_B1D[:, 0], impl=ctx.impl)

    name = f"{ctx.impl} logits of an int8 layer"
    return Program(name, jax.jit(logits), _shapes(loop), options=ctx.without_graph)


def _exact_program(loop: RandomWeightsLoop) -> Program:
    function = jax.jit(partial(exact_logits, loop.model.architecture))
    return Program("float64 logits of an int8 layer", function, _shapes(loop), float64=True)


def _shapes(loop: RandomWeightsLoop) -> tuple[Any, ...]:
    inputs = (*_tokens(), loop.table_BM)
    return (loop.params, loop.cache, *(loop.on_device(x) for x in inputs))
