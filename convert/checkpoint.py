"""The arrays of our checkpoints: an Orbax item `params`, one zarr directory per parameter.

    DST/config.json, tokenizer files      in Hugging Face form
    DST/params/<dotted path>/.zarray      shape, dtype, chunks
    DST/params/<dotted path>/3.0.0        the chunk of layer 3: raw bytes
    DST/params/_METADATA ...              what Orbax needs to restore the tree

Orbax's own `save` wants the whole tree in memory; here a chunk is written as soon as its tensor
has been read. Reading goes through tensorstore, so that what training saves with Orbax (any
chunks, compressed) is read as well. `orbax.checkpoint` restores both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from convert import shards
from convert.mapping import Piece, Shape, parameters, pieces
from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture

#: Decoded chunks that are kept when one chunk holds several layers (training chose the chunks).
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Writer:
    """Writes our layout, piece by piece.

    Args:
        architecture: what is written
        dtypes: of each parameter, by path
    """

    architecture: Architecture
    dtypes: dict[str, np.dtype]

    @property
    def identity(self) -> str:
        """Differs where files would differ."""
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
        """What a piece is written as."""
        return self.dtypes[piece.ours]

    def write(self, folder: Path, piece: Piece, block: np.ndarray) -> Path:
        """Write one piece [piece.shape]; returns the file that has to reach the disk."""
        chunk = self._chunks[piece.ours]
        if block.shape != chunk:  # the last of several: zarr stores whole chunks
            whole = np.zeros(chunk, block.dtype)
            whole[tuple(slice(0, n) for n in block.shape)] = block
            block = whole
        place = ".".join(str(s.start // n) for s, n in zip(piece.index, chunk, strict=True))
        path = folder / "params" / piece.ours / place
        shards.write_at(path, 0, block)
        return path

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return parameters(self.architecture)

    @cached_property
    def _chunks(self) -> dict[str, Shape]:
        """The first piece of a parameter is its chunk."""
        return {piece.ours: piece.shape for piece in reversed(pieces(self.architecture))}

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


def read_arrays(params: Path) -> dict[str, ts.TensorStore]:
    """Open every parameter of an Orbax item by its dotted path.

    Raises:
        UserError: there are none, or one is damaged.
    """
    cache = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    found = {path.parent.name: _open(path.parent) for path in sorted(params.glob("*/.zarray"))}
    for name, array in found.items():
        chunk = array.chunk_layout.read_chunk.shape
        if name.startswith("layers.") and chunk and (chunk[0] or 0) > 1:
            found[name] = _open(params / name, cache)
    if not found:
        raise UserError(
            f"{params}: holds no arrays; give a checkpoint that was saved with use_ocdbt=False"
        )
    return found


def read_part(array: ts.TensorStore, index: tuple[slice, ...], name: str) -> np.ndarray:
    """Part of a parameter; raises `UserError` where a chunk is missing or truncated."""
    try:
        return array[index].read().result()
    except ValueError as error:
        raise UserError(f"{name}: {_one_line(error)}; copy the checkpoint again") from None


def _open(folder: Path, context: ts.Context | None = None) -> ts.TensorStore:
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder)},
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, open=True, read=True, context=context or ts.Context()).result()
    except ValueError as error:
        raise UserError(f"{folder}: {_one_line(error)}; copy the checkpoint again") from None


_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def _tree_metadata(shapes: dict[str, Shape]) -> dict[str, Any]:
    """What Orbax keeps beside the arrays: the tree's structure."""
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
