"""A projection back to the model's width, added to the residual.

    y[b, n] = residual[b, n] + sum_k x[b, k] * W[k, n]

Two launches: partial sums over slices of k [slices, B, D], float32, then their sum in the order of
the slices, the same in every run and every batch. Without a residual the output is float32: one
device's term of the all-reduce of tensor parallelism.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.int8 import Int8, parts
from kernels.launch import Array, Launch, Run, ceil_div
from kernels.matmul_tile import OWN_TILING, Tiling, blocks, column_address, product_tile, split

#: Columns that one program of the second launch adds up.
SUM_COLUMNS = 256


@triton.jit
def projection_kernel(
    x_ptr,
    w_ptr,
    w_scale_ptr,
    partial_ptr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    B: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (tiles of columns, slices)."""
    part = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    scales_ptr = None if w_scale_ptr is None else w_scale_ptr + column
    y, _ = product_tile(
        x_ptr, None, column_address(w_ptr, column, K, False), scales_ptr, column < WIDTH,
        part * SLICE, (part + 1) * SLICE, WIDTH, K, B, ROWS, COLUMNS, K_BLOCK, STAGES,
    )  # fmt: skip
    row = tl.arange(0, ROWS)
    mask = (column < WIDTH)[:, None] & (row < B)[None, :]
    tl.store(partial_ptr + (part * B + row[None, :]) * WIDTH + column[:, None], y, mask=mask)


@triton.jit
def sum_kernel(
    partial_ptr,
    residual_ptr,
    y_ptr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    B: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (B, tiles of columns)."""
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < WIDTH
    y = tl.zeros([COLUMNS], tl.float32)
    for part in tl.static_range(SLICES):
        y += tl.load(partial_ptr + (part * B + row) * WIDTH + column, mask=mask)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + row * WIDTH + column, mask=mask).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + column, y.to(y_ptr.dtype.element_ty), mask=mask)


def projection(
    run: Run,
    x_BK: Array,
    w: Array | Int8,
    residual_BD: Array | None,
    *,
    tiling: Tiling = OWN_TILING,
) -> Array:
    """Residual + x W, in the residual's dtype; float32 without a residual.

    Args:
        run: runs the launches
        x_BK: [B, K]
        w: [K, D], or Int8 [D, K]; its inputs may be several axes, e.g. [N, H, D]
        residual_BD: [B, D] or None
        tiling: tiling of the product
    """
    B, K = x_BK.shape
    values, scale = parts(w)
    D = values.shape[-1 if scale is None else 0]
    slices, length = split(K, D, tiling.slices)
    sizes = blocks(B, tiling)
    constants = {"K": K, "WIDTH": D, "SLICE": length}
    product = Launch(
        kernel=projection_kernel,
        grid=(ceil_div(D, sizes["COLUMNS"]), slices),
        outputs=(((slices, B, D), "float32"),),
        constants={**constants, **sizes},
        warps=tiling.warps,
    )
    (partial,) = run(product, [x_BK, values, scale])
    total = Launch(
        kernel=sum_kernel,
        grid=(B, ceil_div(D, SUM_COLUMNS)),
        outputs=(((B, D), "float32" if residual_BD is None else residual_BD.dtype),),
        constants={"WIDTH": D, "SLICES": slices, "B": B, "COLUMNS": SUM_COLUMNS},
        warps=2,
    )
    (y,) = run(total, [partial, residual_BD])
    return y
