"""Prefill and decode over pages give what one run over whole sequences gives, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.weights import load_decode_params, load_params, open_weights
from jaxs1.model import decode, kv_cache, transformer
from jaxs1.model.backends import BACKENDS
from jaxs1.model.config import MeshConfig
from jaxs1.model.decode_params import unstack
from jaxs1.model.kv_cache import NULL_PAGE, PAD_POSITION, PAGE
from jaxs1.model.linear import LINEAR
from jaxs1.model.sharding import make_sharding_rules
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, hf_model, ours

VOCAB = 96
#: Tokens of the sequences, and how many of them are the prompt: around the edges of pages.
LENGTHS = [(150, 130), (70, 63), (72, 64), (68, 65), (30, 1), (129, 64)]
REUSE = [(66, 40), (140, 128), (9, 3), (65, 64), (64, 62), (20, 19)]
PAGES_EACH, NUM_PAGES = 3, 24
WIDTH, ROWS = 37, 4
run_whole = jax.jit(lambda model, *batch: model.logits(model(*batch)))


class Paged:
    """The model over a cache full of NaN, driven call by call."""

    def __init__(self, folder, rules, impl, linear=None):
        weights = open_weights(str(folder))
        linear = linear or BACKENDS[impl].linear
        self.model = transformer.abstract(weights.architecture, FLOAT32, rules, linear=linear)
        if linear == "int8":
            self.params = load_decode_params(weights, self.model)
        else:
            dtype = LINEAR[linear].weight_dtype or "float32"
            self.params = unstack(self.model, load_params(weights, self.model, jnp.dtype(dtype)))
        cache = kv_cache.init_cache(weights.architecture, NUM_PAGES, jnp.float32, rules)
        self.cache = jax.tree.map(lambda pages: jnp.full_like(pages, jnp.nan), cache)
        self._run = jax.jit(functools.partial(self._logits, self.model, impl))

    @staticmethod
    def _logits(model, impl, params, cache, *batch):
        x_BTD, cache = decode.forward(model, params, cache, *batch, impl=impl)
        x_BD = x_BTD.reshape(-1, x_BTD.shape[-1])
        return decode.logits(model, params, x_BD, impl=impl).reshape(*x_BTD.shape[:2], -1), cache

    def call(self, tokens_BT, positions_BT, table_BM):
        batch = [np.asarray(x, np.int32) for x in (tokens_BT, positions_BT, table_BM)]
        logits_BTV, self.cache = self._run(self.params, self.cache, *batch)
        return np.asarray(logits_BTV)


def rounded(model, linear):
    """A transformers model whose weights this implementation of products stores exactly."""
    if linear == "bf16x3":
        return model.bfloat16()
    if linear == "int8":
        tables = model.get_input_embeddings() if model.config.tie_word_embeddings else None
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear) or module is tables:
                    largest = module.weight.abs().amax(1, keepdim=True)
                    scale = torch.where(largest > 0, largest / 127, 1)
                    module.weight.copy_((module.weight / scale).round() * scale)
    return model


def run_paged(paged, sequences, prompts, tables, rng):
    """Logits of every token, by calls in random order: pieces of prompts, and single tokens."""
    done = [0] * len(sequences)
    logits = [np.full((len(s), VOCAB), np.nan) for s in sequences]

    def call(rows, width, batch):
        tokens = rng.integers(0, VOCAB, (rows, width))
        positions = np.full((rows, width), PAD_POSITION)
        table = np.full((rows, PAGES_EACH), NULL_PAGE)
        for r, (b, count) in batch.items():
            start = done[b]
            tokens[r, :count] = sequences[b][start : start + count]
            positions[r, :count] = np.arange(start, start + count)
            table[r] = tables[b]
        out = paged.call(tokens, positions, table)
        for r, (b, count) in batch.items():
            logits[b][done[b] : done[b] + count] = out[r, :count]
            done[b] += count

    while True:
        filling = [b for b in range(len(sequences)) if done[b] < prompts[b]]
        decoding = [b for b in range(len(sequences)) if prompts[b] <= done[b] < len(sequences[b])]
        if not filling and not decoding:
            return logits
        if filling and (rng.random() < 0.5 or not decoding):
            chosen = rng.permutation(filling)[: rng.integers(1, ROWS + 1)]
            most = {b: min(WIDTH, prompts[b] - done[b]) for b in chosen}
            pieces = {r: (b, rng.integers(1, most[b] + 1)) for r, b in enumerate(chosen)}
            call(ROWS, WIDTH, pieces)
        else:  # rows stay where they are, as slots do; those that do not run are padding
            call(len(sequences), 1, {b: (b, 1) for b in decoding if rng.random() < 0.8})


@pytest.mark.parametrize(
    ("kind", "tensor", "linear"),
    [
        ("qwen2-tied-14-2", 1, "xla"),
        ("qwen3-untied-6-3", 1, "xla"),
        ("qwen2-untied-10-2", 2, "xla"),
        ("qwen3_moe-untied-8-2", 1, "xla"),
        ("qwen3_moe-untied-8-2", 2, "xla"),
        ("qwen2-tied-14-2", 1, "bf16x3"),
        ("qwen3-untied-6-3", 1, "bf16x3"),
        ("qwen2-tied-14-2", 1, "int8"),
        ("qwen2-untied-10-2", 2, "int8"),
    ],
)
def test_equals_the_whole_forward(kind, tensor, linear, tmp_path):
    # the whole forward computes in float32 with the same weights
    whole = ours(rounded(hf_model(kind, vocab=VOCAB), linear), tmp_path)
    mesh = make_sharding_rules(MeshConfig(tensor=tensor), jax.devices()[:tensor])
    paged = Paged(tmp_path, mesh, "bf16x3" if linear == "bf16x3" else "xla", linear)
    rng = np.random.default_rng(0)
    # the second batch takes pages that the first has used, in another order
    for lengths in (LENGTHS, REUSE):
        free = 1 + rng.permutation(NUM_PAGES - 1)
        tables = [[int(page) for page in free[i::6][:PAGES_EACH]] for i in range(len(lengths))]
        for table, (n, _) in zip(tables, lengths, strict=True):
            table[-(-n // PAGE) :] = [NULL_PAGE] * (PAGES_EACH - -(-n // PAGE))
        sequences = [rng.integers(0, VOCAB, n) for n, _ in lengths]
        logits = run_paged(paged, sequences, [p for _, p in lengths], tables, rng)
        T = max(n for n, _ in lengths)
        tokens = np.stack([np.pad(s, (0, T - len(s))) for s in sequences])
        positions = np.broadcast_to(np.arange(T), tokens.shape)
        expected = np.asarray(run_whole(whole, tokens, positions, np.ones_like(tokens)))
        for mine, theirs in zip(logits, expected, strict=True):
            assert_close(mine, theirs[: len(mine)], "prefill + decode = whole forward")
