"""Experts against their definition, and against transformers' router loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeTopKRouter,
    load_balancing_loss_func,
)

from jaxs1.config import UserError
from jaxs1.model import experts, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import LoraConfig
from jaxs1.model.experts import (
    Load,
    block_size,
    expert_mlps,
    few_tokens,
    load_balancing_loss,
    route,
)
from jaxs1.model.hf_config import ExpertSpec
from jaxs1.model.rope import Rope
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, one_device

T, D, F = 21, 6, 10


def inputs(count, per_token, seed=0, tokens=T):
    """Tokens, weights, experts of which some are none, and kernels."""
    random = np.random.default_rng(seed)
    chosen = np.stack([random.permutation(count)[:per_token] for _ in range(tokens)])
    chosen[random.random(tokens) < 0.2] = count
    chosen[3:15, 0] = np.where(chosen[3:15, 0] < count, 1, count)  # one expert has many tokens
    chosen[3:15, 1:] = np.where(chosen[3:15, 1:] == 1, count, chosen[3:15, 1:])
    shapes = [(tokens, D), (tokens, per_token), *[(count, D, F)] * 2, (count, F, D)]
    x, weights, *kernels = (jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes)
    return x, weights, jnp.asarray(chosen), tuple(kernels)


def plain(x, weights, chosen, kernels):
    """The definition: every expert's output for every token, of which each token takes its own."""
    gate, up, down = kernels
    every_ETD = jax.vmap(lambda g, u, d: (jax.nn.silu(x @ g) * (x @ u)) @ d)(gate, up, down)
    every_ETD = jnp.concatenate([every_ETD, jnp.zeros_like(every_ETD[:1])])  # of no expert
    own_TJD = every_ETD[chosen, jnp.arange(len(x))[:, None]]
    return jnp.sum(weights[..., None] * own_TJD, axis=1)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_blocks_equal_the_definition(block):
    x, weights, chosen, kernels = inputs(5, 2)

    slope = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def total(function, x, weights, kernels):
        y = function(x, weights, chosen, kernels)
        return jnp.sum(y * slope), y

    found, expected = (
        jax.value_and_grad(lambda *a, f=f: total(f, *a), argnums=(0, 1, 2), has_aux=True)(
            x, weights, kernels
        )
        for f in (lambda *a: expert_mlps(block, *a), plain)
    )
    (_, y), gradients = found
    assert_close(y, expected[0][1], "operator = plain formula")
    assert not np.asarray(y)[np.all(np.asarray(chosen) == 5, axis=1)].any()
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[1]), strict=True):
        assert_close(mine, theirs, "operator = plain formula")


@pytest.mark.parametrize("tokens", [4, 5])  # 3 x 4 x 2 < 26 <= 3 x 5 x 2
def test_few_tokens_equal_the_definition(tokens, monkeypatch):
    x, weights, chosen, kernels = inputs(26, 2, tokens=21)
    x, weights, chosen = x[:tokens], weights[:tokens], chosen[:tokens]
    gathers = []
    monkeypatch.setattr(
        experts.jnp, "take", lambda *a, t=jnp.take, **b: gathers.append(1) or t(*a, **b)
    )
    y = few_tokens(x, weights, chosen, kernels)
    assert bool(gathers) == (tokens == 4)
    assert_close(y, plain(x, weights, chosen, kernels), "operator = plain formula")


def test_no_choice_at_all():
    x, weights, chosen, kernels = inputs(5, 2)
    assert not np.asarray(expert_mlps(8, x, weights, jnp.full_like(chosen, 5), kernels)).any()


def test_blocks_are_powers_of_two_up_to_half_of_the_average():
    assert [block_size(n) for n in (0, 1, 31, 32, 16_384, 10**6)] == [8, 8, 8, 16, 4096, 4096]


@pytest.mark.parametrize("masked", [False, True])
def test_router_loss_is_that_of_transformers(masked):
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 2, 11, 6)).astype(np.float32) * 2  # layers, rows, tokens
    mask = random.random((2, 11)) < 0.6 if masked else np.ones((2, 11), bool)
    expected = load_balancing_loss_func(
        tuple(torch.tensor(layer.reshape(-1, 6)) for layer in logits),
        6,
        2,
        torch.tensor(mask) if masked else None,
    )
    loads = []
    for layer in logits:
        _, chosen, probability = route(jnp.asarray(layer), per_token=2, renormalise=False)
        chosen = jnp.where(mask[..., None], chosen, 6)
        one_hot = jax.nn.one_hot(chosen, 6).sum((0, 1, 2))
        loads.append(Load(one_hot, jnp.sum(probability * mask[..., None], (0, 1))))
    load = jax.tree.map(lambda *x: jnp.stack(x), *loads)
    assert_close(
        load_balancing_loss(load, mask.sum()), expected.numpy(), "operator = plain formula"
    )


@pytest.mark.parametrize("renormalise", [True, False])
def test_router_is_that_of_transformers(renormalise):
    config = transformers.Qwen3MoeConfig(
        hidden_size=5, num_experts=7, num_experts_per_tok=3, norm_topk_prob=renormalise
    )
    router, x = Qwen3MoeTopKRouter(config), torch.randn(1, 9, 5)
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        logits, weights, chosen = router(x)
    mine = route(jnp.asarray(logits)[None], per_token=3, renormalise=renormalise)
    assert np.array_equal(mine[1][0], chosen)
    assert_close(mine[0][0], weights.numpy(), "operator = plain formula")


ARCHITECTURE = Architecture(
    64, 32, 48, 2, 8, 4, 8, 256, Rope(1e4), 1e-6, False, False, True,
    experts=ExpertSpec(4, 2, 24, True, 0.1),
)  # fmt: skip


def test_adapters_are_for_attention_only():
    def build(**names):
        lora = LoraConfig(rank=2, **names)
        return transformer.abstract(ARCHITECTURE, FLOAT32, one_device(), lora=lora)

    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    model = build(target_modules=attention)
    adapters = transformer.parameters(model, transformer.Adapter)
    assert set(adapters["layers"]) == {"attn"}
    with pytest.raises(UserError, match=r"lora\.target_modules: .* experts .*q_proj") as error:
        build()
    assert "\n" not in str(error.value)
    assert len(jax.tree.leaves(adapters)) == 2 * len(attention)


def test_number_of_parameters():
    params = transformer.parameters(transformer.abstract(ARCHITECTURE, FLOAT32, one_device()))
    assert ARCHITECTURE.num_parameters == sum(x.size for x in jax.tree.leaves(params))
    kernels = [params["layers"]["mlp"][name].size for name in ("gate", "up", "down")]
    assert ARCHITECTURE.expert_parameters == sum(kernels)
    assert ARCHITECTURE.num_parameters - ARCHITECTURE.active_parameters == sum(kernels) / 2
