"""The sampler for GPUs: the reference's semantics over a batch, without leaving the device or waiting for it.

Parameters stay on the device, one row of columns per slot. Greedy rows and rows that draw from all tokens take the
same two launches, whatever the batch mixes; rows that truncate take two more, rows with penalties another. What is
launched depends on the batch's size and on whether any row truncates, never on the parameters themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from pelton.kernels.launch import launch
from pelton.kernels.sampling.triton_draw import NUM_STATS, scan_kernel
from pelton.kernels.sampling.triton_finish import finish_kernel
from pelton.kernels.sampling.triton_plan import PLAN_WIDTH, plan_kernel
from pelton.kernels.sampling.triton_rows import CHUNK, NUM_LANES
from pelton.kernels.sampling.triton_scores import merge_scores_kernel, penalize_kernel, score_chunk_kernel
from pelton.kernels.sampling.triton_window import window_kernel

_CHUNK = 2048
_SAMPLE = 16384
_MAX_TOP = 32


@dataclass(frozen=True, kw_only=True)
class DeviceRows:
    """R rows to draw for, and the state of all slots."""

    slots: Tensor
    """[R] int64."""
    positions: Tensor
    """[R] int32, index in its sequence of the token to be drawn."""
    params: Tensor
    """[slots, NUM_PARAMS] int32, see triton_rows.py."""
    seeds: Tensor
    """[slots] int64."""
    last_tokens: Tensor
    """[slots] int64; the drawn tokens go there."""
    counts: Tensor | None
    """[slots, V] int32, as in Columns.counts; None where no slot has penalties."""


def sample(logits: Tensor, rows: DeviceRows, *, truncates: bool, out: Tensor | None = None) -> Tensor:
    """Draws one token per row, records it in its slot and counts it where penalties ask.

    Args:
        logits: [R, V] float32, adjusted.
        truncates: whether any row has top_k, top_p or min_p.
        out: [R] int64 for the tokens, on the device or in page-locked memory of the host; none makes one on the device.

    Returns:
        [R] int64, `out` where it is given.
    """
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    chunks = triton.next_power_of_2(num_chunks)
    capacity = window_capacity(vocab_size) if truncates else 0
    stats, best_places = _empty(logits, num_rows, NUM_STATS, num_chunks), _ints(logits, num_rows, num_chunks)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device) if out is None else out
    parameters = (rows.slots, rows.positions, rows.params, rows.seeds)
    group_maxima = _empty(logits, num_rows, num_chunks, NUM_LANES) if truncates else None
    launch(scan_kernel, (num_rows, num_chunks), logits, *parameters, stats, best_places, group_maxima,
           logits.stride(0), vocab_size, num_chunks, HAS_TRUNCATED=truncates, num_warps=4)
    window = (None,) * 4
    if truncates:
        window = (torch.empty(num_rows, PLAN_WIDTH, dtype=torch.int64, device=logits.device), _ints(logits, num_rows),
                  _empty(logits, num_rows, capacity), _ints(logits, num_rows, capacity))
        near_lanes = _ints(logits, num_rows, num_chunks, NUM_LANES)
        sample_step = triton.cdiv(vocab_size, _SAMPLE)
        launch(plan_kernel, (num_rows,), logits, rows.slots, rows.params, stats, group_maxima, near_lanes, *window[:2],
               logits.stride(0), vocab_size, num_chunks, sample_step, capacity, CHUNKS=chunks,
               GROUPS=chunks * NUM_LANES, SAMPLE=min(_SAMPLE, triton.next_power_of_2(vocab_size)), num_warps=16)
        launch(window_kernel, (num_rows, num_chunks), logits, *parameters, stats, best_places, group_maxima, near_lanes,
               *window, logits.stride(0), vocab_size, num_chunks, capacity, CHUNKS=chunks, num_warps=4)
    launch(finish_kernel, (num_rows,), logits, *parameters, stats, best_places, *window, tokens, rows.last_tokens,
           rows.counts, logits.stride(0), vocab_size, num_chunks, capacity, HAS_TRUNCATED=truncates,
           HAS_COUNTS=rows.counts is not None, CHUNKS=chunks, num_warps=8 if truncates else 4)
    return tokens


def window_capacity(vocab_size: int) -> int:
    """Tokens that a row's window has room for: what ten standard deviations of a sample of 16,384 come to."""
    return 8192 if vocab_size <= 160_000 else 16384


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _ints(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)


def adjust(logits: Tensor, rows: DeviceRows, *, addends: tuple[Tensor, Tensor] | None, has_penalties: bool) -> None:
    """Bias, bans and penalties, in place.

    Args:
        logits: [R, V] float32, contiguous.
        addends: Columns.addends on the device; a place that comes twice has -inf, so that order decides nothing.
    """
    if addends is not None:
        logits.view(-1).index_add_(0, *addends)
    if has_penalties:
        num_rows, vocab_size = logits.shape
        launch(penalize_kernel, (num_rows, triton.cdiv(vocab_size, _CHUNK)), logits, rows.slots, rows.params,
               rows.counts, logits.stride(0), vocab_size, CHUNK=_CHUNK, num_warps=4)


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
    launch(score_chunk_kernel, (num_rows, num_chunks), logits, rows, token_ids, top_values, top_ids, stats,
           logits.stride(0), vocab_size, num_top, num_chunks, CHUNK=_CHUNK, num_warps=4)
    lanes = triton.next_power_of_2(num_chunks)
    launch(merge_scores_kernel, (num_rows,), logits, rows, token_ids, top_values, top_ids, stats, ids, values, ranks,
           logits.stride(0), num_top, num_chunks, LANES=lanes, CANDIDATES=lanes * _MAX_TOP, num_warps=4)
    return ids, values, ranks
