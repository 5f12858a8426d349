"""A complete decoding step of a model with random weights: greedy, without budget forcing.

The program has the form of the decoding loop: layers unrolled, pages updated in place, several
tokens in one call. Budget forcing is timed with the real loop, on which this package does not
depend.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels import decode
from kernels.benchmarking.program import Program, as_graph, draw, shapes_on
from kernels.benchmarking.timing import samples
from kernels.launch import Array, Run
from kernels.resources import abstract_layer
from kernels.shapes import Shape, step_work

#: Tokens of every sequence in one program.
TOKENS = 16


def abstract_model(
    shape: Shape, batch: int, context: int, dtype: Any = jnp.bfloat16
) -> tuple[Any, Any]:
    """(Parameters, pages) of a model, and its table, as shapes."""
    layer, (_, _, pool, _, table) = abstract_layer(shape, batch, context, dtype)
    D, V = shape.width, shape.vocabulary
    params = {
        "embedding": jax.ShapeDtypeStruct((V, D), dtype),
        "layers": [layer] * shape.layers,
        "final_norm": layer["mlp_norm"],
    }
    if not shape.tied:
        params["lm_head"] = jax.ShapeDtypeStruct((D, V), dtype)
    return (params, [(pool, pool)] * shape.layers), table


def decode_steps(
    shape: Shape, run: Run, context: int, params: Any, pages: Any, table_BM: Array
) -> tuple[Array, Any]:
    """`TOKENS` greedy tokens of every sequence, the first at position `context` - 1.

    Args:
        shape: shape of the model
        run: runs the kernels
        context: tokens that the first new token attends to
        params: parameters of the model, as from `abstract_model`
        pages: keys and values of all layers
        table_BM: pages of each sequence

    Returns:
        The last tokens [B], and the pages.
    """
    rotation = partial(decode.plain_rotation, **shape.rope)
    layer = partial(decode.layer, eps=shape.eps, rotation=rotation, run=run)
    head = params["embedding"] if shape.tied else params["lm_head"]
    batch = table_BM.shape[0]

    def one(i: Array, carry: Any) -> Any:
        token_B, pages = carry
        x_BD, after = params["embedding"][token_B], []
        position_B = jnp.full((batch,), context - 1, jnp.int32) + i
        for weights, (k, v) in zip(params["layers"], pages, strict=True):
            x_BD, k, v = layer(weights, x_BD, position_B, k, v, table_BM)
            after.append((k, v))
        scale = params["final_norm"]["scale"]
        logits_BV = decode.logits(x_BD, scale, head, eps=shape.eps, tied=shape.tied, run=run)
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), after

    return jax.lax.fori_loop(0, TOKENS, one, (jnp.zeros((batch,), jnp.int32), pages))


def step_times(
    shape: Shape, run: Run, batch: int, context: int, number: int, dtype: Any = jnp.bfloat16
) -> dict[str, Any]:
    """Seconds of a step (median, low, high), its bytes, and bytes per second."""
    device = jax.devices()[0]
    model, table = abstract_model(shape, batch, context + TOKENS, dtype)
    model = shapes_on(device, model)
    leaves, tree = jax.tree.flatten(model)
    drawn = [draw(leaf, seed, 1 / 64) for seed, leaf in enumerate(leaves)]
    params, pages = jax.tree.unflatten(tree, drawn)
    table_BM = 1 + jnp.arange(batch * table.shape[1], dtype=jnp.int32).reshape(table.shape)
    function = jax.jit(partial(decode_steps, shape, run, context), donate_argnums=1)
    name = f"step at batch {batch}, context {context}"
    given = (params, pages, table_BM)
    program = Program(name, function, given, options=as_graph(device)).compile()

    def call() -> Any:
        nonlocal pages
        token_B, pages = program(params, pages, table_BM)
        return token_B

    times = samples(call, TOKENS, number)
    work = step_work(shape, batch, context)
    speed = work.bytes / times.median
    return {"batch": batch, "context": context, **dataclasses.asdict(times),
            "bytes": work.bytes, "bytes_per_second": speed}  # fmt: skip
