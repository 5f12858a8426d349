"""Chunked cross-entropy equals the plain formula; packing changes neither loss nor gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.data import packing
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch
from jaxs1.model import transformer
from jaxs1.training.loss import cross_entropy, supervised_loss
from tests.numerics import assert_close
from tests.tiny_models import hf_model, ours


@pytest.mark.parametrize(("chunk", "parts"), [(1000, 1), (8, 1), (7, 1), (4, 3), (1, 1)])
def test_chunks_equal_the_whole(chunk, parts):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 24, 16)).astype(np.float32)
    head = rng.normal(size=(16, 50)).astype(np.float32)
    targets = rng.integers(0, 50, (2, 24))
    weights = rng.random((2, 24)).astype(np.float32) * (rng.random((2, 24)) > 0.3)

    def plain(hidden, head):
        log_p = jax.nn.log_softmax(hidden @ head)
        return -jnp.sum(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights)

    def chunked(hidden, head):
        return cross_entropy(hidden, head, targets, weights, chunk=chunk, sequence_parts=parts)

    expected = jax.value_and_grad(lambda *a: 3 * plain(*a), argnums=(0, 1))(hidden, head)
    found = jax.jit(jax.value_and_grad(lambda *a: 3 * chunked(*a), argnums=(0, 1)))(hidden, head)
    assert_close(found, expected, "chunked = whole cross-entropy")
    assert_close(chunked(hidden, head), plain(hidden, head), "chunked = whole cross-entropy")


def test_logits_never_exist_as_a_whole():
    tokens, vocabulary, chunk = 4096, 8192, 64
    shapes = (jnp.zeros((1, tokens, 8)), jnp.zeros((8, vocabulary)))
    batch = (jnp.zeros((1, tokens), jnp.int32), jnp.zeros((1, tokens)))
    loss = jax.grad(lambda h, w: cross_entropy(h, w, *batch, chunk=chunk), argnums=(0, 1))
    memory = jax.jit(loss).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * chunk * vocabulary * 4 < tokens * vocabulary * 4 / 4


@pytest.mark.parametrize("loss", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["qwen2-tied-14-2", "qwen3-untied-6-3"])
def test_packed_equals_unpacked(kind, loss, tmp_path):
    model = ours(hf_model(kind), tmp_path)
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(0, 96, n).astype(np.int32), np.arange(n) >= n // 2)
        for n in (31, 7, 2, 18, 25, 12)
    ]
    lengths = [len(e.tokens) for e in examples]

    def packed(rows):
        contents = packing.plan(lengths, rows)
        length = packing.row_length(lengths, contents, 8)
        batch = packing.pack(
            examples, contents, length, gradient_accumulation_steps=1, loss=loss, padding_id=0
        )
        return Batch(*(x[0] for x in batch))

    @jax.jit
    def value_and_grad(params, batch):
        def total(params):
            return supervised_loss(transformer.with_parameters(model, params), batch, chunk=16)[0]

        return jax.value_and_grad(total)(params)

    params = transformer.parameters(model)
    one_each, two_rows = packed(6), packed(2)
    assert one_each.segments.max() == 1
    assert two_rows.segments.max() >= 3
    # the plain mean of log-probabilities, sequence by sequence, without weights or segments
    means = []
    for e in examples:
        n = len(e.tokens)
        hidden = model(e.tokens[None], np.arange(n)[None], np.ones((1, n), np.int32))
        log_p = jax.nn.log_softmax(model.logits(hidden))[0, np.arange(n - 1), e.tokens[1:]]
        means.append((-log_p[e.is_target[1:]].sum(), e.is_target[1:].sum()))
    total = sum(t for t, _ in means) / sum(c for _, c in means)
    expected = total if loss == "token" else np.mean([t / c for t, c in means])
    alone = value_and_grad(params, one_each)
    together = value_and_grad(params, two_rows)
    assert_close(alone[0], expected, "packed = unpacked")
    assert_close(together, alone, "packed = unpacked")
