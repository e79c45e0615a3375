"""The sampler for GPUs: the reference's semantics over a batch, without leaving the device or waiting for it.

Parameters stay on the device, one row of columns per slot. Greedy rows and rows that draw from all tokens take the
same two launches, whatever the batch mixes; rows that truncate take one more, rows with penalties another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pelton.kernels.sampling.triton_draw import draw_chunk_kernel, draw_kept_kernel, finish_kernel
from pelton.kernels.sampling.triton_scores import merge_scores_kernel, penalize_kernel, score_chunk_kernel

_CHUNK = 2048
_BLOCK = 2048
_MAX_TOP = 32


@dataclass(frozen=True, kw_only=True)
class DeviceRows:
    """R rows to draw for, and the state of all slots."""

    slots: Tensor
    """[R] int64."""
    positions: Tensor
    """[R] int32, index in its sequence of the token to be drawn."""
    params: Tensor
    """[slots, NUM_PARAMS] int32, see triton_draw.py."""
    seeds: Tensor
    """[slots] int64."""
    last_tokens: Tensor
    """[slots] int64; the drawn tokens go there."""
    counts: Tensor | None
    """[slots, V] int32, as in Columns.counts; None where no slot has penalties."""


def sample(logits: Tensor, rows: DeviceRows, *, truncates: bool) -> Tensor:
    """Draws one token per row, records it in its slot and counts it where penalties ask.

    Args:
        logits: [R, V] float32, adjusted.
        truncates: whether any row has top_k, top_p or min_p.

    Returns:
        [R] int64.
    """
    num_rows, vocab_size = logits.shape
    device = logits.device
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    bests = torch.empty(num_rows, num_chunks, 2, dtype=torch.float32, device=device)
    ids = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    draw_chunk_kernel[(num_rows, num_chunks)](
        logits, rows.slots, rows.positions, rows.params, rows.seeds, bests, ids, logits.stride(0), vocab_size,
        num_chunks, CHUNK=_CHUNK, num_warps=4)
    kept = None
    if truncates:
        kept = torch.empty(num_rows, dtype=torch.int32, device=device)
        draw_kept_kernel[(num_rows,)](logits, rows.slots, rows.positions, rows.params, rows.seeds, kept,
                                      logits.stride(0), vocab_size, BLOCK=_BLOCK, num_warps=8)
    finish_kernel[(num_rows,)](
        bests, ids, kept, rows.slots, rows.params, tokens, rows.last_tokens, rows.counts, vocab_size, num_chunks,
        HAS_KEPT=kept is not None, HAS_COUNTS=rows.counts is not None, LANES=triton.next_power_of_2(num_chunks),
        num_warps=1)
    return tokens


def adjust(logits: Tensor, rows: DeviceRows, *, bias: tuple[Tensor, Tensor] | None, banned: Tensor | None,
           has_penalties: bool) -> None:
    """Bias, bans and penalties, in place.

    Args:
        logits: [R, V] float32, contiguous.
        bias: (row · V + token id [n] int64, added to their logits [n] float32); no place twice.
        banned: [n] int64, row · V + token id.
    """
    flat = logits.view(-1)
    if bias is not None:
        flat.index_add_(0, *bias)
    if banned is not None:
        flat.index_fill_(0, banned, -torch.inf)
    if has_penalties:
        num_rows, vocab_size = logits.shape
        penalize_kernel[(num_rows, triton.cdiv(vocab_size, _CHUNK))](
            logits, rows.slots, rows.params, rows.counts, logits.stride(0), vocab_size, CHUNK=_CHUNK, num_warps=4)


def logprobs(logits: Tensor, rows: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of chosen tokens and of the likeliest ones, equal ones by rising id.

    Args:
        logits: [R, V] float32, raw.
        rows: [n] int64, rows of the logits.
        token_ids: [n] int64, the chosen ones.

    Returns:
        ids [n, 1 + num_top] int64 (the chosen one first), their log-probabilities (float32), ranks [n] int64 of the
        chosen ones (1 + the number of likelier tokens).
    """
    num_rows, vocab_size = len(rows), logits.shape[1]
    device = logits.device
    num_top = min(num_top, vocab_size)
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    assert num_top <= _MAX_TOP
    top_values = torch.empty(num_rows, num_chunks, num_top, dtype=torch.float32, device=device)
    top_ids = torch.empty(num_rows, num_chunks, num_top, dtype=torch.int32, device=device)
    stats = torch.empty(num_rows, num_chunks, 3, dtype=torch.float32, device=device)
    ids = torch.empty(num_rows, 1 + num_top, dtype=torch.int64, device=device)
    values = torch.empty(num_rows, 1 + num_top, dtype=torch.float32, device=device)
    ranks = torch.empty(num_rows, dtype=torch.int64, device=device)
    score_chunk_kernel[(num_rows, num_chunks)](
        logits, rows, token_ids, top_values, top_ids, stats, logits.stride(0), vocab_size, num_top, num_chunks,
        CHUNK=_CHUNK, num_warps=4)
    lanes = triton.next_power_of_2(num_chunks)
    merge_scores_kernel[(num_rows,)](
        logits, rows, token_ids, top_values, top_ids, stats, ids, values, ranks, logits.stride(0), num_top, num_chunks,
        LANES=lanes, CANDIDATES=lanes * _MAX_TOP, num_warps=4)
    return ids, values, ranks
