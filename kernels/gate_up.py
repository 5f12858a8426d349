"""RMSNorm, the gate and up projections, and SwiGLU.

    n = x / sqrt(mean(x^2) + eps) * scale
    y = silu(n gate) * (n up)              silu(a) = a / (1 + exp(-a)), in float32

A program owns the same columns of both weights: one half of its tile is gate, the other half up,
so both arrive in one stream and are combined in registers. No split over k: F is large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.int8 import Int8, parts
from kernels.launch import Array, Launch, Run, ceil_div
from kernels.matmul_tile import OWN_TILING, PROGRAMS, Tiling, blocks, column_address, product_tile

#: See `matmul_tile.STAGES`: 432 programs of the 32B, four on each of 132 SMs instead of three.
STAGES = {64: 5, 128: 3}


@triton.jit
def gate_up_kernel(
    x_ptr,
    scale_ptr,
    gate_ptr,
    up_ptr,
    gate_scale_ptr,
    up_scale_ptr,
    y_ptr,
    EPS: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    B: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (tiles of columns,)."""
    half: tl.constexpr = COLUMNS // 2
    first = tl.program_id(0) * half
    index = tl.arange(0, COLUMNS)
    column = first + index % half
    gate, up = column_address(gate_ptr, column, K, False), column_address(up_ptr, column, K, False)
    columns_ptr = tl.multiple_of(tl.where(index < half, gate, up), 16)
    if gate_scale_ptr is None:
        scales_ptr = None
    else:
        scales_ptr = tl.where(index < half, gate_scale_ptr + column, up_scale_ptr + column)
    y, squares = product_tile(
        x_ptr, scale_ptr, columns_ptr, scales_ptr, column < WIDTH, 0, K, WIDTH,
        K, B, ROWS, COLUMNS, K_BLOCK, STAGES,
    )  # fmt: skip
    y *= tl.rsqrt(squares / K + EPS)[None, :]
    gate, up = tl.split(tl.permute(tl.reshape(y, [2, half, ROWS]), [1, 2, 0]))
    y = gate / (1.0 + tl.exp(-gate)) * up
    column = first + tl.arange(0, half)
    row = tl.arange(0, ROWS)
    mask = (column < WIDTH)[:, None] & (row < B)[None, :]
    target = y_ptr + row[None, :] * WIDTH + column[:, None]
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=mask)


def gate_up(
    run: Run,
    x_BD: Array,
    scale_D: Array,
    gate_DF: Array | Int8,
    up_DF: Array | Int8,
    *,
    eps: float,
    tiling: Tiling = OWN_TILING,
) -> Array:
    """The hidden layer of the MLP, [B, F] in x's dtype; Int8 weights are [F, D]."""
    B, D = x_BD.shape
    (gate, gate_scale), (up, up_scale) = parts(gate_DF), parts(up_DF)
    F = gate.shape[1 if gate_scale is None else 0]
    few = F // 64 < PROGRAMS // 2  # then smaller tiles, so that every SM has work
    sizes = blocks(B, tiling, columns=64 if few else 128, stages=STAGES)
    launch = Launch(
        kernel=gate_up_kernel,
        grid=(ceil_div(F, sizes["COLUMNS"] // 2),),
        outputs=(((B, F), x_BD.dtype),),
        constants={"EPS": eps, "K": D, "WIDTH": F, **sizes},
        warps=tiling.warps,
    )
    (y_BF,) = run(launch, [x_BD, scale_D, gate, up, gate_scale, up_scale])
    return y_BF
