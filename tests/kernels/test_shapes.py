"""The benchmark's arithmetic = figures counted by hand; the shapes = the configs."""

import json

import pytest

from jaxs1.model.architecture import Architecture
from kernels.shapes import MODELS, Work, cache_bytes, kernel_work, layer_work, step_work
from tests.conftest import ROOT

SHAPE_32B = MODELS["qwen2.5-32b"]


def test_every_shape_is_its_config():
    files = {f.stem: f for f in (ROOT / "configs/models").glob("*.json")}
    dense = {name for name, file in files.items() if "num_experts" not in file.read_text()}
    assert {n for n in dense if not n.startswith(("tiny", "r1-"))} == MODELS.keys()
    for name, shape in MODELS.items():
        a = Architecture.from_hf(json.loads(files[name].read_text()), name)
        assert (a.num_layers, a.hidden_size, a.intermediate_size) == (
            shape.layers, shape.width, shape.mlp)  # fmt: skip
        assert (a.num_heads, a.num_kv_heads, a.head_dim, a.vocab_size) == (
            shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary)  # fmt: skip
        assert (a.tie_word_embeddings, a.qkv_bias, a.qk_norm) == (
            shape.tied, shape.bias, shape.qk_norm)  # fmt: skip
        assert (a.rope.theta, a.rms_norm_eps) == (shape.theta, shape.eps)
        matrices = a.num_parameters - (0 if shape.tied else a.vocab_size * a.hidden_size)
        assert step_work(shape, 1, 1).weights == 2 * matrices


def test_32b_counted_by_hand():
    # a layer: q, k, v 5120 x 7168 with 7168 biases; out 5120 x 5120; gate, up and down
    # 5120 x 27648 each; two norms of 5120. 64 of them, a norm, and the head 5120 x 152064
    layer = 5120 * 7168 + 7168 + 5120 * 5120 + 3 * 5120 * 27648 + 2 * 5120
    assert layer == 487_605_248
    step = step_work(SHAPE_32B, 1, 4096)
    assert step.weights == 2 * (64 * layer + 5120 + 5120 * 152064) == 63_970_617_344
    assert cache_bytes(SHAPE_32B) == 256 * 1024
    assert step.cache == 4096 * 256 * 1024
    assert step_work(SHAPE_32B, 8, 32768).cache == 8 * 32768 * 256 * 1024  # 68.7 GB
    # 2 a weight, and 4 a query head's element and key
    assert step.flops == 2 * (64 * (layer - 7168 - 10240) + 5120 * 152064) + 64 * 4 * 4096 * 5120
    assert step.bytes / 4.3e12 == pytest.approx(15.1e-3, rel=0.01)  # the design's floor on an H200


def test_floors_of_32b_kernels():
    """The design's table, for 4.3 TB/s."""
    work = kernel_work(SHAPE_32B, 1, 4096)
    floors = {name: 1e6 * w.floor(4.3e12) for name, w in work.items()}
    table = {"qkv": 17.1, "attention": 3.9, "out": 12.2, "gate_up": 132, "down": 66, "head": 362}
    assert floors.keys() == table.keys()
    for name, expected in table.items():
        assert floors[name] == pytest.approx(expected, rel=0.01)
    assert kernel_work(SHAPE_32B, 1, 32768)["attention"].floor(4.3e12) == pytest.approx(31e-6, 0.02)


def test_a_large_batch_is_bound_by_compute():
    work = kernel_work(SHAPE_32B, 64, 1)["gate_up"]
    assert work.floor(4.3e12) == work.floor(4.3e12, 790e12)
    assert work.floor(4.3e12, 50e12) == 2 * 64 * 2 * 5120 * 27648 / 50e12


def test_split_over_devices():
    part = SHAPE_32B.split(8)
    assert (part.heads, part.kv_heads, part.mlp, part.vocabulary) == (5, 1, 3456, 19008)
    whole, parts = (layer_work(s, 1, 4096) for s in (SHAPE_32B, part))
    assert parts.cache * 8 == whole.cache
    assert parts.weights * 8 - whole.weights == 2 * 7 * 2 * 5120  # every device has the norms
    with pytest.raises(ValueError, match="heads=40: must be a multiple of devices=16"):
        SHAPE_32B.split(16)
    assert Work(1, 2, 3, 4).plus(Work(1, 1, 1, 1)).times(2) == Work(4, 6, 8, 10)
