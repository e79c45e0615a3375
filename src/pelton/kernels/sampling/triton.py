"""The sampler for GPUs: the reference's semantics over a batch, without leaving the device or waiting for it.

Parameters stay on the device, one row of columns per slot. Greedy rows and rows that draw from all tokens take the
same two launches, whatever the batch mixes; rows that truncate take some more, rows with penalties another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pelton.kernels.sampling.triton_draw import draw_chunk_kernel, finish_kernel
from pelton.kernels.sampling.triton_kept import (
    NUM_STEPS,
    STATE_WIDTH,
    count_ties_kernel,
    draw_kept_kernel,
    find_key_kernel,
)
from pelton.kernels.sampling.triton_scores import merge_scores_kernel, penalize_kernel, score_chunk_kernel

_CHUNK = 2048
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


def sample(logits: Tensor, rows: DeviceRows, *, truncates: bool, has_top_k: bool = True,
           has_top_p: bool = True) -> Tensor:
    """Draws one token per row, records it in its slot and counts it where penalties ask.

    Args:
        logits: [R, V] float32, adjusted.
        truncates: whether any row has top_k, top_p or min_p.
        has_top_k, has_top_p: whether any such row has; saying no where none has saves eight launches each.

    Returns:
        [R] int64.
    """
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    shape = (num_rows, num_chunks)
    bests, ids = _floats(logits, *shape, 2), _ints(logits, *shape)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    draw_chunk_kernel[shape](
        logits, rows.slots, rows.positions, rows.params, rows.seeds, bests, ids, logits.stride(0), vocab_size,
        num_chunks, CHUNK=_CHUNK, num_warps=4)
    kept = _draw_kept(logits, rows, bests, has_top_k, has_top_p) if truncates else (None, None)
    finish_kernel[(num_rows,)](
        bests, ids, *kept, rows.slots, rows.params, tokens, rows.last_tokens, rows.counts, vocab_size, num_chunks,
        HAS_KEPT=truncates, HAS_COUNTS=rows.counts is not None, LANES=triton.next_power_of_2(num_chunks), num_warps=1)
    return tokens


def _draw_kept(logits: Tensor, rows: DeviceRows, bests: Tensor, has_top_k: bool, has_top_p: bool
               ) -> tuple[Tensor, Tensor]:
    """Scores and tokens [R, chunks] of the rows that truncate; bests: of draw_chunk_kernel."""
    shape, vocab_size = bests.shape[:2], logits.shape[1]
    sizes = {"CHUNK": _CHUNK, "LANES": triton.next_power_of_2(shape[1])}
    found: list[tuple[Tensor | None, Tensor | None]] = []
    for by_mass, is_wanted in ((False, has_top_k), (True, has_top_p)):
        if not is_wanted:
            found.append((None, None))
            continue
        state = _floats(logits, shape[0], NUM_STEPS + 1, STATE_WIDTH)
        sums = _floats(logits, 2, *shape, 2, 16)
        for step in range(NUM_STEPS):
            find_key_kernel[shape](
                logits, rows.slots, rows.params, bests, state, sums[1 - step % 2], sums[step % 2],
                *(found[0] if by_mass else (None, None)), logits.stride(0), vocab_size, shape[1], step,
                BY_MASS=by_mass, HAS_TOP_K=by_mass and has_top_k, **sizes, num_warps=4)
        found.append((state, sums[(NUM_STEPS - 1) % 2]))
    ties, kept_bests, kept_ids = _ints(logits, *shape), _floats(logits, *shape), _ints(logits, *shape)
    cuts = (*found[0], *found[1])
    flags = {"HAS_TOP_K": has_top_k, "HAS_TOP_P": has_top_p}
    count_ties_kernel[shape](logits, rows.slots, rows.params, bests, *cuts, ties, logits.stride(0), vocab_size,
                             shape[1], **flags, **sizes, num_warps=4)
    draw_kept_kernel[shape](logits, rows.slots, rows.positions, rows.params, rows.seeds, bests, *cuts, ties, kept_bests,
                            kept_ids, logits.stride(0), vocab_size, shape[1], **flags, **sizes, num_warps=4)
    return kept_bests, kept_ids


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _ints(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)


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
