"""The tile of a streaming matrix product, the core of four of the five kernels.

    y[b, n] = sum_k x[b, k] * scale[k] * W[k, n]

At decoding batch sizes a product takes as long as reading W from memory. A program owns
a tile of columns of W and walks down k; W arrives by asynchronous 16-byte copies, several blocks
ahead. The tile is the left operand (tile of y^T = W^T x^T), so that 64 columns fill a tensor-core
instruction (wgmma) even for a batch of 1, padded to 16.

RMSNorm is fused: x is multiplied by the scale, the sum of squares is accumulated along with the
product, and the row's factor 1 / sqrt(mean(x^2) + eps) is applied at the end.

Sums are taken in float32, in blocks of K_BLOCK, one after the other; slices of k (split-K) depend
only on the weight's shape. A sequence's result is therefore the same in every batch.

W is bfloat16, or int8 (`kernels.int8`), whose inputs are contiguous: two of them are loaded as an
int16, which keeps copies at 16 bytes, and split into the even and the odd terms of the sum.

The operand swap and the block sizes follow from the machine code for sm_90: see kernels.resources.
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
#: Pipeline stages (blocks of W in flight or in use) by the width of the tile, chosen so that all
#: programs of a launch are resident on 132 SMs (kernels.resources). Sums do not depend on it.
STAGES = {64: 5, 128: 4}
#: A slice of k shorter than this costs more in partial sums than it gains.
SHORTEST_SLICE = 4 * K_BLOCK


@dataclass(frozen=True)
class Tiling:
    """How a launch splits its product; None: the kernel's default.

    Args:
        columns: width of a program's tile
        stages: pipeline stages: blocks of W in flight or in use
        slices: number of parts of k (split-K), in kernels that have it
        warps: warps of a program
    """

    columns: int | None = None
    stages: int | None = None
    slices: int | None = None
    warps: int = 4


#: The defaults of each kernel.
OWN_TILING = Tiling()


def split(inputs: int, columns: int, slices: int | None = None) -> tuple[int, int]:
    """Number of slices of k, and their length, for a weight of [inputs, columns].

    Args:
        inputs: length of k
        columns: total number of outputs of the weights of the launch
        slices: number of slices; None: enough for `PROGRAMS` programs
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
        tiling: requested sizes
        columns: the kernel's default width of a tile
        stages: the kernel's default pipeline stages, by that width
    """
    rows = max(16, power_of_two(batch))
    width = tiling.columns or columns or (64 if rows == 16 else 128)
    depth = tiling.stages or stages.get(width, min(stages.values()))
    return {"B": batch, "ROWS": rows, "COLUMNS": width, "K_BLOCK": K_BLOCK, "STAGES": depth}


@triton.jit
def column_address(w_ptr, column, K: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Address of W[0, n] for columns n of W [K, width], or of [width, K] if TRANSPOSED.

    Int8 weights are always transposed; their inputs are addressed in pairs.
    """
    if w_ptr.dtype.element_ty == tl.int8:
        address = w_ptr.to(tl.pointer_type(tl.int16)) + column * (K // 2)
    elif TRANSPOSED:
        address = w_ptr + column * K
    else:
        address = w_ptr + column
    return address


@triton.jit
def product_tile(
    x_ptr,
    scale_ptr,
    columns_ptr,
    w_scale_ptr,
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

    Args: x_ptr [B, K]; scale_ptr [K] or None; columns_ptr [COLUMNS]: `column_address` of every
    column of the tile; w_scale_ptr [COLUMNS]: address of the scale of every column of int8 weights,
    or None; visible [COLUMNS]; w_step: elements from W[k, n] to W[k + 1, n].
    """
    rows = tl.arange(0, ROWS)
    block = tl.arange(0, K_BLOCK)
    y = tl.zeros([COLUMNS, ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for start in tl.range(first, last, K_BLOCK, num_stages=STAGES):
        k = start + block
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
        if w_scale_ptr is None:
            w = tl.load(
                columns_ptr[:, None] + k[None, :] * w_step,
                mask=visible[:, None] & (k < K)[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            y = tl.dot(w, tl.trans(x), y)
        else:
            half = start // 2 + tl.arange(0, K_BLOCK // 2)
            two = tl.load(
                columns_ptr[:, None] + half[None, :],
                mask=visible[:, None] & (half < K // 2)[None, :],
                other=0,
                eviction_policy="evict_first",
            )
            even, odd = tl.split(tl.reshape(x, [ROWS, K_BLOCK // 2, 2]))
            y = tl.dot(((two << 8) >> 8).to(x.dtype), tl.trans(even), y)
            y = tl.dot((two >> 8).to(x.dtype), tl.trans(odd), y)
    if w_scale_ptr is not None:
        y *= tl.load(w_scale_ptr, mask=visible, other=0.0)[:, None]
    return y, squares
