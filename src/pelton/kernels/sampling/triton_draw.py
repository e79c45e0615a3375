"""Drawing one token per row in Triton, chunks of the vocabulary side by side.

A score is p / exponential (random.py) with p = exp((logit - largest) / temperature), and logit - largest where a row
is greedy. A chunk goes by its own largest logit until chunks are compared. Of equal scores the lowest id wins, so the
order of chunks decides nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_random import exponentials, vocab_words

# Columns of a slot's parameters, int32 [NUM_PARAMS]; floats as their bits.
NUM_PARAMS = 8
TEMPERATURE = tl.constexpr(0)
TOP_K = tl.constexpr(1)
TOP_P = tl.constexpr(2)
MIN_P = tl.constexpr(3)
REPETITION = tl.constexpr(4)
FREQUENCY = tl.constexpr(5)
PRESENCE = tl.constexpr(6)
IS_COUNTED = tl.constexpr(7)
_NUM_PARAMS = tl.constexpr(NUM_PARAMS)
NO_TOKEN = tl.constexpr(2147483647)
_SMALLEST_TEMPERATURE = tl.constexpr(1e-30)


@triton.jit
def param(slot_params, slot, COLUMN: tl.constexpr):
    """One float of a slot's parameters."""
    return tl.load(slot_params + slot * _NUM_PARAMS + COLUMN).to(tl.float32, bitcast=True)


@triton.jit
def is_truncated(slot_params, slot, vocab_size):
    """Whether a slot draws at random from less than all tokens."""
    top_k = tl.load(slot_params + slot * _NUM_PARAMS + TOP_K)
    is_cut = ((top_k > 0) & (top_k < vocab_size)) | (param(slot_params, slot, TOP_P) < 1.0)
    return (is_cut | (param(slot_params, slot, MIN_P) > 0.0)) & (param(slot_params, slot, TEMPERATURE) > 0.0)


@triton.jit
def best_of(scores, ids):
    """The largest score and the lowest id that has it; no score beats no number."""
    best = tl.max(scores, 0)
    return best, tl.min(tl.where(scores == best, ids, NO_TOKEN), 0)


@triton.jit
def divisor(slot_params, slot):
    """A slot's temperature, and 1 where it is greedy."""
    temperature = param(slot_params, slot, TEMPERATURE)
    return tl.where(temperature > 0.0, tl.maximum(temperature, _SMALLEST_TEMPERATURE), 1.0)


@triton.jit(do_not_specialize=["vocab_size", "num_chunks"])
def draw_chunk_kernel(logits, slots, positions, slot_params, seeds, bests, best_ids, row_stride, vocab_size,
                      num_chunks, CHUNK: tl.constexpr):
    """The best token of one chunk of the vocabulary of one row, drawn from all tokens. Grid [R, chunks].

    Args:
        logits: [R, V] float32.
        slots: [R] int64.
        positions: [R] int32, index in its sequence of the token to be drawn.
        slot_params: [slots, NUM_PARAMS] int32.
        seeds: [slots] int64.
        bests: [R, chunks, 2] float32: the best score, the largest logit.
        best_ids: [R, chunks] int32.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = tl.load(logits + row * row_stride + ids, mask=ids < vocab_size, other=float("-inf"))
    largest = tl.max(scores, 0)
    scores -= tl.where(largest == float("-inf"), 0.0, largest)
    if param(slot_params, slot, TEMPERATURE) > 0.0:
        words = vocab_words(tl.load(seeds + slot), tl.load(positions + row), chunk * CHUNK, CHUNK)
        scores = tl.exp(scores / divisor(slot_params, slot)) / exponentials(words)
    best, token = best_of(scores, ids)
    at = row * num_chunks + chunk
    tl.store(bests + at * 2, best)
    tl.store(bests + at * 2 + 1, largest)
    tl.store(best_ids + at, token)


@triton.jit(do_not_specialize=["vocab_size", "num_chunks"])
def finish_kernel(bests, best_ids, kept_bests, kept_ids, slots, slot_params, tokens, last_tokens, counts, vocab_size,
                  num_chunks, HAS_KEPT: tl.constexpr, HAS_COUNTS: tl.constexpr, LANES: tl.constexpr):
    """The best of a row's chunks becomes its token and its slot's last one, and is counted. Grid [R].

    Args:
        kept_bests, kept_ids: [R, chunks] float32 and int32 of the rows that truncate, if HAS_KEPT: scores of all chunks
            in the same scale.
        tokens: [R] int64.
        last_tokens: [slots] int64.
        counts: [slots, V] int32, as in Columns.counts, if HAS_COUNTS.
        LANES: at least the number of chunks.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    lanes = tl.arange(0, LANES)
    at = row * num_chunks + lanes
    is_there = lanes < num_chunks
    largest = tl.load(bests + at * 2 + 1, mask=is_there, other=float("-inf"))
    scores = tl.load(bests + at * 2, mask=is_there, other=float("-inf"))
    below = largest - tl.max(largest, 0)
    if param(slot_params, slot, TEMPERATURE) > 0.0:
        scores *= tl.exp(below / divisor(slot_params, slot))
    else:
        scores += below
    _, token = best_of(scores, tl.load(best_ids + at, mask=is_there, other=NO_TOKEN))
    if HAS_KEPT:  # noqa: SIM102  what is constant when compiled stands alone
        if is_truncated(slot_params, slot, vocab_size):
            scores = tl.load(kept_bests + at, mask=is_there, other=-1.0)
            _, token = best_of(scores, tl.load(kept_ids + at, mask=is_there, other=NO_TOKEN))
    token = tl.minimum(token, vocab_size - 1).to(tl.int64)  # without any number among the logits there is no best
    tl.store(tokens + row, token)
    tl.store(last_tokens + slot, token)
    if HAS_COUNTS:  # noqa: SIM102
        if tl.load(slot_params + slot * _NUM_PARAMS + IS_COUNTED) != 0:
            count = counts + slot * vocab_size + token
            tl.store(count, tl.load(count) + 2)
