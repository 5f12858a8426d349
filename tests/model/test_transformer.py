"""The model equals transformers: every layer's hidden states and the logits, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxs1.model import ops, transformer
from jaxs1.model.config import ComputeConfig
from jaxs1.model.rope import Rope
from tests.numerics import assert_close, relative_error
from tests.tiny_models import FLOAT32, KINDS, hf_model, one_device, ours

run = jax.jit(lambda model, *batch: model(*batch))


def hidden_states(model, tokens, positions, segments):
    """Embedding, every layer's output, and the final norm's: what transformers returns, by hand."""
    a = model.architecture
    states = [jnp.take(model.embedding[...], tokens, axis=0)]
    rope = a.rope.table(positions[..., None], a.head_dim)
    graph, stacked = nnx.split(model.layers)
    for i in range(a.num_layers):
        layer = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        attend = lambda q, k, v: ops.attention_xla(q, k, v, segments)  # noqa: E731
        states.append(layer(states[-1], rope, attend, segments != 0)[0])
    return [*states[:-1], model.final_norm(states[-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind, tmp_path):
    oracle = hf_model(kind)
    model = ours(oracle, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 37))
    positions = np.broadcast_to(np.arange(37), tokens.shape)
    segments = np.ones(tokens.shape, np.int32)
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens), output_hidden_states=True)
    states = hidden_states(model, tokens, positions, segments)
    assert len(states) == len(expected.hidden_states) == 4
    for mine, theirs in zip(states, expected.hidden_states, strict=True):
        assert_close(mine, theirs.numpy(), "hidden and logits = transformers")
    hidden = run(model, tokens, positions, segments)
    assert_close(hidden, states[-1], "hidden and logits = transformers")
    logits = model.logits(hidden)
    assert_close(logits, expected.logits.numpy(), "hidden and logits = transformers")


def test_packed_row_equals_separate_sequences(tmp_path):
    model = ours(hf_model("qwen2-tied-14-2"), tmp_path)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 96, n) for n in (5, 1, 17, 9)]
    row = np.concatenate([*sequences, np.zeros(8, int)])[None]
    positions = np.concatenate([np.arange(len(s)) for s in sequences] + [np.zeros(8, int)])[None]
    lengths = [len(s) for s in sequences]
    segments = np.repeat([1, 2, 3, 4, 0], [*lengths, 8])[None].astype(np.int32)
    packed = np.asarray(run(model, row, positions, segments))[0]
    assert np.isfinite(packed).all()
    starts = np.cumsum([0, *lengths])
    for start, sequence in zip(starts, sequences, strict=False):
        n = len(sequence)
        alone = run(model, sequence[None], np.arange(n)[None], np.ones((1, n), np.int32))
        assert_close(packed[start : start + n], alone[0], "hidden and logits = transformers")


@pytest.mark.parametrize(("remat", "scan"), [("attention", True), ("full", True), ("none", False)])
def test_recomputing_and_scanning_change_no_gradient(remat, scan, tmp_path):
    kept = ours(hf_model("qwen3-tied-8-2"), tmp_path)
    again = ours(
        hf_model("qwen3-tied-8-2"),
        tmp_path / "again",
        compute=ComputeConfig(dtype="float32", remat=remat, scan_layers=scan, attention="xla"),
    )
    tokens = np.random.default_rng(2).integers(0, 96, (2, 24))
    positions = np.broadcast_to(np.arange(24), tokens.shape)

    def gradient(model):
        def total(params):
            hidden = transformer.with_parameters(model, params)(
                tokens, positions, np.ones_like(tokens)
            )
            return jnp.sum(jnp.sin(hidden))

        return jax.jit(jax.grad(total))(transformer.parameters(model))

    assert_close(gradient(again), gradient(kept), "packed = unpacked")


def test_attention_in_blocks_equals_plain_formula(monkeypatch):
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, 50, n, 8)).astype(np.float32) for n in (6, 2, 2))
    segments = np.repeat([[1, 2, 3, 0]], [20, 5, 15, 10], axis=1).repeat(2, axis=0)
    visible = np.tril(np.ones((50, 50), bool)) & (segments[:, :, None] == segments[:, None, :])
    scores = np.einsum("bsnh,btnh->bnst", q, k.repeat(3, axis=2)) / np.sqrt(8)
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bnst,btnh->bsnh", weights, v.repeat(3, axis=2))
    monkeypatch.setattr(ops, "QUERY_BLOCK", 16)  # 50 queries: three whole blocks and a rest
    assert_close(ops.attention_xla(q, k, v, segments), expected, "operator = plain formula")


def test_bfloat16_is_close_to_float32(tmp_path):
    """Not a tolerance on rounding but a guard: bf16 compute, fp32 logits, nothing silently fp32."""
    model = ours(hf_model("qwen2-untied-10-2"), tmp_path)
    half = ours(
        hf_model("qwen2-untied-10-2"),
        tmp_path / "half",
        compute=ComputeConfig(dtype="bfloat16", remat="none", attention="xla"),
    )
    tokens = np.random.default_rng(4).integers(0, 96, (1, 20))
    batch = (tokens, np.arange(20)[None], np.ones((1, 20), np.int32))
    hidden = run(half, *batch)
    assert hidden.dtype == jnp.bfloat16
    assert half.logits(hidden).dtype == jnp.float32
    assert 1e-4 < relative_error(half.logits(hidden), model.logits(run(model, *batch))) < 5e-2


def test_random_weights_depend_on_the_seed_alone():
    architecture = transformer.Architecture(
        64, 32, 48, 3, 4, 2, 8, 128, Rope(1e4), 1e-6, True, True, False, 0.1
    )

    def weights(seed):
        return transformer.parameters(
            transformer.Transformer(architecture, FLOAT32, one_device(), rngs=nnx.Rngs(seed))
        )

    first, same, other = weights(0), weights(0), weights(1)
    assert relative_error(first, same) == 0
    assert relative_error(first, other) > 0.1
    gate = np.asarray(first["layers"]["mlp"]["gate"]["kernel"])
    assert gate.std() == pytest.approx(0.1, rel=0.1)
    assert not np.allclose(gate[0], gate[1])  # layers differ
    down = np.asarray(first["layers"]["mlp"]["down"]["kernel"])
    assert down.std() == pytest.approx(0.1 / np.sqrt(6), rel=0.1)
    assert architecture.num_parameters == sum(x.size for x in jax.tree.leaves(first))
