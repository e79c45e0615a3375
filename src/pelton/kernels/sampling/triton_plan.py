"""Where to look for the end of a row's kept set, in Triton.

The kept set is a prefix of the tokens by falling score, equal ones by rising id; top_k and top_p each say where it
ends, and min_p takes away tokens of it. Before the row is read a second time, a window of keys is chosen in which the
end will lie, with few enough tokens in it to be gathered:

- from the K-th largest of the lanes' maxima up, for a small top_k (at least K tokens are there, hardly more) and where
  those tokens have the mass that top_p wants: then only their lanes are read again (near);
- else around the end that a sample of every F-th run of 16 tokens has, five standard deviations to each side (wide).

A window that turns out wrong or too small costs time, not correctness: the last launch then searches the whole row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_draw import LARGEST, MASS, stat
from pelton.kernels.sampling.triton_random import exp2, log2
from pelton.kernels.sampling.triton_rows import (
    MIN_P,
    NUM_LANES,
    TOP_K,
    TOP_P,
    finite,
    has_top_k,
    int_param,
    is_truncated,
    keys_of,
    param,
    probs_of,
    score_of,
    sharpness,
)

PLAN_WIDTH = 4
"""int64 per row: the window's first key, its last one, the kind of window, the number of lanes near the end."""
NO_WINDOW, NEAR, WIDE = 0, 1, 2
"""Kinds: none; the tokens of the lanes that are listed, with nothing above; those of all chunks."""
_PLAN_WIDTH = tl.constexpr(PLAN_WIDTH)
_NO_WINDOW = tl.constexpr(NO_WINDOW)
_NEAR = tl.constexpr(NEAR)
_WIDE = tl.constexpr(WIDE)
_LANES = tl.constexpr(NUM_LANES)
_NUM_LIKELIEST = tl.constexpr(1024)
"""Lanes that are looked at for top_p first."""
_NUM_STEPS = tl.constexpr(16)
"""Of a search: the window's ends are found to within 2**-16 of the range of keys."""
_RUN = tl.constexpr(16)
FIRST_FINITE = 0x00800000
"""The key after that of -inf."""
_LAST_KEY = tl.constexpr(2**32 - 1)
_FIRST_FINITE = tl.constexpr(FIRST_FINITE)


@triton.jit
def row_largest(stats, row, num_chunks, CHUNKS: tl.constexpr):
    """The largest logit of a row, and the mass that its chunks add up to where they have one."""
    chunks = tl.arange(0, CHUNKS)
    largest = tl.load(stat(stats, row, LARGEST, num_chunks) + chunks, mask=chunks < num_chunks, other=float("-inf"))
    return largest, finite(tl.max(largest, 0))


@triton.jit
def row_mass(stats, row, chunk_largest, largest, sharp, num_chunks, CHUNKS: tl.constexpr):
    """Mass of all tokens, 1 for the likeliest."""
    chunks = tl.arange(0, CHUNKS)
    masses = tl.load(stat(stats, row, MASS, num_chunks) + chunks, mask=chunks < num_chunks, other=0.0)
    return tl.sum(masses * exp2((chunk_largest - largest) * sharp), 0)


@triton.jit
def _search(keys, weights, lowest, highest, wanted):
    """The keys between which the weight at or above a key falls below what is wanted, [first, after last)."""
    low = lowest
    high = highest
    for _ in range(_NUM_STEPS):
        middle = low + (high - low) // 2
        weight = tl.sum(tl.where(keys >= middle.to(tl.uint32), weights, 0.0), 0)
        low = tl.where((weight >= wanted) & (high - low > 1), middle, low)
        high = tl.where((weight < wanted) & (high - low > 1), middle, high)
    return low, high


@triton.jit
def _search_both(keys, weights, lowest, highest, more, less):
    """The first key of the search for `more` and the one after the last of that for `less`, in one go."""
    low = lowest
    low_stop = highest
    high = lowest
    high_stop = highest
    for _ in range(_NUM_STEPS):
        lower = low + (low_stop - low) // 2
        upper = high + (high_stop - high) // 2
        lower_weight = tl.sum(tl.where(keys >= lower.to(tl.uint32), weights, 0.0), 0)
        upper_weight = tl.sum(tl.where(keys >= upper.to(tl.uint32), weights, 0.0), 0)
        low = tl.where((lower_weight >= more) & (low_stop - low > 1), lower, low)
        low_stop = tl.where((lower_weight < more) & (low_stop - low > 1), lower, low_stop)
        high = tl.where((upper_weight >= less) & (high_stop - high > 1), upper, high)
        high_stop = tl.where((upper_weight < less) & (high_stop - high > 1), upper, high_stop)
    return low, high_stop


@triton.jit
def _sampled_window(row_logits, slot_params, slot, vocab_size, largest, sharp, mass, sample_step,
                    SAMPLE: tl.constexpr):
    """The window around the end that a sample of the row has.

    Weights are 1 where top_k cuts, else probabilities; what is estimated is the weight of the tokens that are dropped,
    none of which weighs much.
    """
    index = tl.arange(0, SAMPLE)
    ids = index // _RUN * (_RUN * sample_step) + index % _RUN
    is_there = ids < vocab_size
    scores = tl.load(row_logits + ids, mask=is_there, other=float("-inf"))
    keys = keys_of(scores)
    num = tl.sum(is_there.to(tl.float32), 0)
    share = num / vocab_size
    probs = tl.where(is_there, exp2((scores - largest) * sharp), 0.0)
    weights = tl.where(probs >= param(slot_params, slot, MIN_P), probs, 0.0)
    dropped = probs - weights
    mass_dropped = tl.sum(dropped, 0)
    dropped_share = 1.0 - param(slot_params, slot, TOP_P)
    variance = (tl.sum(dropped * dropped, 0) - mass_dropped * mass_dropped / num) * dropped_share * dropped_share
    tail = (mass * share - mass_dropped) * dropped_share
    if has_top_k(slot_params, slot, vocab_size):
        weights = is_there.to(tl.float32)
        variance = 0.0
        tail = num * (1.0 - int_param(slot_params, slot, TOP_K).to(tl.float32) / vocab_size)
    wanted = tl.sum(weights, 0) - tail
    lowest = tl.min(tl.where(scores > float("-inf"), keys, 0xFFFFFFFF), 0).to(tl.int64)
    highest = tl.max(tl.where(is_there, keys, 0), 0).to(tl.int64) + 1
    lowest = tl.minimum(lowest, highest - 1)
    end, _ = _search(keys, weights, lowest, highest, wanted)
    is_below = keys < end.to(tl.uint32)
    below = tl.sum(tl.where(is_below, weights, 0.0), 0)
    variance += tl.sum(tl.where(is_below, weights * weights, 0.0), 0) - below * below / num
    largest_below = tl.max(tl.where(is_below, weights, 0.0), 0)
    error = 5.0 * tl.sqrt(tl.maximum(variance, 0.0)) + 4.0 * largest_below
    low, last = _search_both(keys, weights, lowest, highest, wanted + error, wanted - error)
    return tl.where(error >= tail, 0, low), tl.where(wanted - error <= 0.0, _LAST_KEY, last)


@triton.jit(do_not_specialize=["num_chunks", "sample_step", "capacity"])
def plan_kernel(logits, slots, slot_params, stats, group_maxima, near_lanes, plans, window_sizes, row_stride,
                vocab_size, num_chunks, sample_step, capacity, CHUNKS: tl.constexpr, GROUPS: tl.constexpr,
                SAMPLE: tl.constexpr):
    """The window of each row that truncates. Grid [R].

    Args:
        stats, group_maxima: of scan_kernel.
        near_lanes: [R, chunks · lanes] int32, the lanes that a near window lies in.
        plans: [R, PLAN_WIDTH] int64.
        window_sizes: [R] int32, set to 0.
        capacity: tokens that a window has room for.
        CHUNKS, GROUPS, SAMPLE: at least the number of chunks, of lanes and of sampled tokens of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if is_truncated(slot_params, slot, vocab_size) == 0:
        tl.store(plans + row * _PLAN_WIDTH + 2, _NO_WINDOW)
        return
    row_logits = logits + row * row_stride
    sharp = sharpness(slot_params, slot)
    top_k = int_param(slot_params, slot, TOP_K)
    top_p = param(slot_params, slot, TOP_P)
    min_p = param(slot_params, slot, MIN_P)
    cuts_by_count = has_top_k(slot_params, slot, vocab_size)
    chunk_largest, largest = row_largest(stats, row, num_chunks, CHUNKS)
    low = tl.full([], 0, tl.int64)
    last = tl.full([], _LAST_KEY, tl.int64)
    kind = tl.full([], _WIDE, tl.int64)
    num_near = tl.full([], 0, tl.int64)
    if (cuts_by_count == 0) & (top_p >= 1.0):
        # min_p alone: no window; what lies below a bound on the likeliest dropped score need not be read.
        bound = largest + log2(min_p) / sharp
        low = keys_of(bound - 1e-5 * (tl.abs(bound) + 1.0 / sharp)).to(tl.int64)
        last = low - 1
    elif vocab_size > capacity:
        index = tl.arange(0, GROUPS)
        maxima = tl.load(group_maxima + row * num_chunks * _LANES + index, mask=index < num_chunks * _LANES,
                         other=float("-inf"))
        keys = keys_of(maxima)
        # Lanes are 32 tokens: with up to half of them wanted, they hold hardly 1.4 likely tokens each.
        num_wanted = tl.minimum(tl.where(cuts_by_count, top_k, _NUM_LIKELIEST), vocab_size // 64)
        lowest = tl.min(tl.where(maxima > float("-inf"), keys, 0xFFFFFFFF), 0).to(tl.int64)
        highest = tl.max(keys, 0).to(tl.int64) + 1
        ones = tl.full([GROUPS], 1.0, tl.float32)
        low, _ = _search(keys, ones, tl.minimum(lowest, highest - 1), highest, num_wanted.to(tl.float32))
        mass = row_mass(stats, row, chunk_largest, largest, sharp, num_chunks, CHUNKS)
        is_enough = top_k <= num_wanted
        if cuts_by_count == 0:
            probs = probs_of(maxima, largest, sharp, 0.0)
            near_mass = tl.sum(tl.where(keys >= low.to(tl.uint32), probs, 0.0), 0)
            is_enough = near_mass >= top_p * mass * (1.0 + 1e-5)
            if min_p > 0.0:
                is_enough = probs_of(score_of(low.to(tl.uint32)), largest, sharp, 0.0) < min_p
        if tl.sum((maxima > float("-inf")).to(tl.int32), 0) < num_wanted:  # most tokens are banned
            low = tl.full([], _FIRST_FINITE, tl.int64)
            is_enough = True
        if is_enough == 0:
            if cuts_by_count & (top_p < 1.0):  # two ends, maybe far apart
                kind = tl.full([], _NO_WINDOW, tl.int64)
            low, last = _sampled_window(row_logits, slot_params, slot, vocab_size, largest, sharp, mass, sample_step,
                                        SAMPLE)
        else:
            kind = tl.full([], _NEAR, tl.int64)
            is_near = (keys >= low.to(tl.uint32)) & (index < num_chunks * _LANES)
            places = tl.cumsum(is_near.to(tl.int32), 0) - 1
            tl.store(near_lanes + row * num_chunks * _LANES + places, index, mask=is_near)
            num_near = tl.sum(is_near.to(tl.int32), 0).to(tl.int64)
    tl.store(plans + row * _PLAN_WIDTH, low)
    tl.store(plans + row * _PLAN_WIDTH + 1, last)
    tl.store(plans + row * _PLAN_WIDTH + 2, kind)
    tl.store(plans + row * _PLAN_WIDTH + 3, num_near)
    tl.store(window_sizes + row, 0)
