"""Sharded arrays from pieces: only what the devices of this process hold is in its memory.

One process reads the pieces that its devices need; several read every piece once between them and
exchange the parts (`exchange.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import jax
import numpy as np

from convert.exchange import Exchange, Turn, ahead, message_bytes, pack, take_turns, unpack
from convert.interface import Weights
from convert.mapping import Piece
from convert.slices import Slices, bounds, intersect, relative, shape_of
from convert.transpose import copy
from jaxs1.config import UserError
from jaxs1.model.decode_params import Stored
from jaxs1.model.quantization import Int8, quantize

#: Number of threads that read pieces.
READERS = 2


class HostShards:
    """The parts of an array that this process's devices hold, on the host until they are complete.

    Devices that hold the same part share its buffer.

    Args:
        target: shape, dtype, sharding and order of axes of the array
        layer: the layer of a stacked parameter that it is; None: all of the parameter
    """

    def __init__(self, target: Stored, layer: int | None = None):
        self._array, order = target.array, target.order
        array = self._array
        indices = array.sharding.addressable_devices_indices_map(array.shape)
        places = {device: bounds(index, array.shape) for device, index in indices.items()}
        self._keys = {device: str(place) for device, place in places.items()}
        distinct = {self._keys[device]: place for device, place in places.items()}
        self._buffers = {key: np.empty(shape_of(p), array.dtype) for key, p in distinct.items()}
        # with the axes of the parameter, as pieces have them
        axes = tuple(order.index(i) for i in range(array.ndim))
        self._views = {key: buffer.transpose(axes) for key, buffer in self._buffers.items()}
        self._held = {key: tuple(place[i] for i in axes) for key, place in distinct.items()}
        if layer is not None:
            here = slice(layer, layer + 1)
            self._views = {key: view[None] for key, view in self._views.items()}
            self._held = {key: (here, *place) for key, place in self._held.items()}

    def overlap(self, index: Slices) -> bool:
        """Whether a part of the parameter is in one of them."""
        return any(intersect(index, place) for place in self._held.values())

    def fill(self, index: Slices, block: np.ndarray, path: str) -> None:
        """Copy what they hold of a part of the parameter; raises `UserError` as `cast`."""
        for key, place in self._held.items():
            inside = intersect(index, place)
            if inside is not None:
                part = cast(block[relative(inside, index)], self._array.dtype, path)
                copy(self._views[key][relative(inside, place)], part)

    def put(self) -> jax.Array:
        """The array, on its devices."""
        shards = [jax.device_put(self._buffers[key], device) for device, key in self._keys.items()]
        return jax.make_array_from_single_device_arrays(
            self._array.shape, self._array.sharding, shards
        )


def load(
    weights: Weights,
    parts: Iterable[Piece],
    target: Stored,
    layer: int | None = None,
    run: Callable[[Callable[[Piece], None], Iterable[Piece]], Iterable[None]] = map,
) -> jax.Array:
    """Assemble one array from pieces that this process reads.

    Args:
        weights: source
        parts: all pieces of the array
        target: see `HostShards`
        layer: see `HostShards`
        run: applies a function to all pieces: `map`, or that of a thread pool
    """
    shards = HostShards(target, layer)

    def fill(piece: Piece) -> None:
        if shards.overlap(piece.index):
            shards.fill(piece.index, weights.read(piece), piece.param)

    for _ in run(fill, parts):
        pass
    return shards.put()


def load_together(
    weights: Weights,
    parts: Mapping[str, Sequence[Piece]],
    targets: Mapping[str, jax.ShapeDtypeStruct],
    exchange: Exchange,
    pool: Executor,
) -> dict[str, jax.Array]:
    """Assemble all arrays from pieces that several processes read; all of them call this.

    Args:
        weights: source, the same in all processes
        parts: all pieces of each parameter, by path
        targets: shape, dtype and sharding of the arrays
        exchange: the processes
        pool: runs the reads, which are ahead of the exchanges
    """
    held = {path: exchange.held(x.sharding, x.shape) for path, x in targets.items()}
    read = [0] * len(exchange.processes)
    turns = {
        path: [*take_turns(parts[path], weights.dtype(path).itemsize, read)] for path in targets
    }

    def messages(path: str, turn: Turn) -> list[np.ndarray]:
        mine = turn[exchange.index]
        if mine is None:
            return [np.empty(0, np.uint8)] * len(turn)
        return pack(weights.read(mine), mine, held[path])

    jobs = (partial(messages, path, turn) for path in targets for turn in turns[path])
    packed = ahead(pool, jobs, READERS)
    loaded = {}
    for path, target in targets.items():
        shards, dtype = HostShards(as_parameter(target)), weights.dtype(path)
        for turn in turns[path]:
            length = message_bytes(turn, held[path], dtype.itemsize)
            received = exchange.send(next(packed), length)
            for index, block in _contents(turn, received, held[path][exchange.index], dtype):
                shards.fill(index, block, path)
        loaded[path] = shards.put()
    return loaded


def _contents(
    turn: Turn, received: list[np.ndarray], parts: list[Slices], dtype: np.dtype
) -> Iterator[tuple[Slices, np.ndarray]]:
    for piece, message in zip(turn, received, strict=True):
        if piece is not None:
            yield from unpack(message, piece, parts, dtype)


def as_parameter(array: jax.ShapeDtypeStruct) -> Stored:
    """An array that is a parameter of the model as it is."""
    return Stored(array, tuple(range(array.ndim)))


def load_quantized(
    weights: Weights, parts: Sequence[Piece], target: Stored, layer: int | None
) -> Int8:
    """Assemble one parameter on the host, and only its integers and scales on the devices."""
    w = np.empty(target.array.shape, np.float32)
    # with the axes of the parameter, as pieces have them
    view = w.transpose([target.order.index(i) for i in range(w.ndim)])
    for piece in parts:
        index = piece.index if layer is None else piece.index[1:]
        block = cast(weights.read(piece), w.dtype, piece.param)
        copy(view[index], block if layer is None else block[0])
    try:
        quantized = quantize(w, target.inputs)
    except ValueError as error:
        where = parts[0].param if layer is None else f"{parts[0].param} of layer {layer}"
        raise UserError(f"weights=int8: {where} {error}; give --weights auto") from None
    return jax.tree.map(lambda x, array: jax.device_put(x, array.sharding), quantized, target.leaf)


def cast(block: np.ndarray, dtype: np.dtype, path: str) -> np.ndarray:
    """Change the dtype of a block; raises `UserError` if a number overflows."""
    if block.dtype == dtype:
        return block
    with np.errstate(over="ignore", invalid="ignore"):
        out = block.astype(dtype)
    if dtype == np.float16:
        lost = int(np.isinf(out).sum()) - int(np.isinf(block).sum())
        if lost:
            raise UserError(
                f"dtype=float16: {lost} numbers of {path} are beyond its range (65504); "
                "use bfloat16 or float32"
            )
    return out
