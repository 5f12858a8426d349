"""The real decode loop on a model with random weights, made on the device; no tokenizer.

A `RandomWeightsLoop` is shapes and programs; `fill` makes the arrays. So its programs are compiled
for a GPU that is not here exactly as for one that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxs1.decoding import budget
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import fit
from jaxs1.decoding.decode_loop import ChunkOutput, CompiledFunctions
from jaxs1.decoding.decode_state import NewSequence, rows_of, table
from jaxs1.decoding.page_allocator import pages_for
from jaxs1.decoding.params import SamplingParams, ThinkingParams
from jaxs1.decoding.sampling import SamplingFlags
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model import decode, kv_cache, transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.decode_params import abstract_params
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.planning.compile import compile_program
from kernels.benchmarking.program import Program, draw, draw_program

GREEDY = SamplingFlags(sampled=False, filtered=False, penalised=False)
#: For the temporaries of programs and for what the allocator cannot use [bytes].
SPARE = 1e9

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


def required_bytes(a: Architecture, dtype: str, *, rows: int, context: int) -> float:
    """Bytes that a filled `RandomWeightsLoop` takes at its peak.

    Drawing an array takes twice its size beside it (32 random bits for a bfloat16; compiled and
    read). The largest arrays are drawn first, so the peak is at the end of them or of all.
    """
    loop = RandomWeightsLoop(a, jax.devices()[0], dtype, rows=rows, context=context)
    held = peak = 0
    for leaf in loop.drawn_in_order():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        peak = max(peak, held + size + math.prod(leaf.shape) * 4)
        held += size
    return peak + SPARE


def free_bytes(device: Any) -> float:
    """Of a device; infinity where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)


class RandomWeightsLoop:
    """Sequences of one model in one cache.

    Args:
        a: the model
        device: where it runs; it need not be here
        dtype: of weights and cache
        rows: sequences
        context: tokens that each of them can hold
    """

    def __init__(self, a: Architecture, device: Any, dtype: str, *, rows: int, context: int):
        self.rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=1), [device])
        compute: Any = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
        self.model = transformer.abstract(a, compute, self.rules)
        self.context, self.rows, self.pages = context, rows, pages_for(context)
        self.params = abstract_params(self.model)
        pool = (a.num_kv_heads, rows * self.pages + 1, kv_cache.PAGE, a.head_dim)
        where = self.rules.sharding(kv_cache.AXES)
        layer: Any = jax.ShapeDtypeStruct(pool, jnp.dtype(dtype), sharding=where)
        self.cache = kv_cache.KVCache([layer] * a.num_layers, [layer] * a.num_layers)
        self.held = [list(range(1 + b * self.pages, 1 + (b + 1) * self.pages)) for b in range(rows)]
        self.table_BM = table(self.held, rows, self.pages)
        self.is_newline_V = np.zeros(a.vocab_size, bool)
        self._compiled: dict[tuple[str, int], Any] = {}

    def drawn_in_order(self) -> list[Any]:
        """The shapes of what is drawn: weights, the largest first, then the cache."""
        return [leaf for _, leaf in _drawn(self.params)] + jax.tree.leaves(self.cache)

    def draw_programs(self) -> list[Program]:
        """What `fill` runs."""
        return draw_programs((self.params, self.cache))

    def fill(self, seed: int = 0) -> Self:
        """Make weights and cache; returns the loop. A cache of zeros would be faster to read."""
        self.params = fill_weights(self.params, seed)
        pages, tree = jax.tree.flatten(self.cache)
        drawn = [draw(leaf, seed - 1 - i) for i, leaf in enumerate(pages)]
        self.cache = jax.tree.unflatten(tree, drawn)
        jax.block_until_ready((self.params, self.cache))
        return self

    def rows_at_start(self, prompts: Sequence[Ids], scripts: Sequence[TokenizedThinking]) -> Any:
        """Sequences at their start, on the host."""
        starts = [
            NewSequence(
                script,
                prompt,
                held,
                fit(script, len(prompt), self.context),
                SamplingParams(),
                seed=0,
                sample=0,
            )
            for prompt, script, held in zip(prompts, scripts, self.held, strict=True)
        ]
        return rows_of(
            starts,
            self.rows,
            max_pages=self.pages,
            is_newline_V=self.is_newline_V,
        )

    def place(self, prompts: Sequence[Ids], scripts: Sequence[TokenizedThinking]) -> Any:
        """Sequences at their start, on the device."""
        rows = self.rows_at_start(prompts, scripts)
        return jax.block_until_ready(jax.device_put(rows, self.rules.sharding(())))

    def chunk_program(
        self, impl: str, steps: int, options: Mapping[str, Any] | None = None
    ) -> Program:
        """(params, cache, slots, newlines) -> cache, slots, what was written.

        Args:
            impl: of the decode step
            steps: of the chunk
            options: of XLA, over those of the implementation
        """
        slots = self.rows_at_start([[1]] * self.rows, [ask()] * self.rows)
        given = (self.params, self.cache, self._shapes(slots), self._shapes(self.is_newline_V))
        static = {"rows": self.rows, "pages": self.pages, "flags": GREEDY}
        function = CompiledFunctions(self.model, impl, steps).decode_steps
        layers = self.model.architecture.num_layers
        name = f"{impl} chunk: {layers} layers, {self.rows} sequences, {steps} steps"
        if options is not None:
            name += f", {', '.join(f'{k}={v}' for k, v in options.items())}"
        return Program(name, function, given, static, options)

    def prefill_program(self, rows: int, tokens: int) -> Program:
        """(params, cache, tokens, positions, table) -> cache."""
        int32: Any = np.zeros((rows, tokens), np.int32)
        table_BM = self._shapes(self.table_BM[:rows])
        given = (self.params, self.cache, self._shapes(int32), self._shapes(int32), table_BM)
        layers = self.model.architecture.num_layers
        name = f"prefill: {layers} layers, {rows} x {tokens} tokens"
        return Program(name, CompiledFunctions(self.model, "xla", 1).prefill, given)

    def prefill(self, prompts: Sequence[Ids]) -> None:
        """Bring prompts into the cache."""
        tokens_BT, positions_BT = _rows(prompts)
        key = ("prefill", tokens_BT.shape[1])
        if key not in self._compiled:
            self._compiled[key] = self.prefill_program(*tokens_BT.shape).compile()
        program = self._compiled[key]
        self.cache = program(self.params, self.cache, tokens_BT, positions_BT, self.table_BM)

    def call(self, program: Any, slots: Any) -> ChunkOutput:
        """Run a compiled chunk; what it wrote, on the host."""
        self.cache, _, written = program(self.params, self.cache, slots, self.is_newline_V)
        return jax.device_get(written)

    def compile_chunk(self, impl: str, steps: int) -> tuple[Any, dict[str, int]]:
        """The executable, and what the host starts for a chunk (`compile_program`)."""
        lowered = self.chunk_program(impl, steps).lower()
        platform = self.rules.mesh.devices.flat[0].platform
        program = compile_program(lowered, platform)
        return program.executable, program.launches

    def run(
        self, impl: str, prompts: Sequence[Ids], scripts: Sequence[TokenizedThinking], *, steps: int
    ) -> ChunkOutput:
        """A chunk of sequences at their start."""
        if (impl, steps) not in self._compiled:
            self._compiled[impl, steps] = self.chunk_program(impl, steps).compile()
        return self.call(self._compiled[impl, steps], self.place(prompts, scripts))

    def _shapes(self, tree: Any) -> Any:
        where = self.rules.sharding(())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where), tree
        )


def logit_gap_program(loop: RandomWeightsLoop, rows: int, tokens: int, steps: int) -> Program:
    """What `logit_gap` runs: XLA's logits for texts of at most `tokens` tokens.

    (params, cache, tokens, positions, table, places, chosen) -> gaps [B, N]
    """
    vocabulary = len(loop.is_newline_V)

    def gaps(
        params: Any, cache: Any, tokens_BT: Any, positions_BT: Any, table_BM: Any, at_BN: Any,
        chosen_BN: Any,
    ) -> Any:  # fmt: skip
        x_BTD, _ = decode.forward(loop.model, params, cache, tokens_BT, positions_BT, table_BM)
        x_BND = jnp.take_along_axis(x_BTD, at_BN[..., None], axis=1)
        x_RD = x_BND.reshape(-1, x_BND.shape[-1])
        logits = decode.logits(loop.model, params, x_RD)[:, :vocabulary]
        chosen = jnp.take_along_axis(logits, chosen_BN.reshape(-1, 1), axis=1)[:, 0]
        return ((logits.max(-1) - chosen) / logits.std(-1)).reshape(chosen_BN.shape)

    text, step = np.zeros((rows, tokens), np.int32), np.zeros((rows, steps), np.int32)
    inputs = (text, text, loop.table_BM[:rows], step, step)
    given = (loop.params, loop.cache, *(loop._shapes(x) for x in inputs))
    return Program(f"logit gap of {rows} x {tokens} tokens", jax.jit(gaps), given)


def logit_gap(loop: RandomWeightsLoop, prompts: Sequence[Ids], written: ChunkOutput) -> float:
    """How much less likely than XLA's likeliest the tokens are that a loop chose, at most.

    XLA reads prompts and written tokens as one text, so that a difference in rounding cannot grow.
    Forced tokens do not count, nor those after a Wait, for which an end was forbidden. In standard
    deviations of the logits. Leaves the cache unchanged.
    """
    steps = written.token_NB.shape[0]
    texts = [[*p, *ids.tolist()] for p, ids in zip(prompts, written.token_NB.T, strict=True)]
    tokens_BT, positions_BT = _rows(texts)
    first_B = np.asarray([len(p) - 1 for p in prompts])
    at_BN = (first_B[:, None] + np.arange(steps)).astype(np.int32)
    program = logit_gap_program(loop, *tokens_BT.shape, steps).compile()
    chosen_BN = np.ascontiguousarray(written.token_NB.T.astype(np.int32))
    found_BN = program(
        loop.params, loop.cache, tokens_BT, positions_BT, loop.table_BM, at_BN, chosen_BN
    )
    after_wait = np.pad(written.kind_NB[:-1] == TokenKind.WAIT, ((1, 0), (0, 0)))
    counts_NB = ~written.forced_NB & ~after_wait & (written.kind_NB != TokenKind.PAD)
    return float(np.asarray(found_BN).T[counts_NB].max())


def weight_shapes(params: Any, shardings: Any) -> Any:
    """Shapes of parameters with where they go."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), params, shardings
    )


def draw_programs(shapes: Any) -> list[Program]:
    """One program for all arrays of a shape that are drawn."""
    kinds = {(leaf.shape, leaf.dtype, leaf.sharding): None for _, leaf in _drawn(shapes)}
    return [draw_program(*kind) for kind in kinds]


def fill_weights(shapes: Any, seed: int = 0) -> Any:
    """Random weights in the form of a tree of shapes, the largest drawn first."""
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    order = sorted(range(len(flat)), key=lambda i: -math.prod(flat[i][1].shape))
    made = {i: _weight(jax.tree_util.keystr(flat[i][0]), flat[i][1], seed + i) for i in order}
    return jax.tree.unflatten(tree, [made[i] for i in range(len(flat))])


def _drawn(shapes: Any) -> list[tuple[str, Any]]:
    """Names and shapes of what is random, the largest first."""
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]
    random = [(name, leaf) for name, leaf in leaves if not _is_norm(name)]
    return sorted(random, key=lambda pair: -math.prod(pair[1].shape))


def _is_norm(name: str) -> bool:
    return "norm" in name


def _weight(name: str, leaf: Any, seed: int) -> jax.Array:
    """Norms of ones; matrices that keep the size of what passes through them.

    Queries and keys are larger, so that attention picks few of its keys, and a wrong one shows.
    """
    if _is_norm(name):
        return jnp.ones(leaf.shape, leaf.dtype, device=leaf.sharding)
    # stacked layers have an axis of their own in front
    sizes = leaf.shape[1:] if name.startswith("['layers']['") else leaf.shape
    inputs = 1 if "embedding" in name or "bias" in name else sizes[0]
    if "'o'" in name:
        inputs *= sizes[1]
    return draw(leaf, seed, inputs**-0.5 * (1.5 if "'q'" in name or "'k'" in name else 1))


def _rows(texts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions [B, T] of texts of several lengths."""
    longest = max(map(len, texts))
    tokens = np.asarray([t + [0] * (longest - len(t)) for t in texts], np.int32)
    kept = np.arange(longest) < np.asarray([[len(t)] for t in texts])
    return tokens, np.where(kept, np.arange(longest), kv_cache.PAD_POSITION).astype(np.int32)
