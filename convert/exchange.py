"""Several processes load one checkpoint: each reads a part and sends the others what they need.

The shard of a device is a part of every matrix, and in a file a part of every row. So a process
does not read its own shards: it reads complete pieces, which are contiguous, takes turns with the
others, and cuts each piece into the parts that the devices of every process hold. Together they
read a checkpoint once, however it is sharded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convert.mapping import Piece
from convert.slices import Slices, bounds, intersect, relative, shape_of
from convert.transpose import copy

T = TypeVar("T")

#: Most bytes that a process sends at once; this bounds the memory of its devices.
BLOCK_BYTES = 256 << 20

#: A piece of each process in a turn; None for one that reads nothing.
Turn = list[Piece | None]


def take_turns(parts: Sequence[Piece], itemsize: int, read: list[int]) -> Iterator[Turn]:
    """Distribute the pieces of a parameter over processes, as evenly as pieces allow.

    Args:
        parts: pieces, of similar sizes
        itemsize: size of an element [bytes]
        read: bytes that each process reads, which are increased; nobody reads more than the average
            and one piece
    """
    for start in range(0, len(parts), len(read)):
        group = sorted(parts[start : start + len(read)], key=lambda piece: -piece.size)
        turn: Turn = [None] * len(read)
        for piece, process in zip(group, np.argsort(read, kind="stable"), strict=False):
            turn[process] = piece
            read[process] += piece.size * itemsize
        yield turn


class Exchange:
    """The processes whose devices share parameters.

    All of them make the same calls in the same order.

    Args:
        devices: devices of the parameters, equally many of each process
    """

    def __init__(self, devices: Iterable[jax.Device]):
        of: dict[int, list[jax.Device]] = {}
        for device in sorted(devices, key=lambda device: device.id):
            of.setdefault(device.process_index, []).append(device)
        self.processes = sorted(of)
        self._mesh = Mesh([of[process] for process in self.processes], ("process", "local"))

    @property
    def index(self) -> int:
        """This process's place among the processes."""
        return self.processes.index(jax.process_index())

    def held(self, sharding: NamedSharding, shape: tuple[int, ...]) -> list[list[Slices]]:
        """The distinct parts of an array that the devices of each process hold."""
        distinct: list[dict[str, Slices]] = [{} for _ in self.processes]
        indices: Mapping[Any, Slices] = sharding.devices_indices_map(shape)
        for device, index in indices.items():
            part = bounds(index, shape)
            distinct[self.processes.index(device.process_index)][str(part)] = part
        return [list(parts.values()) for parts in distinct]

    def send(self, messages: list[np.ndarray], length: int) -> list[np.ndarray]:
        """Send a message to each process; returns the message from each.

        Args:
            messages: bytes, at most `length`; an empty one is received as unspecified bytes
            length: bytes of the longest message of all processes, at least 1
        """
        count, devices = self._mesh.devices.shape
        # few sizes, so that few programs are compiled; elements of 4 bytes suit every device
        words = min(BLOCK_BYTES // count, 1 << max(length - 1, 1).bit_length()) // 4
        words = max(1, words // devices) * devices
        blocks = []
        for start in range(0, length, 4 * words):
            block = np.zeros((count, 4 * words), np.uint8)
            for row, message in zip(block, messages, strict=True):
                part = message[start : start + 4 * words]
                row[: len(part)] = part
            blocks.append(_all_to_all(block.view(np.uint32), self._mesh))
        received = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
        return [row.view(np.uint8)[:length] for row in received]


def pack(block: np.ndarray, piece: Piece, held: list[list[Slices]]) -> list[np.ndarray]:
    """The bytes of a piece that each process holds, part after part; equal messages are shared.

    Args:
        block: content of the piece
        piece: where it is in the parameter
        held: parts of the parameter that each process holds
    """
    made: dict[str, np.ndarray] = {}
    for parts in held:
        if str(parts) in made:
            continue
        inside = overlaps(piece, parts)
        message = np.empty(sum(map(_size, inside)) * block.itemsize, np.uint8)
        for part, cut in zip(_views(message, inside, block.dtype), inside, strict=True):
            copy(part, block[relative(cut, piece.index)])
        made[str(parts)] = message
    return [made[str(parts)] for parts in held]


def unpack(
    message: np.ndarray, piece: Piece, parts: list[Slices], dtype: np.dtype
) -> Iterator[tuple[Slices, np.ndarray]]:
    """Where each part of a message is in the parameter, and its content; see `pack`."""
    inside = overlaps(piece, parts)
    return zip(inside, _views(message, inside, dtype), strict=True)


def overlaps(piece: Piece, parts: Iterable[Slices]) -> list[Slices]:
    """What a piece and each of the parts have in common, where they overlap."""
    return [inside for part in parts if (inside := intersect(piece.index, part)) is not None]


def message_bytes(turn: Turn, held: list[list[Slices]], itemsize: int) -> int:
    """Bytes of the longest message of a turn."""
    pieces = [piece for piece in turn if piece is not None]
    sizes = [sum(map(_size, overlaps(piece, parts))) for piece in pieces for parts in held]
    return max(sizes) * itemsize


def ahead(pool: Executor, jobs: Iterable[Callable[[], T]], count: int) -> Iterator[T]:
    """The results of jobs, in order, while at most `count` later ones run or wait to be taken."""
    running: deque[Future[T]] = deque()
    for job in jobs:
        running.append(pool.submit(job))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _size(part: Slices) -> int:
    return int(np.prod(shape_of(part)))


def _views(message: np.ndarray, inside: list[Slices], dtype: np.dtype) -> Iterator[np.ndarray]:
    """The parts of a message as arrays that share its memory."""
    start = 0
    for part in inside:
        stop = start + _size(part) * dtype.itemsize
        yield message[start:stop].view(dtype).reshape(shape_of(part))
        start = stop


def _all_to_all(words_PN: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Row p goes to process p; returns the rows that all processes sent to this one."""
    sent = NamedSharding(mesh, PartitionSpec("process", None, "local"))
    received = NamedSharding(mesh, PartitionSpec(None, "process", "local"))
    count, width = words_PN.shape
    global_PPN = jax.make_array_from_process_local_data(sent, words_PN[None], (count, count, width))
    out_PN = np.empty_like(words_PN)
    for shard in _reshard(global_PPN, received).addressable_shards:
        out_PN[:, shard.index[2]] = np.asarray(shard.data)[:, 0]
    return out_PN


@partial(jax.jit, static_argnums=1)
def _reshard(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(array, sharding)
