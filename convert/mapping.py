"""Which Hugging Face tensor is which parameter: one table, read in both directions.

Everything is derived from `TABLE`: the expected Hugging Face names and shapes (`tensors`), the
model's parameters and their shapes (`parameters`), and the pieces that a conversion moves
(`pieces`). Nothing here opens a file.

Letters: `jaxs1/model/architecture.py`; M width of an expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from jaxs1.model.architecture import Architecture

Shape = tuple[int, ...]
#: What a model has or not.
Property = Literal["always", "untied", "qkv_bias", "qk_norm", "dense", "experts"]

#: Most elements of a piece of a tensor outside the layers (256 MB in float32).
PIECE_ELEMENTS = 64 << 20


@dataclass(frozen=True)
class ParamSpec:
    """A parameter and the Hugging Face tensor that it is stored as, or those of its parts.

    Args:
        hf: name of the Hugging Face tensor; {i} stands for the layer, {e} for the expert
        param: dotted path in the parameter tree; those under `layers` have a leading layer axis,
            those with {e} an axis of experts behind it
        transform: "transpose" where Hugging Face stores [out, in] for our [in, out]
        axes: axes of the parameter without layer and expert; each word is one axis of the
            Hugging Face tensor
        only: property that a model must have for this parameter to exist
    """

    hf: str
    param: str
    transform: Literal["copy", "transpose"]
    axes: str
    only: Property = "always"


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
    _layer("mlp.gate_proj.weight",            "mlp.gate.kernel",   SWAP, "D F",  "dense"),
    _layer("mlp.up_proj.weight",              "mlp.up.kernel",     SWAP, "D F",  "dense"),
    _layer("mlp.down_proj.weight",            "mlp.down.kernel",   SWAP, "F D",  "dense"),
    _layer("mlp.gate.weight",                 "mlp.router.kernel", SWAP, "D E",  "experts"),
    _layer("mlp.experts.{e}.gate_proj.weight", "mlp.gate",         SWAP, "D M",  "experts"),
    _layer("mlp.experts.{e}.up_proj.weight",  "mlp.up",            SWAP, "D M",  "experts"),
    _layer("mlp.experts.{e}.down_proj.weight", "mlp.down",         SWAP, "M D",  "experts"),
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
    return {part.hf: _hf_shape(part.spec, architecture) for part in _parts(architecture)}


def parameters(architecture: Architecture) -> dict[str, Shape]:
    """Shapes of a model's parameters by dotted path, layer axis included."""
    counts = architecture.num_layers, architecture.experts.count if architecture.experts else 0
    return {
        part.spec.param: counts[: len(part.place)] + _shape(part.spec, architecture)
        for part in _parts(architecture)
    }


def pieces(architecture: Architecture) -> list[Piece]:
    """All pieces of a model, in the order of `tensors`."""
    return [piece for part in _parts(architecture) for piece in _split(part, architecture)]


@dataclass(frozen=True)
class _Part:
    """A Hugging Face tensor.

    Args:
        spec: its entry
        place: its index in the parameter: (), (layer,) or (layer, expert)
    """

    spec: ParamSpec
    place: tuple[int, ...] = ()

    @property
    def hf(self) -> str:
        """Its name."""
        return self.spec.hf.format(**dict(zip("ie", self.place, strict=False)))


def _parts(architecture: Architecture) -> list[_Part]:
    """The tensors of a model; those of the layers layer by layer."""
    has = {
        "always": True,
        "untied": not architecture.tie_word_embeddings,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "dense": architecture.experts is None,
        "experts": architecture.experts is not None,
    }
    experts = range(architecture.experts.count) if architecture.experts else range(0)
    specs = [spec for spec in TABLE if has[spec.only]]
    stacked = [spec for spec in specs if "{i}" in spec.hf]
    first = specs.index(stacked[0])
    last = first + len(stacked)
    layers = [
        _Part(spec, (layer, *expert))
        for layer in range(architecture.num_layers)
        for spec in stacked
        for expert in ([(e,) for e in experts] if "{e}" in spec.hf else [()])
    ]
    return [*map(_Part, specs[:first]), *layers, *map(_Part, specs[last:])]


def _groups(spec: ParamSpec, a: Architecture) -> list[Shape]:
    widths = {
        "D": a.hidden_size,
        "F": a.intermediate_size,
        "H": a.head_dim,
        "K": a.num_kv_heads,
        "N": a.num_heads,
        "V": a.vocab_size,
        "E": a.experts.count if a.experts else 0,
        "M": a.experts.width if a.experts else 0,
    }
    return [tuple(widths[letter] for letter in word) for word in spec.axes.split()]


def _shape(spec: ParamSpec, architecture: Architecture) -> Shape:
    return sum(_groups(spec, architecture), ())


def _hf_shape(spec: ParamSpec, architecture: Architecture) -> Shape:
    shape = tuple(math.prod(group) for group in _groups(spec, architecture))
    return shape[::-1] if spec.transform == "transpose" else shape


def _split(part: _Part, architecture: Architecture) -> list[Piece]:
    """One piece per layer and expert; elsewhere equal ranges of rows (the last may be shorter)."""
    spec = part.spec
    shape, hf_shape = _shape(spec, architecture), _hf_shape(spec, architecture)
    full = tuple(slice(0, n) for n in shape)
    if part.place:
        index = (*(slice(i, i + 1) for i in part.place), *full)
        rows, one = slice(0, hf_shape[0]), (1,) * len(part.place)
        return [Piece(part.hf, rows, hf_shape, spec.param, index, one + shape, spec.transform)]
    axis = len(shape) - 1 if spec.transform == "transpose" else 0
    count = hf_shape[0]
    step = math.ceil(count / math.ceil(math.prod(shape) / PIECE_ELEMENTS))
    found = []
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        n = rows.stop - rows.start
        index = (*full[:axis], rows, *full[axis + 1 :])
        piece = (*shape[:axis], n, *shape[axis + 1 :])
        hf_piece = (n, *hf_shape[1:])
        found.append(Piece(spec.hf, rows, hf_piece, spec.param, index, piece, spec.transform))
    return found
