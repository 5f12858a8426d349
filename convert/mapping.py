"""Which Hugging Face tensor is which parameter of ours: one table, read in both directions.

`TABLE` is all there is to know. From it come the expected Hugging Face names and shapes
(`tensors`), our parameters and their shapes (`parameters`), and the pieces that a conversion
moves (`pieces`). Nothing here opens a file.

Letters: `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from jaxs1.model.architecture import Architecture

Shape = tuple[int, ...]

#: A tensor outside the layers is moved in pieces of at most so many elements (256 MB in float32).
PIECE_ELEMENTS = 64 << 20


@dataclass(frozen=True)
class Row:
    """One parameter under its two names.

    Args:
        hf: name of the Hugging Face tensor; {i} stands for the layer
        ours: path in our parameter tree; everything under `layers` has a leading layer axis
        transform: transpose where Hugging Face keeps [out, in] and we keep [in, out]
        axes: our axes, without the layer; a word's letters are one axis of the Hugging Face tensor
        only: the property that a model needs to have this parameter
    """

    hf: str
    ours: str
    transform: Literal["copy", "transpose"]
    axes: str
    only: Literal["always", "untied", "qkv_bias", "qk_norm"] = "always"


_I = "model.layers.{i}."
COPY: Final = "copy"
SWAP: Final = "transpose"

# fmt: off
TABLE = (
    Row("model.embed_tokens.weight",            "embedding",                COPY, "V D"),
    Row(_I + "input_layernorm.weight",          "layers.attn_norm.scale",   COPY, "D"),
    Row(_I + "self_attn.q_proj.weight",         "layers.attn.q.kernel",     SWAP, "D NH"),
    Row(_I + "self_attn.q_proj.bias",           "layers.attn.q.bias",       COPY, "NH", "qkv_bias"),
    Row(_I + "self_attn.q_norm.weight",         "layers.attn.q_norm.scale", COPY, "H", "qk_norm"),
    Row(_I + "self_attn.k_proj.weight",         "layers.attn.k.kernel",     SWAP, "D KH"),
    Row(_I + "self_attn.k_proj.bias",           "layers.attn.k.bias",       COPY, "KH", "qkv_bias"),
    Row(_I + "self_attn.k_norm.weight",         "layers.attn.k_norm.scale", COPY, "H", "qk_norm"),
    Row(_I + "self_attn.v_proj.weight",         "layers.attn.v.kernel",     SWAP, "D KH"),
    Row(_I + "self_attn.v_proj.bias",           "layers.attn.v.bias",       COPY, "KH", "qkv_bias"),
    Row(_I + "self_attn.o_proj.weight",         "layers.attn.o.kernel",     SWAP, "NH D"),
    Row(_I + "post_attention_layernorm.weight", "layers.mlp_norm.scale",    COPY, "D"),
    Row(_I + "mlp.gate_proj.weight",            "layers.mlp.gate.kernel",   SWAP, "D F"),
    Row(_I + "mlp.up_proj.weight",              "layers.mlp.up.kernel",     SWAP, "D F"),
    Row(_I + "mlp.down_proj.weight",            "layers.mlp.down.kernel",   SWAP, "F D"),
    Row("model.norm.weight",                    "final_norm.scale",         COPY, "D"),
    Row("lm_head.weight",                       "lm_head",                  SWAP, "D V", "untied"),
)
# fmt: on


@dataclass(frozen=True)
class Piece:
    """What is moved at a time: a tensor, or some rows of a large one, and where it lies in ours.

    Args:
        hf: name of the Hugging Face tensor
        rows: which part of the tensor's first axis
        hf_shape: of that part
        ours: path of our parameter
        index: which part of our parameter, layer axis included
        shape: of that part
        transform: the row's
    """

    hf: str
    rows: slice
    hf_shape: Shape
    ours: str
    index: tuple[slice, ...]
    shape: Shape
    transform: str

    @property
    def name(self) -> str:
        """Unique among the pieces of a model."""
        return f"{self.hf}[{self.rows.start}:{self.rows.stop}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def to_ours(self, block: np.ndarray) -> np.ndarray:
        """Rows of the Hugging Face tensor [hf_shape] -> part of our parameter [shape], a view."""
        return (block.T if self.transform == "transpose" else block).reshape(self.shape)

    def to_hf(self, block: np.ndarray) -> np.ndarray:
        """Part of our parameter [shape] -> rows of the Hugging Face tensor [hf_shape], a view."""
        if self.transform == "transpose":
            return block.reshape(self.hf_shape[::-1]).T
        return block.reshape(self.hf_shape)


def tensors(architecture: Architecture) -> dict[str, Shape]:
    """The Hugging Face names that a model has, in order, and their shapes."""
    return {
        row.hf.format(i=layer): _hf_shape(row, architecture) for row, layer in _rows(architecture)
    }


def parameters(architecture: Architecture) -> dict[str, Shape]:
    """Our parameters by dotted path and their shapes, layer axis included."""
    layers = architecture.num_layers
    return {
        row.ours: (() if layer is None else (layers,)) + _shape(row, architecture)
        for row, layer in _rows(architecture)
    }


def pieces(architecture: Architecture) -> list[Piece]:
    """All that a conversion moves, in the order of `tensors`."""
    return [piece for row in _rows(architecture) for piece in _split(*row, architecture)]


def _rows(architecture: Architecture) -> list[tuple[Row, int | None]]:
    """The rows that apply, those of the layers once per layer, layer by layer."""
    has = {
        "always": True,
        "untied": not architecture.tie_word_embeddings,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
    }
    rows = [row for row in TABLE if has[row.only]]
    stacked = [row for row in rows if "{i}" in row.hf]
    first = rows.index(stacked[0])
    last = first + len(stacked)
    layers = [(row, layer) for layer in range(architecture.num_layers) for row in stacked]
    return [*((r, None) for r in rows[:first]), *layers, *((r, None) for r in rows[last:])]


def _groups(row: Row, a: Architecture) -> list[Shape]:
    widths = {
        "D": a.hidden_size,
        "F": a.intermediate_size,
        "H": a.head_dim,
        "K": a.num_kv_heads,
        "N": a.num_heads,
        "V": a.vocab_size,
    }
    return [tuple(widths[letter] for letter in word) for word in row.axes.split()]


def _shape(row: Row, architecture: Architecture) -> Shape:
    return sum(_groups(row, architecture), ())


def _hf_shape(row: Row, architecture: Architecture) -> Shape:
    shape = tuple(math.prod(group) for group in _groups(row, architecture))
    return shape[::-1] if row.transform == "transpose" else shape


def _split(row: Row, layer: int | None, architecture: Architecture) -> list[Piece]:
    """One piece per layer; elsewhere equal bands of rows (the last may be shorter)."""
    shape, hf_shape = _shape(row, architecture), _hf_shape(row, architecture)
    whole = tuple(slice(0, n) for n in shape)
    if layer is not None:
        index = (slice(layer, layer + 1), *whole)
        rows = slice(0, hf_shape[0])
        hf = row.hf.format(i=layer)
        return [Piece(hf, rows, hf_shape, row.ours, index, (1, *shape), row.transform)]
    axis = len(shape) - 1 if row.transform == "transpose" else 0
    count = hf_shape[0]
    step = math.ceil(count / math.ceil(math.prod(shape) / PIECE_ELEMENTS))
    found = []
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        n = rows.stop - rows.start
        index = (*whole[:axis], rows, *whole[axis + 1 :])
        part = (*shape[:axis], n, *shape[axis + 1 :])
        found.append(Piece(row.hf, rows, (n, *hf_shape[1:]), row.ours, index, part, row.transform))
    return found
