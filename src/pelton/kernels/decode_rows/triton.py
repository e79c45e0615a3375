"""The fixed buffers of a CUDA graph of decode rows, filled from the slots in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pelton.kernels.decode_rows.reference import DecodeBuffers
from pelton.kernels.launch import launch

_LANES = 256


def fill(buffers: DecodeBuffers, slots: Tensor, positions: Tensor, last_tokens: Tensor, tables: Tensor, *,
         num_padded: int, tokens_per_block: int) -> None:
    """As the reference's; of a block table only what the row's length needs is written."""
    launch(
        fill_kernel, (num_padded,),
        slots, positions, last_tokens, tables, buffers.token_ids, buffers.positions, buffers.seq_lens,
        buffers.slot_mapping, buffers.block_tables, len(slots), tables.shape[1], TOKENS_PER_BLOCK=tokens_per_block,
        LANES=_LANES, num_warps=2)


@triton.jit(do_not_specialize=["slots", "positions", "num_rows", "table_stride"])
def fill_kernel(slots, positions, last_tokens, tables, out_tokens, out_positions, out_lens, out_places, out_tables,
                num_rows, table_stride, TOKENS_PER_BLOCK: tl.constexpr, LANES: tl.constexpr):
    """One row."""
    row = tl.program_id(0)
    if row >= num_rows:
        zero = tl.full([], 0, tl.int64)
        tl.store(out_tokens + row, zero)
        tl.store(out_positions + row, zero)
        tl.store(out_lens + row, 0)
        tl.store(out_places + row, zero - 1)
        return
    slot = tl.load(slots + row)
    position = tl.load(positions + row)
    table = tables + slot * table_stride
    tl.store(out_tokens + row, tl.load(last_tokens + slot))
    tl.store(out_positions + row, position.to(tl.int64))
    tl.store(out_lens + row, position + 1)
    block = tl.load(table + position // TOKENS_PER_BLOCK).to(tl.int64)
    tl.store(out_places + row, block * TOKENS_PER_BLOCK + position % TOKENS_PER_BLOCK)
    num_blocks = position // TOKENS_PER_BLOCK + 1
    out_table = out_tables + row.to(tl.int64) * table_stride
    for start in range(0, num_blocks, LANES):
        lanes = start + tl.arange(0, LANES)
        is_there = lanes < num_blocks
        tl.store(out_table + lanes, tl.load(table + lanes, mask=is_there, other=0), mask=is_there)
