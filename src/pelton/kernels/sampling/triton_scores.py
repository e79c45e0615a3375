"""Penalties, and log-probabilities with the likeliest tokens, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_rows import (
    FREQUENCY,
    IS_COUNTED,
    NUM_PARAMS,
    PRESENCE,
    REPETITION,
    best_of,
    param,
)

_NUM_PARAMS = tl.constexpr(NUM_PARAMS)
_NO_TOKEN = tl.constexpr(2147483647)


@triton.jit(do_not_specialize=["vocab_size"])
def penalize_kernel(logits, slots, slot_params, counts, row_stride, vocab_size, CHUNK: tl.constexpr):
    """Repetition, frequency and presence penalties of the rows that have any, in place. Grid [R, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if tl.load(slot_params + slot * _NUM_PARAMS + IS_COUNTED) == 0:
        return
    ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    is_there = ids < vocab_size
    seen = tl.load(counts + slot * vocab_size + ids, mask=is_there, other=0)
    scores = tl.load(logits + row * row_stride + ids, mask=is_there, other=0.0)
    repetition = param(slot_params, slot, REPETITION)
    num_output = (seen >> 1).to(tl.float32)
    punished = tl.where(scores > 0, scores / repetition, scores * repetition)
    punished -= param(slot_params, slot, FREQUENCY) * num_output
    punished -= tl.where(num_output > 0, param(slot_params, slot, PRESENCE), 0.0)
    tl.store(logits + row * row_stride + ids, punished, mask=is_there & (seen > 0))


@triton.jit(do_not_specialize=["vocab_size", "num_top", "num_chunks"])
def score_chunk_kernel(logits, rows, tokens, top_values, top_ids, stats, row_stride, vocab_size, num_top, num_chunks,
                       CHUNK: tl.constexpr):
    """What one chunk of one row knows: its likeliest tokens, largest, sum of exponentials, and how many beat the chosen
    token. Grid [R, chunks].

    Args:
        rows: [R] int64, rows of the logits.
        tokens: [R] int64, the chosen ones.
        top_values, top_ids: [R, chunks, num_top].
        stats: [R, chunks, 3] float32.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    row_logits = logits + tl.load(rows + row) * row_stride
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf"))
    chosen = tl.load(row_logits + tl.load(tokens + row))
    largest = tl.max(scores, 0)
    at = row * num_chunks + chunk
    safe_largest = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(stats + at * 3, safe_largest)
    tl.store(stats + at * 3 + 1, tl.sum(tl.exp(scores - safe_largest), 0))
    tl.store(stats + at * 3 + 2, tl.sum((scores > chosen).to(tl.float32), 0))
    left = tl.where(ids < vocab_size, ids, _NO_TOKEN)
    for i in range(num_top):
        value, token = best_of(scores, left)
        tl.store(top_values + at * num_top + i, value)
        tl.store(top_ids + at * num_top + i, token)
        scores = tl.where(left == token, float("-inf"), scores)
        left = tl.where(left == token, _NO_TOKEN, left)


@triton.jit(do_not_specialize=["num_top", "num_chunks"])
def merge_scores_kernel(logits, rows, tokens, top_values, top_ids, stats, out_ids, out_values, out_ranks, row_stride,
                        num_top, num_chunks, LANES: tl.constexpr, CANDIDATES: tl.constexpr):
    """Joins a row's chunks. Grid [R].

    Args:
        out_ids, out_values: [R, 1 + num_top] int64 and float32, the chosen token first.
        out_ranks: [R] int64.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    token = tl.load(tokens + row)
    chosen = tl.load(logits + tl.load(rows + row) * row_stride + token)
    at = (row * num_chunks + lanes) * 3
    is_there = lanes < num_chunks
    largest = tl.load(stats + at, mask=is_there, other=float("-inf"))
    sums = tl.load(stats + at + 1, mask=is_there, other=0.0)
    num_above = tl.load(stats + at + 2, mask=is_there, other=0.0)
    most = tl.max(largest, 0)
    total = most + tl.log(tl.sum(sums * tl.exp(largest - most), 0))
    tl.store(out_ranks + row, tl.sum(num_above.to(tl.int32), 0).to(tl.int64) + 1)
    tl.store(out_ids + row * (1 + num_top), token)
    tl.store(out_values + row * (1 + num_top), chosen - total)
    places = tl.arange(0, CANDIDATES)
    is_candidate = places < num_chunks * num_top
    values = tl.load(top_values + row * num_chunks * num_top + places, mask=is_candidate, other=float("-inf"))
    ids = tl.load(top_ids + row * num_chunks * num_top + places, mask=is_candidate, other=_NO_TOKEN)
    for i in range(num_top):
        value, best = best_of(values, ids)
        tl.store(out_ids + row * (1 + num_top) + 1 + i, best.to(tl.int64))
        tl.store(out_values + row * (1 + num_top) + 1 + i, value - total)
        is_taken = ids == best
        values = tl.where(is_taken, float("-inf"), values)
        ids = tl.where(is_taken, _NO_TOKEN, ids)
