"""The end of a row's kept set and the draw from it, in Triton, one program per row.

Keys are halved until one is left, over the tokens of the row's window or, where that does not hold the end, over the
whole row. Masses are added as integers, multiples of 2**-40 of the likeliest token's: their sum does not depend on the
order in which a window was gathered.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_draw import COUNT_ABOVE, MASS_ABOVE, MASS_SEEN, finish_race, stat
from pelton.kernels.sampling.triton_plan import FIRST_FINITE, NO_WINDOW, PLAN_WIDTH, WIDE, row_mass
from pelton.kernels.sampling.triton_random import log2_exponentials, token_words
from pelton.kernels.sampling.triton_rows import (
    MIN_P,
    NO_TOKEN,
    TOP_K,
    TOP_P,
    best_of,
    has_top_k,
    int_param,
    keys_of,
    param,
    probs_of,
    score_of,
)

_PLAN_WIDTH = tl.constexpr(PLAN_WIDTH)
_FIRST_FINITE = tl.constexpr(FIRST_FINITE)
_NO_WINDOW = tl.constexpr(NO_WINDOW)
_WIDE = tl.constexpr(WIDE)
_TILE = tl.constexpr(2048)
_UNITS = tl.constexpr(float(2**40))


@triton.jit
def _masses(scores, largest, sharp, min_p):
    """[N] int64."""
    return (probs_of(scores, largest, sharp, min_p) * _UNITS).to(tl.int64)


@triton.jit
def _first_tile(values, num, largest, sharp, min_p):
    """The tokens that stay in registers: keys, and what they count and weigh, 0 where there is none."""
    at = tl.arange(0, _TILE)
    scores = tl.load(values + at, mask=at < num, other=float("-inf"))
    masses = tl.where(at < num, _masses(scores, largest, sharp, min_p), 0)
    return keys_of(scores), (at < num).to(tl.int64), masses


@triton.jit
def _weight_from(keys, weights, values, num, key, largest, sharp, min_p, BY_MASS: tl.constexpr):
    """Count or mass of the tokens at or above a key.

    Args:
        keys, weights: of the first tile.
    """
    first_key = key.to(tl.uint32)
    weight = tl.sum(tl.where(keys >= first_key, weights, 0), 0)
    if num > _TILE:
        sums = tl.zeros([_TILE], tl.int64)
        for start in range(_TILE, num, _TILE):
            at = start + tl.arange(0, _TILE)
            scores = tl.load(values + at, mask=at < num, other=float("-inf"))
            is_above = (keys_of(scores) >= first_key) & (at < num)
            if BY_MASS:
                sums += tl.where(is_above, _masses(scores, largest, sharp, min_p), 0)
            else:
                sums += is_above.to(tl.int64)
        weight += tl.sum(sums, 0)
    return weight


@triton.jit
def _search(keys, weights, values, num, low, stop, weight_above, wanted, largest, sharp, min_p, BY_MASS: tl.constexpr):
    """The last key in [low, stop) at or above which lies what is wanted."""
    while stop - low > 1:
        middle = low + (stop - low) // 2
        weight = weight_above + _weight_from(keys, weights, values, num, middle, largest, sharp, min_p, BY_MASS)
        low = tl.where(weight >= wanted, middle, low)
        stop = tl.where(weight >= wanted, stop, middle)
    return low


@triton.jit
def _last_tied(values, value_ids, num, is_window, key, num_tied, vocab_size):
    """The id up to which the first `num_tied` tokens with a key lie."""
    first = tl.full([], -1, tl.int32)
    last = vocab_size + tl.zeros([], tl.int32) - 1
    while last - first > 1:
        middle = first + (last - first) // 2
        counts = tl.zeros([_TILE], tl.int32)
        for start in range(0, num, _TILE):
            at = start + tl.arange(0, _TILE)
            scores = tl.load(values + at, mask=at < num, other=float("-inf"))
            ids = tl.where(is_window, tl.load(value_ids + at, mask=(at < num) & is_window, other=0), at)
            counts += ((keys_of(scores) == key.to(tl.uint32)) & (ids <= middle) & (at < num)).to(tl.int32)
        is_reached = tl.sum(counts, 0) >= num_tied
        last = tl.where(is_reached, middle, last)
        first = tl.where(is_reached, first, middle)
    return last


@triton.jit
def draw_kept(row_logits, slot_params, slot, row, stats, best_places, plans, window_sizes, window_values, window_ids,
              chunk_largest, largest, sharp, position, seed, vocab_size, num_chunks, capacity, CHUNKS: tl.constexpr):
    """The token drawn from a row's kept set."""
    min_p = param(slot_params, slot, MIN_P)
    top_p = param(slot_params, slot, TOP_P)
    top_k = int_param(slot_params, slot, TOP_K).to(tl.int64)
    cuts_by_count = has_top_k(slot_params, slot, vocab_size)
    cuts_by_mass = top_p < 1.0
    low = tl.load(plans + row * _PLAN_WIDTH)
    last = tl.load(plans + row * _PLAN_WIDTH + 1)
    kind = tl.load(plans + row * _PLAN_WIDTH + 2)
    size = tl.load(window_sizes + row)
    chunks = tl.arange(0, CHUNKS)
    is_chunk = (chunks < num_chunks) & (kind == _WIDE)
    counts = tl.load(stat(stats, row, COUNT_ABOVE, num_chunks) + chunks, mask=is_chunk, other=0.0)
    sums = tl.load(stat(stats, row, MASS_ABOVE, num_chunks) + chunks, mask=is_chunk, other=0.0)
    seen = tl.load(stat(stats, row, MASS_SEEN, num_chunks) + chunks, mask=is_chunk, other=0.0)
    count_above = tl.sum(counts.to(tl.int64), 0)
    mass_above = tl.sum((sums * _UNITS).to(tl.int64), 0)
    row_window = window_values + row * capacity
    row_window_ids = window_ids + row * capacity
    is_window = (kind != _NO_WINDOW) & (size <= capacity)
    values = row_window
    num = tl.where(is_window, size, 0)
    keys, ones, masses = _first_tile(values, num, largest, sharp, min_p)
    zero = tl.full([], 0, tl.int64)
    window_mass = _weight_from(keys, masses, values, num, zero, largest, sharp, min_p, True)
    # What top_p is a share of, where top_k does not say.
    total = row_mass(stats, row, chunk_largest, largest, sharp, num_chunks, CHUNKS) * _UNITS
    if (min_p > 0.0) & (kind == _WIDE):
        total = tl.sum(seen, 0) * _UNITS
    elif (min_p > 0.0) & is_window:
        total = window_mass.to(tl.float32)
    # Whether the window holds the end.
    if cuts_by_count:
        is_window = is_window & (count_above < top_k) & ((count_above + size >= top_k) | (low <= _FIRST_FINITE))
    elif cuts_by_mass & is_window:
        wanted = tl.maximum((top_p.to(tl.float64) * total).to(tl.int64), 1)
        is_window = (mass_above < wanted) & ((mass_above + window_mass >= wanted) | (low <= _FIRST_FINITE))
    if is_window == 0:
        values = row_logits
        num = vocab_size
        low = zero
        last = tl.full([], 2**32 - 1, tl.int64)
        count_above = zero
        mass_above = zero
        keys, ones, masses = _first_tile(values, num, largest, sharp, min_p)
        if min_p > 0.0:
            total = _weight_from(keys, masses, values, num, zero, largest, sharp, min_p, True).to(tl.float32)
    key = low
    stop = tl.minimum(last, keys_of(largest).to(tl.int64)) + 1
    num_tied = tl.full([], 1 << 40, tl.int64)
    if cuts_by_count:
        key = _search(keys, ones, values, num, low, stop, count_above, top_k, largest, sharp, min_p, False)
        num_tied = top_k - count_above - _weight_from(keys, ones, values, num, key + 1, largest, sharp, min_p, False)
    if cuts_by_mass:
        wanted = (top_p.to(tl.float64) * total).to(tl.int64)
        if cuts_by_count:
            tied_mass = _masses(score_of(key.to(tl.uint32)), largest, sharp, min_p)
            mass = mass_above + _weight_from(keys, masses, values, num, key + 1, largest, sharp, min_p, True)
            mass += tied_mass * tl.minimum(num_tied, vocab_size)
            wanted = (top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
        wanted = tl.maximum(wanted, 1)
        other = _search(keys, masses, values, num, key, stop, mass_above, wanted, largest, sharp, min_p, True)
        tied_mass = tl.maximum(_masses(score_of(other.to(tl.uint32)), largest, sharp, min_p), 1)
        missing = wanted - mass_above - _weight_from(keys, masses, values, num, other + 1, largest, sharp, min_p, True)
        num_wanted = tl.maximum((missing + tied_mass - 1) // tied_mass, 1)
        num_tied = tl.where(other > key, num_wanted, tl.minimum(num_tied, num_wanted))
        key = other
    last_id = vocab_size + tl.zeros([], tl.int32)
    if cuts_by_count | cuts_by_mass:
        num_from = _weight_from(keys, ones, values, num, key, largest, sharp, min_p, False)
        num_after = _weight_from(keys, ones, values, num, key + 1, largest, sharp, min_p, False)
        if num_from - num_after > num_tied:
            last_id = _last_tied(values, row_window_ids, num, is_window, key, num_tied, vocab_size)
    best, token = finish_race(row_logits, stats, best_places, row, tl.zeros([CHUNKS], tl.float32), is_chunk & is_window,
                              num_chunks, vocab_size, largest, sharp, position, seed, last.to(tl.uint32),
                              min_p, CHUNKS)
    end = key.to(tl.uint32)
    bests = tl.full([_TILE], float("-inf"), tl.float32)
    tokens = tl.full([_TILE], NO_TOKEN, tl.int32)
    for start in range(0, num, _TILE):
        at = start + tl.arange(0, _TILE)
        logits = tl.load(values + at, mask=at < num, other=float("-inf"))
        ids = tl.where(is_window, tl.load(row_window_ids + at, mask=(at < num) & is_window, other=0), at)
        tile_keys = keys_of(logits)
        is_kept = ((tile_keys > end) | ((tile_keys == end) & (ids <= last_id))) & (at < num)
        is_kept = is_kept & (probs_of(logits, largest, sharp, min_p) > 0.0)
        scores = (logits - largest) * sharp - log2_exponentials(token_words(ids, position, seed))
        scores = tl.where(is_kept, scores, float("-inf"))
        is_better = (scores > bests) | ((scores == bests) & (ids < tokens) & is_kept)
        tokens = tl.where(is_better, ids, tokens)
        bests = tl.maximum(bests, scores)
    score, other_token = best_of(bests, tokens)
    return tl.where((score > best) | ((score == best) & (other_token < token)), other_token, token)
