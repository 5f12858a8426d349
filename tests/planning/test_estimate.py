"""Closed forms against what is traced, compiled and packed; a run that cannot fit is refused."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch
from jaxs1.model.experts import expert_mlps
from jaxs1.model.hf_config import ExpertSpec
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.planning.estimate import estimate_flops
from jaxs1.planning.flops import expert_flops, product_flops
from jaxs1.planning.targets import parse_target
from jaxs1.planning.topology import tracing_for
from jaxs1.planning.workload import draw_lengths, make_workload
from jaxs1.training.step import batch_sharding, make_train_step
from tests.planning.cases import TINY, tiny_run


def test_products_of_a_function():
    """Loops count as often as they run; inside shard_map shapes are one device's already."""

    def f(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)
        return jnp.einsum("ab,cb->ac", x, x).sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 5), (5, 5))]
    forward = 7 * 2 * 6 * 5 * 5 + 2 * 6 * 6 * 5
    assert product_flops(jax.make_jaxpr(f)(*shapes), 1) == forward
    assert product_flops(jax.make_jaxpr(f)(*shapes), 4) == forward / 4
    assert product_flops(jax.make_jaxpr(jax.grad(f, (0, 1)))(*shapes), 1) == 3 * forward
    rules = make_sharding_rules(tiny_run().config.mesh)
    local = jax.shard_map(
        lambda x: x @ x.T, mesh=rules.mesh, in_specs=rules.spec(("rows",)),
        out_specs=rules.spec(("rows",)), check_vma=False,
    )  # fmt: skip
    assert product_flops(jax.make_jaxpr(local)(jnp.zeros((4, 3))), 8) == 2 * 2 * 2 * 3


def test_products_of_a_block_of_experts():
    """The loops over blocks are not counted; their bodies have what `expert_flops` says."""
    E, C, D, F, J = 4, 8, 6, 10, 2

    def total(x, weights, kernels):
        chosen = jnp.zeros((16, J), jnp.int32)
        return expert_mlps(C, x, weights, chosen, kernels).sum()

    shapes = (16, D), (16, J), ((E, D, F), (E, D, F), (E, F, D))
    x, weights, kernels = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s[0], int),
    )
    backward = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(x, weights, kernels)
    chosen = jnp.zeros((16, J), jnp.int32)
    plain = partial(expert_mlps.__wrapped__, C)
    forward = jax.make_jaxpr(plain)(x, weights, chosen, kernels)
    for jaxpr, products in ((forward, 3), (backward, 9)):
        assert product_flops(jaxpr, 1) == 0
        (body,) = [e.params["body_jaxpr"] for e in jaxpr.eqns if e.primitive.name == "while"]
        assert product_flops(body, 1) == products * 2 * C * D * F
    # the backward pass traces the last product of the forward pass, which nothing uses
    model = tiny_run(architecture=EXPERTS).model
    block = 2.0 * TINY.num_layers * TINY.hidden_size * EXPERTS.active_width
    assert expert_flops(model, 1) == 1.25 * (3 + 9 - 1) * block
    assert expert_flops(tiny_run().model, 1) == 0


EXPERTS = dataclasses.replace(TINY, experts=ExpertSpec(8, 2, 96, True, 0.1))


@pytest.mark.parametrize(
    ("remat", "gradient_accumulation_steps", "architecture"),
    [
        *itertools.product(["none", "attention", "full"], [1, 2], [TINY]),
        ("full", 1, EXPERTS),
    ],
)
def test_products_of_the_train_step(remat, gradient_accumulation_steps, architecture):
    """The closed form and the traced step count the same, recomputed products included."""
    run = tiny_run(
        "--compute.remat",
        remat,
        "--gradient_accumulation_steps",
        str(gradient_accumulation_steps),
        architecture=architecture,
    )
    rules = run.model.rules
    compute = dataclasses.replace(run.model.compute, attention="cudnn", dtype="bfloat16")
    run.model.compute = compute  # fused attention is no product
    B, T = 2, 1024
    step = make_train_step(run.model, run.optimizer, loss_chunk=128)
    x = jax.ShapeDtypeStruct(
        (gradient_accumulation_steps, B, T), jnp.int32, sharding=batch_sharding(rules)
    )
    batch = Batch(x, x, x.update(dtype=jnp.float32), x, x)
    with tracing_for(parse_target("h100:1x8")):
        found = product_flops(step.trace(run.state, batch).jaxpr, 8)
    tokens = gradient_accumulation_steps * B * T
    expected = estimate_flops(run.model, tokens) - expert_flops(run.model, tokens)
    assert found * 8 == pytest.approx(expected, rel=1e-6)


def test_drawn_lengths_are_those_that_were_asked_for():
    lengths = draw_lengths(5500, 32768)
    assert lengths.mean() == pytest.approx(5500, rel=1e-3)
    assert lengths.min() > 100 and lengths.max() <= 32768
    assert np.array_equal(lengths, draw_lengths(5500, 32768))
    of_16 = lengths[: 62 * 16].reshape(62, 16).max(axis=1).mean()
    assert 12_000 < of_16 < 18_000  # what the docstring says
    assert draw_lengths(5500, 6000).max() <= 6000


def test_workload_is_what_training_packs():
    """Row lengths, tokens and pairs of a plan are those of the batches of the same sequences."""
    lengths = draw_lengths(300, 1000, examples=40)
    examples = [Example(np.zeros(n, np.int32), np.ones(n, bool)) for n in lengths]
    config = tiny_run(
        "--data.rows", "2", "--gradient_accumulation_steps", "2", "--data.row_multiple", "128"
    ).config
    batches = Batches(
        examples, config.data, batch_size=16, gradient_accumulation_steps=2, loss="token", seed=0,
        num_row_shards=2, attention=0.01, padding_id=0,
    )  # fmt: skip
    order = np.concatenate([batches.indices(step) for step in range(3)])
    found = make_workload(
        lengths[order].tolist(), batch_size=16, epochs=5, steps=None, gradient_accumulation_steps=2,
        rows=2, multiple=128,
    )  # fmt: skip
    packed = [batches.batch(step) for step in range(3)]
    assert found.steps == 15
    assert found.lengths == tuple(batch.tokens.shape[2] for batch, _ in packed)
    assert found.tokens == np.mean([stats.tokens for _, stats in packed])
    assert found.pairs == np.mean([stats.attention_pairs for _, stats in packed])
    padded_tokens = sum(stats.padded_tokens for _, stats in packed)
    assert found.fill == pytest.approx(sum(stats.tokens for _, stats in packed) / padded_tokens)


def test_what_is_estimated_grows_as_it_must():
    small, large = (tiny_run().memory(n) for n in (1024, 2048))
    assert large.activations == 2 * small.activations
    assert large.parameters == small.parameters == small.gradients
    again = tiny_run("--gradient_accumulation_steps", "2").memory(1024)
    assert again.gradients == 2 * small.gradients
    assert tiny_run("--compute.remat", "full").memory(1024).activations < small.activations
    adapters = tiny_run("--lora.rank", "2").memory(1024)
    assert adapters.gradients < small.gradients / 4
    assert adapters.optimizer < small.optimizer / 4
    half = dataclasses.replace(small, gradients=0)
    assert half.total == small.total - small.gradients
