"""The final RMSNorm and the output matrix: hidden states to logits.

    logits[b, v] = sum_d x[b, d] * scale[d] * W[d, v] / sqrt(mean(x[b]^2) + eps)

Logits are stored in float32: 0.04 % of the bytes of W at batch 1. XLA's sampling and budget
controller, which mask and force tokens, read them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.int8 import Int8, parts
from kernels.launch import Array, Launch, Run, ceil_div
from kernels.matmul_tile import OWN_TILING, Tiling, blocks, column_address, product_tile

#: See `matmul_tile.STAGES`: with so large a grid, fewer resident programs with more stages do as
#: well.
STAGES = {64: 6, 128: 4}


@triton.jit
def head_kernel(
    x_ptr,
    scale_ptr,
    w_ptr,
    w_scale_ptr,
    y_ptr,
    EPS: tl.constexpr,
    TIED: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    B: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (tiles of the vocabulary,)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    scales_ptr = None if w_scale_ptr is None else w_scale_ptr + column
    y, squares = product_tile(
        x_ptr, scale_ptr, column_address(w_ptr, column, K, TIED), scales_ptr, column < WIDTH,
        0, K, 1 if TIED else WIDTH, K, B, ROWS, COLUMNS, K_BLOCK, STAGES,
    )  # fmt: skip
    y *= tl.rsqrt(squares / K + EPS)[None, :]
    mask = (column < WIDTH)[:, None] & (row < B)[None, :]
    tl.store(y_ptr + row[None, :] * WIDTH + column[:, None], y, mask=mask)


def head(
    run: Run,
    x_BD: Array,
    scale_D: Array,
    w: Array | Int8,
    *,
    eps: float,
    tied: bool,
    tiling: Tiling = OWN_TILING,
) -> Array:
    """Logits [B, V], float32; w is [D, V], or [V, D] if it is the embedding (`tied`) or Int8."""
    B, D = x_BD.shape
    values, w_scale = parts(w)
    V = values.shape[1 if w_scale is None and not tied else 0]
    sizes = blocks(B, tiling, stages=STAGES)
    launch = Launch(
        kernel=head_kernel,
        grid=(ceil_div(V, sizes["COLUMNS"]),),
        outputs=(((B, V), "float32"),),
        constants={"EPS": eps, "TIED": tied, "K": D, "WIDTH": V, **sizes},
        warps=tiling.warps,
    )
    (logits_BV,) = run(launch, [x_BD, scale_D, values, w_scale])
    return logits_BV
