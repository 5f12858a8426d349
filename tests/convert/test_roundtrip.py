"""Hugging Face -> ours -> Hugging Face: the same bytes, and they mean what they should."""

import itertools
import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from convert import mapping
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from convert.transpose import bands
from convert.weights import open_weights
from jaxs1.config import UserError
from tests.convert.checkpoints import CONFIGS, DTYPES, make_hf, read_bits, write_hf
from tests.numerics import assert_close
from tests.tiny_models import KINDS, hf_model, ours


@pytest.mark.parametrize("name", CONFIGS)
def test_every_bit_comes_back(name, tmp_path):
    cases = itertools.product((True, False), (1, 3), DTYPES)
    for i, (tied, num_shards, dtype) in enumerate(cases):
        src = make_hf(tmp_path / f"{i}", name, dtype=dtype, num_shards=num_shards, tied=tied)
        from_hf(src, tmp_path / f"{i}.ours")
        size = sum(len(raw) for _, _, raw in read_bits(src).values())
        to_hf(tmp_path / f"{i}.ours", tmp_path / f"{i}.hf", shard_bytes=size // num_shards)
        assert read_bits(tmp_path / f"{i}.hf") == read_bits(src)
        files = {path.name for path in (tmp_path / f"{i}.hf").iterdir()}
        assert ("model.safetensors" in files) == (num_shards == 1)
        for side in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
            assert (tmp_path / f"{i}.hf" / side).read_text() == f"content of {side}"
        config = json.loads((src / "config.json").read_text())
        assert json.loads((tmp_path / f"{i}.hf/config.json").read_text()) == config


def test_large_tensors_move_in_bands(tmp_path, monkeypatch):
    src = make_hf(tmp_path / "src", tied=False)
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 500)  # 61 tokens x 28: the last band is short
    from_hf(src, tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(src)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers_after_a_round_trip(kind, tmp_path):
    model = hf_model(kind, seed=3)
    model.save_pretrained(tmp_path / "src")
    from_hf(tmp_path / "src", tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "hf", shard_bytes=40_000)
    again = type(model).from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    tokens = torch.randint(0, model.config.vocab_size, (2, 24))
    with torch.no_grad():
        theirs = model(tokens).logits.numpy()
        assert np.array_equal(again(tokens).logits.numpy(), theirs)
    mine = ours(model, tmp_path / "again")
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (2, 24))
    hidden = mine(tokens.numpy().astype(np.int32), positions, np.ones((2, 24), np.int32))
    assert_close(mine.logits(hidden), theirs, "hidden and logits = transformers")


@pytest.mark.parametrize("dtype", DTYPES)
def test_orbax_restores_our_checkpoint(dtype, tmp_path):
    src = make_hf(tmp_path / "src", dtype=dtype)
    from_hf(src, tmp_path / "ours")
    for checkpointer in (ocp.StandardCheckpointer(), ocp.PyTreeCheckpointer()):
        tree = checkpointer.restore(tmp_path / "ours/params")
        weights = open_weights(src)
        for piece in mapping.pieces(weights.architecture):
            leaf = tree
            for key in piece.param.split("."):
                leaf = leaf[key]
            expected = b"".join(part.tobytes() for part in bands(weights.read(piece)))
            assert np.asarray(leaf)[piece.index].tobytes() == expected


@pytest.mark.parametrize(("stored", "wanted"), list(itertools.permutations(DTYPES, 2)))
def test_dtype_of_the_export(stored, wanted, tmp_path):
    src = make_hf(tmp_path / "src", dtype=stored)
    tensors = {name: torch.randn(shape) for name, (_, shape, _) in read_bits(src).items()}
    config = json.loads((src / "config.json").read_text())
    tensors = {name: x.to(DTYPES[stored]) for name, x in tensors.items()}
    write_hf(tmp_path / "finite", config, tensors)
    to_hf(tmp_path / "finite", tmp_path / "hf", wanted)
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == wanted
    expected = {name: x.to(DTYPES[wanted]) for name, x in tensors.items()}
    write_hf(tmp_path / "expected", config, expected)
    assert read_bits(tmp_path / "hf") == read_bits(tmp_path / "expected")


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    src = make_hf(tmp_path / "src", dtype="float32", seed=1)  # random bits: magnitudes up to 1e38
    with pytest.raises(UserError, match=r"float16: .* beyond its range"):
        to_hf(src, tmp_path / "hf", "float16")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_experts_become_those_of_each(dtype, tmp_path):
    model = hf_model("qwen3_moe-untied-8-2").to(DTYPES[dtype])
    model.save_pretrained(tmp_path / "usual")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    names = read_bits(tmp_path / "fused")
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    from_hf(tmp_path / "fused", tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "hf")
    assert read_bits(tmp_path / "hf") == read_bits(tmp_path / "usual")
