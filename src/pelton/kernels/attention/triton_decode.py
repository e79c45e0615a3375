"""Decode attention on a GPU: every row has one query; the step's keys are shared out evenly among all programs.

Lengths are known to the device alone, so one small kernel per step (`assign`) lays all (row, kv head, tile of keys) in
one line and cuts it into equal shares, one per program of a grid that fills the GPU once, as in stream-K (Osama et al.
2023), or, where that costs little, into shares of one (row, head) each. Many short (row, head) are not cut at all: each
has a program of its own, and the hardware starts programs as others end. A long row beside many short ones is thus
spread over the whole GPU, and nothing depends on the host knowing a length. Where a share ends within a (row, head),
its programs leave partial sums in the workspace, and the last of them to finish adds them up, in the order of the keys:
the result does not depend on who was last.

Between two layers more is read than the L2 cache holds, so a program's share, lengths and block tables would come from
memory, one after another, before its first keys could be asked for. They are marked to be kept there, and a share
names the first blocks itself.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.kernels.attention.triton_newest import begin_with_newest
from pelton.kernels.attention.triton_pages import LOWEST, accumulate, score_factor, scores_of, tile_blocks, tile_offsets

WORK_WIDTH = 8
"""int32 per program: row, kv head, unit within them to begin at, units to do (negated: of this one alone), the row's
length, the blocks of the first two tiles, and the next row's length."""
_ROW_CHUNK = tl.constexpr(1024)
_LEAST_SHARE = tl.constexpr(0.5)
"""A (row, head) of n tiles is cut into pieces of no less than this times √n: a tile in sequence costs some 0.5 µs and a
piece to add up a fourth of that, so that is where the sum of both is least (measured on an H200 from 192 to 8,192
tokens)."""


@triton.jit
def _tiles_of(seq_len, TILE: tl.constexpr, WINDOW: tl.constexpr):
    """(first tile a row's query sees, number of tiles); a row of length 0 has one tile, hidden, to write its zeros."""
    first = seq_len * 0
    if WINDOW > 0:
        first = tl.maximum(seq_len - WINDOW, 0) // TILE
    return first, tl.maximum((seq_len + TILE - 1) // TILE - first, 1)


@triton.jit
def _units_of(num_tiles, share, cost):
    """Units of one (row, head): its tiles and the cost of its start and end; whole shares where that cost is 0."""
    return tl.where(cost > 0, num_tiles + cost, (num_tiles + share - 1) // share * share)


@triton.jit
def _whole_share(tiles, num_programs, min_share, limit, NUM_KV_HEADS: tl.constexpr):
    """The least share with which no program serves more than one (row, head), or `limit` when that is not less.

    tiles: [_ROW_CHUNK], 0 where there is no row.
    """
    num_tiles = tl.sum(tiles, 0) * NUM_KV_HEADS
    low = tl.maximum((num_tiles + num_programs - 1) // num_programs, min_share)
    low = tl.minimum(low, limit)
    high = limit
    while low < high:
        middle = (low + high) // 2
        num_taken = tl.sum((tiles + middle - 1) // middle, 0) * NUM_KV_HEADS
        if num_taken <= num_programs:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit(do_not_specialize=["seq_lens", "tables", "work", "table_stride", "num_rows", "num_programs",
                               "num_resident", "slack"])
def assign_kernel(seq_lens, tables, work, table_stride, num_rows, num_programs, num_resident, slack,
                  NUM_KV_HEADS: tl.constexpr, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr,
                  WINDOW: tl.constexpr, SEGMENT_COST: tl.constexpr):
    """Where each program of `decode_kernel` begins. One program per program.

    Of num_programs programs, num_resident fill the GPU once, and only these have work unless every (row, head) gets a
    program of its own: where there are more of them than num_resident and none is longer than an equal share.

    A unit is one tile of one (row, head). Where that takes at most `slack` tiles longer, programs get whole shares of a
    single (row, head), and the share is written as a negative number: starting another costs a round of latencies, and
    a short (row, head) in one program needs no adding up. Otherwise each (row, head) counts SEGMENT_COST units more for
    its start and end, and shares run on from one to the next.
    """
    program = tl.program_id(0)
    lanes = tl.arange(0, _ROW_CHUNK)
    total = 0
    longest = 1
    for start in range(0, num_rows, _ROW_CHUNK):
        rows = start + lanes
        lens = tl.load(seq_lens + rows, mask=rows < num_rows, other=0)
        _, tiles = _tiles_of(lens, TILE, WINDOW)
        longest = tl.maximum(longest, tl.max(tiles, 0))
        total += tl.sum(tl.where(rows < num_rows, (tiles + SEGMENT_COST) * NUM_KV_HEADS, 0), 0)
    min_share = tl.maximum((tl.sqrt(longest.to(tl.float32)) * _LEAST_SHARE + 0.5).to(tl.int32), 1)
    share = tl.maximum((total + num_resident - 1) // num_resident, min_share)
    cost = share * 0 + SEGMENT_COST
    num_working = num_resident
    num_segments = num_rows * NUM_KV_HEADS
    if (num_segments > num_resident) & (num_segments <= num_programs) & (longest <= share):
        share = longest
        cost = cost * 0
        num_working = num_programs
    if (num_segments <= num_resident) & (num_rows <= _ROW_CHUNK):
        lens = tl.load(seq_lens + lanes, mask=lanes < num_rows, other=0)
        _, tiles = _tiles_of(lens, TILE, WINDOW)
        limit = share + slack + 1
        whole = _whole_share(tl.where(lanes < num_rows, tiles, 0), num_resident, min_share, limit, NUM_KV_HEADS)
        if whole < limit:
            share = whole
            cost = cost * 0
    begin = tl.minimum(program, num_working) * share
    row = 0
    row_begin = 0
    before = 0
    for start in range(0, num_rows, _ROW_CHUNK):
        rows = start + lanes
        lens = tl.load(seq_lens + rows, mask=rows < num_rows, other=0)
        _, tiles = _tiles_of(lens, TILE, WINDOW)
        ends = before + tl.cumsum(tl.where(rows < num_rows, _units_of(tiles, share, cost) * NUM_KV_HEADS, 0), 0)
        is_past = (ends <= begin) & (rows < num_rows)
        row += tl.sum(is_past.to(tl.int32), 0)
        row_begin = tl.maximum(row_begin, tl.max(tl.where(is_past, ends, 0), 0))
        before = tl.max(ends, 0)
    entry = work + program * 8
    seq_len = tl.load(seq_lens + row, mask=row < num_rows, other=0)
    first_tile, tiles = _tiles_of(seq_len, TILE, WINDOW)
    units = _units_of(tiles, share, cost)
    skipped = (begin - row_begin) % units
    tl.store(entry, tl.where(program < num_working, row, num_rows))
    tl.store(entry + 1, (begin - row_begin) // units)
    tl.store(entry + 2, skipped)
    tl.store(entry + 3, tl.where(cost > 0, share, -share))
    tl.store(entry + 4, seq_len)
    if TILE <= TOKENS_PER_BLOCK:
        table = tables + row.to(tl.int64) * table_stride
        tile = first_tile + tl.maximum(skipped - cost, 0)
        tl.store(entry + 5, tile_blocks(table, tile, seq_len, TOKENS_PER_BLOCK, TILE))
        tl.store(entry + 6, tile_blocks(table, tile + 1, seq_len, TOKENS_PER_BLOCK, TILE))
    tl.store(entry + 7, tl.load(seq_lens + row + 1, mask=row + 1 < num_rows, other=0))


@triton.jit(do_not_specialize=["slots", "work", "seq_lens", "tables", "counters", "heads_per_token", "table_stride",
                               "runs_per_block", "first_run", "num_rows"])
def decode_kernel(q_ptr, cos_ptr, sin_ptr, slots, q_norm, k_norm, pool, out, work, seq_lens, tables, counters, sums,
                  stats, heads_per_token, table_stride, runs_per_block, first_run, num_rows, scale, softcap, eps,
                  NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr,
                  DIM_PAD: tl.constexpr, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
                  HAS_SOFTCAP: tl.constexpr, SEGMENT_COST: tl.constexpr, STAGES: tl.constexpr,
                  HALF_DIM: tl.constexpr, HAS_NORM: tl.constexpr, IS_DEPENDENT: tl.constexpr,
                  SIGNALS: tl.constexpr):
    """One program's share of the step's decode rows.

    Where HALF_DIM is not 0, queries and keys are still to be rotated, and the newest keys and values are not in the
    pool yet: `begin_with_newest`. Then nothing that the launch before writes is read before its queries, so that the
    first tiles of keys are asked for before that launch has ended.

    IS_DEPENDENT: it may start before the launch before has ended. SIGNALS: the launch after it may.

    Args:
        q_ptr: [rows, heads_per_token, HEAD_DIM], of which the first NUM_KV_HEADS · GROUP heads are queries.
        cos_ptr, sin_ptr, slots, q_norm, k_norm, eps: of `begin_with_newest`.
        pool: [block, layer, 2, kv_head, token, dim].
        out: [rows, NUM_KV_HEADS · GROUP · HEAD_DIM].
        work: [programs, WORK_WIDTH] of `assign_kernel`.
        counters: [rows · NUM_KV_HEADS] int32 zeros, left as zeros: programs done with a (row, head) that is cut.
        sums: [2 · programs, GROUP, HEAD_DIM] float32: unscaled sums. Slot 2p + 1 is for the piece that begins its
            (row, head), slot 2p for one that goes on with it.
        stats: [2 · programs, 2, GROUP] float32: largest score, sum of weights.
    """
    if SIGNALS:
        gdc_launch_dependents()
    program = tl.program_id(0)
    entry = work + program * 8
    row = tl.load(entry, eviction_policy="evict_last")
    head = tl.load(entry + 1, eviction_policy="evict_last")
    skipped = tl.load(entry + 2, eviction_policy="evict_last")
    signed_share = tl.load(entry + 3, eviction_policy="evict_last")
    seq_len = tl.load(entry + 4, eviction_policy="evict_last")
    after_len = tl.load(entry + 7, eviction_policy="evict_last")
    share = tl.abs(signed_share)
    cost = tl.where(signed_share < 0, 0, SEGMENT_COST)
    unit = program * share
    stop = unit + share
    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    is_query = (group[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    if TILE <= TOKENS_PER_BLOCK:
        blocks = tl.load(entry + 5, eviction_policy="evict_last")
        after_blocks = tl.load(entry + 6, eviction_policy="evict_last")
    else:
        blocks, after_blocks = _first_blocks(tables, table_stride, row, seq_len, tl.maximum(skipped - cost, 0),
                                             TOKENS_PER_BLOCK, TILE, WINDOW)
    if IS_DEPENDENT and HALF_DIM == 0:
        gdc_wait()  # before anything else is read or written: what came before may still be using it
    while (row < num_rows) & (unit < stop):
        first_tile, num_tiles = _tiles_of(seq_len, TILE, WINDOW)
        segment = unit - skipped  # where this (row, head) begins on the line of units
        begin = tl.maximum(skipped - cost, 0)
        end = tl.minimum(stop - segment - cost, num_tiles)
        # The next (row, head) is looked up before this one's tiles are waited for.
        is_past = head + 1 == NUM_KV_HEADS
        next_row = row + is_past.to(tl.int32)
        next_len = tl.where(is_past, after_len, seq_len)
        after_len = tl.load(seq_lens + next_row + 1, mask=next_row + 1 < num_rows, other=0,
                            eviction_policy="evict_last")
        next_blocks, next_after = _first_blocks(tables, table_stride, next_row, next_len, 0, TOKENS_PER_BLOCK, TILE,
                                                WINDOW)
        if end > begin:
            is_newest = (end == num_tiles) & (seq_len > 0)
            acc, largest, total = _attend_tiles(
                q_ptr, cos_ptr, sin_ptr, slots, q_norm, k_norm, pool, blocks, after_blocks, tables, table_stride, row,
                head, seq_len, first_tile + begin, first_tile + end, is_newest, heads_per_token, first_run + head,
                runs_per_block, scale, softcap, eps, NUM_KV_HEADS, GROUP, GROUP_PAD, HEAD_DIM, DIM_PAD,
                TOKENS_PER_BLOCK, TILE, WINDOW, HAS_SOFTCAP, STAGES, HALF_DIM, HAS_NORM, IS_DEPENDENT)
            if (begin == 0) & (end == num_tiles):
                _write(out, row, head, acc, total, group, dims, NUM_KV_HEADS, GROUP, HEAD_DIM)
            else:
                slot = program * 2 + (begin == 0).to(tl.int32)
                tl.store(sums + (slot * GROUP + group[:, None]) * HEAD_DIM + dims[None, :], acc, mask=is_query)
                tl.store(stats + slot * (2 * GROUP) + group, largest, mask=group < GROUP)
                tl.store(stats + slot * (2 * GROUP) + GROUP + group, total, mask=group < GROUP)
                first_program = (segment + cost) // share
                num_pieces = (segment + cost + num_tiles - 1) // share - first_program + 1
                counter = counters + row * NUM_KV_HEADS + head
                tl.debug_barrier()  # all threads' sums are written before one thread says so
                num_done = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if num_done == num_pieces - 1:
                    _add_pieces(out, sums, stats, row, head, first_program, num_pieces, NUM_KV_HEADS, GROUP, HEAD_DIM)
                    tl.store(counter, 0)
        unit = segment + _units_of(num_tiles, share, cost)
        skipped = unit * 0
        head = tl.where(is_past, 0, head + 1)
        row, seq_len, blocks, after_blocks = next_row, next_len, next_blocks, next_after


@triton.jit
def _first_blocks(tables, table_stride, row, seq_len, begin, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr,
                  WINDOW: tl.constexpr):
    """Blocks of tiles begin and begin + 1 of those that a row's query sees."""
    first_tile, _ = _tiles_of(seq_len, TILE, WINDOW)
    table = tables + row.to(tl.int64) * table_stride
    return tile_blocks(table, first_tile + begin, seq_len, TOKENS_PER_BLOCK, TILE), \
        tile_blocks(table, first_tile + begin + 1, seq_len, TOKENS_PER_BLOCK, TILE)


@triton.jit
def _write(out, row, head, acc, total, group, dims, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
           HEAD_DIM: tl.constexpr):
    """acc [queries, dims] over the sum of its weights; zeros where nothing was seen."""
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    at = out + (row.to(tl.int64) * NUM_KV_HEADS + head) * (GROUP * HEAD_DIM)
    mask = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(at + group[:, None] * HEAD_DIM + dims[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _attend_tiles(q_ptr, cos_ptr, sin_ptr, slots, q_norm, k_norm, pool, blocks, after_blocks, tables, table_stride, row,
                  head, seq_len, begin, end, is_newest, heads_per_token, run, runs_per_block, scale, softcap, eps,
                  NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr,
                  DIM_PAD: tl.constexpr, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
                  HAS_SOFTCAP: tl.constexpr, STAGES: tl.constexpr, HALF_DIM: tl.constexpr, HAS_NORM: tl.constexpr,
                  IS_DEPENDENT: tl.constexpr):
    """The queries of one (row, head) over tiles [begin, end) of the row's keys.

    Args:
        blocks, after_blocks: of `tile_blocks`, for tiles begin and begin + 1.
        is_newest: whether the newest token is in the last of them.
    """
    group = tl.arange(0, GROUP_PAD)[:, None]
    dims = tl.arange(0, DIM_PAD)[None, :]
    tokens = tl.arange(0, TILE)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    largest = tl.full([GROUP_PAD], LOWEST, tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    q = tl.zeros([GROUP_PAD, DIM_PAD], q_ptr.dtype.element_ty)
    factor = score_factor(scale, softcap, HAS_SOFTCAP)
    num_cached = seq_len - 1 if HALF_DIM > 0 else seq_len
    for tile in tl.range(begin, end, num_stages=STAGES):
        position = tile * TILE + tokens
        is_seen = position < num_cached
        if WINDOW > 0:
            is_seen = is_seen & (position >= seq_len - WINDOW)
        # Slots past the end, or before the window, may hold anything, even NaN, which no weight of 0 would mend.
        mask = is_seen[:, None] & (dims < HEAD_DIM)
        at = pool + tile_offsets(blocks, tile, run, runs_per_block, HEAD_DIM, DIM_PAD, TOKENS_PER_BLOCK, TILE)
        k = tl.load(at, mask=mask, other=0.0)
        v = tl.load(at + NUM_KV_HEADS * TOKENS_PER_BLOCK * HEAD_DIM, mask=mask, other=0.0).to(q.dtype)
        if tile == begin:  # in the loop, so that the first keys and values are asked for before this is waited for
            if HALF_DIM > 0:
                q, acc, largest, total = begin_with_newest(
                    q_ptr, cos_ptr, sin_ptr, slots, q_norm, k_norm, pool, row, head, is_newest, heads_per_token, run,
                    runs_per_block, scale, softcap, factor, eps, NUM_KV_HEADS, GROUP, GROUP_PAD, HEAD_DIM, DIM_PAD,
                    HALF_DIM, HAS_NORM, TOKENS_PER_BLOCK, HAS_SOFTCAP, IS_DEPENDENT)
            else:
                queries = q_ptr + (row.to(tl.int64) * heads_per_token + head * GROUP + group) * HEAD_DIM
                q = tl.load(queries + dims, mask=(group < GROUP) & (dims < HEAD_DIM), other=0.0)
        scores = scores_of(q, k, scale, softcap, HAS_SOFTCAP)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        acc, largest, total = accumulate(scores, factor, v, acc, largest, total)
        if TILE <= TOKENS_PER_BLOCK:  # a load that is left out is not waited for
            after = (tile + 1) * TILE
            blocks = tl.load(table + after // TOKENS_PER_BLOCK, mask=(tile > begin) & (after < seq_len),
                             other=after_blocks, eviction_policy="evict_last")
        else:
            blocks = tile_blocks(table, tile + 1, seq_len, TOKENS_PER_BLOCK, TILE)
    return acc, largest, total


@triton.jit
def _add_pieces(out, sums, stats, row, head, first_program, num_pieces, NUM_KV_HEADS: tl.constexpr,
                GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Joins the partial sums of one (row, head) and writes its output; pieces lie with consecutive programs.

    Queries and dimensions are one flat axis, so that nothing moves between threads. Loads of several pieces are under
    way together: the wait for each is what this costs.
    """
    SIZE: tl.constexpr = triton.next_power_of_2(GROUP * HEAD_DIM)
    UNROLL: tl.constexpr = max(1, min(8, 4096 // SIZE))
    lanes = tl.arange(0, SIZE)
    is_there = lanes < GROUP * HEAD_DIM
    stat = stats + lanes // HEAD_DIM
    largest = tl.full([SIZE], LOWEST, tl.float32)
    for piece in tl.range(0, num_pieces, loop_unroll_factor=UNROLL):
        slot = _slot_of(first_program, piece)
        largest = tl.maximum(largest, tl.load(stat + slot * (2 * GROUP), mask=is_there, other=LOWEST))
    acc = tl.zeros([SIZE], tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    for piece in tl.range(0, num_pieces, loop_unroll_factor=UNROLL):
        slot = _slot_of(first_program, piece)
        weight = tl.exp2(tl.load(stat + slot * (2 * GROUP), mask=is_there, other=LOWEST) - largest)
        total += tl.load(stat + slot * (2 * GROUP) + GROUP, mask=is_there, other=1.0) * weight
        acc += tl.load(sums + slot * (GROUP * HEAD_DIM) + lanes, mask=is_there, other=0.0) * weight
    at = out + (row.to(tl.int64) * NUM_KV_HEADS + head) * (GROUP * HEAD_DIM) + lanes
    tl.store(at, (acc / total).to(out.dtype.element_ty), mask=is_there)


@triton.jit
def _slot_of(first_program, piece):
    """Where a piece's sums lie: the first of a (row, head) is its program's last work, the others their first."""
    return (first_program + piece) * 2 + tl.maximum(1 - piece, 0)
