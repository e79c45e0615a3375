"""From slots to the fixed buffers that a CUDA graph of decode rows reads, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodeBuffers:
    """What a graph of P rows reads, P the longest it can be."""

    token_ids: Tensor
    """[P] int64."""
    positions: Tensor
    """[P] int64."""
    seq_lens: Tensor
    """[P] int32; 0 for a row that pads."""
    slot_mapping: Tensor
    """[P] int64; -1 for a row that pads."""
    block_tables: Tensor
    """[P, max_blocks] int32; entries past a row's length mean nothing, but are blocks of the pool."""

    @classmethod
    def empty(cls, num_rows: int, max_blocks: int, device: torch.device | str) -> DecodeBuffers:
        """Rows that all pad."""
        def long(value: int) -> Tensor:
            return torch.full((num_rows,), value, dtype=torch.int64, device=device)

        return cls(long(0), long(0), torch.zeros(num_rows, dtype=torch.int32, device=device), long(-1),
                   torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device))


def fill(buffers: DecodeBuffers, slots: Tensor, positions: Tensor, last_tokens: Tensor, tables: Tensor, *,
         num_padded: int, tokens_per_block: int) -> None:
    """Writes B rows and num_padded - B that pad.

    Args:
        slots: [B] int64.
        positions: [B] int32, index in its sequence of the token that each row runs: its slot's last one.
        last_tokens: [slots] int64.
        tables: [slots, max_blocks] int32.
    """
    num_rows = len(slots)
    padding = slice(num_rows, num_padded)
    for buffer, value in ((buffers.token_ids, 0), (buffers.positions, 0), (buffers.seq_lens, 0),
                          (buffers.slot_mapping, -1)):
        buffer[padding] = value
    buffers.token_ids[:num_rows] = last_tokens[slots]
    buffers.positions[:num_rows] = positions
    buffers.seq_lens[:num_rows] = positions + 1
    blocks = tables[slots, positions // tokens_per_block].long()
    buffers.slot_mapping[:num_rows] = blocks * tokens_per_block + positions % tokens_per_block
    buffers.block_tables[:num_rows] = tables[slots]
