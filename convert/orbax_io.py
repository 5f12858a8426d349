"""Orbax checkpoints: an item `params` with one zarr directory per parameter.

    DST/config.json, tokenizer files      in Hugging Face format
    DST/params/<dotted path>/.zarray      shape, dtype, chunks
    DST/params/<dotted path>/3.0.0        the chunk of layer 3: raw bytes
    DST/params/_METADATA ...              what Orbax needs to restore the tree

Orbax's own `save` needs the complete tree in memory; here a chunk is written as soon as its tensor
has been read. Reading uses tensorstore, so checkpoints that training saves with Orbax (any chunks,
compressed) are read as well. `orbax.checkpoint` restores both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from convert import safetensors_io
from convert.mapping import Piece, Shape, parameters, pieces
from convert.transpose import copy
from jaxs1.config import UserError, one_line
from jaxs1.model.architecture import Architecture

#: Supported dtypes, by their names in zarr.
DTYPES = ("bfloat16", "<f2", "<f4")

#: Size of the cache of decoded chunks, for checkpoints whose chunks hold several layers.
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Writer:
    """Writes an Orbax checkpoint, piece by piece.

    Args:
        architecture: shapes of the model
        dtypes: dtype to write of each parameter, by path
    """

    architecture: Architecture
    dtypes: dict[str, np.dtype]

    @property
    def identity(self) -> str:
        """See `transfer.Writer`."""
        return json.dumps([self._zarray(path) for path in self._chunks])

    def prepare(self, folder: Path) -> None:
        """Write everything but the chunks."""
        params = folder / "params"
        for path in self._chunks:
            (params / path).mkdir(parents=True, exist_ok=True)
            (params / path / ".zarray").write_text(json.dumps(self._zarray(path)))
        (params / "_METADATA").write_text(json.dumps(_tree_metadata(self._shapes)))
        (params / "_CHECKPOINT_METADATA").write_text(
            json.dumps({"item_handlers": _HANDLER, "metrics": {}, "custom_metadata": {}})
        )

    def dtype(self, piece: Piece) -> np.dtype:
        """Dtype that a piece is written in."""
        return self.dtypes[piece.param]

    def write(self, folder: Path, piece: Piece, block: np.ndarray) -> Path:
        """Write a piece [piece.shape]; returns its file."""
        chunk = self._chunks[piece.param]
        if block.shape != chunk:  # the last of several: zarr stores chunks of one size
            padded = np.zeros(chunk, block.dtype)
            copy(padded[tuple(slice(0, n) for n in block.shape)], block)
            block = padded
        path = folder / "params" / piece.param / _chunk_name(piece.index, chunk)
        safetensors_io.write_at(path, 0, block)
        return path

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return parameters(self.architecture)

    @cached_property
    def _chunks(self) -> dict[str, Shape]:
        """Chunk shape of each parameter: that of its first piece."""
        return {piece.param: piece.shape for piece in reversed(pieces(self.architecture))}

    def _zarray(self, path: str) -> dict[str, Any]:
        dtype = self.dtypes[path]
        return {
            "chunks": self._chunks[path],
            "compressor": None,
            "dimension_separator": ".",
            "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.str,
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": self._shapes[path],
            "zarr_format": 2,
        }


@dataclass(frozen=True)
class Array:
    """A stored parameter.

    Args:
        folder: its zarr directory
        store: the open array
        chunk: shape of a chunk
        plain: whether chunks are files of raw bytes in C order
    """

    folder: Path
    store: ts.TensorStore
    chunk: Shape
    plain: bool

    @property
    def shape(self) -> Shape:
        """Shape, including the layer axis."""
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored numbers."""
        return self.store.dtype.numpy_dtype

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of the array; raises `UserError` if a chunk is missing or truncated."""
        if self.plain and _is_chunk(index, self.chunk):
            return self._read_plain(self.folder / _chunk_name(index, self.chunk))
        try:
            return self.store[index].read().result()
        except ValueError as error:
            raise UserError(f"{self.folder}: {one_line(error)}; {safetensors_io.REMEDY}") from None

    def _read_plain(self, file: Path) -> np.ndarray:
        """Read one chunk, without the copy that tensorstore makes."""
        size = file.stat().st_size if file.exists() else 0
        wanted = math.prod(self.chunk) * self.dtype.itemsize
        if size != wanted:
            raise UserError(
                f"{file}: has {size} bytes, must have {wanted}; {safetensors_io.REMEDY}"
            )
        return safetensors_io.read_at(file, 0, self.chunk, self.dtype)


def read_arrays(params: Path) -> dict[str, Array]:
    """Open every parameter of an Orbax item by its dotted path.

    Raises:
        UserError: there are none, or one is damaged.
    """
    # shared by all, so that a chunk of several layers is decoded once, not once per layer
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    found = {path.parent.name: _open(path, context) for path in sorted(params.glob("*/.zarray"))}
    if not found:
        raise UserError(
            f"{params}: contains no arrays; give a checkpoint that was saved with use_ocdbt=False"
        )
    return found


def _open(path: Path, context: ts.Context) -> Array:
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path.parent)},
        "fill_missing_data_reads": False,
    }
    try:
        header = json.loads(path.read_bytes())
        plain = not header["compressor"] and not header["filters"]
        if header["order"] != "C" or header["dtype"] not in DTYPES:
            raise ValueError(f"order={header['order']!r}, dtype={header['dtype']!r}")
        store = ts.open(spec, open=True, read=True, context=context).result()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: corrupt ({one_line(error)}); {safetensors_io.REMEDY}") from None
    return Array(path.parent, store, tuple(header["chunks"]), plain)


def _is_chunk(index: tuple[slice, ...], chunk: Shape) -> bool:
    """Whether a part of an array is exactly one of its chunks."""
    return all(
        s.start % n == 0 and s.stop - s.start == n for s, n in zip(index, chunk, strict=True)
    )


def _chunk_name(index: tuple[slice, ...], chunk: Shape) -> str:
    """The file name of the chunk in which a part of an array begins."""
    return ".".join(str(s.start // n) for s, n in zip(index, chunk, strict=True))


_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def _tree_metadata(shapes: dict[str, Shape]) -> dict[str, Any]:
    """The structure of the tree, which Orbax stores next to the arrays."""
    dictionary_key = 2
    tree = {}
    for path, shape in shapes.items():
        keys = tuple(path.split("."))
        tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": dictionary_key} for key in keys],
            "value_metadata": {
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": shape,
            },
        }
    return {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
