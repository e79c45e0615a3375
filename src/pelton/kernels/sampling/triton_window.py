"""The second launch over the logits of rows that truncate, in Triton: gathers the tokens of each row's window, sums up
those above it, which are kept for certain, and lets them race."""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_draw import (
    BEST,
    COUNT_ABOVE,
    MASS_ABOVE,
    MASS_SEEN,
    SECOND,
    race,
    stat,
)
from pelton.kernels.sampling.triton_plan import NEAR, NO_WINDOW, PLAN_WIDTH, row_largest
from pelton.kernels.sampling.triton_rows import (
    MIN_P,
    NUM_LANES,
    NUM_RUNS,
    keys_of,
    param,
    probs_of,
    sharpness,
)

_PLAN_WIDTH = tl.constexpr(PLAN_WIDTH)
_NO_WINDOW = tl.constexpr(NO_WINDOW)
_NEAR = tl.constexpr(NEAR)
_NEAR_LANES = tl.constexpr(32)
_LANES = tl.constexpr(NUM_LANES)
_RUNS = tl.constexpr(NUM_RUNS)
_CHUNK = tl.constexpr(NUM_RUNS * NUM_LANES * 4)


@triton.jit
def _tile(row_logits, chunk, run, vocab_size, is_near):
    """One run of a chunk, as far as it lies in lanes that are wanted: ids, scores and whether they are there."""
    block = chunk * (_CHUNK // 4) + run * _LANES + tl.arange(0, _LANES)
    ids = block[:, None] * 4 + tl.arange(0, 4)[None, :]
    is_there = (ids < vocab_size) & is_near[:, None]
    return ids, tl.load(row_logits + ids, mask=is_there, other=float("-inf")), is_there


@triton.jit
def _gather(row_logits, chunk, vocab_size, is_near, low, last, num_by_lane, values, value_ids, size, capacity):
    """Appends a chunk's tokens to its row's window. Chunks come in any order, so the tokens do."""
    first = tl.atomic_add(size, tl.sum(num_by_lane, 0), sem="relaxed")
    places = first + tl.cumsum(num_by_lane, 0) - num_by_lane
    for run in range(_RUNS):
        ids, scores, is_there = _tile(row_logits, chunk, run, vocab_size, is_near)
        keys = keys_of(scores)
        is_wanted = (is_there & (keys >= low) & (keys <= last)).to(tl.int32)
        at = places[:, None] + tl.cumsum(is_wanted, 1) - 1
        is_stored = (is_wanted > 0) & (at < capacity)
        tl.store(values + at, scores, mask=is_stored)
        tl.store(value_ids + at, ids, mask=is_stored)
        places += tl.sum(is_wanted, 1)


@triton.jit
def _gather_near(row_logits, near_lanes, start, num_near, vocab_size, low, values, value_ids, size, capacity):
    """Appends the tokens of some of the listed lanes that are not below the window to it."""
    index = start + tl.arange(0, _NEAR_LANES)
    lanes = tl.load(near_lanes + index, mask=index < num_near, other=0)
    firsts = lanes // _LANES * _CHUNK + lanes % _LANES * 4
    ids = firsts[:, None, None] + (tl.arange(0, _RUNS) * (4 * _LANES))[None, :, None] + tl.arange(0, 4)[None, None, :]
    is_there = (ids < vocab_size) & (index < num_near)[:, None, None]
    scores = tl.load(row_logits + ids, mask=is_there, other=float("-inf"))
    is_wanted = is_there & (keys_of(scores) >= low)
    by_run = tl.sum(is_wanted.to(tl.int32), 2)
    by_lane = tl.sum(by_run, 1)
    first = tl.atomic_add(size, tl.sum(by_lane, 0), sem="relaxed")
    places = (first + tl.cumsum(by_lane, 0) - by_lane)[:, None] + tl.cumsum(by_run, 1) - by_run
    at = places[:, :, None] + tl.cumsum(is_wanted.to(tl.int32), 2) - 1
    is_stored = is_wanted & (at < capacity)
    tl.store(values + at, scores, mask=is_stored)
    tl.store(value_ids + at, ids, mask=is_stored)


@triton.jit(do_not_specialize=["num_chunks", "capacity"])
def window_kernel(logits, slots, positions, slot_params, seeds, stats, best_places, group_maxima, near_lanes, plans,
                  window_sizes, window_values, window_ids, row_stride, vocab_size, num_chunks, capacity,
                  CHUNKS: tl.constexpr):
    """One chunk of one row. Grid [R, chunks].

    Args:
        stats, best_places, group_maxima: as in scan_kernel; the race's and what lies above the window are filled in.
        near_lanes, plans, window_sizes: of plan_kernel; the sizes count also what had no room.
        window_values, window_ids: [R, capacity] float32 and int32.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    low = tl.load(plans + row * _PLAN_WIDTH).to(tl.uint32)
    last = tl.load(plans + row * _PLAN_WIDTH + 1).to(tl.uint32)
    kind = tl.load(plans + row * _PLAN_WIDTH + 2)
    num_near = tl.load(plans + row * _PLAN_WIDTH + 3).to(tl.int32)
    if kind == _NO_WINDOW:
        return
    if kind == _NEAR:
        for start in range(chunk * _NEAR_LANES, num_near, num_chunks * _NEAR_LANES):
            _gather_near(logits + row * row_stride, near_lanes + row * num_chunks * _LANES, start, num_near, vocab_size,
                         low, window_values + row * capacity, window_ids + row * capacity, window_sizes + row, capacity)
        return
    is_near = keys_of(tl.load(group_maxima + (row * num_chunks + chunk) * _LANES + tl.arange(0, _LANES))) >= low
    num_above = 0.0
    mass_above = 0.0
    mass_seen = 0.0
    best = float("-inf")
    second = float("-inf")
    if tl.max(is_near.to(tl.int32), 0) > 0:
        row_logits = logits + row * row_stride
        slot = tl.load(slots + row)
        _, largest = row_largest(stats, row, num_chunks, CHUNKS)
        sharp = sharpness(slot_params, slot)
        min_p = param(slot_params, slot, MIN_P)
        nums_above = tl.zeros([_LANES, 4], tl.float32)
        masses_above = nums_above
        masses_seen = nums_above
        nums_inside = tl.zeros([_LANES, 4], tl.int32)
        for run in tl.static_range(_RUNS):
            _, scores, is_there = _tile(row_logits, chunk, run, vocab_size, is_near)
            keys = keys_of(scores)
            is_above = is_there & (keys > last)
            probs = probs_of(scores, largest, sharp, min_p)
            nums_above += tl.where(is_above, 1.0, 0.0)
            masses_above += tl.where(is_above, probs, 0.0)
            masses_seen += probs
            nums_inside += (is_there & (keys >= low) & (keys <= last)).to(tl.int32)
        num_above = tl.sum(tl.sum(nums_above, 1), 0)
        mass_above = tl.sum(tl.sum(masses_above, 1), 0)
        mass_seen = tl.sum(tl.sum(masses_seen, 1), 0)
        num_by_lane = tl.sum(nums_inside, 1)
        if tl.max(num_by_lane, 0) > 0:
            _gather(row_logits, chunk, vocab_size, is_near, low, last, num_by_lane, window_values + row * capacity,
                    window_ids + row * capacity, window_sizes + row, capacity)
        if num_above > 0.0:
            best, place, second = race(row_logits, chunk, vocab_size, largest, sharp, tl.load(positions + row),
                                       tl.load(seeds + slot), last, min_p, True)
            tl.store(best_places + row * num_chunks + chunk, place)
    tl.store(stat(stats, row, COUNT_ABOVE, num_chunks) + chunk, num_above)
    tl.store(stat(stats, row, MASS_ABOVE, num_chunks) + chunk, mass_above)
    tl.store(stat(stats, row, MASS_SEEN, num_chunks) + chunk, mass_seen)
    tl.store(stat(stats, row, BEST, num_chunks) + chunk, best)
    tl.store(stat(stats, row, SECOND, num_chunks) + chunk, second)
