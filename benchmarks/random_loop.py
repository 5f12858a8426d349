"""The real decode loop on a model with random weights, made on the device; no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxs1.decoding import budget
from jaxs1.decoding.decode_loop import ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import NewSequence, rows_of, table
from jaxs1.decoding.outputs import SamplingParams
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model import decode, kv_cache, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.planning.decode import abstract_params, compile_and_look

GREEDY = SamplingFlags(sampled=False, filtered=False, penalised=False)

Ids = list[int]


def ask(
    *, thinking: int | None = None, waits: int = 0, end: int | None = None
) -> TokenizedThinking:
    """What is forced on a sequence: nothing, or an end of its thinking, and Waits.

    Args:
        thinking: budget [tokens]; eight forced tokens follow. null: nothing is ever forced
        waits: how many times the end is replaced
        end: id that ends thinking; null: none that a model can choose
    """
    if thinking is None:
        return TokenizedThinking(ThinkingParams(mode="off", min_answer_tokens=1), *[()] * 9)
    asked = ThinkingParams(max=thinking, num_waits=waits, min_answer_tokens=1)
    ends: Any = () if end is None else ((end,),)
    return TokenizedThinking(
        asked, start=(), ends=ends, resume=(budget.NONE,) * len(ends), stops=(), reopen=(),
        line_break=(), close=(11, 12, 13, 14), answer_prefix=(15, 16, 17, 18), waits=((19,),),
    )  # fmt: skip


def needs(a: Architecture, dtype: str, *, rows: int, context: int) -> float:
    """Bytes that a `Loop` takes, with a tenth for what is made on the way."""
    pages = rows * pages_for(context) + 1
    weights = a.num_parameters * jnp.dtype(dtype).itemsize
    return 1.1 * (weights + pages * kv_cache.PAGE * kv_cache.token_bytes(a, dtype))


def room(device: Any) -> float:
    """Free bytes of a device; infinity where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)


class Loop:
    """Sequences of one model in one cache.

    Args:
        a: the model
        device: where it runs
        dtype: of weights and cache
        rows: sequences
        context: tokens that each of them can hold
    """

    def __init__(self, a: Architecture, device: Any, dtype: str, *, rows: int, context: int):
        self.rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=1), [device])
        compute: Any = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
        self.model = transformer.abstract(a, compute, self.rules)
        self.context, self.rows, self.pages = context, rows, pages_for(context)
        flat, tree = jax.tree_util.tree_flatten_with_path(abstract_params(self.model))
        # threefry would need several times the memory and time
        keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), len(flat) + 2)
        weights = [_weight(jax.tree_util.keystr(path), leaf, key)
                   for (path, leaf), key in zip(flat, keys, strict=False)]  # fmt: skip
        self.params = jax.tree.unflatten(tree, weights)
        pool = (a.num_kv_heads, rows * self.pages + 1, kv_cache.PAGE, a.head_dim)
        where = self.rules.sharding(kv_cache.AXES)
        draw = jax.jit(lambda key: jax.random.normal(key, pool, dtype), out_shardings=where)
        # zeros would be faster to read
        k, v = ([draw(key) for key in jax.random.split(keys[-i], a.num_layers)] for i in (1, 2))
        self.cache = kv_cache.KVCache(k, v)
        self.held = [list(range(1 + b * self.pages, 1 + (b + 1) * self.pages)) for b in range(rows)]
        self.table_BM = table(self.held, rows, self.pages)
        self.is_newline_V = np.zeros(a.vocab_size, bool)
        self._programs: dict[tuple[str, int], Any] = {}

    def prefill(self, prompts: Sequence[Ids]) -> None:
        """Bring prompts into the cache."""
        tokens_BT, positions_BT = _rows(prompts)
        prefill = CompiledFunctions(self.model, "xla", 1).prefill
        self.cache = prefill(self.params, self.cache, tokens_BT, positions_BT, self.table_BM)

    def place(self, prompts: Sequence[Ids], asked: Sequence[TokenizedThinking]) -> Any:
        """Sequences at their start, on the device."""
        starts = [
            NewSequence(script, prompt, held, SamplingParams(temperature=0), seed=0, sample=0)
            for prompt, script, held in zip(prompts, asked, self.held, strict=True)
        ]
        rows = rows_of(
            starts,
            self.rows,
            context=self.context,
            max_pages=self.pages,
            is_newline_V=self.is_newline_V,
        )
        return jax.block_until_ready(jax.device_put(rows, self.rules.sharding(())))

    def chunk(self, impl: str, slots: Any, *, steps: int) -> tuple[ChunkOutput, dict[str, int]]:
        """One chunk; what it wrote, and what the host started for it (`compile_and_look`)."""
        given = (self.params, self.cache, slots, self.is_newline_V)
        if (impl, steps) not in self._programs:
            chunk: Any = CompiledFunctions(self.model, impl, steps).chunk
            lowered = chunk.lower(*given, rows=self.rows, pages=self.pages, kinds=GREEDY)
            platform = self.rules.mesh.devices.flat[0].platform
            self._programs[impl, steps] = compile_and_look(lowered, platform)
        program, launches = self._programs[impl, steps]
        self.cache, _, written = program(*given)
        return jax.device_get(written), launches

    def run(
        self, impl: str, prompts: Sequence[Ids], asked: Sequence[TokenizedThinking], *, steps: int
    ) -> tuple[ChunkOutput, dict[str, int]]:
        """`chunk` on sequences at their start."""
        return self.chunk(impl, self.place(prompts, asked), steps=steps)


def regret(loop: Loop, prompts: Sequence[Ids], written: ChunkOutput) -> float:
    """How much less likely than XLA's likeliest the tokens are that a loop chose, at most.

    XLA reads prompts and written tokens as one text, so that a difference in rounding cannot grow.
    Forced tokens do not count, nor those after a Wait, for which an end was forbidden. In standard
    deviations of the logits. Fills the cache anew.
    """
    texts = [[*p, *ids.tolist()] for p, ids in zip(prompts, written.token_NB.T, strict=True)]
    tokens_BT, positions_BT = _rows(texts)
    first_B = np.asarray([len(p) - 1 for p in prompts])
    at_BN = first_B[:, None] + np.arange(written.token_NB.shape[0])

    def differences(params: Any, cache: Any, chosen_BN: Any) -> Any:
        x_BTD, _ = decode.forward(loop.model, params, cache, tokens_BT, positions_BT, loop.table_BM)
        x_BND = jnp.take_along_axis(x_BTD, at_BN[..., None], axis=1)
        V = len(loop.is_newline_V)
        logits = decode.logits(loop.model, params, x_BND.reshape(-1, x_BND.shape[-1]))[:, :V]
        chosen = jnp.take_along_axis(logits, chosen_BN.reshape(-1, 1), axis=1)[:, 0]
        return ((logits.max(-1) - chosen) / logits.std(-1)).reshape(chosen_BN.shape)

    found_BN = jax.jit(differences)(loop.params, loop.cache, written.token_NB.T)
    after_wait = np.pad(written.kind_NB[:-1] == budget.WAIT, ((1, 0), (0, 0)))
    counts_NB = ~written.forced_NB & ~after_wait & (written.kind_NB != budget.PASSED)
    return float(np.asarray(found_BN).T[counts_NB].max())


def _weight(name: str, leaf: Any, key: Any) -> jax.Array:
    """Norms of ones; matrices that keep the size of what passes through them.

    Queries and keys are larger, so that attention picks few of its keys, and a wrong one shows.
    """
    if "norm" in name:
        return jnp.ones(leaf.shape, leaf.dtype, device=leaf.sharding)
    inputs = 1 if "embedding" in name or "bias" in name else leaf.shape[0]
    if "'o'" in name:
        inputs *= leaf.shape[1]
    size = inputs**-0.5 * (1.5 if "'q'" in name or "'k'" in name else 1)

    def draw(key: Any) -> jax.Array:
        return jax.random.normal(key, leaf.shape, leaf.dtype) * jnp.asarray(size, leaf.dtype)

    return jax.jit(draw, out_shardings=leaf.sharding)(key)


def _rows(texts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions [B, T] of texts of several lengths."""
    longest = max(map(len, texts))
    tokens = np.asarray([t + [0] * (longest - len(t)) for t in texts], np.int32)
    kept = np.arange(longest) < np.asarray([[len(t)] for t in texts])
    return tokens, np.where(kept, np.arange(longest), kv_cache.PAD_POSITION).astype(np.int32)
