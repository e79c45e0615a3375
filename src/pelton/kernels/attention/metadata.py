"""What one step's attention must know of its rows: lengths, blocks, and where new keys and values go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor


@dataclass
class AttentionMetadata:
    """One step's rows. A row is a sequence with one or more query tokens; rows that decode come first.

    The tensors are for kernels, the `_host` lists for code that plans on the CPU: they say the same.
    """

    num_decodes: int
    """Leading rows with exactly one query token."""
    query_start: Tensor
    """[B + 1] int32, where each row's query tokens start among the step's T tokens."""
    seq_lens: Tensor
    """[B] int32, tokens visible to the row's last query, itself included."""
    block_tables: Tensor
    """[B, max_blocks] int32, block ids in the order of the sequence; entries past a row's length mean nothing."""
    slot_mapping: Tensor
    """[T] int64, block id * tokens_per_block + offset: where each token's key and value are written."""
    query_lens_host: list[int]
    """The lengths as the host knows them. Empty for a step replayed as a CUDA graph: all its rows decode, and those
    that pad it have length 0 and a negative slot."""
    seq_lens_host: list[int]
    block_tables_host: list[list[int]] | None = None
    rope_lens: Tensor | None = None
    """[T] int64, for models whose rotation depends on the sequence's length: models/rope.py `rope_length` of each
    token. None for all other models."""
    workspace: Tensor | None = None
    """Scratch bytes [n] uint8 for attention on a GPU (kernels/attention/triton.py `workspace_bytes`), shared by all
    layers and windows; None lets it take memory of its own in every step."""
    prefill_tiles: Tensor | None = None
    """[n, 2] int32 of kernels/attention/triton.py `cut_tiles`, padded with row -1, where a CUDA graph runs rows of
    several queries; None has them cut from the host's lists."""
    put: Callable[[np.ndarray], Tensor] | None = None
    """Brings a host array to the device; none: through page-locked memory that is asked for each time, which may wait
    for all that the device has to do."""
    _slots: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def num_rows(self) -> int:
        return self.seq_lens.shape[0]

    def slots(self, tokens_per_block: int) -> tuple[Tensor, Tensor]:
        """`slot_mapping` as (block ids, offsets), each [T]; divided once per step."""
        if self._slots is None:
            self._slots = (self.slot_mapping // tokens_per_block, self.slot_mapping % tokens_per_block)
        return self._slots

    @classmethod
    def decodes(cls, query_start: Tensor, seq_lens: Tensor, block_tables: Tensor, slot_mapping: Tensor, *,
                rope_lens: Tensor | None = None, workspace: Tensor | None = None) -> AttentionMetadata:
        """Metadata of B rows that all decode, in device buffers alone: a CUDA graph reads what they hold when it runs.

        Args:
            query_start: [B + 1] int32, 0 to B.
            seq_lens: [B] int32; 0 for a row that pads the batch.
            block_tables: [B, max_blocks] int32.
            slot_mapping: [B] int64; negative for a row that pads the batch.
            rope_lens, workspace: see the fields.
        """
        return cls(num_decodes=seq_lens.shape[0], query_start=query_start, seq_lens=seq_lens,
                   block_tables=block_tables, slot_mapping=slot_mapping, query_lens_host=[], seq_lens_host=[],
                   rope_lens=rope_lens, workspace=workspace)

    @classmethod
    def from_rows(cls, starts: Sequence[int], num_tokens: Sequence[int], block_tables: Sequence[Sequence[int]], *,
                  num_decodes: int, tokens_per_block: int, rope_lens: Sequence[int] | None = None,
                  device: torch.device | str = "cpu") -> AttentionMetadata:
        """Metadata of rows that run tokens [start, start + num) of their sequences.

        Args:
            starts: tokens of each sequence whose keys and values are in the cache already.
            num_tokens: query tokens of each row.
            block_tables: block ids of each sequence, enough for start + num tokens.
            num_decodes: leading rows that decode.
            tokens_per_block: the pool's.
            rope_lens: per token of the step, see the field.
        """
        assert all(n == 1 for n in num_tokens[:num_decodes])
        tables = [list(table) for table in block_tables]
        seq_lens = [start + num for start, num in zip(starts, num_tokens, strict=True)]
        slots = [table[position // tokens_per_block] * tokens_per_block + position % tokens_per_block
                 for table, start, stop in zip(tables, starts, seq_lens, strict=True)
                 for position in range(start, stop)]
        width = max(len(table) for table in tables)
        padded = [table + [0] * (width - len(table)) for table in tables]
        return cls(
            num_decodes=num_decodes,
            query_start=torch.tensor([0, *accumulate(num_tokens)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            block_tables=torch.tensor(padded, dtype=torch.int32, device=device),
            slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
            query_lens_host=list(num_tokens),
            seq_lens_host=seq_lens,
            block_tables_host=tables,
            rope_lens=None if rope_lens is None else torch.tensor(rope_lens, dtype=torch.int64, device=device),
        )
