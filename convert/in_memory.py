"""Parameters in memory as `Weights`: what training exports, from one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from convert import safetensors_io
from convert.mapping import Piece, Shape, parameters, pieces
from convert.slices import bounds, intersect, relative, shape_of
from convert.weights import compare
from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture


class InMemoryWeights:
    """Parameters in memory, on any devices.

    If they are sharded over several processes, one of these converts and all others call
    `take_part`: piece by piece is replicated to all devices.

    Args:
        params: nested dictionary of arrays, as returned by `transformer.parameters`
        config: content of the model's `config.json`
        aux_files: folder with the tokenizer files, if any
    """

    def __init__(
        self, params: Mapping[str, Any], config: dict[str, Any], aux_files: Path | None = None
    ):
        """Check names, shapes and dtypes; raises a `UserError` that lists all mismatches."""
        self.name, self.config, self.aux_files = "parameters", config, aux_files
        self.architecture = Architecture.from_hf(config, "config")
        self._arrays = flatten_dict(params, sep=".")
        found = {path: tuple(array.shape) for path, array in self._arrays.items()}
        compare(self.name, parameters(self.architecture), found, "parameters")
        self._dtypes = {path: np.dtype(array.dtype) for path, array in self._arrays.items()}
        _check_dtypes(self.name, self._dtypes)
        self._turn_of = {piece.name: i for i, piece in enumerate(pieces(self.architecture))}
        self._next, self._turns = 0, Condition()

    def dtype(self, path: str) -> np.dtype:
        """See `Weights`."""
        return self._dtypes[path]

    def read(self, piece: Piece) -> np.ndarray:
        """See `Weights`. Only this piece is copied from its devices."""
        array = self._arrays[piece.param]
        if not isinstance(array, jax.Array):
            return np.asarray(array[piece.index])
        if not array.is_fully_addressable:
            return np.asarray(self._gather(array, piece).addressable_data(0))
        block = np.empty(piece.shape, array.dtype)
        for shard in array.addressable_shards:
            held = bounds(shard.index, array.shape)
            inside = intersect(piece.index, held)
            if shard.replica_id == 0 and inside is not None:
                starts = [s.start for s in relative(inside, held)]
                part = _slice(shard.data, starts, shape_of(inside))
                block[relative(inside, piece.index)] = np.asarray(part)
        return block

    def take_part(self) -> None:
        """Join the exchanges of a conversion of these weights that another process runs."""
        for piece in pieces(self.architecture):
            self._gather(self._arrays[piece.param], piece)

    def fingerprint(self) -> None:
        """See `Weights`. None: the memory of an interrupted process is unknown."""
        return

    def _gather(self, array: jax.Array, piece: Piece) -> jax.Array:
        """Replicate a piece to every device. All processes exchange all pieces in the same order.

        The threads of a conversion call this in any order; each waits for the turn of its piece.
        """
        with self._turns:
            self._turns.wait_for(lambda: self._next == self._turn_of[piece.name])
            try:
                starts = [s.start for s in piece.index]
                part = _slice_replicated(array, starts, piece.shape, _replicated(array))
                return jax.block_until_ready(part)
            finally:
                self._next += 1
                self._turns.notify_all()


def on_host(array: jax.Array) -> np.ndarray:
    """A complete array; if it is sharded over processes, all of them must call this."""
    if array.is_fully_addressable:
        return np.asarray(array)
    replicated = jax.jit(lambda x: x, out_shardings=_replicated(array))(array)
    return np.asarray(replicated.addressable_data(0))


#: A part of an array; compiled once for all starts.
_slice = jax.jit(lax.dynamic_slice, static_argnums=2)


def _replicated(array: jax.Array) -> NamedSharding:
    assert isinstance(array.sharding, NamedSharding)
    return NamedSharding(array.sharding.mesh, PartitionSpec())


@partial(jax.jit, static_argnums=(2, 3))
def _slice_replicated(
    array: jax.Array, starts: list[int], sizes: Shape, replicated: NamedSharding
) -> jax.Array:
    return lax.with_sharding_constraint(lax.dynamic_slice(array, starts, sizes), replicated)


def _check_dtypes(name: str, dtypes: dict[str, np.dtype]) -> None:
    known = list(safetensors_io.DTYPES.values())
    if wrong := [f"{path} is {dtype}" for path, dtype in dtypes.items() if dtype not in known]:
        raise UserError(
            f"{name}: {', '.join(wrong)}; must be {', '.join(str(dtype) for dtype in known)}"
        )
