"""Weights from every place they may lie in, onto every mesh."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from convert import mapping
from convert.from_hf import from_hf
from convert.in_memory import InMemoryWeights
from convert.to_hf import to_hf
from convert.weights import load_params, open_weights
from jaxs1.config import UserError
from jaxs1.model import transformer
from jaxs1.model.config import MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from tests.convert.checkpoints import make_hf, random_tensors, read_bits, reduced, write_hf
from tests.tiny_models import FLOAT32, one_device

MESHES = [
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(data=2, fsdp=2, context=2),
    MeshConfig(fsdp=1, data=8),
]


def load(weights, rules, dtype):
    return load_params(weights, transformer.abstract(weights.architecture, FLOAT32, rules), dtype)


def bits(tree):
    return {path: np.asarray(x).tobytes() for path, x in flatten_dict(tree, sep=".").items()}


@pytest.fixture
def src(tmp_path):
    """Widths that every mesh divides."""
    config = reduced("qwen2.5-32b") | {"vocab_size": 64}
    return write_hf(tmp_path / "src", config, random_tensors(config, "bfloat16"))


@pytest.mark.parametrize("form", ["hf", "ours"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharded_equals_whole(form, mesh, src, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)  # bands that cross the devices' parts
    whole = load(open_weights(src), one_device(), jnp.bfloat16)
    if form == "ours":
        from_hf(src, tmp_path / "ours")
        src = tmp_path / "ours"
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


def test_loading_casts(src):
    weights = open_weights(src)
    bf16x3, wide = (load(weights, one_device(), d) for d in (jnp.bfloat16, jnp.float32))
    for a, b in zip(jax.tree.leaves(bf16x3), jax.tree.leaves(wide), strict=True):
        assert (a.dtype, b.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(np.asarray(a).astype(np.float32), np.asarray(b))


def test_another_architecture_is_refused(src, tmp_path):
    other = open_weights(make_hf(tmp_path / "other", "qwen3-0.6b")).architecture
    with pytest.raises(UserError, match=r"missing: layers\.attn\.k_norm\.scale, ") as caught:
        load_params(open_weights(src), transformer.abstract(other, FLOAT32, one_device()))
    assert "extra: layers.attn.q.bias" in str(caught.value)
    assert "misshapen: embedding is [64, 80], must be [61, 20]" in str(caught.value)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_live_parameters_are_exported_from_any_mesh(mesh, src, tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 1000)
    weights = open_weights(src)
    params = load(weights, make_sharding_rules(mesh), jnp.bfloat16)
    to_hf(InMemoryWeights(params, weights.config, src), tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)
    assert (tmp_path / "hf/tokenizer.json").exists()


def test_live_parameters_change_their_dtype(src, tmp_path):
    weights = open_weights(src)
    finite = jax.tree.map(jnp.ones_like, load(weights, one_device(), jnp.float32))
    to_hf(InMemoryWeights(finite, weights.config), tmp_path / "hf", "bfloat16")
    assert open_weights(tmp_path / "hf").dtype("embedding") == ml_dtypes.bfloat16


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
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and the hub") as caught:
        open_weights("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_two_kinds_of_weights_in_one_folder_are_refused(src):
    (src / "params").mkdir()
    with pytest.raises(UserError, match=r"holds both safetensors and params/"):
        open_weights(src)
