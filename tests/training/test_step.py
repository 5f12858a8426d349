"""One step: micro-batches add up, the reported norm is that of the raw gradient, shardings hold."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxs1.data import packing
from jaxs1.data.chat import Example
from jaxs1.data.packing import Batch
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.model.transformer import Transformer
from jaxs1.training.loss import supervised_loss
from jaxs1.training.step import init_state, make_train_step, put_batch, state_shardings
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, one_device

ARCHITECTURE = Architecture.from_hf(
    {
        "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "test",
)  # fmt: skip
LEARNING_RATE = 0.5


def make_batch(micro_batches):
    """The same 8 sequences, in 4 rows of 32 tokens, as 1 or 4 micro-batches."""
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(0, 64, n).astype(np.int32), np.arange(n) >= 3)
        for n in rng.integers(8, 15, 8)
    ]
    contents = packing.plan([len(e.tokens) for e in examples], 4)
    return packing.pack(
        examples, contents, 32, gradient_accumulation_steps=micro_batches, loss="token",
        padding_id=0,
    )  # fmt: skip


def make_model(rules):
    fresh = Transformer(ARCHITECTURE, FLOAT32, rules, rngs=nnx.Rngs(0))
    return transformer.abstract(ARCHITECTURE, FLOAT32, rules), transformer.parameters(fresh)


def run(micro_batches, optimizer, rules=None):
    model, params = make_model(rules or one_device())
    params = jax.device_put(params, transformer.shardings(model))
    state = init_state(model, optimizer, params)
    step = make_train_step(model, optimizer, loss_chunk=16)
    return step(state, put_batch(make_batch(micro_batches), model.rules))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_step_is_plain_gradient_descent(micro_batches):
    """Loss, gradient norm and new parameters against one gradient of the unsplit batch."""
    model, params = make_model(one_device())
    batch = Batch(*(x[0] for x in make_batch(1)))

    def loss(params):
        return supervised_loss(transformer.with_parameters(model, params), batch, chunk=64)[0]

    expected, grads = jax.jit(jax.value_and_grad(loss))(params)
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(LEARNING_RATE))
    state, metrics = run(micro_batches, optimizer)
    norm = optax.tree.norm(grads)
    assert norm > 1e-3  # the update is clipped, the reported norm is not
    assert_close((metrics.loss, metrics.grad_norm), (expected, norm), "packed = unpacked")
    after = jax.tree.map(lambda p, g: p - LEARNING_RATE * 1e-3 / norm * g, params, grads)
    assert_close(state.params, after, "packed = unpacked")
    assert int(state.step) == 1


@pytest.mark.slow
def test_state_keeps_its_shardings_and_moments_follow_their_parameters():
    rules = make_sharding_rules(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    optimizer = optax.adamw(0.1)
    state, metrics = run(1, optimizer, rules)
    expected = state_shardings(make_model(rules)[0], optimizer)
    for x, sharding in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    moments = state.opt_state[0].mu
    for moment, parameter in zip(*map(jax.tree.leaves, (moments, state.params)), strict=True):
        assert moment.sharding == parameter.sharding
    assert not state.params["layers"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    alone, single = run(1, optimizer)
    assert_close(metrics.loss, single.loss, "mesh = one device, losses of 5 steps")
    assert int(alone.step) == int(state.step) == 1
