"""Parameters in memory as weights: what training exports, also from many processes."""

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
from convert.mapping import Piece, parameters, pieces
from convert.slices import bounds, intersect, relative
from convert.weights import compare
from jaxs1.config import UserError
from jaxs1.model.architecture import Architecture


class InMemoryWeights:
    """Parameters in memory, on whatever devices.

    Where they are spread over several processes, one converts and every other one calls
    `take_part`: a piece at a time is made whole on all devices.

    Args:
        params: nested dictionary of arrays, as `transformer.parameters` gives it
        config: the `config.json` of the model
        aux_files: folder with tokenizer files, if any
    """

    def __init__(
        self, params: Mapping[str, Any], config: dict[str, Any], aux_files: Path | None = None
    ):
        """Check names and shapes; raises `UserError` with all that is wrong."""
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
        """See `Weights`. Only the part that is asked for leaves its devices."""
        array = self._arrays[piece.ours]
        if not isinstance(array, jax.Array):
            return np.asarray(array[piece.index])
        if not array.is_fully_addressable:
            return np.asarray(self._gather(array, piece).addressable_data(0))
        block = np.empty(piece.shape, array.dtype)
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                held = bounds(shard.index, array.shape)
                inside = intersect(piece.index, held)
                if inside is not None:
                    starts = [s.start - h.start for s, h in zip(inside, held, strict=True)]
                    sizes = tuple(s.stop - s.start for s in inside)
                    cut = np.asarray(_slice(shard.data, starts, sizes))
                    block[relative(inside, piece.index)] = cut
        return block

    def take_part(self) -> None:
        """Join in every exchange of a conversion that another process makes of these weights."""
        for piece in pieces(self.architecture):
            self._gather(self._arrays[piece.ours], piece)

    def fingerprint(self) -> None:
        """See `Weights`: what memory held in an earlier process cannot be told."""
        return

    def _gather(self, array: jax.Array, piece: Piece) -> jax.Array:
        """A piece on every device. All processes exchange all pieces, in the same order.

        A conversion's threads ask in any order; each waits for its piece's turn.
        """
        with self._turns:
            self._turns.wait_for(lambda: self._next == self._turn_of[piece.name])
            try:
                starts = [s.start for s in piece.index]
                part = _slice_everywhere(array, starts, piece.shape, _everywhere(array))
                return jax.block_until_ready(part)
            finally:
                self._next += 1
                self._turns.notify_all()


def on_host(array: jax.Array) -> np.ndarray:
    """An array as a whole; where it is spread over processes, all of them call this."""
    if array.is_fully_addressable:
        return np.asarray(array)
    whole = jax.jit(lambda x: x, out_shardings=_everywhere(array))(array)
    return np.asarray(whole.addressable_data(0))


#: A part of an array; compiled once for all starts.
_slice = jax.jit(lax.dynamic_slice, static_argnums=2)


def _everywhere(array: Any) -> NamedSharding:
    return NamedSharding(array.sharding.mesh, PartitionSpec())


@partial(jax.jit, static_argnums=(2, 3))
def _slice_everywhere(array: Any, starts: Any, sizes: Any, everywhere: Any) -> jax.Array:
    return lax.with_sharding_constraint(lax.dynamic_slice(array, starts, sizes), everywhere)


def _check_dtypes(name: str, dtypes: dict[str, np.dtype]) -> None:
    known = list(safetensors_io.DTYPES.values())
    if wrong := [f"{path} is {dtype}" for path, dtype in dtypes.items() if dtype not in known]:
        raise UserError(
            f"{name}: {', '.join(wrong)}; must be {', '.join(str(dtype) for dtype in known)}"
        )
