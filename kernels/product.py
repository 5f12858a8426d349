"""The streaming matrix product that four of the five kernels are made of.

    y[b, n] = sum_k x[b, k] * scale[k] * W[k, n]

At decoding batch sizes a product costs the time that W takes to come from memory. A program owns
a tile of columns of W and walks down k; W arrives by asynchronous 16-byte copies, several blocks
ahead. The tile is the left operand (tile of y^T = W^T x^T), so that 64 columns fill a tensor-core
instruction (wgmma) even for a batch of 1, padded to 16.

RMSNorm is folded in: the scale multiplies x, the sum of squares is collected on the way, and
1 / sqrt(mean(x^2) + eps) is a factor of the row, applied at the end.

Sums are taken in float32, in blocks of K_BLOCK, one after the other; slices of k (split-K) depend
on the weight's shape only. So a sequence's result is the same in every batch.

Source of the operand swap and the block sizes: compiled for sm_90 and read, see kernels.resources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import triton
import triton.language as tl

from kernels.launch import ceil_div, power_of_two

#: Rows of W in a block. Part of the order of summation: the same for every batch.
K_BLOCK = 64
#: Least number of programs of a product: three for each of the 132 cores of an H100.
PROGRAMS = 396
#: Blocks of W that a program has on their way or in use, by the width of its tile: so many that all
#: programs of a launch run at once on 132 cores (kernels.resources). Sums do not depend on it.
STAGES = {64: 5, 128: 4}
#: A slice of k shorter than this costs more in partial sums than it gains.
SHORTEST_SLICE = 4 * K_BLOCK


@dataclass(frozen=True)
class Tiling:
    """How a launch cuts its product; None takes the kernel's own choice.

    Args:
        columns: width of a program's tile
        stages: blocks of W that a program has on their way or in use
        slices: parts of k, each with its own programs; where the kernel has slices
        warps: of 32 threads, per program
    """

    columns: int | None = None
    stages: int | None = None
    slices: int | None = None
    warps: int = 4


#: What every kernel chooses for itself.
OWN_TILING = Tiling()


def split(inputs: int, columns: int, slices: int | None = None) -> tuple[int, int]:
    """Number of slices of k, and their length, for a weight of [inputs, columns].

    Args:
        inputs: length of k
        columns: outputs of all the weights of the launch together
        slices: wanted; None: as many as give `PROGRAMS` programs
    """
    if slices is None:
        wanted = ceil_div(PROGRAMS, ceil_div(columns, 64))
        slices = max(1, min(wanted, inputs // SHORTEST_SLICE))
    length = ceil_div(ceil_div(inputs, slices), K_BLOCK) * K_BLOCK
    return ceil_div(inputs, length), length


def blocks(
    batch: int,
    tiling: Tiling,
    *,
    columns: int | None = None,
    stages: Mapping[int, int] = STAGES,
) -> dict[str, int]:
    """Compile-time block sizes for a batch.

    Args:
        batch: number of sequences
        tiling: what is asked for
        columns: width of a tile that the kernel chooses
        stages: that the kernel chooses, by that width
    """
    rows = max(16, power_of_two(batch))
    width = tiling.columns or columns or (64 if rows == 16 else 128)
    depth = tiling.stages or stages.get(width, min(stages.values()))
    return {"B": batch, "ROWS": rows, "COLUMNS": width, "K_BLOCK": K_BLOCK, "STAGES": depth}


@triton.jit
def product_tile(
    x_ptr,
    scale_ptr,
    columns_ptr,
    visible,
    first,
    last,
    w_step,
    K: tl.constexpr,
    B: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sum over k in [first, last): y [COLUMNS, ROWS] and sum of x^2 [ROWS], both float32.

    Args: x_ptr [B, K]; scale_ptr [K] or None; columns_ptr [COLUMNS]: address of W[0, n] of every
    column of the tile; visible [COLUMNS]; w_step: elements from W[k, n] to W[k + 1, n].
    """
    rows = tl.arange(0, ROWS)
    block = tl.arange(0, K_BLOCK)
    y = tl.zeros([COLUMNS, ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in tl.range(first, last, K_BLOCK, num_stages=STAGES):
        k = start + block
        w = tl.load(
            columns_ptr[:, None] + k[None, :] * w_step,
            mask=visible[:, None] & (k < K)[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        x = tl.load(
            x_ptr + rows[:, None] * K + k[None, :],
            mask=(rows < B)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        if scale_ptr is not None:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            scale = tl.load(scale_ptr + k, mask=k < K, other=0.0).to(tl.float32)
            x = (wide * scale[None, :]).to(x.dtype)
        y = tl.dot(w, tl.trans(x), y)
    return y, squares
