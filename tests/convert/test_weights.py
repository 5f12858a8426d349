"""Weights of every format, loaded onto every mesh and for decoding."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax.traverse_util import flatten_dict

from convert import mapping
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from convert.weights import load_decode_params, load_params, open_weights
from jaxs1.config import UserError
from jaxs1.model import transformer
from jaxs1.model.config import MeshConfig
from jaxs1.model.decode_params import abstract_params, loading_peak, unstack
from jaxs1.model.quantization import quantize
from jaxs1.model.sharding import make_sharding_rules
from tests.convert.checkpoints import MESHES, load, make_hf, random_tensors, reduced, write_hf
from tests.tiny_models import FLOAT32, one_device


def bits_of(array):
    return np.asarray(array).tobytes()


def bits(tree):
    return {path: np.asarray(x).tobytes() for path, x in flatten_dict(tree, sep=".").items()}


@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharded_equals_whole(form, mesh, src, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)  # bands that cross the devices' parts
    whole = load(open_weights(src), one_device(), jnp.bfloat16)
    if form == "orbax":
        from_hf(src, tmp_path / "orbax")
        src = tmp_path / "orbax"
    rules = make_sharding_rules(mesh)
    params = load(open_weights(src), rules, jnp.bfloat16)
    assert bits(params) == bits(whole)
    model = transformer.abstract(open_weights(src).architecture, FLOAT32, rules)
    layouts = flatten_dict(transformer.shardings(model), sep=".")
    for path, array in flatten_dict(params, sep=".").items():
        assert array.sharding == layouts[path]


def test_loading_reads_every_piece_once(src, monkeypatch):
    weights, read = open_weights(src), []
    original = weights.read
    monkeypatch.setattr(weights, "read", lambda piece: read.append(piece) or original(piece))
    load(weights, make_sharding_rules(MESHES[0]), jnp.float32)
    assert sorted(p.name for p in read) == sorted(
        p.name for p in mapping.pieces(weights.architecture)
    )


def opened(src, form, folder, linear, tensor):
    """Weights in a form, and the model that decodes with them on some devices."""
    if form == "orbax":
        from_hf(src, folder / "orbax")
        src = folder / "orbax"
    weights = open_weights(src)
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    model = transformer.abstract(weights.architecture, FLOAT32, rules, linear=linear)
    return weights, model


@pytest.mark.parametrize("linear", ["xla", "bf16x3"])
@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_layers_loaded_for_decoding_are_those_of_the_stack(linear, form, tensor, src, tmp_path):
    weights, model = opened(src, form, tmp_path, linear, tensor)
    stacked = flatten_dict(load(weights, one_device(), jnp.float32), sep=".")
    params = load_decode_params(weights, model)
    assert len(params["layers"]) == weights.architecture.num_layers
    for i, layer in enumerate(params["layers"]):
        for path, array in flatten_dict(layer, sep=".").items():
            expected = np.asarray(stacked[f"layers.{path}"][i])
            if linear == "bf16x3" and path.endswith("kernel"):
                inputs = 2 if path == "attn.o.kernel" else 1
                expected = np.moveaxis(expected, range(inputs), range(-inputs, 0))
            assert np.asarray(array).tobytes() == expected.tobytes(), path
    head = np.asarray(stacked["lm_head"])
    expected = {"xla": head, "bf16x3": head.T}[linear]
    assert np.asarray(params["lm_head"]).tobytes() == expected.tobytes()
    # unstacking those of a training run gives the same
    again = unstack(model, load(weights, model.rules, jnp.float32))
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding and bits_of(a) == bits_of(b),
                        params, again)  # fmt: skip
    assert jax.tree.all(same)
    assert jax.tree.map(jnp.shape, abstract_params(model)) == jax.tree.map(jnp.shape, params)


def test_loading_for_decoding_keeps_only_finished_arrays(tmp_path, monkeypatch):
    """No stacked parameter and no second copy: an 80 GB GPU has to load 65.5 GB of weights."""
    weights = open_weights(make_hf(tmp_path / "src", "qwen2.5-32b", layers=8))
    model = transformer.abstract(weights.architecture, FLOAT32, one_device(), linear="bf16x3")
    final = jax.tree.leaves(abstract_params(model))
    earlier, live = jax.live_arrays(), []

    def read(piece, original=weights.read):
        new = [x for x in jax.live_arrays() if not any(x is y for y in earlier)]
        live.append(sum(x.nbytes for x in new))
        assert {x.shape for x in new} <= {x.shape for x in final}
        return original(piece)

    monkeypatch.setattr(weights, "read", read)
    params = load_decode_params(weights, model)
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    layer = sum(x.nbytes for x in jax.tree.leaves(params["layers"][0]))
    piece = max(piece.size for piece in mapping.pieces(weights.architecture)) * 4
    assert total / 2 < max(live) <= total + layer + piece
    assert loading_peak(model) == total + layer


def test_loading_casts(src):
    weights = open_weights(src)
    half, full = (load(weights, one_device(), d) for d in (jnp.bfloat16, jnp.float32))
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert (a.dtype, b.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(np.asarray(a).astype(np.float32), np.asarray(b))


def test_another_architecture_is_refused(src, tmp_path):
    other = open_weights(make_hf(tmp_path / "other", "qwen3-0.6b")).architecture
    with pytest.raises(UserError, match=r"missing: layers\.attn\.k_norm\.scale, ") as caught:
        load_params(open_weights(src), transformer.abstract(other, FLOAT32, one_device()))
    assert "extra: layers.attn.q.bias" in str(caught.value)
    assert "misshapen: embedding is [64, 80], must be [61, 20]" in str(caught.value)


def test_a_training_run_is_read_at_its_newest_finished_step(src, tmp_path):
    weights, run = open_weights(src), tmp_path / "run"
    for step, seed in ((90, 1), (100, 2)):  # 100 is newer, though "90" sorts after it
        params = load(weights, make_sharding_rules(MESHES[0]), jnp.float32)
        params = jax.tree.map(lambda x, seed=seed: jnp.full_like(x, seed), params)
        with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
            checkpointer.save(run / f"checkpoints/{step}/params", params)
    (run / "checkpoints/110.orbax-checkpoint-tmp-3/params").mkdir(parents=True)
    (run / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (run / "model" / name).write_bytes((src / name).read_bytes())
    for source, seed in ((run, 2), (run / "checkpoints/90", 1)):
        again = load(open_weights(source), one_device(), jnp.float32)
        assert all((np.asarray(x) == seed).all() for x in jax.tree.leaves(again))
    to_hf(run, tmp_path / "hf", "bfloat16")
    assert open_weights(tmp_path / "hf").dtype("lm_head") == ml_dtypes.bfloat16
    assert (tmp_path / "hf/tokenizer.json").exists()


def test_nothing_found_says_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no weights; looked for model\.safetensors, .*params/"):
        open_weights(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder; give a folder or a hub id"):
        open_weights(tmp_path / "absent")


def test_the_hub_out_of_reach_is_one_line():
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and it cannot") as caught:
        open_weights("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_two_kinds_of_weights_in_one_folder_are_refused(src):
    (src / "params").mkdir()
    with pytest.raises(UserError, match=r"holds both safetensors and params/"):
        open_weights(src)


@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("recipe", ["qwen2.5-0.5b", "qwen2.5-32b"])
def test_int8_weights_are_quantized_while_loading(recipe, form, tensor, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)  # several pieces of a matrix
    config = reduced(recipe) | {"torch_dtype": "bfloat16", "vocab_size": 64}
    tensors = {
        name: torch.nan_to_num(x, nan=0.5).clamp(-1000, 1000)
        for name, x in random_tensors(config, "bfloat16").items()
    }
    src = write_hf(tmp_path / "src", config, tensors)
    weights, model = opened(src, form, tmp_path, "int8", tensor)
    stacked = flatten_dict(load(weights, one_device(), jnp.float32), sep=".")
    params = load_decode_params(weights, model)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), abstract_params(model)
    )

    def check(found, w, inputs):
        expected = quantize(np.moveaxis(w, range(inputs), range(-inputs, 0)), inputs)
        assert bits_of(found.values) == bits_of(expected.values)
        assert bits_of(found.scale) == bits_of(expected.scale)

    for i, layer in enumerate(params["layers"]):
        for path, found in flatten_dict(layer, sep=".").items():
            w = np.asarray(stacked[f"layers.{path}"][i])
            if path.endswith("kernel"):
                check(found, w, 2 if path == "attn.o.kernel" else 1)
            else:
                assert bits_of(found) == w.tobytes(), path
    if weights.architecture.tie_word_embeddings:
        check(params["embedding"], np.asarray(stacked["embedding"]).T, 1)
    else:
        check(params["lm_head"], np.asarray(stacked["lm_head"]), 1)
        assert bits_of(params["embedding"]) == bits_of(stacked["embedding"])


def test_weights_that_have_no_int8_are_refused(src):
    weights = open_weights(src)  # random bits, with NaN among them
    model = transformer.abstract(weights.architecture, FLOAT32, one_device(), linear="int8")
    with pytest.raises(
        UserError, match=r"^weights=int8: \S+( of layer \d)? holds NaN or inf.*auto$"
    ):
        load_decode_params(weights, model)
