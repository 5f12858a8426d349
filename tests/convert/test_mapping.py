import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict

from convert import mapping
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from tests.convert.checkpoints import CONFIGS, read_bits, reduced
from tests.tiny_models import FLOAT32, one_device


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_table_is_the_parameter_tree(name, tied):
    architecture = Architecture.from_hf(CONFIGS[name] | {"tie_word_embeddings": tied}, name)
    model = transformer.abstract(architecture, FLOAT32, one_device())
    tree = flatten_dict(transformer.parameters(model), sep=".")
    assert {path: x.shape for path, x in tree.items()} == mapping.parameters(architecture)


@pytest.mark.parametrize("name", CONFIGS)
def test_table_has_the_tensors_of_transformers(name, tmp_path):
    small = reduced(name)
    config = transformers.AutoConfig.for_model(**small)
    if small["model_type"] == "qwen3_moe":  # in memory, its experts are fused
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        theirs = {key: shape for key, (_, shape, _) in read_bits(tmp_path).items()}
    else:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        theirs = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert theirs == mapping.tensors(Architecture.from_hf(small, name))


@pytest.mark.parametrize("elements", [1 << 30, 100, 37])
def test_pieces_cover_every_element_once(elements, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", elements)
    config = CONFIGS["qwen2.5-7b"] | {"vocab_size": 61, "hidden_size": 56, "num_hidden_layers": 2}
    architecture = Architecture.from_hf(config | {"intermediate_size": 10}, "test")
    count = {path: np.zeros(s, int) for path, s in mapping.parameters(architecture).items()}
    rows = {name: np.zeros(s[0], int) for name, s in mapping.tensors(architecture).items()}
    for piece in mapping.pieces(architecture):
        count[piece.param][piece.index] += 1
        rows[piece.hf][piece.rows] += 1
        assert count[piece.param][piece.index].shape == piece.shape
    assert all((x == 1).all() for x in jax.tree.leaves([count, rows]))
    assert len({piece.name for piece in mapping.pieces(architecture)}) == len(
        mapping.pieces(architecture)
    )


def test_both_directions_are_inverse_and_views():
    architecture = Architecture.from_hf(CONFIGS["qwen3-0.6b"], "test")
    small = dataclasses.replace(architecture, num_layers=1, vocab_size=32, intermediate_size=16)
    for piece in mapping.pieces(small):
        block = np.arange(piece.size, dtype=np.uint32).reshape(piece.hf_shape)
        part = piece.to_param(block)
        assert part.shape == piece.shape
        assert np.shares_memory(part, block)
        assert np.array_equal(piece.to_hf(part), block)
        assert np.array_equal(piece.to_hf(np.ascontiguousarray(part)), block)
