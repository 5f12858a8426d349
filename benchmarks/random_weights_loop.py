"""The real decode loop on a model with random weights, made on the device; no tokenizer.

A `RandomWeightsLoop` consists of shapes and programs; `fill` makes the arrays. Its programs are
therefore the same for a GPU that runs them and ahead of time for an absent one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxs1.decoding.budget import NONE, TokenKind
from jaxs1.decoding.controls import fit
from jaxs1.decoding.decode_loop import NO_LIMIT, ChunkOutput, CompiledFunctions
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
from kernels.int8 import LARGEST, Int8

GREEDY = SamplingFlags(sampled=False, filtered=False, penalised=False)
#: Reserve for temporaries of programs and the allocator's fragmentation [bytes].
SPARE = 1e9

Ids = list[int]


def make_thinking(
    *, budget: int | None = None, waits: int = 0, end: int | None = None
) -> TokenizedThinking:
    """Budget forcing of a sequence: none, or an end of thinking, and Waits.

    Args:
        budget: thinking budget [tokens], followed by eight forced tokens; None forces nothing
        waits: how many times the end of thinking is replaced
        end: id that ends thinking; None: the model cannot end it
    """
    if budget is None:
        return TokenizedThinking(ThinkingParams(mode="off", min_answer_tokens=1), *[()] * 9)
    params = ThinkingParams(max=budget, num_waits=waits, min_answer_tokens=1)
    ends: Any = () if end is None else ((end,),)
    return TokenizedThinking(
        params, start=(), ends=ends, resume=(NONE,) * len(ends), stops=(), reopen=(),
        line_break=(), close=(11, 12, 13, 14), answer_prefix=(15, 16, 17, 18), waits=((19,),),
    )  # fmt: skip


def required_bytes(a: Architecture, dtype: str, **settings: Any) -> float:
    """Bytes of a filled `RandomWeightsLoop`; drawing needs no temporary memory."""
    loop = RandomWeightsLoop(a, jax.devices()[0], dtype, **settings)
    leaves = jax.tree.leaves((loop.params, loop.cache))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) + SPARE


def free_bytes(device: Any) -> float:
    """Free memory of a device; infinity if it does not report it."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)


class RandomWeightsLoop:
    """Sequences of one model in one cache.

    Args:
        a: architecture of the model
        device: device that it runs on or is compiled for
        dtype: dtype of weights and cache
        rows: number of sequences
        context: capacity of a sequence [tokens]
        linear: implementation of products, which says how weights are stored
    """

    def __init__(
        self,
        a: Architecture,
        device: Any,
        dtype: str,
        *,
        rows: int,
        context: int,
        linear: str = "xla",
    ):
        self.rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=1), [device])
        compute: Any = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
        self.model = transformer.abstract(a, compute, self.rules, linear=linear)
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

    def draw_programs(self) -> list[Program]:
        """The programs that `fill` runs."""
        return draw_programs((self.params, self.cache))

    def fill(self, seed: int = 0) -> Self:
        """Make weights and cache; returns the loop. A cache of zeros would be faster to read."""
        self.params = fill_weights(self.params, seed)
        pages, tree = jax.tree.flatten(self.cache)
        drawn = [draw(leaf, seed - 1 - i) for i, leaf in enumerate(pages)]
        self.cache = jax.tree.unflatten(tree, drawn)
        jax.block_until_ready((self.params, self.cache))
        return self

    def rows_at_start(self, prompts: Sequence[Ids], thinking: Sequence[TokenizedThinking]) -> Any:
        """Sequences at their start, on the host."""
        starts = [
            NewSequence(
                one,
                prompt,
                held,
                fit(one, len(prompt), self.context),
                SamplingParams(),
                seed=0,
                sample=0,
            )
            for prompt, one, held in zip(prompts, thinking, self.held, strict=True)
        ]
        return rows_of(
            starts,
            self.rows,
            max_pages=self.pages,
            is_newline_V=self.is_newline_V,
        )

    def insert(self, prompts: Sequence[Ids], thinking: Sequence[TokenizedThinking]) -> Any:
        """Sequences at their start, on the device."""
        rows = self.rows_at_start(prompts, thinking)
        return jax.block_until_ready(jax.device_put(rows, self.rules.sharding(())))

    def decode_program(
        self, impl: str, steps: int, options: Mapping[str, Any] | None = None
    ) -> Program:
        """(params, cache, state, newlines, limit, eager) -> cache, state, output.

        Args:
            impl: implementation of the decode step
            steps: number of decode steps
            options: XLA options, in place of the implementation's
        """
        state = self.rows_at_start([[1]] * self.rows, [make_thinking()] * self.rows)
        inputs = (state, self.is_newline_V, NO_LIMIT, np.bool_(False))
        given = (self.params, self.cache, *map(self.on_device, inputs))
        static = {"rows": self.rows, "pages": self.pages, "flags": GREEDY}
        function = CompiledFunctions(self.model, impl, steps).decode_steps
        layers = self.model.architecture.num_layers
        name = f"{impl} decode steps: {layers} layers, {self.rows} sequences, {steps} steps"
        if self.model.build.linear != "xla":
            name += f", weights in {self.model.build.linear}"
        if options is not None:
            name += f", {', '.join(f'{k}={v}' for k, v in options.items())}"
        return Program(name, function, given, static, options)

    def prefill_program(self, rows: int, tokens: int) -> Program:
        """(params, cache, tokens, positions, table) -> cache."""
        int32: Any = np.zeros((rows, tokens), np.int32)
        table_BM = self.on_device(self.table_BM[:rows])
        given = (self.params, self.cache, self.on_device(int32), self.on_device(int32), table_BM)
        layers = self.model.architecture.num_layers
        name = f"prefill: {layers} layers, {rows} x {tokens} tokens"
        return Program(name, CompiledFunctions(self.model, "xla", 1).prefill, given)

    def prefill(self, prompts: Sequence[Ids]) -> None:
        """Prefill the cache with prompts."""
        tokens_BT, positions_BT = _rows(prompts)
        key = ("prefill", tokens_BT.shape[1])
        if key not in self._compiled:
            self._compiled[key] = self.prefill_program(*tokens_BT.shape).compile()
        program = self._compiled[key]
        self.cache = program(self.params, self.cache, tokens_BT, positions_BT, self.table_BM)

    def call(self, program: Any, state: Any) -> ChunkOutput:
        """Run compiled decode steps; returns their output on the host."""
        self.cache, _, output = program(
            self.params, self.cache, state, self.is_newline_V, NO_LIMIT, np.bool_(False)
        )
        return jax.device_get(output)

    def compile_decode(self, impl: str, steps: int) -> tuple[Any, dict[str, int]]:
        """The executable, and what the host launches for it (`compile_program`)."""
        lowered = self.decode_program(impl, steps).lower()
        platform = self.rules.mesh.devices.flat[0].platform
        program = compile_program(lowered, platform)
        return program.executable, program.launches

    def run(
        self,
        impl: str,
        prompts: Sequence[Ids],
        thinking: Sequence[TokenizedThinking],
        *,
        steps: int,
    ) -> ChunkOutput:
        """Decode steps of sequences at their start."""
        if (impl, steps) not in self._compiled:
            self._compiled[impl, steps] = self.decode_program(impl, steps).compile()
        return self.call(self._compiled[impl, steps], self.insert(prompts, thinking))

    def on_device(self, tree: Any) -> Any:
        """Shapes of arrays on the host, once they are on the device."""
        where = self.rules.sharding(())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where), tree
        )


def logit_gap_program(loop: RandomWeightsLoop, rows: int, tokens: int, steps: int) -> Program:
    """The program of `logit_gap`: XLA's logits for texts of at most `tokens` tokens.

    (params, cache, tokens, positions, table, indices, chosen) -> gaps [B, N]
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
    given = (loop.params, loop.cache, *(loop.on_device(x) for x in inputs))
    return Program(f"logit gap of {rows} x {tokens} tokens", jax.jit(gaps), given)


def logit_gap(loop: RandomWeightsLoop, prompts: Sequence[Ids], output: ChunkOutput) -> float:
    """Largest gap between XLA's highest logit and the logit of the token that a loop chose.

    In standard deviations of the logits. XLA reads prompts and generated tokens as one text, so
    differences in rounding do not accumulate. Forced tokens do not count, nor those after a Wait,
    where ends are forbidden. Leaves the cache unchanged.
    """
    steps = output.token_NB.shape[0]
    texts = [[*p, *ids.tolist()] for p, ids in zip(prompts, output.token_NB.T, strict=True)]
    tokens_BT, positions_BT = _rows(texts)
    first_B = np.asarray([len(p) - 1 for p in prompts])
    at_BN = (first_B[:, None] + np.arange(steps)).astype(np.int32)
    program = logit_gap_program(loop, *tokens_BT.shape, steps).compile()
    chosen_BN = np.ascontiguousarray(output.token_NB.T.astype(np.int32))
    found_BN = program(
        loop.params, loop.cache, tokens_BT, positions_BT, loop.table_BM, at_BN, chosen_BN
    )
    after_wait = np.pad(output.kind_NB[:-1] == TokenKind.WAIT, ((1, 0), (0, 0)))
    counts_NB = ~output.forced_NB & ~after_wait & (output.kind_NB != TokenKind.PAD)
    return float(np.asarray(found_BN).T[counts_NB].max())


def weight_shapes(params: Any, shardings: Any) -> Any:
    """Shapes of parameters with their shardings."""
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
    leaves, tree = jax.tree.flatten_with_path(shapes, is_leaf=_is_int8)
    made = [_weight(_name(path), leaf, seed + i) for i, (path, leaf) in enumerate(leaves)]
    return jax.tree.unflatten(tree, made)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _is_norm(name: str) -> bool:
    return "norm" in name


def _weight(name: str, leaf: Any, seed: int) -> jax.Array | Int8:
    """Norms of ones; matrices that preserve the scale of their inputs.

    Queries and keys are larger: attention concentrates on few keys, which reveals a wrong one.
    """
    if _is_norm(name):
        return jnp.ones(leaf.shape, leaf.dtype, device=leaf.sharding)
    if isinstance(leaf, Int8):
        return _int8_weight(name, leaf, seed)
    # stacked layers have an axis of their own in front
    sizes = leaf.shape[1:] if name.startswith("['layers']['") else leaf.shape
    inputs = 1 if "embedding" in name or "bias" in name else sizes[0]
    if "'o'" in name:
        inputs *= sizes[1]
    return draw(leaf, seed, _deviation(name, inputs))


def _int8_weight(name: str, leaf: Int8, seed: int) -> Int8:
    """Integers of all values, and scales that differ by up to a factor of three."""
    inputs = math.prod(leaf.values.shape[leaf.scale.ndim :])
    deviation = LARGEST / 3**0.5  # of uniform numbers up to the largest
    relative = 1 + draw(leaf.scale, ~seed, 0.5 / 3**0.5)
    scale = relative * np.float32(_deviation(name, inputs) / deviation)
    return Int8(draw(leaf.values, seed, deviation), scale)


def _is_int8(leaf: Any) -> bool:
    return isinstance(leaf, Int8)


def _deviation(name: str, inputs: int) -> float:
    return inputs**-0.5 * (1.5 if "'q'" in name or "'k'" in name else 1)


def _rows(texts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and positions [B, T] of texts of several lengths."""
    longest = max(map(len, texts))
    tokens = np.asarray([t + [0] * (longest - len(t)) for t in texts], np.int32)
    kept = np.arange(longest) < np.asarray([[len(t)] for t in texts])
    return tokens, np.where(kept, np.arange(longest), kv_cache.PAD_POSITION).astype(np.int32)
