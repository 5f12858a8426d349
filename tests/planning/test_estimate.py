"""Closed forms against what is traced, compiled and packed; a run that cannot fit is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.planning.estimate import estimate_flops
from jaxs1.planning.flops import product_flops
from jaxs1.planning.targets import parse_target
from jaxs1.planning.topology import tracing_for
from jaxs1.planning.workload import draw_lengths, make_workload
from jaxs1.training.step import batch_sharding, make_train_step
from tests.planning.cases import tiny_run


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


@pytest.mark.parametrize("remat", ["none", "attention", "full"])
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_products_of_the_train_step(remat, gradient_accumulation_steps):
    """The closed form and the traced step count the same, recomputed products included."""
    run = tiny_run(
        "--compute.remat", remat, "--gradient_accumulation_steps", str(gradient_accumulation_steps)
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
    assert found * 8 == pytest.approx(
        estimate_flops(run.model, gradient_accumulation_steps * B * T), rel=1e-6
    )


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
