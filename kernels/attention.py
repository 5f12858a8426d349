"""One new token of every sequence attends to its paged past, and joins it.

    q, k, v = (sum of partial products) / sqrt(mean(x^2) + eps) + bias
    q, k    = rope(rms_norm_head(q)), rope(rms_norm_head(k))       the norm for Qwen3 only
    page    = table[b, position // S]:  k_page[position % S], v_page[...] = k, v
    out[n]  = softmax(q[n] . k[0..position] / sqrt(H)) v[0..position]

First launch, grid (B, K, spans): a program takes the G query heads of one key/value head, padded
to 16, over a span of `SPAN` tokens of one sequence (flash decoding, Dao et al. 2023). The program
whose span holds the new token makes its k and v, writes them to their page and starts its softmax
from them; no program reads what another writes, so the order of programs is free. Second launch,
grid (B, N): the spans' results are joined in their order.

A span has a fixed length, so a sequence's result does not depend on its neighbours. Keys and values
at and after `position` are never read: they may hold anything, NaN included. A negative position
means no token: its key and value go to the reserved page 0, and its output is undefined.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.launch import Array, Launch, Run, ceil_div

#: Tokens of one sequence that a program attends to.
SPAN = 256
#: Spans that are joined at a time; part of the order of summation.
JOINED = 16
#: Query heads of a key/value head are padded to what a tensor core takes.
Q_ROWS = 16
#: Of the loop over pages: fewer than 5 leave the compiler with a single buffer for each of k and v.
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
    k_written_ptr,
    v_written_ptr,
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
    SPAN: tl.constexpr,
    SPANS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (B, K, SPANS). out [B, K, SPANS, G, H]; stats [B, K, SPANS, 2, ROWS]; float32."""
    b, kv, span = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    given = tl.load(position_ptr + b)
    position = tl.maximum(given, 0)
    if span * SPAN > position:
        return
    dtype: tl.constexpr = k_pages_ptr.dtype.element_ty
    width: tl.constexpr = (G + 2) * K * H
    squares = 0.0
    for part in tl.static_range(SLICES):
        squares += tl.load(squares_ptr + part * B + b)
    factor = tl.rsqrt(squares / D + EPS)
    h, g, slot = tl.arange(0, H), tl.arange(0, ROWS), tl.arange(0, S)
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
    if position // SPAN == span:
        one = tl.arange(0, 1)
        k_new = _rotated_heads(
            partial_ptr, k_bias_ptr, k_norm_ptr, cos_ptr, sin_ptr, factor,
            kv + one, (one == 0)[:, None], G * K * H, dtype, EPS, H, width, SLICES, B,
        )  # fmt: skip
        column = (kv * H + h)[None, :]
        v_new = _projected(
            partial_ptr, v_bias_ptr, factor, (G + 1) * K * H + column, column,
            (one == 0)[:, None], width, SLICES, B,
        ).to(dtype)  # fmt: skip
        page = tl.load(table_ptr + b * TABLE + position // S)
        page = tl.where(given < 0, 0, page).to(tl.int64)
        target = pool + (page * S + position % S) * H + h[None, :]
        tl.store(k_written_ptr + target, k_new)
        tl.store(v_written_ptr + target, v_new)
        top = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), 1) * log2_scale
        total = tl.full([ROWS], 1.0, tl.float32)
        out += v_new.to(tl.float32)
    last = tl.minimum((span + 1) * (SPAN // S), tl.cdiv(position, S))
    for number in tl.range(span * (SPAN // S), last, num_stages=STAGES):
        page = tl.load(table_ptr + b * TABLE + number).to(tl.int64)
        past = number * S + slot < position
        tile = pool + page * S * H + slot[:, None] * H + h[None, :]
        k = tl.load(k_pages_ptr + tile, mask=past[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * log2_scale
        scores = tl.where(past[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        v = tl.load(v_pages_ptr + tile, mask=past[:, None], other=0.0)
        out = out * fade[:, None] + tl.dot(weights.to(dtype), v)
        total = total * fade + tl.sum(weights, 1)
        top = higher
    place = (b * K + kv) * SPANS + span
    mask = (g < G)[:, None]
    tl.store(out_ptr + (place * G + g[:, None]) * H + h[None, :], out, mask=mask)
    tl.store(stats_ptr + place * 2 * ROWS + g, top)
    tl.store(stats_ptr + (place * 2 + 1) * ROWS + g, total)


@triton.jit
def join_kernel(
    part_ptr,
    stats_ptr,
    position_ptr,
    out_ptr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    SPAN: tl.constexpr,
    SPANS: tl.constexpr,
    ROWS: tl.constexpr,
    JOINED: tl.constexpr,
):
    """Grid (B, N). out [B, N, H]: the spans' results weighted by their share of the softmax."""
    b, n = tl.program_id(0), tl.program_id(1)
    h, block = tl.arange(0, H), tl.arange(0, JOINED)
    used = tl.maximum(tl.load(position_ptr + b), 0) // SPAN + 1
    first = (b * K + n // G) * SPANS
    top = tl.full([JOINED], -float("inf"), tl.float32)
    for start in range(0, used, JOINED):
        place = (first + start + block) * 2 * ROWS + n % G
        mask = start + block < used
        top = tl.maximum(top, tl.load(stats_ptr + place, mask=mask, other=-float("inf")))
    highest = tl.max(top, 0)
    total = tl.zeros([JOINED], tl.float32)
    out = tl.zeros([JOINED, H], tl.float32)
    for start in range(0, used, JOINED):
        place = first + start + block
        mask = start + block < used
        stats = place * 2 * ROWS + n % G
        top = tl.load(stats_ptr + stats, mask=mask, other=-float("inf"))
        share = tl.exp2(top - highest)
        total += share * tl.load(stats_ptr + stats + ROWS, mask=mask, other=0.0)
        rows = (place * G + n % G)[:, None] * H + h[None, :]
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
        run: who runs the launches
        partial: [slices, B, (N + 2 K) H], from `kernels.qkv`
        squares: [slices, B], likewise
        biases: of q [N, H], k [K, H] and v [K, H], or None
        norms: scales of the heads of q and k [H], or None
        rotation: cosine and sine [B, H / 2], float32, of the tokens' positions
        position_B: int32, of the new token; the sequence before it has as many; negative: no token
        pages: of keys and of values, [K, P, S, H], written in place
        table_BM: int32, the page of every S tokens of each sequence
        width: D, that the mean of the squares is taken over
        eps: of the norms
    """
    slices, B, C = partial.shape
    K, P, S, H = pages[0].shape
    M = table_BM.shape[1]
    G = C // (K * H) - 2
    spans = ceil_div(M * S, SPAN)
    shape = {"K": K, "G": G, "H": H, "SPAN": SPAN, "SPANS": spans, "ROWS": Q_ROWS}
    page_shape, page_dtype = (tuple(pages[0].shape), pages[0].dtype)
    attend = Launch(
        kernel=attention_kernel,
        grid=(B, K, spans),
        outputs=(
            ((B, K, spans, G, H), "float32"),
            ((B, K, spans, 2, Q_ROWS), "float32"),
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
    join = Launch(
        kernel=join_kernel,
        grid=(B, K * G),
        outputs=(((B, K * G, H), page_dtype),),
        constants={**shape, "JOINED": JOINED},
        warps=2,
    )
    (out_BNH,) = run(join, [part, stats, position_B])
    return out_BNH, k_pages, v_pages
