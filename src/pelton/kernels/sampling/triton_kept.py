"""The kept set of rows that truncate, in Triton, chunks of the vocabulary side by side.

The kept set is a prefix of the tokens by falling score, equal ones by rising id: all above a key, and the first few
that have it. top_k and top_p each say where it ends; min_p takes away tokens of it. Keys are found four bits at a time,
from the top: each launch sums up, per chunk, how many tokens and what mass lie at or above each of 16 candidates, and
the next one adds up the chunks, in their order, and goes on from the last candidate that still has what is wanted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_draw import MIN_P, NUM_PARAMS, TOP_K, TOP_P, best_of, divisor, is_truncated, param
from pelton.kernels.sampling.triton_random import exponentials, vocab_words

NUM_STEPS = 8
STATE_WIDTH = 4
"""float32 per row and step: the key so far (its bits), count and mass above its range, the mass that is wanted."""
_NUM_PARAMS = tl.constexpr(NUM_PARAMS)
_STATE_WIDTH = tl.constexpr(STATE_WIDTH)
_SUB_CHUNK = tl.constexpr(128)


@triton.jit
def _sort_keys(scores):
    """float32 to uint32 that sort alike."""
    bits = scores.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


@triton.jit
def _score_of(key):
    """The float32 of a key."""
    return tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _probs(scores, largest, slot_params, slot):
    """Tempered probabilities, 1 for the likeliest, 0 below min_p."""
    probs = tl.exp((scores - largest) / divisor(slot_params, slot))
    return tl.where(probs >= param(slot_params, slot, MIN_P), probs, 0.0)


@triton.jit
def _largest(bests, row, num_chunks, LANES: tl.constexpr):
    """A row's largest logit."""
    lanes = tl.arange(0, LANES)
    at = (row * num_chunks + lanes) * 2 + 1
    return tl.max(tl.load(bests + at, mask=lanes < num_chunks, other=float("-inf")), 0)


@triton.jit
def _has_step(slot_params, slot, vocab_size, BY_MASS: tl.constexpr):
    """Whether a row looks for a key at all."""
    has_step = is_truncated(slot_params, slot, vocab_size)
    if BY_MASS:
        return has_step & (param(slot_params, slot, TOP_P) < 1.0)
    else:
        top_k = tl.load(slot_params + slot * _NUM_PARAMS + TOP_K)
        return has_step & (top_k > 0) & (top_k < vocab_size)


@triton.jit
def _key_after(state, sums, row, step, num_chunks, wanted, BY_MASS: tl.constexpr, LANES: tl.constexpr):
    """What is known after `step` steps: the key so far, and count and mass of the tokens above its range.

    Args:
        state: [R, NUM_STEPS + 1, STATE_WIDTH], where the steps before left theirs.
        sums: [R, chunks, 2, 16] of the last step.
    """
    key = tl.full([], 0, tl.uint32)
    count_above = tl.full([], 0.0, tl.float32)
    mass_above = tl.full([], 0.0, tl.float32)
    if step > 0:
        digits = tl.arange(0, 16)
        chunks = tl.arange(0, LANES)
        at = ((row * num_chunks + chunks[:, None]) * 2) * 16 + digits[None, :]
        is_there = (chunks < num_chunks)[:, None] & (digits >= 0)[None, :]
        counts = tl.sum(tl.load(sums + at, mask=is_there, other=0.0), 0)
        masses = tl.sum(tl.load(sums + at + 16, mask=is_there, other=0.0), 0)
        before = state + (row * 9 + step - 1) * _STATE_WIDTH
        enough = counts >= wanted
        if BY_MASS:
            enough = masses >= wanted
        digit = tl.max(tl.where(enough, digits, 0), 0)
        is_next = digits == digit + 1
        count_above = tl.where(digit == 15, tl.load(before + 1), tl.sum(tl.where(is_next, counts, 0.0), 0))
        mass_above = tl.where(digit == 15, tl.load(before + 2), tl.sum(tl.where(is_next, masses, 0.0), 0))
        shift = (32 - 4 * step).to(tl.uint32)
        key = tl.load(before).to(tl.uint32, bitcast=True) + (digit.to(tl.uint32) << shift)
    return key, count_above, mass_above


@triton.jit
def _wanted(state, sums, top_k_state, top_k_sums, slot_params, slot, row, step, largest, num_chunks, vocab_size,
            BY_MASS: tl.constexpr, HAS_TOP_K: tl.constexpr, LANES: tl.constexpr):
    """How many tokens, or what mass, the key must have at or above it; known after the first step without top_k."""
    if BY_MASS:
        top_p = param(slot_params, slot, TOP_P)
        wanted = tl.full([], 0.0, tl.float32)
        if step > 1:
            wanted = tl.load(state + (row * 9 + 1) * _STATE_WIDTH + 3)
        elif step == 1:
            chunks = tl.arange(0, LANES)
            at = (row * num_chunks + chunks) * 32 + 16  # the mass at or above the lowest candidate: all
            wanted = top_p * tl.sum(tl.load(sums + at, mask=chunks < num_chunks, other=0.0), 0)
            if HAS_TOP_K:  # noqa: SIM102
                if _has_step(slot_params, slot, vocab_size, False):
                    _, _, mass = _top_k_cut(top_k_state, top_k_sums, slot_params, slot, row, largest, num_chunks,
                                               LANES)
                    wanted = top_p * mass
    else:
        wanted = tl.load(slot_params + slot * _NUM_PARAMS + TOP_K).to(tl.float32)
    return wanted


@triton.jit
def _top_k_cut(state, sums, slot_params, slot, row, largest, num_chunks, LANES: tl.constexpr):
    """Where top_k cuts: the key, how many that have it stay, the mass that stays."""
    top_k = tl.load(slot_params + slot * _NUM_PARAMS + TOP_K)
    key, count_above, mass_above = _key_after(state, sums, row, 8 + tl.full([], 0, tl.int32), num_chunks,
                                              top_k.to(tl.float32), False, LANES)
    num_tied = top_k - count_above.to(tl.int32)
    mass = mass_above + num_tied.to(tl.float32) * _probs(_score_of(key), largest, slot_params, slot)
    return key, num_tied, mass


@triton.jit(do_not_specialize=["vocab_size", "num_chunks", "step"])
def find_key_kernel(logits, slots, slot_params, bests, state, sums_in, sums_out, top_k_state, top_k_sums, row_stride,
                    vocab_size, num_chunks, step, BY_MASS: tl.constexpr, HAS_TOP_K: tl.constexpr, CHUNK: tl.constexpr,
                    LANES: tl.constexpr):
    """One step of the search for the key at which top_k, or BY_MASS top_p, cuts. Grid [R, chunks].

    Args:
        bests: of draw_chunk_kernel.
        state: [R, NUM_STEPS + 1, STATE_WIDTH] float32.
        sums_in, sums_out: [R, chunks, 2, 16] float32: counts and masses at or above each candidate.
        top_k_state, top_k_sums: what the search for top_k left, if HAS_TOP_K.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    if _has_step(slot_params, slot, vocab_size, BY_MASS) == 0:
        return
    largest = _largest(bests, row, num_chunks, LANES)
    wanted = _wanted(state, sums_in, top_k_state, top_k_sums, slot_params, slot, row, step, largest, num_chunks,
                     vocab_size, BY_MASS, HAS_TOP_K, LANES)
    key, count_above, mass_above = _key_after(state, sums_in, row, step, num_chunks, wanted, BY_MASS, LANES)
    if chunk == 0:
        entry = state + (row * 9 + step) * _STATE_WIDTH
        tl.store(entry, key.to(tl.float32, bitcast=True))
        tl.store(entry + 1, count_above)
        tl.store(entry + 2, mass_above)
        tl.store(entry + 3, wanted)
    digits = tl.arange(0, 16)
    candidates = key + (digits.to(tl.uint32) << (28 - 4 * step).to(tl.uint32))
    counts = tl.zeros([_SUB_CHUNK, 16], tl.float32)
    masses = tl.zeros([_SUB_CHUNK, 16], tl.float32)
    for start in range(0, tl.minimum(CHUNK, vocab_size - chunk * CHUNK), _SUB_CHUNK):
        ids = chunk * CHUNK + start + tl.arange(0, _SUB_CHUNK)
        is_there = ids < vocab_size
        scores = tl.load(logits + row * row_stride + ids, mask=is_there, other=float("-inf"))
        is_above = (_sort_keys(scores)[:, None] >= candidates[None, :]) & is_there[:, None]
        counts += tl.where(is_above, 1.0, 0.0)
        masses += tl.where(is_above, _probs(scores, largest, slot_params, slot)[:, None], 0.0)
    at = (row * num_chunks + chunk) * 32 + digits
    tl.store(sums_out + at, tl.sum(counts, 0))
    tl.store(sums_out + at + 16, tl.sum(masses, 0))


@triton.jit
def _cut(slot_params, slot, row, largest, top_k_state, top_k_sums, top_p_state, top_p_sums, vocab_size, num_chunks,
         HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, LANES: tl.constexpr):
    """Where a row's kept set ends: the key, and how many that have it stay."""
    key = tl.full([], 0, tl.uint32)
    num_tied = vocab_size + tl.full([], 0, tl.int32)
    if HAS_TOP_K:  # noqa: SIM102  what is constant when compiled stands alone
        if _has_step(slot_params, slot, vocab_size, False):
            key, num_tied, _ = _top_k_cut(top_k_state, top_k_sums, slot_params, slot, row, largest, num_chunks, LANES)
    if HAS_TOP_P:  # noqa: SIM102
        if _has_step(slot_params, slot, vocab_size, True):
            wanted = tl.load(top_p_state + (row * 9 + 1) * _STATE_WIDTH + 3)
            other, _, mass_above = _key_after(top_p_state, top_p_sums, row, 8 + tl.full([], 0, tl.int32), num_chunks,
                                              wanted, True, LANES)
            tied_prob = tl.exp((_score_of(other) - largest) / divisor(slot_params, slot))
            num_wanted = tl.ceil((wanted - mass_above) / tl.maximum(tied_prob, 1e-38))
            num_wanted = tl.minimum(tl.maximum(num_wanted, 1.0), vocab_size.to(tl.float32)).to(tl.int32)
            num_tied = tl.where(other > key, num_wanted,
                                tl.where(other == key, tl.minimum(num_tied, num_wanted), num_tied))
            key = tl.maximum(key, other)
    return key, num_tied


@triton.jit(do_not_specialize=["vocab_size", "num_chunks"])
def count_ties_kernel(logits, slots, slot_params, bests, top_k_state, top_k_sums, top_p_state, top_p_sums, ties,
                      row_stride, vocab_size, num_chunks, HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr,
                      CHUNK: tl.constexpr, LANES: tl.constexpr):
    """How many tokens of each chunk have the key where the row's kept set ends: ties [R, chunks] int32."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    if is_truncated(slot_params, slot, vocab_size) == 0:
        return
    largest = _largest(bests, row, num_chunks, LANES)
    key, _ = _cut(slot_params, slot, row, largest, top_k_state, top_k_sums, top_p_state, top_p_sums, vocab_size,
                  num_chunks, HAS_TOP_K, HAS_TOP_P, LANES)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = tl.load(logits + row * row_stride + ids, mask=ids < vocab_size, other=float("-inf"))
    is_tied = (_sort_keys(scores) == key) & (ids < vocab_size)
    tl.store(ties + row * num_chunks + chunk, tl.sum(is_tied.to(tl.int32), 0))


@triton.jit(do_not_specialize=["vocab_size", "num_chunks"])
def draw_kept_kernel(logits, slots, positions, slot_params, seeds, bests, top_k_state, top_k_sums, top_p_state,
                     top_p_sums, ties, kept_bests, kept_ids, row_stride, vocab_size, num_chunks,
                     HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """The best token of one chunk among those that a row keeps: kept_bests, kept_ids [R, chunks]. Grid [R, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    slot = tl.load(slots + row)
    if is_truncated(slot_params, slot, vocab_size) == 0:
        return
    largest = _largest(bests, row, num_chunks, LANES)
    key, num_tied = _cut(slot_params, slot, row, largest, top_k_state, top_k_sums, top_p_state, top_p_sums, vocab_size,
                         num_chunks, HAS_TOP_K, HAS_TOP_P, LANES)
    lanes = tl.arange(0, LANES)
    num_before = tl.sum(tl.load(ties + row * num_chunks + lanes, mask=lanes < chunk, other=0), 0)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    is_there = ids < vocab_size
    scores = tl.load(logits + row * row_stride + ids, mask=is_there, other=float("-inf"))
    keys = _sort_keys(scores)
    is_tied = (keys == key) & is_there
    order = num_before + tl.cumsum(is_tied.to(tl.int32), 0)
    is_kept = ((keys > key) & is_there) | (is_tied & (order <= num_tied))
    words = vocab_words(tl.load(seeds + slot), tl.load(positions + row), chunk * CHUNK, CHUNK)
    probs = _probs(scores, largest, slot_params, slot)
    best, token = best_of(tl.where(is_kept, probs / exponentials(words), -1.0), ids)
    tl.store(kept_bests + row * num_chunks + chunk, best)
    tl.store(kept_ids + row * num_chunks + chunk, token)
