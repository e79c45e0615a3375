"""Prefill attention on Hopper: copies, tensor cores and softmax at once, each in warps of its own.

Tiles as triton_prefill.py's, of 128 rows (queries times heads of a group), with the three kinds of work of a
step overlapped as FlashAttention-3 does (Shah et al. 2024). One warp asks the copy engine for keys and values, page by
page through the block table, into two rings in shared memory. Two warpgroups take 64 rows each; while one of them
computes the weights of a tile of keys, the tensor cores multiply for the other, and within a warpgroup the scores of a
tile are multiplied before the weights of the tile before have met their values.

There is one program per multiprocessor. Its copies run ahead of its products, into the next tile of queries too. Keys
go from a tile's last to its first, so that the tiles where some query does not see some key come first, apart from
those at a window's far end.

A slot past a sequence's end may hold anything, even NaN, which no weight of 0 would mend. It is never read: the last
page's box begins so many tokens before the page that it ends with the sequence, and the copy engine fills what lies
before the page with zeros. Keys of that page are so many places late, for which the mask allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.launch import launch as launch_kernel

# Triton 3.6 and 3.7 name it differently.
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
_LOG2_E = gl.constexpr(1.4426950408889634)
_LOWEST = gl.constexpr(-1e30)
_SLAB = gl.constexpr(64)
"""Elements in a row of shared memory as the tensor cores read it: 128 bytes."""
_HIDDEN = gl.constexpr(2**31 - 1)
"""The position of what no query sees."""
BLOCK_M = 128
"""Queries times heads of a group in a tile, 64 for each of two warpgroups."""
_TILE = 128
"""Keys per step of the online softmax."""
_LEAST_KEYS = 400
"""That a query sees in the mean: below, triton_prefill.py is faster, whose programs begin and end faster (measured on
an H200)."""
_LEAST_LEN = 850
"""Of the step's prompts together and of its longest sequence. So a server that may come to such a step can also run a
prompt of one step that does, when it compiles its kernels before it serves."""


@dataclass(frozen=True)
class HopperConfig:
    """How `hopper_prefill_kernel` is cut."""

    num_stages: int = 3
    """Tiles of keys, and of values, in shared memory."""
    takes_turns: bool = True
    """Whether the warpgroups give their products to the tensor cores one after the other, so that the softmax of one
    falls on the products of the other."""

    @property
    def block_m(self) -> int:
        """As `PrefillConfig`'s."""
        return BLOCK_M


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _item_of(wave, num_programs):
    """The item of a program's wave: there and back, since items are sorted by length."""
    program = gl.program_id(0)
    return wave * num_programs + gl.where(wave % 2 == 0, program, num_programs - 1 - program)


@gluon.jit
def _find_tile(item, num_items, tiles, query_start, seq_lens, NUM_KV_HEADS: gl.constexpr, QUERIES: gl.constexpr):
    """A tile of queries: its row and head, first token, queries in it (none past the last), the position of its first
    query, and the length of the sequence."""
    index = item // NUM_KV_HEADS
    row = gl.load(tiles + index * 2, mask=item < num_items, other=-1)
    first_query = gl.load(tiles + index * 2 + 1, mask=item < num_items, other=0)
    is_real = row >= 0
    start = gl.load(query_start + row, mask=is_real, other=0)
    num_queries = gl.load(query_start + row + 1, mask=is_real, other=0) - start
    seq_len = gl.load(seq_lens + row, mask=is_real, other=0)
    num_here = gl.where(is_real, gl.minimum(num_queries - first_query, QUERIES), 0)
    return row, item % NUM_KV_HEADS, start + first_query, num_here, seq_len - num_queries + first_query, seq_len


@gluon.jit
def _key_tiles(num_here, first_position, TILE: gl.constexpr, WINDOW: gl.constexpr):
    """Borders of a tile's keys, in tiles: start, the first and the last that all its queries see, stop."""
    last_position = first_position + num_here - 1
    stop = (last_position + TILE) // TILE
    # The last tile is attended before the loops, with a mask.
    full_stop = gl.minimum((first_position + 1) // TILE, stop - 1)
    start = 0
    full_start = 0
    if WINDOW > 0:
        start = gl.maximum(first_position - WINDOW + 1, 0) // TILE
        full_start = (gl.maximum(last_position - WINDOW + 1, 0) + TILE - 1) // TILE
        full_start = gl.minimum(gl.maximum(full_start, start), full_stop)
    return start, full_start, full_stop, stop


@gluon.jit
def _copy_tile(pool_runs, ring, bar, slot, table, tile, seq_len, first_kept, run, runs_per_block,
               HEAD_DIM: gl.constexpr, PAGE: gl.constexpr, TILE: gl.constexpr):
    """Starts the copies of a tile of keys or values into ring [·, 1, PAGE, _SLAB], page by page."""
    PAGES: gl.constexpr = TILE // PAGE
    SLABS: gl.constexpr = HEAD_DIM // _SLAB
    last_page = (seq_len - 1) // PAGE
    for i in gl.static_range(PAGES):
        page = tile * PAGES + i
        is_kept = (page <= last_page) & (page >= first_kept)
        block = gl.load(table + page, mask=is_kept, other=0)
        # A box that begins past its page is all zeros.
        token = gl.where(is_kept, gl.where(page == last_page, seq_len - (last_page + 1) * PAGE, 0), PAGE)
        for slab in gl.static_range(SLABS):
            tma.async_copy_global_to_shared(pool_runs, [block * runs_per_block + run, token, slab * _SLAB], bar,
                                            ring.index((slot * SLABS + slab) * PAGES + i))


@gluon.jit
def _produce(pool_runs, k_ring, v_ring, ready, free, tiles, query_start, seq_lens, tables, table_stride, num_items,
             first_run, runs_per_block, NUM_KV_HEADS: gl.constexpr, QUERIES: gl.constexpr, HEAD_DIM: gl.constexpr,
             PAGE: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, WINDOW: gl.constexpr):
    """Keeps the rings full: step by step the keys of a tile and the values of the tile before."""
    tile_bytes: gl.constexpr = TILE * HEAD_DIM * 2
    num_programs = gl.num_programs(0)
    wave = 0
    done = 0
    row, head, _token, num_here, first_position, seq_len = _find_tile(
        _item_of(0, num_programs), num_items, tiles, query_start, seq_lens, NUM_KV_HEADS, QUERIES)
    while num_here > 0:
        start, _full_start, _full_stop, stop = _key_tiles(num_here, first_position, TILE, WINDOW)
        first_kept = 0
        if WINDOW > 0:
            first_kept = gl.maximum(first_position - WINDOW + 1, 0) // PAGE
        table = tables + row.to(gl.int64) * table_stride
        run = first_run + head
        num_tiles = stop - start
        for step in range(num_tiles + 1):
            slot = (done + step) % STAGES
            bar = ready.index(slot)
            mbarrier.wait(free.index(slot), (((done + step) // STAGES) & 1) ^ 1)
            if (step == 0) | (step == num_tiles):
                mbarrier.expect(bar, tile_bytes)
            else:
                mbarrier.expect(bar, 2 * tile_bytes)
            if step < num_tiles:
                _copy_tile(pool_runs, k_ring, bar, slot, table, stop - 1 - step, seq_len, first_kept, run,
                           runs_per_block, HEAD_DIM, PAGE, TILE)
            if step > 0:
                _copy_tile(pool_runs, v_ring, bar, slot, table, stop - step, seq_len, first_kept, run + NUM_KV_HEADS,
                           runs_per_block, HEAD_DIM, PAGE, TILE)
        done += num_tiles + 1
        wave += 1
        row, head, _token, num_here, first_position, seq_len = _find_tile(
            _item_of(wave, num_programs), num_items, tiles, query_start, seq_lens, NUM_KV_HEADS, QUERIES)


@gluon.jit
def _hide(scores, tile, position, seq_len, PAGE: gl.constexpr, TILE: gl.constexpr, WINDOW: gl.constexpr):
    """Scores [M, TILE] of a tile of keys, -inf where a query, at position [M], does not see the key."""
    place = tile * TILE + gl.arange(0, TILE, gl.SliceLayout(0, scores.type.layout))
    last_start = (seq_len - 1) // PAGE * PAGE
    key = gl.where(place < last_start, place, place - (last_start + PAGE - seq_len))
    key = gl.where((place < last_start) | (key >= last_start), key, _HIDDEN)
    is_seen = key[None, :] <= position[:, None]
    if WINDOW > 0:
        is_seen = is_seen & (key[None, :] > position[:, None] - WINDOW)
    return gl.where(is_seen, scores, float("-inf"))


@gluon.jit
def _soften(scores, factor, largest, total):
    """Weights [M, N] of scores · factor, what the sums so far shrink by, and the new maximum and total."""
    new_largest = gl.maximum(largest, gl.max(scores, 1) * factor)
    weights = _exp2(scores * factor - new_largest[:, None])
    shrink = _exp2(largest - new_largest)
    return weights, shrink, new_largest, total * shrink + gl.sum(weights, 1)


@gluon.jit
def _attend_tiles(acc, weights, largest, total, q_tile, k_ring, v_ring, ready, free, turns, begin, end, stop, done,
                  turn, position, seq_len, factor, PAGE: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
                  WINDOW: gl.constexpr, MASKED: gl.constexpr, TURNS: gl.constexpr, WHO: gl.constexpr):
    """Tiles [begin, end) of keys, last to first, of the scores; and of the values the tile before each."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, TILE, 16])
    for tile in range(end - 1, begin - 1, -1):
        step = done + stop - 1 - tile
        slot = step % STAGES
        if TURNS:
            mbarrier.wait(turns.index(WHO), (turn + stop - 1 - tile) & 1)
        scores = warpgroup_mma(q_tile, k_ring.index(slot).permute((1, 0)), gl.zeros([64, TILE], gl.float32, layout),
                               use_acc=False, is_async=True)
        acc = warpgroup_mma(weights, v_ring.index(slot), acc, is_async=True)
        if TURNS:
            mbarrier.arrive(turns.index(1 - WHO), count=1)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        if MASKED:
            scores = _hide(scores, tile, position, seq_len, PAGE, TILE, WINDOW)
        new_weights, shrink, largest, total = _soften(scores, factor, largest, total)
        new_weights = gl.convert_layout(new_weights.to(q_tile.dtype), weights.type.layout)
        # The next step's wait stands here, and the new weights pass through the product's, so that the softmax is not
        # put off until the product is there.
        mbarrier.wait(ready.index((step + 1) % STAGES), ((step + 1) // STAGES) & 1)
        acc, weights, new_weights, total = warpgroup_mma_wait(0, deps=(acc, weights, new_weights, total))
        mbarrier.arrive(free.index(slot), count=1)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]
        weights = new_weights
    return acc, weights, largest, total


@gluon.jit
def _copy_queries(q_ptr, q_tile, head, token, num_here, heads_per_token, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
                  WHO: gl.constexpr):
    """Starts the copy of 64 rows of queries; what is past the last query becomes zero."""
    lanes: gl.constexpr = HEAD_DIM // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [gl.num_warps(), 1], [1, 0])
    rows = WHO * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    heads = (token + rows // GROUP).to(gl.int64) * heads_per_token + head * GROUP + rows % GROUP
    async_copy.async_copy_global_to_shared(q_tile, q_ptr + heads[:, None] * HEAD_DIM + dims[None, :],
                                           mask=(rows // GROUP < num_here)[:, None])
    async_copy.commit_group()


@gluon.jit
def _consume(q_ptr, out, q_ring, k_ring, v_ring, ready, free, turns, tiles, query_start, seq_lens, num_items,
             heads_per_token, scale, NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, HEAD_DIM: gl.constexpr,
             PAGE: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, WINDOW: gl.constexpr, TURNS: gl.constexpr,
             WHO: gl.constexpr):
    """64 rows of each tile of queries."""
    num_warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, TILE, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD_DIM, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    QUERIES: gl.constexpr = 128 // GROUP
    q_tile = q_ring.index(WHO)
    factor = scale * _LOG2_E
    num_programs = gl.num_programs(0)
    wave = 0
    done = 0
    turn = 0
    _row, head, token, num_here, first_position, seq_len = _find_tile(
        _item_of(0, num_programs), num_items, tiles, query_start, seq_lens, NUM_KV_HEADS, QUERIES)
    _copy_queries(q_ptr, q_tile, head, token, num_here, heads_per_token, GROUP, HEAD_DIM, WHO)
    while num_here > 0:
        wave += 1
        _row, next_head, next_token, next_num_here, next_first_position, next_seq_len = _find_tile(
            _item_of(wave, num_programs), num_items, tiles, query_start, seq_lens, NUM_KV_HEADS, QUERIES)
        start, full_start, full_stop, stop = _key_tiles(num_here, first_position, TILE, WINDOW)
        rows = WHO * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))
        position = first_position + gl.minimum(rows // GROUP, num_here - 1)
        largest = gl.full([64], _LOWEST, gl.float32, gl.SliceLayout(1, layout))
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, layout))
        acc = gl.zeros([64, HEAD_DIM], gl.float32, acc_layout)
        async_copy.wait_group(0)
        fence_async_shared()
        _barrier()
        mbarrier.wait(ready.index(done % STAGES), (done // STAGES) & 1)
        if TURNS:
            mbarrier.wait(turns.index(WHO), turn & 1)
        scores = warpgroup_mma(q_tile, k_ring.index(done % STAGES).permute((1, 0)),
                               gl.zeros([64, TILE], gl.float32, layout), use_acc=False, is_async=True)
        if TURNS:
            mbarrier.arrive(turns.index(1 - WHO), count=1)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(free.index(done % STAGES), count=1)
        scores = _hide(scores, stop - 1, position, seq_len, PAGE, TILE, WINDOW)
        weights, _shrink, largest, total = _soften(scores, factor, largest, total)
        weights = gl.convert_layout(weights.to(q_tile.dtype), weight_layout)
        mbarrier.wait(ready.index((done + 1) % STAGES), ((done + 1) // STAGES) & 1)
        acc, weights, largest, total = _attend_tiles(
            acc, weights, largest, total, q_tile, k_ring, v_ring, ready, free, turns, full_stop, stop - 1, stop, done,
            turn, position, seq_len, factor, PAGE, TILE, STAGES, WINDOW, True, TURNS, WHO)
        acc, weights, largest, total = _attend_tiles(
            acc, weights, largest, total, q_tile, k_ring, v_ring, ready, free, turns, full_start, full_stop, stop, done,
            turn, position, seq_len, factor, PAGE, TILE, STAGES, WINDOW, False, TURNS, WHO)
        if WINDOW > 0:
            acc, weights, largest, total = _attend_tiles(
                acc, weights, largest, total, q_tile, k_ring, v_ring, ready, free, turns, start, full_start, stop,
                done, turn, position, seq_len, factor, PAGE, TILE, STAGES, WINDOW, True, TURNS, WHO)
        # All scores are there: the next tile's queries may come.
        _barrier()
        _copy_queries(q_ptr, q_tile, next_head, next_token, next_num_here, heads_per_token, GROUP, HEAD_DIM, WHO)
        turn += stop - start
        done += stop - start
        acc = warpgroup_mma(weights, v_ring.index(done % STAGES), acc, is_async=True)
        acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
        mbarrier.arrive(free.index(done % STAGES), count=1)
        done += 1
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, acc_layout))[:, None]
        rows = WHO * 64 + gl.arange(0, 64, gl.SliceLayout(1, acc_layout))
        dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, acc_layout))
        heads = (token + rows // GROUP).to(gl.int64) * (NUM_KV_HEADS * GROUP) + head * GROUP + rows % GROUP
        gl.store(out + heads[:, None] * HEAD_DIM + dims[None, :], acc.to(out.dtype.element_ty),
                 mask=(rows // GROUP < num_here)[:, None])
        head = next_head
        token = next_token
        num_here = next_num_here
        first_position = next_first_position
        seq_len = next_seq_len
    async_copy.wait_group(0)


@gluon.jit(do_not_specialize=["tiles", "query_start", "seq_lens", "tables", "num_items", "heads_per_token",
                              "table_stride", "runs_per_block", "first_run"])
def hopper_prefill_kernel(q_ptr, pool_runs, out, tiles, query_start, seq_lens, tables, num_items, heads_per_token,
                          table_stride, runs_per_block, first_run, scale, NUM_KV_HEADS: gl.constexpr,
                          GROUP: gl.constexpr, HEAD_DIM: gl.constexpr, TILE: gl.constexpr, WINDOW: gl.constexpr,
                          STAGES: gl.constexpr, TURNS: gl.constexpr):
    """Tiles of queries of one kv head each; arguments as prefill_kernel's, and:

    Args:
        pool_runs: tensor descriptor of the pool as [runs, tokens_per_block, HEAD_DIM] in boxes of the tokens of one
            block, and _SLAB elements of each.
        num_items: tiles · kv heads. Tiles of row -1 come last.
    """
    dtype: gl.constexpr = pool_runs.dtype
    PAGE: gl.constexpr = pool_runs.block_shape[1]
    SLABS: gl.constexpr = HEAD_DIM // _SLAB
    QUERIES: gl.constexpr = 128 // GROUP
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_ring = gl.allocate_shared_memory(dtype, [2, 64, HEAD_DIM], matrix)
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], matrix)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], matrix)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(free.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    fence_async_shared()
    _barrier()
    if TURNS:
        mbarrier.arrive(turns.index(0), count=1)
    pages: gl.constexpr = [STAGES * SLABS * TILE // PAGE, 1, PAGE, _SLAB]
    gl.warp_specialize([
        (_consume, (q_ptr, out, q_ring, k_ring, v_ring, ready, free, turns, tiles, query_start, seq_lens, num_items,
                    heads_per_token, scale, NUM_KV_HEADS, GROUP, HEAD_DIM, PAGE, TILE, STAGES, WINDOW, TURNS, 0)),
        (_consume, (q_ptr, out, q_ring, k_ring, v_ring, ready, free, turns, tiles, query_start, seq_lens, num_items,
                    heads_per_token, scale, NUM_KV_HEADS, GROUP, HEAD_DIM, PAGE, TILE, STAGES, WINDOW, TURNS, 1)),
        (_produce, (pool_runs, k_ring._reinterpret(dtype, pages, pool_runs.layout),
                    v_ring._reinterpret(dtype, pages, pool_runs.layout), ready, free, tiles, query_start, seq_lens,
                    tables, table_stride, num_items, first_run, runs_per_block, NUM_KV_HEADS, QUERIES, HEAD_DIM, PAGE,
                    TILE, STAGES, WINDOW)),
    ], [4, 1], [240, 24])


def can_attend(head_dim: int, tokens_per_block: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is for such a pool; without a soft cap."""
    return (head_dim in (64, 128) and tokens_per_block in (16, 32, 64, _TILE)
            and dtype in (torch.bfloat16, torch.float16))


def pays(query_lens: list[int], seq_lens: list[int]) -> bool:
    """Whether rows of such lengths are faster with this kernel than with triton_prefill.py's."""
    num_tokens = sum(query_lens)
    num_pairs = sum(length * (seq_len - length / 2) for length, seq_len in zip(query_lens, seq_lens, strict=True))
    return min(num_tokens, max(seq_lens)) >= _LEAST_LEN and num_pairs >= _LEAST_KEYS * num_tokens


def describe(pool: Tensor) -> TensorDescriptor:
    """A pool [block, layer, 2, kv_head, token, dim] as the copy engine reads it: a block of one head at a time."""
    tokens_per_block, head_dim = pool.shape[4:]
    runs = pool.view(-1, tokens_per_block, head_dim)
    return TensorDescriptor(runs, list(runs.shape), list(runs.stride()), [1, tokens_per_block, _SLAB.value],
                            gl.NVMMASharedLayout(128, 16, 3))


def launch(q: Tensor, pool: Tensor, pool_runs: TensorDescriptor, out: Tensor, layer: int, meta: AttentionMetadata,
           tiles: Tensor, config: HopperConfig, *, group: int, window: int, scale: float) -> None:
    """Attends `tiles` [tiles, 2] of q's rows over the pool, whose `describe` is pool_runs; window 0 is none."""
    num_kv_heads, _, head_dim = pool.shape[3:]
    runs_per_layer = 2 * num_kv_heads
    num_items = tiles.shape[0] * num_kv_heads
    launch_kernel(
        hopper_prefill_kernel, (min(num_items, gpu_features(q.device).num_processors),),
        q, pool_runs, out, tiles, meta.query_start, meta.seq_lens, meta.block_tables, num_items,
        q.stride(0) // head_dim, meta.block_tables.stride(0), pool.shape[1] * runs_per_layer, layer * runs_per_layer,
        scale, NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, TILE=_TILE, WINDOW=window,
        STAGES=config.num_stages, TURNS=config.takes_turns, num_warps=4)
