"""Copies of transposed arrays at memory bandwidth.

Hugging Face stores [out, in], jaxs1 stores [in, out]. A conversion therefore copies views whose
fastest axis is not the last. numpy copies such a view element by element across cache lines, ten
times slower than memory allows (0.2 GB/s for bfloat16 where this was written, against 2.3 GB/s
with the tiles below). Bits are copied, never numbers, so NaNs keep their payload.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: A tile, which fits the level-2 cache: number of contiguous runs of the source, elements of each.
TILE = (512, 256)

#: Elements of padding between the runs of a tile: at a distance that is a power of two, all runs
#: would share the same few cache lines.
PAD = 8

BAND_BYTES = 16 << 20


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` to `target`, of the same shape and dtype; the strides are arbitrary."""
    target, source = (x.squeeze().view(f"u{x.itemsize}") for x in (target, source))
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        target[...] = source
        return
    fastest = int(np.argmin(source.strides))
    target, source = (np.moveaxis(x, fastest, -1) for x in (target, source))
    if target.strides[-1] == target.itemsize:  # both are transposed
        target[...] = source
        return
    runs, width = TILE
    step = max(1, runs // int(np.prod(source.shape[1:-1])))
    buffer = np.empty((step, *source.shape[1:-1], width + PAD), source.dtype)
    for i in range(0, source.shape[0], step):
        for j in range(0, source.shape[-1], width):
            part = source[i : i + step, ..., j : j + width]
            tile = buffer[: part.shape[0], ..., : part.shape[-1]]
            tile[...] = part
            target[i : i + step, ..., j : j + width] = tile


def bands(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the array's elements in C order as contiguous arrays.

    These share one buffer, so a large transposed array needs no second one of its size: use each
    before taking the next.
    """
    if array.flags.c_contiguous:
        yield array
        return
    array = array.squeeze()
    step = max(1, BAND_BYTES // (array.nbytes // array.shape[0]))
    buffer = np.empty((min(step, array.shape[0]), *array.shape[1:]), array.dtype)
    for i in range(0, array.shape[0], step):
        part = array[i : i + step]
        band = buffer[: part.shape[0]]
        copy(band, part)
        yield band
