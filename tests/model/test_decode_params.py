"""Parameters for decoding are those of the model, layer by layer, in the axes of its products."""

import jax
import jax.numpy as jnp
import pytest

from convert.weights import load_params, open_weights
from jaxs1.model import transformer
from jaxs1.model.config import MeshConfig
from jaxs1.model.decode_params import abstract_params, loading_peak, unstack
from jaxs1.model.sharding import local_bytes, make_sharding_rules
from tests.tiny_models import FLOAT32, hf_model, one_device, ours


def test_unstacked_layers_are_those_of_the_model(tmp_path):
    whole = ours(hf_model("qwen3-tied-8-2"), tmp_path)
    weights = open_weights(str(tmp_path))
    model = transformer.abstract(weights.architecture, FLOAT32, one_device())
    stacked = load_params(weights, model, jnp.dtype("float32"))
    params = unstack(model, stacked)
    assert len(params["layers"]) == weights.architecture.num_layers
    for i, layer in enumerate(params["layers"]):
        expected = jax.tree.map(lambda x, i=i: x[i], transformer.parameters(whole)["layers"])
        assert jax.tree.all(jax.tree.map(jnp.array_equal, layer, expected))
    assert all(array.is_deleted() for array in jax.tree.leaves(stacked["layers"]))


@pytest.mark.parametrize(("linear", "tensor"), [("xla", 1), ("xla", 2), ("bf16x3", 1)])
def test_described_as_they_are_made(linear, tensor, tmp_path):
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    hf_model("qwen2-untied-10-2").save_pretrained(tmp_path)
    weights = open_weights(str(tmp_path))
    model = transformer.abstract(weights.architecture, FLOAT32, rules, linear=linear)
    described = abstract_params(model)
    made = unstack(model, load_params(weights, model))
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(made), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert b.sharding.is_equivalent_to(a.sharding, a.ndim)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(made))
    assert local_bytes(described) == local_bytes(made) == held
    assert held < loading_peak(model) < 1.5 * held
    gate = made["layers"][1]["mlp"]["gate"]["kernel"]
    width, mlp = weights.architecture.hidden_size, weights.architecture.intermediate_size
    assert gate.shape == ((mlp, width) if linear == "bf16x3" else (width, mlp))
