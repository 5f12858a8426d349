"""The schedule of transformers, AdamW's decay and clipping as formulas, Muon's orthogonal steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxs1.model import transformer
from jaxs1.training.config import OptimizerConfig
from jaxs1.training.optimizer import make_optimizer, make_schedule
from tests.tiny_models import hf_model, ours


def test_schedule_is_that_of_transformers():
    config = OptimizerConfig(learning_rate=1e-5, warmup_ratio=0.05)
    schedule = make_schedule(config, 315)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-5)
    oracle = transformers.get_cosine_schedule_with_warmup(optimizer, 16, 315)
    for step in range(315):
        assert float(schedule(step)) == pytest.approx(oracle.get_last_lr()[0], rel=1e-4, abs=1e-12)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("kind", ["qwen2-untied-4-4", "qwen3_moe-untied-8-2"])
def test_muon_moves_matrices_along_orthogonal_directions(kind, tmp_path):
    model = ours(hf_model(kind), tmp_path)
    config = OptimizerConfig(name="muon", learning_rate=0.1, warmup_ratio=0, max_grad_norm=None)
    optimizer = make_optimizer(config, 10)
    params = transformer.parameters(model)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    attn, mlp = updates["layers"]["attn"], updates["layers"]["mlp"]
    flat = {
        "q": np.asarray(attn["q"]["kernel"]).reshape(3, model.architecture.hidden_size, -1),
        "o": np.asarray(attn["o"]["kernel"]).reshape(3, -1, model.architecture.hidden_size),
    }
    if model.architecture.experts is None:
        flat["gate"] = np.asarray(mlp["gate"]["kernel"])
    else:  # every expert on its own
        flat["gate"] = np.concatenate(np.asarray(mlp["gate"]))
    for name, stacked in flat.items():
        for matrix in stacked:  # every layer on its own
            singular = np.linalg.svd(matrix, compute_uv=False)
            assert singular[0] / singular[-4] < 2.2, name  # of the raw gradient: above 10
    embedding = np.abs(np.asarray(updates["embedding"]))  # Adam: every element moves alike
    assert embedding.max() / embedding.min() < 1.1


def test_schedule_ends_at_its_minimum():
    config = OptimizerConfig(learning_rate=2e-3, warmup_ratio=0, min_lr_ratio=0.1)
    schedule = make_schedule(config, 10)
    assert float(schedule(0)) == pytest.approx(2e-3)
    assert float(schedule(5)) == pytest.approx((2e-3 + 2e-4) / 2)
    assert float(schedule(10)) == pytest.approx(2e-4)


def first_update(grads, **config):
    """The change of parameters that are all 1 in the first step, without warmup."""
    config = OptimizerConfig(**{"learning_rate": 0.1, "warmup_ratio": 0, **config})
    optimizer = make_optimizer(config, 10)
    params = jax.tree.map(jnp.ones_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.tree.map(np.asarray, updates)


def test_only_matrices_are_decayed():
    grads = {
        "q": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
        "norm": {"scale": jnp.zeros(2)},
    }
    updates = first_update(grads, weight_decay=0.5)
    np.testing.assert_allclose(updates["q"]["kernel"], -0.1 * 0.5)
    np.testing.assert_array_equal(updates["q"]["bias"], 0)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)


@pytest.mark.parametrize(("limit", "scale"), [(None, 1), (1.0, 1 / 5), (10.0, 1)])
def test_gradients_are_clipped_to_their_global_norm(limit, scale):
    """With a large eps the first step is g / eps, so the scale of the gradient remains visible."""
    grads = {"a": {"kernel": jnp.full((1, 1), 3.0)}, "b": {"kernel": jnp.full((1, 1), 4.0)}}
    updates = first_update(grads, weight_decay=0, eps=1e6, max_grad_norm=limit)
    for name, gradient in (("a", 3.0), ("b", 4.0)):
        expected = -0.1 * gradient * scale / (gradient * scale + 1e6)
        np.testing.assert_allclose(updates[name]["kernel"], expected, rtol=1e-5)
