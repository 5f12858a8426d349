"""One new token of every sequence attends to its paged past and is added to it.

    q, k, v = (sum of partial products) / sqrt(mean(x^2) + eps) + bias
    q, k    = rope(rms_norm_head(q)), rope(rms_norm_head(k))       the norm for Qwen3 only
    page    = table[b, position // S]:  k_page[position % S], v_page[...] = k, v
    out[n]  = softmax(q[n] . k[0..position] / sqrt(H)) v[0..position]

First launch, grid (B, K, splits): a program takes the G query heads of one key/value head, padded
to 16, over a split of `KV_SPLIT` tokens of one sequence (flash decoding, Dao et al. 2023). The
program whose split contains the new token computes its k and v, writes them to their page and
starts its softmax from them. No program reads what another writes, so they may run in any order.
Second launch, grid (B, N): combines the results of the splits, in their order.

A split has a fixed length, so a sequence's result does not depend on its neighbours. Keys and
values at and after `position` are never read: they may hold anything, NaN included. A negative
position means no token: its key and value go to the reserved page 0, and its output is undefined.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launch import Array, Launch, Run, ceil_div

#: Tokens of one sequence that a program attends to.
KV_SPLIT = 256
#: Splits that are combined at a time; part of the order of summation.
COMBINED = 16
#: Query heads of a key/value head are padded to what a tensor core takes.
Q_ROWS = 16
#: Pipeline stages of the loop over pages: with fewer than 5, k and v get a single buffer each.
STAGES = 5


@triton.jit
def _projected(
    partial_ptr,
    bias_ptr,
    factor,
    column,
    bias_column,
    mask,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    B: tl.constexpr,
):
    """Sum of the slices' partial products * factor + bias, float32, in the shape of `column`."""
    row = tl.program_id(0)
    y = tl.zeros(column.shape, tl.float32)
    for part in tl.static_range(SLICES):
        y += tl.load(partial_ptr + (part * B + row) * WIDTH + column, mask=mask, other=0.0)
    y *= factor
    if bias_ptr is not None:
        y += tl.load(bias_ptr + bias_column, mask=mask, other=0.0).to(tl.float32)
    return y


@triton.jit
def _rotated_heads(
    partial_ptr,
    bias_ptr,
    norm_ptr,
    cos_ptr,
    sin_ptr,
    factor,
    head,
    mask,
    offset,
    dtype: tl.constexpr,
    EPS: tl.constexpr,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    B: tl.constexpr,
):
    """Heads [R, H] after bias, norm and rotation; rounded to `dtype` where the model rounds."""
    half: tl.constexpr = H // 2
    h = tl.arange(0, H)
    other = (h + half) % H  # the element that h is rotated with
    own_column = head[:, None] * H + h[None, :]
    other_column = head[:, None] * H + other[None, :]
    own = _projected(
        partial_ptr, bias_ptr, factor, offset + own_column, own_column, mask, WIDTH, SLICES, B
    )
    pair = _projected(
        partial_ptr, bias_ptr, factor, offset + other_column, other_column, mask, WIDTH, SLICES, B
    )
    own, pair = own.to(dtype).to(tl.float32), pair.to(dtype).to(tl.float32)
    if norm_ptr is not None:
        scale = tl.rsqrt(tl.sum(own * own, 1) / H + EPS)[:, None]
        own *= scale * tl.load(norm_ptr + h)[None, :].to(tl.float32)
        pair *= scale * tl.load(norm_ptr + other)[None, :].to(tl.float32)
        own, pair = own.to(dtype).to(tl.float32), pair.to(dtype).to(tl.float32)
    angle = tl.program_id(0) * half + h % half
    cos, sin = tl.load(cos_ptr + angle), tl.load(sin_ptr + angle)
    sin = tl.where(h < half, -sin, sin)
    return (own * cos[None, :] + pair * sin[None, :]).to(dtype)


@triton.jit
def _new_key_value(
    partial_ptr,
    k_bias_ptr,
    v_bias_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    factor,
    kv,
    dtype: tl.constexpr,
    EPS: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    SLICES: tl.constexpr,
    B: tl.constexpr,
):
    """Key and value [1, H] of the new token."""
    width: tl.constexpr = (G + 2) * K * H
    one = tl.arange(0, 1)
    k_new = _rotated_heads(
        partial_ptr, k_bias_ptr, k_norm_ptr, cos_ptr, sin_ptr, factor,
        kv + one, (one == 0)[:, None], G * K * H, dtype, EPS, H, width, SLICES, B,
    )  # fmt: skip
    column = (kv * H + tl.arange(0, H))[None, :]
    v_new = _projected(
        partial_ptr, v_bias_ptr, factor, (G + 1) * K * H + column, column,
        (one == 0)[:, None], width, SLICES, B,
    ).to(dtype)  # fmt: skip
    return k_new, v_new


@triton.jit
def _online_softmax(scores, top):
    """Weights of more scores [ROWS, S] (base 2), the new maximum, and the factor of older sums."""
    higher = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    fade = tl.exp2(top - higher)
    return weights, higher, fade


@triton.jit
def attention_kernel(
    partial_ptr,
    squares_ptr,
    q_bias_ptr,
    k_bias_ptr,
    v_bias_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    table_ptr,
    k_pages_ptr,
    v_pages_ptr,
    out_ptr,
    stats_ptr,
    k_out_ptr,
    v_out_ptr,
    EPS: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    SLICES: tl.constexpr,
    PAGES: tl.constexpr,
    TABLE: tl.constexpr,
    S: tl.constexpr,
    KV_SPLIT: tl.constexpr,
    KV_SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (B, K, KV_SPLITS), here C. out [B, K, C, G, H]; stats [B, K, C, 2, ROWS]; float32."""
    b, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    given = tl.load(position_ptr + b)
    position = tl.maximum(given, 0)
    if split * KV_SPLIT > position:
        return
    dtype: tl.constexpr = k_pages_ptr.dtype.element_ty
    width: tl.constexpr = (G + 2) * K * H
    squares = 0.0
    for part in tl.static_range(SLICES):
        squares += tl.load(squares_ptr + part * B + b)
    factor = tl.rsqrt(squares / D + EPS)
    h, g, offset = tl.arange(0, H), tl.arange(0, ROWS), tl.arange(0, S)
    q = _rotated_heads(
        partial_ptr, q_bias_ptr, q_norm_ptr, cos_ptr, sin_ptr, factor,
        kv * G + g, (g < G)[:, None], 0, dtype, EPS, H, width, SLICES, B,
    )  # fmt: skip
    log2_scale: tl.constexpr = H**-0.5 * 1.4426950408889634  # exp2 is one instruction
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, H], tl.float32)
    # int64: elements of a pool of pages pass 2^31
    pool = kv.to(tl.int64) * PAGES * S * H
    if position // KV_SPLIT == split:
        k_new, v_new = _new_key_value(
            partial_ptr, k_bias_ptr, v_bias_ptr, k_norm_ptr, cos_ptr, sin_ptr, factor,
            kv, dtype, EPS, K, G, H, SLICES, B,
        )  # fmt: skip
        page = tl.load(table_ptr + b * TABLE + position // S)
        page = tl.where(given < 0, 0, page).to(tl.int64)
        target = pool + (page * S + position % S) * H + h[None, :]
        tl.store(k_out_ptr + target, k_new)
        tl.store(v_out_ptr + target, v_new)
        top = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * log2_scale
        total = tl.full([ROWS], 1.0, tl.float32)
        out += v_new.to(tl.float32)
    last = tl.minimum((split + 1) * (KV_SPLIT // S), tl.cdiv(position, S))
    for number in tl.range(split * (KV_SPLIT // S), last, num_stages=STAGES):
        page = tl.load(table_ptr + b * TABLE + number).to(tl.int64)
        past = number * S + offset < position
        tile = pool + page * S * H + offset[:, None] * H + h[None, :]
        k = tl.load(k_pages_ptr + tile, mask=past[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * log2_scale
        scores = tl.where(past[None, :], scores, -float("inf"))
        weights, top, fade = _online_softmax(scores, top)
        v = tl.load(v_pages_ptr + tile, mask=past[:, None], other=0.0)
        out = out * fade[:, None] + tl.dot(weights.to(dtype), v)
        total = total * fade + tl.sum(weights, 1)
    index = (b * K + kv) * KV_SPLITS + split
    mask = (g < G)[:, None]
    tl.store(out_ptr + (index * G + g[:, None]) * H + h[None, :], out, mask=mask)
    tl.store(stats_ptr + index * 2 * ROWS + g, top)
    tl.store(stats_ptr + (index * 2 + 1) * ROWS + g, total)


@triton.jit
def combine_kernel(
    part_ptr,
    stats_ptr,
    position_ptr,
    out_ptr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    KV_SPLIT: tl.constexpr,
    KV_SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COMBINED: tl.constexpr,
):
    """Grid (B, N). out [B, N, H]: the splits' results, weighted by their shares of the softmax."""
    b, n = tl.program_id(0), tl.program_id(1)
    h, block = tl.arange(0, H), tl.arange(0, COMBINED)
    used = tl.maximum(tl.load(position_ptr + b), 0) // KV_SPLIT + 1
    first = (b * K + n // G) * KV_SPLITS
    top = tl.full([COMBINED], -float("inf"), tl.float32)
    for start in range(0, used, COMBINED):
        index = (first + start + block) * 2 * ROWS + n % G
        mask = start + block < used
        top = tl.maximum(top, tl.load(stats_ptr + index, mask=mask, other=-float("inf")))
    highest = tl.max(top, 0)
    total = tl.zeros([COMBINED], tl.float32)
    out = tl.zeros([COMBINED, H], tl.float32)
    for start in range(0, used, COMBINED):
        index = first + start + block
        mask = start + block < used
        stats = index * 2 * ROWS + n % G
        top = tl.load(stats_ptr + stats, mask=mask, other=-float("inf"))
        share = tl.exp2(top - highest)
        total += share * tl.load(stats_ptr + stats + ROWS, mask=mask, other=0.0)
        rows = (index * G + n % G)[:, None] * H + h[None, :]
        out += share[:, None] * tl.load(part_ptr + rows, mask=mask[:, None], other=0.0)
    result = tl.sum(out, 0) / tl.sum(total, 0)
    target = out_ptr + (b * K * G + n) * H + h
    tl.store(target, result.to(out_ptr.dtype.element_ty))


def attention(
    run: Run,
    partial: Array,
    squares: Array,
    biases: tuple[Array | None, Array | None, Array | None],
    norms: tuple[Array | None, Array | None],
    rotation: tuple[Array, Array],
    position_B: Array,
    pages: tuple[Array, Array],
    table_BM: Array,
    *,
    width: int,
    eps: float,
) -> tuple[Array, Array, Array]:
    """Attention's output [B, N, H] in the pages' dtype, and the pages with the new token.

    Args:
        run: runs the launches
        partial: [slices, B, (N + 2 K) H], from `kernels.qkv`
        squares: [slices, B], from `kernels.qkv`
        biases: biases of q [N, H], k [K, H] and v [K, H], or None
        norms: RMSNorm scales of the heads of q and k [H], or None
        rotation: cosine and sine of the tokens' positions [B, H / 2], float32
        position_B: position of the new token, int32; negative: no token
        pages: pages of keys and of values, [K, P, S, H], updated in place
        table_BM: page table, int32: the page of every S tokens of each sequence
        width: D, the number of elements in the mean of squares
        eps: epsilon of the norms
    """
    slices, B, C = partial.shape
    K, P, S, H = pages[0].shape
    M = table_BM.shape[1]
    G = C // (K * H) - 2
    splits = ceil_div(M * S, KV_SPLIT)
    shape = {"K": K, "G": G, "H": H, "KV_SPLIT": KV_SPLIT, "KV_SPLITS": splits, "ROWS": Q_ROWS}
    page_shape, page_dtype = (tuple(pages[0].shape), pages[0].dtype)
    attend = Launch(
        kernel=attention_kernel,
        grid=(B, K, splits),
        outputs=(
            ((B, K, splits, G, H), "float32"),
            ((B, K, splits, 2, Q_ROWS), "float32"),
            (page_shape, page_dtype),
            (page_shape, page_dtype),
        ),
        constants={
            "EPS": eps, "D": width, "B": B, "SLICES": slices, "PAGES": P, "TABLE": M, "S": S,
            "STAGES": STAGES, **shape,
        },
        in_place={11: 2, 12: 3},
    )  # fmt: skip
    inputs = [partial, squares, *biases, *norms, *rotation, position_B, table_BM, *pages]
    part, stats, k_pages, v_pages = run(attend, inputs)
    combine = Launch(
        kernel=combine_kernel,
        grid=(B, K * G),
        outputs=(((B, K * G, H), page_dtype),),
        constants={**shape, "COMBINED": COMBINED},
        warps=2,
    )
    (out_BNH,) = run(combine, [part, stats, position_B])
    return out_BNH, k_pages, v_pages
