"""RMSNorm and the projections to queries, keys and values, as partial sums over slices of k.

    y[b, c] = sum_k x[b, k] * scale[k] * W[k, c]        W = [q k v]
    result  = y / sqrt(mean(x[b]^2) + eps) + bias       computed by the attention kernel

One launch reads the three weights without concatenating them: a program's index selects its weight.
Outputs: partial sums [slices, B, C], C = (N + 2 K) H, and sums of squares [slices, B], float32.
The attention kernel adds them in the order of the slices, which is cheaper than a launch.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from kernels.int8 import Int8, parts
from kernels.launch import Array, Launch, Run, ceil_div
from kernels.matmul_tile import OWN_TILING, Tiling, blocks, column_address, product_tile, split


@triton.jit
def qkv_kernel(
    x_ptr,
    scale_ptr,
    wq_ptr,
    wk_ptr,
    wv_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    partial_ptr,
    squares_ptr,
    K: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    KV_WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    B: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (tiles of q, then k, then v; slices)."""
    q_tiles: tl.constexpr = (Q_WIDTH + COLUMNS - 1) // COLUMNS
    kv_tiles: tl.constexpr = (KV_WIDTH + COLUMNS - 1) // COLUMNS
    tile, part = tl.program_id(0), tl.program_id(1)
    is_q = tile < q_tiles
    is_k = tile < q_tiles + kv_tiles
    w_ptr = tl.where(is_q, wq_ptr, tl.where(is_k, wk_ptr, wv_ptr))
    width = tl.where(is_q, Q_WIDTH, KV_WIDTH)
    first_tile = tl.where(is_q, 0, tl.where(is_k, q_tiles, q_tiles + kv_tiles))
    offset = tl.where(is_q, 0, tl.where(is_k, Q_WIDTH, Q_WIDTH + KV_WIDTH))
    column = (tile - first_tile) * COLUMNS + tl.arange(0, COLUMNS)
    if q_scale_ptr is None:
        scales_ptr = None
    else:
        scales_ptr = tl.where(is_q, q_scale_ptr, tl.where(is_k, k_scale_ptr, v_scale_ptr)) + column
    y, squares = product_tile(
        x_ptr, scale_ptr, column_address(w_ptr, column, K, False), scales_ptr, column < width,
        part * SLICE, (part + 1) * SLICE, width, K, B, ROWS, COLUMNS, K_BLOCK, STAGES,
    )  # fmt: skip
    row = tl.arange(0, ROWS)
    start = (part * B + row[None, :]) * (Q_WIDTH + 2 * KV_WIDTH) + offset
    mask = (column < width)[:, None] & (row < B)[None, :]
    tl.store(partial_ptr + start + column[:, None], y, mask=mask)
    if tile == 0:
        tl.store(squares_ptr + part * B + row, squares, mask=row < B)


def qkv(
    run: Run,
    x_BD: Array,
    scale_D: Array,
    q_DNH: Array | Int8,
    k_DKH: Array | Int8,
    v_DKH: Array | Int8,
    *,
    tiling: Tiling = OWN_TILING,
) -> tuple[Array, Array]:
    """Partial sums [slices, B, (N + 2 K) H] and sums of squares [slices, B], float32.

    Int8 weights are [N, H, D] and [K, H, D].
    """
    B, D = x_BD.shape
    weights, scales = zip(*map(parts, (q_DNH, k_DKH, v_DKH)), strict=True)
    q_width, kv_width = (math.prod(w.shape) // D for w in weights[:2])
    slices, length = split(D, q_width + 2 * kv_width, tiling.slices)
    sizes = blocks(B, tiling)
    tiles = ceil_div(q_width, sizes["COLUMNS"]) + 2 * ceil_div(kv_width, sizes["COLUMNS"])
    constants = {"K": D, "Q_WIDTH": q_width, "KV_WIDTH": kv_width, "SLICE": length}
    launch = Launch(
        kernel=qkv_kernel,
        grid=(tiles, slices),
        outputs=(((slices, B, q_width + 2 * kv_width), "float32"), ((slices, B), "float32")),
        constants={**constants, **sizes},
        warps=tiling.warps,
    )
    partial, squares = run(launch, [x_BD, scale_D, *weights, *scales])
    return partial, squares
