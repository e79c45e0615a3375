"""The last launch of a draw, in Triton: a row's chunks become its token."""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_draw import finish_race
from pelton.kernels.sampling.triton_kept import draw_kept
from pelton.kernels.sampling.triton_plan import row_largest
from pelton.kernels.sampling.triton_rows import (
    IS_COUNTED,
    NO_TOKEN,
    TEMPERATURE,
    finite,
    int_param,
    is_truncated,
    param,
    sharpness,
)


@triton.jit(do_not_specialize=["num_chunks", "capacity"])
def finish_kernel(logits, slots, positions, slot_params, seeds, stats, best_places, plans, window_sizes, window_values,
                  window_ids, tokens, last_tokens, counts, row_stride, vocab_size, num_chunks, capacity,
                  HAS_TRUNCATED: tl.constexpr, HAS_COUNTS: tl.constexpr, CHUNKS: tl.constexpr):
    """Each row's token becomes its slot's last one, and is counted. Grid [R].

    Args:
        stats, best_places: of scan_kernel and window_kernel.
        plans, window_sizes, window_values, window_ids: of plan_kernel and window_kernel, if HAS_TRUNCATED.
        tokens: [R] int64.
        last_tokens: [slots] int64.
        counts: [slots, V] int32, as in Columns.counts, if HAS_COUNTS.
        CHUNKS: at least the number of chunks.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    row_logits = logits + row * row_stride
    sharp = sharpness(slot_params, slot)
    chunk_largest, largest = row_largest(stats, row, num_chunks, CHUNKS)
    chunks = tl.arange(0, CHUNKS)
    ids = tl.load(best_places + row * num_chunks + chunks, mask=chunks < num_chunks, other=NO_TOKEN)
    token = tl.min(tl.where(chunk_largest == tl.max(chunk_largest, 0), ids, NO_TOKEN), 0)
    is_whole = param(slot_params, slot, TEMPERATURE) > 0.0
    if HAS_TRUNCATED:
        is_whole = is_whole & (is_truncated(slot_params, slot, vocab_size) == 0)
        if is_truncated(slot_params, slot, vocab_size):
            token = draw_kept(row_logits, slot_params, slot, row, stats, best_places, plans, window_sizes,
                              window_values, window_ids, chunk_largest, largest, sharp, tl.load(positions + row),
                              tl.load(seeds + slot), vocab_size, num_chunks, capacity, CHUNKS)
    if is_whole:
        shift = (finite(chunk_largest) - largest) * sharp
        no_window = tl.full([], 0, tl.uint32)
        _, token = finish_race(row_logits, stats, best_places, row, shift, chunks < num_chunks, num_chunks, vocab_size,
                               largest, sharp, tl.load(positions + row), tl.load(seeds + slot), no_window, 0.0, CHUNKS)
    token = tl.minimum(token, vocab_size - 1).to(tl.int64)  # without any number among the logits there is no best
    tl.store(tokens + row, token)
    tl.store(last_tokens + slot, token)
    if HAS_COUNTS:  # noqa: SIM102  what is constant when compiled stands alone
        if int_param(slot_params, slot, IS_COUNTED) != 0:
            count = counts + slot * vocab_size + token
            tl.store(count, tl.load(count) + 2)
