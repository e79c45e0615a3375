"""Drawing from a chunk of a row in Triton: the first launch over all logits, and the race that it shares with the
window's and the last one.

A draw is argmax(log2 p - log2 exponential). The exponential of the uniform v is at least v, so log2 p - log2 v bounds
a token's score from above at half the price. A chunk hands on the place (one of the 512 of a run; eight tokens share
it) with the best bound and the best bound of another place; the last launch scores the eight exactly and looks at a
chunk again only where another place might still win.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_random import (
    block_words,
    exp2,
    log2,
    log2_exponentials,
    token_words,
    uniforms,
)
from pelton.kernels.sampling.triton_rows import (
    NO_TOKEN,
    NUM_LANES,
    NUM_RUNS,
    TEMPERATURE,
    chunk_offsets,
    finite,
    is_truncated,
    keys_of,
    param,
    sharpness,
)

# What is known of each chunk, float32 [R, NUM_STATS, chunks].
NUM_STATS = 7
LARGEST = tl.constexpr(0)
"""Its largest logit."""
BEST = tl.constexpr(1)
"""The best bound of a score among the tokens that take part in the race; best_places has its place."""
SECOND = tl.constexpr(2)
"""The best bound of another place."""
MASS = tl.constexpr(3)
"""Sum of 2**((logit - largest) · sharpness), of rows that truncate."""
COUNT_ABOVE = tl.constexpr(4)
"""Tokens above the window and their mass, and the mass of all tokens that were looked at, see triton_window.py."""
MASS_ABOVE = tl.constexpr(5)
MASS_SEEN = tl.constexpr(6)
_NUM_STATS = tl.constexpr(NUM_STATS)
_RUNS = tl.constexpr(NUM_RUNS)
_LANES = tl.constexpr(NUM_LANES)
_CHUNK = tl.constexpr(NUM_RUNS * NUM_LANES * 4)


@triton.jit
def stat(stats, row, STAT: tl.constexpr, num_chunks):
    """Where a row's chunks have a figure."""
    return stats + (row * _NUM_STATS + STAT) * num_chunks


@triton.jit
def takes_part(scores, largest, sharp, last, min_p):
    """Whether tokens take part in a race: above the window's last key and within min_p."""
    return (keys_of(scores) > last) & (exp2((scores - largest) * sharp) >= min_p)


@triton.jit
def race(row_logits, chunk, vocab_size, largest, sharp, position, seed, last, min_p, IS_RESTRICTED: tl.constexpr):
    """The best bound among a chunk's tokens, its place, and the best one of another place, relative to `largest`."""
    lanes = tl.arange(0, _LANES)
    least = tl.full([_LANES, 4], float("inf"), tl.float32)  # of the bounds' negatives: one instruction less a token
    for run in tl.static_range(_RUNS):
        block = chunk * (_CHUNK // 4) + run * _LANES + lanes
        ids = block[:, None] * 4 + tl.arange(0, 4)[None, :]
        scores = tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf"))
        times = (largest - scores) * sharp + log2(uniforms(block_words(block.to(tl.uint32), position, seed)))
        if IS_RESTRICTED:
            times = tl.where(takes_part(scores, largest, sharp, last, min_p), times, float("inf"))
        least = tl.minimum(least, times)
    places = lanes[:, None] * 4 + tl.arange(0, 4)[None, :]
    first = tl.min(tl.min(least, 1), 0)
    place = tl.min(tl.min(tl.where(least == first, places, NO_TOKEN), 1), 0)
    return -first, place, -tl.min(tl.min(tl.where(places == place, float("inf"), least), 1), 0)


@triton.jit
def race_exactly(row_logits, chunk, vocab_size, largest, sharp, position, seed, last, min_p):
    """The best score among a chunk's tokens and its token."""
    lanes = tl.arange(0, _LANES)
    best = tl.full([_LANES, 4], float("-inf"), tl.float32)
    best_ids = tl.full([_LANES, 4], NO_TOKEN, tl.int32)
    for run in range(_RUNS):
        block = chunk * (_CHUNK // 4) + run * _LANES + lanes
        ids = block[:, None] * 4 + tl.arange(0, 4)[None, :]
        logits = tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf"))
        words = block_words(block.to(tl.uint32), position, seed)
        scores = (logits - largest) * sharp - log2_exponentials(words)
        scores = tl.where(takes_part(logits, largest, sharp, last, min_p), scores, float("-inf"))
        best_ids = tl.where(scores > best, ids, best_ids)
        best = tl.maximum(best, scores)
    top = tl.max(tl.max(best, 1), 0)
    return top, tl.min(tl.min(tl.where(best == top, best_ids, NO_TOKEN), 1), 0)


@triton.jit(do_not_specialize=["num_chunks"])
def scan_kernel(logits, slots, positions, slot_params, seeds, stats, best_places, group_maxima, row_stride, vocab_size,
                num_chunks, HAS_TRUNCATED: tl.constexpr):
    """One chunk of one row: the likeliest token of a greedy one, the race of one that draws from all tokens, and what
    the plan of one that truncates needs. Grid [R, chunks].

    Args:
        logits: [R, V] float32.
        slots: [R] int64.
        positions: [R] int32, index in its sequence of the token to be drawn.
        slot_params: [slots, NUM_PARAMS] int32.
        seeds: [slots] int64.
        stats: [R, NUM_STATS, chunks] float32.
        best_places: [R, chunks] int32: as BEST says; of a greedy row its likeliest token.
        group_maxima: [R, chunks, lanes] float32, the largest logit of each lane, if HAS_TRUNCATED.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    row_logits = logits + row * row_stride
    ids = chunk * _CHUNK + chunk_offsets()
    scores = tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf"))
    # All that is loaded is asked for before anything is waited for.
    slot = tl.load(slots + row)
    position = tl.load(positions + row)
    seed = tl.load(seeds + slot)
    temperature = param(slot_params, slot, TEMPERATURE)
    sharp = sharpness(slot_params, slot)
    is_cut = is_truncated(slot_params, slot, vocab_size)
    lane_largest = tl.max(tl.max(scores, 2), 0)
    largest = tl.max(lane_largest, 0)
    tl.store(stat(stats, row, LARGEST, num_chunks) + chunk, largest)
    if HAS_TRUNCATED:  # noqa: SIM102  what is constant when compiled stands alone
        if is_cut:
            at = (row * num_chunks + chunk) * _LANES + tl.arange(0, _LANES)
            tl.store(group_maxima + at, lane_largest)
            mass = tl.sum(tl.sum(tl.sum(exp2((scores - finite(largest)) * sharp), 2), 0), 0)
            tl.store(stat(stats, row, MASS, num_chunks) + chunk, mass)
            return
    if temperature > 0.0:
        best, place, second = race(row_logits, chunk, vocab_size, finite(largest), sharp, position, seed, 0, 0.0, False)
        tl.store(stat(stats, row, BEST, num_chunks) + chunk, best)
        tl.store(stat(stats, row, SECOND, num_chunks) + chunk, second)
    else:
        place = tl.min(tl.min(tl.min(tl.where(scores == largest, ids, NO_TOKEN), 2), 0), 0)
    tl.store(best_places + row * num_chunks + chunk, place)


@triton.jit
def finish_race(row_logits, stats, best_places, row, shift, is_there, num_chunks, vocab_size, largest, sharp, position,
                seed, last, min_p, CHUNKS: tl.constexpr):
    """The winner of a race from its chunks' bounds: score and token.

    Args:
        shift: [CHUNKS], from a chunk's scale to the row's.
        is_there: [CHUNKS], which chunks raced.
    """
    lanes = tl.arange(0, CHUNKS)
    bests = tl.load(stat(stats, row, BEST, num_chunks) + lanes, mask=is_there, other=float("-inf"))
    bounds = tl.load(stat(stats, row, SECOND, num_chunks) + lanes, mask=is_there, other=float("-inf")) + shift
    places = tl.load(best_places + row * num_chunks + lanes, mask=is_there & (bests > float("-inf")), other=_CHUNK)
    run_starts = lanes[:, None] * _CHUNK + tl.arange(0, _RUNS)[None, :] * (4 * _LANES)
    ids = run_starts + places[:, None]  # [CHUNKS, runs]
    is_raced = (ids < vocab_size) & (places < _CHUNK)[:, None]
    logits = tl.load(row_logits + ids, mask=is_raced, other=float("-inf"))
    scores = (logits - largest) * sharp - log2_exponentials(token_words(ids, position, seed))
    scores = tl.where(is_raced & takes_part(logits, largest, sharp, last, min_p), scores, float("-inf"))
    best = tl.max(tl.max(scores, 1), 0)
    token = tl.min(tl.min(tl.where(scores == best, ids, NO_TOKEN), 1), 0)
    bound = tl.max(bounds, 0)
    # A bound's rounding stays far below this wherever it can still win.
    while (bound > float("-inf")) & (bound + 1e-4 >= best):
        chunk = tl.min(tl.where(bounds == bound, lanes, CHUNKS), 0)
        score, other = race_exactly(row_logits, chunk, vocab_size, largest, sharp, position, seed, last, min_p)
        is_better = (score > best) | ((score == best) & (other < token))
        token = tl.where(is_better, other, token)
        best = tl.maximum(best, score)
        bounds = tl.where(lanes == chunk, float("-inf"), bounds)
        bound = tl.max(bounds, 0)
    return best, token
