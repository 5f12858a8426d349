"""Parameters on any mesh as weights: what leaves them is what went in."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from convert import mapping
from convert.in_memory import InMemoryWeights, on_host
from convert.to_hf import to_hf
from convert.weights import load_decode_params, open_weights
from jaxs1.config import UserError
from jaxs1.model import transformer
from jaxs1.model.config import MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from tests.convert.checkpoints import (
    MESHES,
    load,
    random_tensors,
    read_bits,
    reduced,
    write_hf,
)
from tests.tiny_models import FLOAT32, one_device


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_piece_of_sharded_parameters_is_that_on_disk(mesh, src, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)  # bands that cross the devices' shards
    weights = open_weights(src)
    params = load(weights, make_sharding_rules(mesh), jnp.bfloat16)
    for given in (params, jax.tree.map(np.asarray, params)):
        live = InMemoryWeights(given, weights.config)
        assert live.fingerprint() is None
        for piece in mapping.pieces(weights.architecture):
            assert live.dtype(piece.param) == weights.dtype(piece.param)
            assert live.read(piece).tobytes() == weights.read(piece).tobytes(), piece.name


def test_on_host_is_the_complete_array(src):
    params = load(open_weights(src), make_sharding_rules(MESHES[0]), jnp.float32)
    alone = load(open_weights(src), one_device(), jnp.float32)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(alone), strict=True):
        assert on_host(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("lm_head"), "missing: lm_head"),
        (lambda flat: flat.update(extra=np.ones(3, np.float32)), "extra: extra"),
        (
            lambda flat: flat.update(embedding=flat["embedding"][:-1]),
            r"misshapen: embedding is \[63, 80\], must be \[64, 80\]",
        ),
        (
            lambda flat: flat.update(lm_head=flat["lm_head"].astype(np.int32)),
            "lm_head is int32; must be bfloat16, float16, float32",
        ),
    ],
)
def test_other_parameters_are_refused(change, message, src):
    weights = open_weights(src)
    tree = jax.tree.map(np.ones_like, load(weights, one_device(), jnp.float32))
    flat = flatten_dict(tree, sep=".")
    change(flat)
    with pytest.raises(UserError, match=message):
        InMemoryWeights(flat, weights.config)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_parameters_in_memory_are_exported_from_any_mesh(mesh, src, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)
    weights = open_weights(src)
    params = load(weights, make_sharding_rules(mesh), jnp.bfloat16)
    to_hf(InMemoryWeights(params, weights.config, src), tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)
    assert (tmp_path / "hf/tokenizer.json").exists()


def test_parameters_in_memory_change_their_dtype(src, tmp_path):
    weights = open_weights(src)
    finite = jax.tree.map(jnp.ones_like, load(weights, one_device(), jnp.float32))
    to_hf(InMemoryWeights(finite, weights.config), tmp_path / "hf", "bfloat16")
    assert open_weights(tmp_path / "hf").dtype("embedding") == ml_dtypes.bfloat16


def test_experts_on_a_mesh_and_layer_by_layer(tmp_path):
    """Sharded along `expert` and other axes they are exported bit by bit; decoding has the same."""
    config = reduced("qwen3-30b-a3b") | {"vocab_size": 64, "torch_dtype": "bfloat16"}
    config |= {"num_experts": 8}
    src = write_hf(tmp_path / "src", config, random_tensors(config, "bfloat16"))
    weights = open_weights(src)
    rules = make_sharding_rules(MeshConfig(fsdp=2, expert=2, tensor=2))
    params = load(weights, rules, jnp.bfloat16)
    gate = params["layers"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.size * 8 == gate.size
    to_hf(InMemoryWeights(params, weights.config, src), tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)

    compute = dataclasses.replace(FLOAT32, param_dtype="bfloat16")
    model = transformer.abstract(weights.architecture, compute, one_device())
    decoding = load_decode_params(weights, model)
    for i, layer in enumerate(decoding["layers"]):
        for path, array in flatten_dict(layer["mlp"], sep=".").items():
            stacked = on_host(flatten_dict(params["layers"]["mlp"], sep=".")[path])
            assert np.asarray(array).tobytes() == stacked[i].tobytes()
