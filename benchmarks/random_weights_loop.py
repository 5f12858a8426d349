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

from jaxs1.config import ComputeConfig, MeshConfig
from jaxs1.decoding import budget
from jaxs1.decoding.completion import Sampling
from jaxs1.decoding.loop import Programs, Written
from jaxs1.decoding.pages import pages_for
from jaxs1.decoding.presets import Thinking
from jaxs1.decoding.sampling import Kinds
from jaxs1.decoding.script import Script
from jaxs1.decoding.slots import Start, rows_of, table
from jaxs1.model import kv_cache, qwen, unrolled
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import make_partition
from jaxs1.planning.decode import abstract_params, compile_and_look
from kernels.benchmarking.program import Program, draw, draw_program

GREEDY = Kinds(sampled=False, filtered=False, penalised=False)
#: For the temporaries of programs and for what the allocator cannot use [bytes].
SPARE = 1e9

Ids = list[int]


def ask(*, thinking: int | None = None, waits: int = 0, end: int | None = None) -> Script:
    """What is forced on a sequence: nothing, or an end of its thinking, and Waits.

    Args:
        thinking: budget [tokens]; eight forced tokens follow. null: nothing is ever forced
        waits: how many times the end is replaced
        end: id that ends thinking; null: none that a model can choose
    """
    if thinking is None:
        return Script(Thinking(mode="off", min_answer=1), *[()] * 9)
    asked = Thinking(max=thinking, num_waits=waits, min_answer=1)
    ends: Any = () if end is None else ((end,),)
    return Script(
        asked, start=(), ends=ends, resume=(budget.NONE,) * len(ends), stops=(), reopen=(),
        line_break=(), close=(11, 12, 13, 14), cue=(15, 16, 17, 18), waits=((19,),),
    )  # fmt: skip


def required_bytes(a: Architecture, dtype: str, *, rows: int, context: int) -> float:
    """Bytes that a filled `RandomWeightsLoop` takes: drawing needs nothing beside its arrays."""
    loop = RandomWeightsLoop(a, jax.devices()[0], dtype, rows=rows, context=context)
    leaves = jax.tree.leaves((loop.params, loop.cache))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) + SPARE


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
        self.partition = make_partition(MeshConfig(fsdp=1, tensor=1), [device])
        compute: Any = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
        self.model = qwen.abstract(a, compute, self.partition)
        self.context, self.rows, self.pages = context, rows, pages_for(context)
        self.params = abstract_params(self.model)
        pool = (a.num_kv_heads, rows * self.pages + 1, kv_cache.PAGE, a.head_dim)
        where = self.partition.sharding(kv_cache.AXES)
        layer: Any = jax.ShapeDtypeStruct(pool, jnp.dtype(dtype), sharding=where)
        self.cache = kv_cache.KVCache([layer] * a.num_layers, [layer] * a.num_layers)
        self.held = [list(range(1 + b * self.pages, 1 + (b + 1) * self.pages)) for b in range(rows)]
        self.table_BM = table(self.held, rows, self.pages)
        self.is_newline_V = np.zeros(a.vocab_size, bool)
        self._compiled: dict[tuple[str, int], Any] = {}

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

    def rows_at_start(self, prompts: Sequence[Ids], scripts: Sequence[Script]) -> Any:
        """Sequences at their start, on the host."""
        starts = [
            Start(script, prompt, held, Sampling(temperature=0), seed=0, sample=0)
            for prompt, script, held in zip(prompts, scripts, self.held, strict=True)
        ]
        return rows_of(
            starts,
            self.rows,
            context=self.context,
            max_pages=self.pages,
            is_newline_V=self.is_newline_V,
        )

    def place(self, prompts: Sequence[Ids], scripts: Sequence[Script]) -> Any:
        """Sequences at their start, on the device."""
        rows = self.rows_at_start(prompts, scripts)
        return jax.block_until_ready(jax.device_put(rows, self.partition.sharding(())))

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
        static = {"rows": self.rows, "pages": self.pages, "kinds": GREEDY}
        function = Programs(self.model, impl, steps).chunk
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
        return Program(name, Programs(self.model, "xla", 1).prefill, given)

    def prefill(self, prompts: Sequence[Ids]) -> None:
        """Bring prompts into the cache."""
        tokens_BT, positions_BT = _rows(prompts)
        key = ("prefill", tokens_BT.shape[1])
        if key not in self._compiled:
            self._compiled[key] = self.prefill_program(*tokens_BT.shape).compile()
        program = self._compiled[key]
        self.cache = program(self.params, self.cache, tokens_BT, positions_BT, self.table_BM)

    def call(self, program: Any, slots: Any) -> Written:
        """Run a compiled chunk; what it wrote, on the host."""
        self.cache, _, written = program(self.params, self.cache, slots, self.is_newline_V)
        return jax.device_get(written)

    def compile_chunk(self, impl: str, steps: int) -> tuple[Any, dict[str, int]]:
        """The executable, and what the host starts for a chunk (`compile_and_look`)."""
        lowered = self.chunk_program(impl, steps).lower()
        platform = self.partition.mesh.devices.flat[0].platform
        return compile_and_look(lowered, platform)

    def run(
        self, impl: str, prompts: Sequence[Ids], scripts: Sequence[Script], *, steps: int
    ) -> Written:
        """A chunk of sequences at their start."""
        if (impl, steps) not in self._compiled:
            self._compiled[impl, steps] = self.chunk_program(impl, steps).compile()
        return self.call(self._compiled[impl, steps], self.place(prompts, scripts))

    def _shapes(self, tree: Any) -> Any:
        where = self.partition.sharding(())
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
        x_BTD, _ = unrolled.forward(loop.model, params, cache, tokens_BT, positions_BT, table_BM)
        x_BND = jnp.take_along_axis(x_BTD, at_BN[..., None], axis=1)
        x_RD = x_BND.reshape(-1, x_BND.shape[-1])
        logits = unrolled.logits(loop.model, params, x_RD)[:, :vocabulary]
        chosen = jnp.take_along_axis(logits, chosen_BN.reshape(-1, 1), axis=1)[:, 0]
        return ((logits.max(-1) - chosen) / logits.std(-1)).reshape(chosen_BN.shape)

    text, step = np.zeros((rows, tokens), np.int32), np.zeros((rows, steps), np.int32)
    inputs = (text, text, loop.table_BM[:rows], step, step)
    given = (loop.params, loop.cache, *(loop._shapes(x) for x in inputs))
    return Program(f"logit gap of {rows} x {tokens} tokens", jax.jit(gaps), given)


def logit_gap(loop: RandomWeightsLoop, prompts: Sequence[Ids], written: Written) -> float:
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
    after_wait = np.pad(written.kind_NB[:-1] == budget.WAIT, ((1, 0), (0, 0)))
    counts_NB = ~written.forced_NB & ~after_wait & (written.kind_NB != budget.PASSED)
    return float(np.asarray(found_BN).T[counts_NB].max())


def weight_shapes(params: Any, shardings: Any) -> Any:
    """Shapes of parameters with where they go."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), params, shardings
    )


def draw_programs(shapes: Any) -> list[Program]:
    """What `fill_weights` runs: one program for all arrays of a shape that are drawn."""
    drawn = [leaf for path, leaf in jax.tree.leaves_with_path(shapes) if not _is_norm(_name(path))]
    kinds = {(leaf.shape, leaf.dtype, leaf.sharding): None for leaf in drawn}
    return [draw_program(*kind) for kind in kinds]


def fill_weights(shapes: Any, seed: int = 0) -> Any:
    """Random weights in the form of a tree of shapes."""
    leaves, tree = jax.tree.flatten_with_path(shapes)
    made = [_weight(_name(path), leaf, seed + i) for i, (path, leaf) in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


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
    return tokens, np.where(kept, np.arange(longest), kv_cache.PADDING).astype(np.int32)
