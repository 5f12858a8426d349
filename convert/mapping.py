"""Which Hugging Face tensor is which parameter: one table, read in both directions.

Everything is derived from `TABLE`: the expected Hugging Face names and shapes (`tensors`), the
model's parameters and their shapes (`parameters`), and the pieces that a conversion moves
(`pieces`). Nothing here opens a file.

Letters: `jaxs1/model/architecture.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from jaxs1.model.architecture import Architecture

Shape = tuple[int, ...]

#: Most elements of a piece of a tensor outside the layers (256 MB in float32).
PIECE_ELEMENTS = 64 << 20


@dataclass(frozen=True)
class ParamSpec:
    """A parameter and the Hugging Face tensor that it is stored as.

    Args:
        hf: name of the Hugging Face tensor; {i} stands for the layer
        param: dotted path in the parameter tree; those under `layers` have a leading layer axis
        transform: "transpose" where Hugging Face stores [out, in] for our [in, out]
        axes: axes of the parameter without the layer; each word is one axis of the Hugging Face
            tensor
        only: property that a model must have for this parameter to exist
    """

    hf: str
    param: str
    transform: Literal["copy", "transpose"]
    axes: str
    only: Literal["always", "untied", "qkv_bias", "qk_norm"] = "always"


COPY: Final = "copy"
SWAP: Final = "transpose"


def _layer(hf: str, param: str, *rest: Any) -> ParamSpec:
    return ParamSpec("model.layers.{i}." + hf, "layers." + param, *rest)


# fmt: off
TABLE = (
    ParamSpec("model.embed_tokens.weight",    "embedding",         COPY, "V D"),
    _layer("input_layernorm.weight",          "attn_norm.scale",   COPY, "D"),
    _layer("self_attn.q_proj.weight",         "attn.q.kernel",     SWAP, "D NH"),
    _layer("self_attn.q_proj.bias",           "attn.q.bias",       COPY, "NH",   "qkv_bias"),
    _layer("self_attn.q_norm.weight",         "attn.q_norm.scale", COPY, "H",    "qk_norm"),
    _layer("self_attn.k_proj.weight",         "attn.k.kernel",     SWAP, "D KH"),
    _layer("self_attn.k_proj.bias",           "attn.k.bias",       COPY, "KH",   "qkv_bias"),
    _layer("self_attn.k_norm.weight",         "attn.k_norm.scale", COPY, "H",    "qk_norm"),
    _layer("self_attn.v_proj.weight",         "attn.v.kernel",     SWAP, "D KH"),
    _layer("self_attn.v_proj.bias",           "attn.v.bias",       COPY, "KH",   "qkv_bias"),
    _layer("self_attn.o_proj.weight",         "attn.o.kernel",     SWAP, "NH D"),
    _layer("post_attention_layernorm.weight", "mlp_norm.scale",    COPY, "D"),
    _layer("mlp.gate_proj.weight",            "mlp.gate.kernel",   SWAP, "D F"),
    _layer("mlp.up_proj.weight",              "mlp.up.kernel",     SWAP, "D F"),
    _layer("mlp.down_proj.weight",            "mlp.down.kernel",   SWAP, "F D"),
    ParamSpec("model.norm.weight",            "final_norm.scale",  COPY, "D"),
    ParamSpec("lm_head.weight",               "lm_head",           SWAP, "D V",  "untied"),
)
# fmt: on


@dataclass(frozen=True)
class Piece:
    """The unit of a conversion: a tensor of one layer, or a range of rows of a large tensor.

    Args:
        hf: name of the Hugging Face tensor
        rows: range of the tensor's first axis
        hf_shape: shape of these rows
        param: dotted path of the parameter
        index: part of the parameter that the rows are, layer axis included
        shape: shape of that part
        transform: see `ParamSpec`
    """

    hf: str
    rows: slice
    hf_shape: Shape
    param: str
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

    def to_param(self, block: np.ndarray) -> np.ndarray:
        """Rows of the Hugging Face tensor [hf_shape] -> part of the parameter [shape], a view."""
        return (block.T if self.transform == "transpose" else block).reshape(self.shape)

    def to_hf(self, block: np.ndarray) -> np.ndarray:
        """Part of the parameter [shape] -> rows of the Hugging Face tensor [hf_shape], a view."""
        if self.transform == "transpose":
            return block.reshape(self.hf_shape[::-1]).T
        return block.reshape(self.hf_shape)


def tensors(architecture: Architecture) -> dict[str, Shape]:
    """Names and shapes of a model's Hugging Face tensors, in order."""
    return {
        spec.hf.format(i=layer): _hf_shape(spec, architecture)
        for spec, layer in _specs(architecture)
    }


def parameters(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of a model's parameters by dotted path, layer axis included."""
    layers = architecture.num_layers
    return {
        spec.param: (() if layer is None else (layers,)) + _shape(spec, architecture)
        for spec, layer in _specs(architecture)
    }


def pieces(architecture: Architecture) -> list[Piece]:
    """All pieces of a model, in the order of `tensors`."""
    return [piece for spec in _specs(architecture) for piece in _split(*spec, architecture)]


def _specs(architecture: Architecture) -> list[tuple[ParamSpec, int | None]]:
    """The entries that apply; those of the layers once per layer, layer by layer."""
    has = {
        "always": True,
        "untied": not architecture.tie_word_embeddings,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
    }
    specs = [spec for spec in TABLE if has[spec.only]]
    stacked = [spec for spec in specs if "{i}" in spec.hf]
    first = specs.index(stacked[0])
    last = first + len(stacked)
    layers = [(spec, layer) for layer in range(architecture.num_layers) for spec in stacked]
    return [*((s, None) for s in specs[:first]), *layers, *((s, None) for s in specs[last:])]


def _groups(spec: ParamSpec, a: Architecture) -> list[Shape]:
    widths = {
        "D": a.hidden_size,
        "F": a.intermediate_size,
        "H": a.head_dim,
        "K": a.num_kv_heads,
        "N": a.num_heads,
        "V": a.vocab_size,
    }
    return [tuple(widths[letter] for letter in word) for word in spec.axes.split()]


def _shape(spec: ParamSpec, architecture: Architecture) -> Shape:
    return sum(_groups(spec, architecture), ())


def _hf_shape(spec: ParamSpec, architecture: Architecture) -> Shape:
    shape = tuple(math.prod(group) for group in _groups(spec, architecture))
    return shape[::-1] if spec.transform == "transpose" else shape


def _split(spec: ParamSpec, layer: int | None, architecture: Architecture) -> list[Piece]:
    """One piece per layer; elsewhere equal ranges of rows (the last may be shorter)."""
    shape, hf_shape = _shape(spec, architecture), _hf_shape(spec, architecture)
    full = tuple(slice(0, n) for n in shape)
    if layer is not None:
        index = (slice(layer, layer + 1), *full)
        rows = slice(0, hf_shape[0])
        hf = spec.hf.format(i=layer)
        return [Piece(hf, rows, hf_shape, spec.param, index, (1, *shape), spec.transform)]
    axis = len(shape) - 1 if spec.transform == "transpose" else 0
    count = hf_shape[0]
    step = math.ceil(count / math.ceil(math.prod(shape) / PIECE_ELEMENTS))
    found = []
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        n = rows.stop - rows.start
        index = (*full[:axis], rows, *full[axis + 1 :])
        part = (*shape[:axis], n, *shape[axis + 1 :])
        hf_part = (n, *hf_shape[1:])
        found.append(Piece(spec.hf, rows, hf_part, spec.param, index, part, spec.transform))
    return found
