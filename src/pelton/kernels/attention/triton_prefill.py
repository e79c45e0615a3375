"""Prefill attention on a GPU: rows of several queries over the paged cache, which holds their own keys already.

FlashAttention-2 (Dao 2023) with the query heads of a group packed into one tile of rows: row i of a tile is query
i // GROUP, head i % GROUP, so that all of them share the keys and values that one program reads, and a prompt of few
tokens still fills the tile. The host cuts the rows into such tiles, those with most keys first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.attention.triton_pages import LOWEST, accumulate, score_factor, scores_of, tile_blocks, tile_offsets


@triton.jit(do_not_specialize=["tiles", "query_start", "seq_lens", "tables", "heads_per_token", "table_stride",
                               "runs_per_block", "first_run"])
def prefill_kernel(q_ptr, pool, pool_rows, out, tiles, query_start, seq_lens, tables,
                   heads_per_token, table_stride, runs_per_block, first_run, scale, softcap,
                   NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
                   TOKENS_PER_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
                   HAS_SOFTCAP: tl.constexpr, STAGES: tl.constexpr, USE_DESCRIPTOR: tl.constexpr):
    """One tile of queries of one kv head.

    Args:
        q_ptr: [T, heads_per_token, HEAD_DIM], of which the first NUM_KV_HEADS · GROUP heads are queries.
        pool: [block, layer, 2, kv_head, token, dim].
        pool_rows: tensor descriptor of the pool as [-1, HEAD_DIM] in tiles [TILE, DIM_PAD], or None.
        out: [T, NUM_KV_HEADS · GROUP · HEAD_DIM].
        tiles: [tiles, 2] int32: row (below 0: nothing to do), and first query of the tile within the row.
        query_start, seq_lens, tables: the metadata's.
    """
    index = tl.program_id(0) // NUM_KV_HEADS
    head = tl.program_id(0) % NUM_KV_HEADS
    row = tl.load(tiles + index * 2)
    first_query = tl.load(tiles + index * 2 + 1)
    if row < 0:
        return
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    token = tl.load(query_start + row)
    num_queries = tl.load(query_start + row + 1) - token
    seq_len = tl.load(seq_lens + row)
    num_here = tl.minimum(num_queries - first_query, QUERIES)
    lanes = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DIM_PAD)
    query = lanes // GROUP
    first_position = seq_len - num_queries + first_query
    last_position = first_position + num_here - 1
    position = tl.minimum(first_position + query, last_position)  # [BLOCK_M]
    mask = (query < num_here)[:, None] & (dims[None, :] < HEAD_DIM)
    tokens = (token + first_query + query).to(tl.int64)
    heads = tokens * heads_per_token + head * GROUP + lanes % GROUP
    q = tl.load(q_ptr + heads[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    acc = tl.zeros([BLOCK_M, DIM_PAD], tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # Keys that all queries of the tile see lie between two borders, where some see them and others do not.
    stop = (last_position + TILE) // TILE
    full_stop = (first_position + 1) // TILE
    full_start = 0
    run = first_run + head
    table = tables + row.to(tl.int64) * table_stride
    if WINDOW > 0:
        start = tl.maximum(first_position - WINDOW + 1, 0) // TILE
        full_start = (tl.maximum(last_position - WINDOW + 1, 0) + TILE - 1) // TILE
        full_start = tl.minimum(tl.maximum(full_start, start), full_stop)
        acc, largest, total = _attend_tiles(
            acc, largest, total, q, pool, pool_rows, table, seq_len, position, start, full_start,
            run, runs_per_block, scale, softcap, NUM_KV_HEADS, HEAD_DIM, DIM_PAD, TOKENS_PER_BLOCK, TILE, WINDOW,
            HAS_SOFTCAP, STAGES, True, False)
    acc, largest, total = _attend_tiles(
        acc, largest, total, q, pool, pool_rows, table, seq_len, position, full_start, full_stop,
        run, runs_per_block, scale, softcap, NUM_KV_HEADS, HEAD_DIM, DIM_PAD, TOKENS_PER_BLOCK, TILE, WINDOW,
        HAS_SOFTCAP, STAGES, False, USE_DESCRIPTOR)
    acc, largest, total = _attend_tiles(
        acc, largest, total, q, pool, pool_rows, table, seq_len, position, full_stop, stop,
        run, runs_per_block, scale, softcap, NUM_KV_HEADS, HEAD_DIM, DIM_PAD, TOKENS_PER_BLOCK, TILE, WINDOW,
        HAS_SOFTCAP, 1, True, False)
    acc = acc / total[:, None]
    heads = tokens * (NUM_KV_HEADS * GROUP) + head * GROUP + lanes % GROUP
    tl.store(out + heads[:, None] * HEAD_DIM + dims[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attend_tiles(acc, largest, total, q, pool, pool_rows, table, seq_len, position, begin, end,
                  run, runs_per_block, scale, softcap, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                  DIM_PAD: tl.constexpr, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
                  HAS_SOFTCAP: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
                  USE_DESCRIPTOR: tl.constexpr):
    """Tiles [begin, end) of a row's keys; MASKED where some query of the tile does not see some of them."""
    dims = tl.arange(0, DIM_PAD)
    blocks = tile_blocks(table, begin, seq_len, TOKENS_PER_BLOCK, TILE)
    factor = score_factor(scale, softcap, HAS_SOFTCAP)
    for tile in tl.range(begin, end, num_stages=STAGES):
        key = tile * TILE + tl.arange(0, TILE)
        if USE_DESCRIPTOR:
            first = (blocks * runs_per_block + run) * TOKENS_PER_BLOCK + tile * TILE % TOKENS_PER_BLOCK
            k = pool_rows.load([first, 0])
            v = pool_rows.load([first + NUM_KV_HEADS * TOKENS_PER_BLOCK, 0]).to(q.dtype)
        else:
            at = pool + tile_offsets(blocks, tile, run, runs_per_block, HEAD_DIM, DIM_PAD, TOKENS_PER_BLOCK, TILE)
            value = at + NUM_KV_HEADS * TOKENS_PER_BLOCK * HEAD_DIM
            if MASKED:
                # A slot that no query sees may hold anything, even NaN, which no weight of 0 would mend.
                is_kept = key < seq_len
                if WINDOW > 0:
                    is_kept = is_kept & (key > tl.min(position, 0) - WINDOW)
                mask = is_kept[:, None] & (dims[None, :] < HEAD_DIM)
                k = tl.load(at, mask=mask, other=0.0)
                v = tl.load(value, mask=mask, other=0.0).to(q.dtype)
            elif HEAD_DIM < DIM_PAD:
                k = tl.load(at, mask=dims[None, :] < HEAD_DIM, other=0.0)
                v = tl.load(value, mask=dims[None, :] < HEAD_DIM, other=0.0).to(q.dtype)
            else:
                k = tl.load(at)
                v = tl.load(value).to(q.dtype)
        scores = scores_of(q, k, scale, softcap, HAS_SOFTCAP)
        if MASKED:
            is_seen = key[None, :] <= position[:, None]
            if WINDOW > 0:
                is_seen = is_seen & (key[None, :] > position[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
        acc, largest, total = accumulate(scores, factor, v, acc, largest, total)
        blocks = tile_blocks(table, tile + 1, seq_len, TOKENS_PER_BLOCK, TILE)
    return acc, largest, total
