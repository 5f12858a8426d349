"""The engine's weights are the trainer's, whatever the mesh; nothing is copied that need not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.scheduler import Limits
from jaxs1.model import decode_params, transformer
from jaxs1.model.config import LoraConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.rl.rollout import RolloutEngine
from jaxs1.rl.weights import make_converter, of_replica
from tests.decoding.words import Words
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, hf_model, one_device, ours

LIMITS = Limits(max_num_seqs=4, max_seq_len=64, decode_steps=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def make(folder, rules=None, kind="qwen2-untied-4-4", **options):
    """An abstract model and its parameters on a mesh."""
    model = ours(hf_model(kind, vocab=16, layers=2), folder, rules=rules, **options)
    return model, transformer.parameters(model)


@pytest.mark.parametrize("kind", ["qwen2-untied-4-4", "qwen3_moe-untied-8-2"])
def test_they_are_those_that_are_loaded_from_disk(kind, folder):
    model, params = make(folder, kind=kind)
    decoder = transformer.abstract(model.architecture, FLOAT32, one_device())
    found = make_converter(model, decoder)(params, None)
    copied = jax.tree.map(jnp.copy, params)
    expected = decode_params.unstack(decoder, copied)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_adapters_are_merged(folder):
    lora = LoraConfig(rank=2, alpha=6.0, frozen_dtype="float32")
    model, frozen = make(folder, lora=lora)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        transformer.parameters(model, transformer.Adapter),
    )
    decoder = transformer.abstract(model.architecture, FLOAT32, one_device())
    found = make_converter(model, decoder)(adapters, frozen)
    up, down = adapters["layers"]["mlp"]["up"]["adapter"], found["layers"][1]["mlp"]["up"]
    kernel = np.asarray(frozen["layers"]["mlp"]["up"]["kernel"][1])
    expected = kernel + 6 / 2 * np.asarray(up["a"][1]) @ np.asarray(up["b"][1])
    assert_close(down["kernel"], expected, "LoRA: merged = adapter = PEFT")
    q, merged = adapters["layers"]["attn"]["q"]["adapter"], found["layers"][0]["attn"]["q"]
    expected = np.asarray(frozen["layers"]["attn"]["q"]["kernel"][0]) + 3 * np.einsum(
        "dr,rnh->dnh", q["a"][0], q["b"][0]
    )
    assert_close(merged["kernel"], expected, "LoRA: merged = adapter = PEFT")
    np.testing.assert_array_equal(found["embedding"], frozen["embedding"])


@pytest.mark.parametrize(
    ("mesh", "tensor"),
    [(MeshConfig(fsdp=2, context=2, tensor=2), 2), (MeshConfig(data=2, fsdp=4), 1),
     (MeshConfig(fsdp=1, context=2, tensor=4), 4)],
)  # fmt: skip
def test_every_replica_has_all_of_them_without_a_copy(mesh, tensor, folder):
    rules = make_sharding_rules(mesh, jax.devices()[:8])
    model, params = make(folder, rules)
    _, plain = make(folder)
    grid = make_sharding_rules(
        MeshConfig(data=8 // tensor, fsdp=1, tensor=tensor), jax.devices()[:8]
    )
    decoder = transformer.abstract(model.architecture, FLOAT32, grid)
    found = make_converter(model, decoder)(params, None)
    expected = decode_params.unstack(decoder_of(model, one_device()), plain)
    for first in range(0, 8, tensor):
        devices = jax.devices()[first : first + tensor]
        own = make_sharding_rules(MeshConfig(fsdp=1, tensor=tensor), devices)
        replica = of_replica(decoder_of(model, own), found, own)
        for x, y in zip(jax.tree.leaves(replica), jax.tree.leaves(expected), strict=True):
            assert x.sharding.device_set == set(devices)
            np.testing.assert_array_equal(x, y)
        held = {s.data.unsafe_buffer_pointer() for s in found["embedding"].addressable_shards}
        mine = {s.data.unsafe_buffer_pointer() for s in replica["embedding"].addressable_shards}
        assert mine <= held


def decoder_of(model, rules):
    return transformer.abstract(model.architecture, FLOAT32, rules)


def test_new_weights_give_new_tokens_and_the_old_ones_the_old(folder):
    """Load, release, load: nothing of the cache or of earlier weights is left."""
    model, params = make(folder)
    engine = RolloutEngine(model, Words(*"abcdefg"), LIMITS, tensor=1, num_pages=lambda _: 9)
    thinking = ThinkingParams(preset="s1", max=8, max_answer_tokens=4, min_answer_tokens=1)
    requests = [Request([8, 9, i], thinking, n=2) for i in range(8, 14)]

    def complete(params):
        engine.load(params, None)
        done = engine.complete(requests)
        engine.release()
        return [c.tokens for completions in done for c in completions]

    other = jax.tree.map(lambda x: jnp.flip(x, -1), params)
    first = complete(params)
    assert complete(other) != first == complete(params)
