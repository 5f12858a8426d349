"""Compile all programs of an engine before requests come."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from jaxs1.decoding.buckets import LADDER_FLAGS, bucket
from jaxs1.decoding.decode_loop import NO_LIMIT
from jaxs1.decoding.decode_state import empty_rows
from jaxs1.decoding.engine import Engine
from jaxs1.model.kv_cache import NULL_PAGE, PAD_POSITION


def warm_up(engine: Engine) -> Iterator[str]:
    """Run every program of the engine's buckets once, without any sequence.

    Args:
        engine: idle

    Yields:
        the name of each program, after it has run
    """
    assert not engine.busy
    engine.allow_adjustments()
    buckets = engine.buckets
    for pages in buckets.pages:
        for rows, width in buckets.prefill_shapes(engine.limits.prefill_chunk_tokens):
            _prefill(engine, rows, width, pages)
            yield f"prefill of {rows} x {width} tokens, {pages} pages"
    for width in buckets.widths:
        _score(engine, width)
        yield f"scores of {width} tokens"
    for pages in buckets.pages:
        for rows in buckets.rows:
            for flags in buckets.flags or LADDER_FLAGS:
                engine.cache, engine.decode_state, _ = engine.compiled.decode_steps(
                    engine.params, engine.cache, engine.decode_state, engine.is_newline_V,
                    NO_LIMIT, np.bool_(False), rows=rows, pages=pages, flags=flags,
                )  # fmt: skip
                yield f"decode steps of {rows} rows, {pages} pages, {flags}"
    _small_programs(engine)
    jax.block_until_ready(engine.decode_state)
    yield "insert, halt, end_thinking, reorder, copy_page"


def _prefill(engine: Engine, rows: int, width: int, pages: int) -> None:
    tokens_RT = np.zeros((rows, width), np.int32)
    positions_RT = np.full((rows, width), PAD_POSITION, np.int32)
    table_RM = np.full((rows, pages), NULL_PAGE, np.int32)
    engine.cache = engine.compiled.prefill(
        engine.params, engine.cache, tokens_RT, positions_RT, table_RM
    )


def _score(engine: Engine, width: int) -> None:
    tokens_1T = np.zeros((1, width), np.int32)
    positions_1T = np.full((1, width), PAD_POSITION, np.int32)
    table_1M = np.full((1, engine.buckets.pages[-1]), NULL_PAGE, np.int32)
    engine.cache, _ = engine.compiled.score(
        engine.params, engine.cache, tokens_1T, positions_1T, table_1M, tokens_1T
    )


def _small_programs(engine: Engine) -> None:
    compiled, most = engine.compiled, len(engine.scheduler.rows)
    for rows in sorted({bucket(n) for n in range(1, most + 1)}):
        nowhere = np.full(rows, most, np.int32)
        max_pages = engine.scheduler.max_pages
        new = empty_rows(
            rows,
            max_pages=max_pages,
            is_newline_V=engine.is_newline_V,
            adjusted=engine.adjusts,
        )
        state = compiled.insert(engine.decode_state, new, nowhere)
        state = compiled.halt(state, nowhere)
        engine.decode_state = compiled.end_thinking(state, engine.is_newline_V, nowhere)
    order = np.arange(most, dtype=np.int32)
    engine.decode_state = compiled.reorder(engine.decode_state, order)
    page = np.int32(NULL_PAGE)
    engine.cache = compiled.copy_page(engine.cache, page, page)
