"""Whole layers through interpreted kernels = numpy in float64, token by token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kernels import decode
from kernels.attention import attention
from kernels.interpreted import on_torch
from tests.kernels.interpreted import plain
from tests.kernels.interpreted.layers import cache, quantized, weights
from tests.numerics import assert_close

EPS, THETA = 1e-6, 1e4
CONSTANTS = {"eps": EPS, "rotation": partial(decode.plain_rotation, head_dim=32, theta=THETA)}
WHAT = "kernel = plain formula"


def check_layer(
    positions,
    N,
    K,
    *,
    seed=0,
    longest=None,
    int8=False,
    run=decode.layer_interpreted,
    jit=jax.jit,
    **kind,
):
    """One step of a layer against the oracle: the output, and every slot of the pages."""
    rng = np.random.default_rng(seed)
    w = weights(rng, N, K, **kind)
    stored, w = quantized(w) if int8 else (w, w)
    x = rng.standard_normal((len(positions), 600)).astype(np.float32)
    k_pages, v_pages, table, past = cache(rng, positions, K, longest=longest)
    actual = jit(lambda *a: run(*a, **CONSTANTS))(
        stored, x, np.array(positions, np.int32), k_pages, v_pages, table
    )
    rows = []
    for b, position in enumerate(positions):
        row, k, v = plain.layer(w, x[b], *past[b], position, eps=EPS, theta=THETA)
        rows.append(row)
        k_pages[:, table[b, position // 64], position % 64] = k
        v_pages[:, table[b, position // 64], position % 64] = v
    assert_close(actual[0], np.stack(rows), WHAT)
    for mine, pages in zip(actual[1:], (k_pages, v_pages), strict=True):
        mine = np.asarray(mine)
        assert (np.isnan(mine) == np.isnan(pages)).all()  # nothing else was written
        assert_close(np.nan_to_num(mine), np.nan_to_num(pages), WHAT)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 4097])
def test_lengths(length):
    check_layer([length - 1], 5, 1, bias=True)


@pytest.mark.parametrize("length", [1, 65, 300])
def test_heads_with_norms(length):
    check_layer([length - 1], 5, 1, qk_norm=True)


@pytest.mark.parametrize(("batch", "group"), [(1, 7), (3, 5), (17, 1), (17, 7)])
def test_groups_and_ragged_batches(batch, group):
    positions = [0, 64, 300, 255, 256, 1, 62, 63, 127, 5, 9, 130, 191, 2, 3, 4, 320][:batch]
    K = 2 if batch < 17 else 1
    check_layer(positions, K * group, K, seed=group, bias=True)


@pytest.mark.parametrize(("batch", "group"), [(1, 7), (17, 5)])
def test_int8_weights(batch, group):
    positions = [300, 64, 0, 255, 256, 1, 62, 63, 127, 5, 9, 130, 191, 2, 3, 4, 320][:batch]
    check_layer(positions, group, 1, seed=group, int8=True, bias=True, qk_norm=True)


def test_a_table_longer_than_the_sequences():
    check_layer([3, 70], 4, 2, longest=9, qk_norm=True)


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch():
    rng = np.random.default_rng(0)
    positions = [700, 0, 5, 300, 511, 512]
    k_pages, v_pages, table, _ = cache(rng, positions, 2)
    C = (10 + 4) * 32
    random = lambda *s: torch.from_numpy(rng.standard_normal(s).astype(np.float32))  # noqa: E731
    partial, squares = random(2, 6, C), random(2, 6).abs()
    cos, sin = random(6, 16), random(6, 16)

    def run(rows, width):
        pages = torch.from_numpy(k_pages.copy()), torch.from_numpy(v_pages.copy())
        out, *_ = attention(
            on_torch, partial[:, rows].contiguous(), squares[:, rows].contiguous(), (None,) * 3,
            (None,) * 2, (cos[rows], sin[rows]), torch.tensor(positions, dtype=torch.int32)[rows],
            pages, torch.from_numpy(np.pad(table, ((0, 0), (0, width)))[rows]), width=64, eps=1e-6,
        )  # fmt: skip
        return out

    together = run(list(range(6)), 0)
    assert torch.isfinite(together).all()
    for b in range(6):
        assert torch.equal(run([b], 0)[0], together[b])
    assert torch.equal(run([0], 40)[0], together[0])  # nor does a longer table change it


def test_no_token_writes_to_the_page_that_belongs_to_nobody():
    rng = np.random.default_rng(0)
    w = weights(rng, 4, 2)
    k_pages, v_pages, table, _ = cache(rng, [70, 70], 2)
    x = rng.standard_normal((2, 600)).astype(np.float32)
    step = jax.jit(lambda *a: decode.layer_interpreted(*a, **CONSTANTS))
    x, *after = step(w, x, np.array([-1, 70], np.int32), k_pages, v_pages, table)
    assert np.isfinite(x).all()
    for before, now in zip((k_pages, v_pages), after, strict=True):
        changed = {int(p) for p in np.argwhere(~(np.isclose(before, now, equal_nan=True)))[:, 1]}
        assert changed == {0, int(table[1, 1])}


def test_split_over_two_devices():
    """Heads and MLP on a mesh axis, partial results added up: the same as on one.

    `vmap` stands in for the mesh: callbacks of two CPU devices that wait for each other hang.
    """

    def parts(x, axis):
        return np.stack(np.split(np.asarray(x), 2, axis))

    def run(weights, x, position, k_pages, v_pages, table, **constants):
        attn, mlp = weights["attn"], weights["mlp"]
        split = {
            "q": {"kernel": parts(attn["q"]["kernel"], 1), "bias": parts(attn["q"]["bias"], 0)},
            "k": {"kernel": parts(attn["k"]["kernel"], 1), "bias": parts(attn["k"]["bias"], 0)},
            "v": {"kernel": parts(attn["v"]["kernel"], 1), "bias": parts(attn["v"]["bias"], 0)},
            "o": {"kernel": parts(attn["o"]["kernel"], 0)},
        }
        mlp = {
            "gate": {"kernel": parts(mlp["gate"]["kernel"], 1)},
            "up": {"kernel": parts(mlp["up"]["kernel"], 1)},
            "down": {"kernel": parts(mlp["down"]["kernel"], 0)},
        }

        def one(attn, mlp, k_pages, v_pages):
            part = {**weights, "attn": attn, "mlp": mlp}
            return decode.layer_interpreted(
                part, x, position, k_pages, v_pages, table, axis_name="tensor", **constants
            )

        devices = jax.vmap(one, axis_name="tensor")
        xs, k, v = devices(split, mlp, parts(k_pages, 0), parts(v_pages, 0))
        assert (xs[0] == xs[1]).all()
        return xs[0], np.concatenate(k), np.concatenate(v)

    check_layer([3, 70], 4, 2, run=run, jit=lambda f: f, bias=True)


def test_equals_the_model_token_by_token(tmp_path):
    """Our own model's whole forward pass: Qwen2 with 7 heads a key, Qwen3, and Llama with YaRN."""
    from jaxs1.model import transformer
    from tests.tiny_models import hf_model, ours

    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    kinds = {"qwen2-tied-14-2": 2, "qwen3-untied-6-3": 1, "llama-tied-9-3": 1}
    for kind, layers in kinds.items():
        more = {"rope_parameters": yarn} if kind.startswith("llama") else {}
        model = ours(hf_model(kind, layers=layers, **more), tmp_path / kind)
        a = model.architecture
        params = transformer.parameters(model)
        tokens = np.random.default_rng(0).integers(0, 96, (2, 3))
        where = np.broadcast_to(np.arange(3), tokens.shape)
        expected = model.logits(model(tokens, where, np.ones_like(tokens)))
        trees = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(layers)]
        shape = (a.num_kv_heads, 3, 16, a.head_dim)
        pages = [(jnp.full(shape, jnp.nan), jnp.full(shape, jnp.nan)) for _ in trees]
        table = np.array([[2], [1]], np.int32)

        @jax.jit
        def step(tokens, position, pages, a=a, params=params, trees=trees, table=table):
            x, after = params["embedding"][tokens], []
            rotation = partial(a.rope.table, head_dim=a.head_dim)
            constants = {"eps": a.rms_norm_eps, "rotation": rotation}
            for weights_of_layer, (k, v) in zip(trees, pages, strict=True):
                x, k, v = decode.layer_interpreted(
                    weights_of_layer, x, position, k, v, table, **constants
                )
                after.append((k, v))
            tied = a.tie_word_embeddings
            w = params["embedding"] if tied else params["lm_head"]
            scale = params["final_norm"]["scale"]
            return decode.logits_interpreted(x, scale, w, eps=a.rms_norm_eps, tied=tied), after

        for t in range(3):
            logits, pages = step(tokens[:, t], np.full(2, t, np.int32), pages)
            assert_close(logits, expected[:, t], WHAT)
