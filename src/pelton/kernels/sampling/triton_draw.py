"""Drawing one token per row in Triton: chunks of the vocabulary side by side, the kept set of rows that truncate.

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
_NO_TOKEN = tl.constexpr(2147483647)
_SMALLEST_TEMPERATURE = tl.constexpr(1e-30)
_DIGIT_BITS = tl.constexpr(2)


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
    return best, tl.min(tl.where(scores == best, ids, _NO_TOKEN), 0)


@triton.jit
def _temperature(slot_params, slot):
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
        scores = tl.exp(scores / _temperature(slot_params, slot)) / exponentials(words)
    best, token = best_of(scores, ids)
    at = row * num_chunks + chunk
    tl.store(bests + at * 2, best)
    tl.store(bests + at * 2 + 1, largest)
    tl.store(best_ids + at, token)


@triton.jit(do_not_specialize=["vocab_size", "num_chunks"])
def finish_kernel(bests, best_ids, kept_ids, slots, slot_params, tokens, last_tokens, counts, vocab_size, num_chunks,
                  HAS_KEPT: tl.constexpr, HAS_COUNTS: tl.constexpr, LANES: tl.constexpr):
    """The best of a row's chunks becomes its token and its slot's last one, and is counted. Grid [R].

    Args:
        kept_ids: [R] int32, the tokens of rows that truncate, if HAS_KEPT.
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
        scores *= tl.exp(below / _temperature(slot_params, slot))
    else:
        scores += below
    _, token = best_of(scores, tl.load(best_ids + at, mask=is_there, other=_NO_TOKEN))
    if HAS_KEPT:  # noqa: SIM102  what is constant when compiled stands alone
        if is_truncated(slot_params, slot, vocab_size):
            token = tl.load(kept_ids + row)
    token = tl.minimum(token, vocab_size - 1).to(tl.int64)  # without any number among the logits there is no best
    tl.store(tokens + row, token)
    tl.store(last_tokens + slot, token)
    if HAS_COUNTS:  # noqa: SIM102
        if tl.load(slot_params + slot * _NUM_PARAMS + IS_COUNTED) != 0:
            count = counts + slot * vocab_size + token
            tl.store(count, tl.load(count) + 2)


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
def _load_probs(row_logits, start, vocab_size, largest, temperature, min_p, BLOCK: tl.constexpr):
    """Keys and tempered probabilities (1 for the likeliest, 0 below min_p) of BLOCK tokens."""
    ids = start + tl.arange(0, BLOCK)
    is_there = ids < vocab_size
    scores = tl.load(row_logits + ids, mask=is_there, other=float("-inf"))
    probs = tl.exp((scores - largest) / temperature)
    probs = tl.where(is_there & (probs >= min_p), probs, 0.0)
    return tl.where(is_there, _sort_keys(scores), 0), probs


@triton.jit
def _find_key(row_logits, vocab_size, largest, temperature, min_p, wanted, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key that, with all above it, makes up what is wanted: a count of tokens, or a mass. Found two bits
    at a time, from the top."""
    digits = tl.arange(0, 4)
    key = tl.full([], 0, tl.uint32)
    for step in range(16):
        shift = 30 - 2 * step
        candidates = key + (digits.to(tl.uint32) << shift.to(tl.uint32))
        sums = tl.zeros([4], tl.float32)
        for start in range(0, vocab_size, BLOCK):
            keys, probs = _load_probs(row_logits, start, vocab_size, largest, temperature, min_p, BLOCK)
            weights = probs
            if COUNTS:
                weights = tl.where(start + tl.arange(0, BLOCK) < vocab_size, 1.0, 0.0)
            is_above = keys[:, None] >= candidates[None, :]
            sums += tl.sum(tl.where(is_above, weights[:, None], 0.0), 0)
        digit = tl.max(tl.where(sums >= wanted, digits, 0), 0)
        key = key + (digit.to(tl.uint32) << shift.to(tl.uint32))
    return key


@triton.jit
def _above(row_logits, vocab_size, largest, temperature, min_p, key, BLOCK: tl.constexpr):
    """How many tokens lie above a key, and their mass."""
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0.0, tl.float32)
    for start in range(0, vocab_size, BLOCK):
        keys, probs = _load_probs(row_logits, start, vocab_size, largest, temperature, min_p, BLOCK)
        is_above = keys > key
        count += tl.sum(is_above.to(tl.int32), 0)
        mass += tl.sum(tl.where(is_above, probs, 0.0), 0)
    return count, mass


@triton.jit(do_not_specialize=["vocab_size"])
def draw_kept_kernel(logits, slots, positions, slot_params, seeds, kept_ids, row_stride, vocab_size,
                     BLOCK: tl.constexpr):
    """The token of a row that truncates. Grid [R].

    The kept set is a prefix of the tokens by falling score, equal ones by rising id: all above a key, and the first
    few that have it. top_k and top_p each say where it ends; min_p takes away tokens of it. The keys are found by
    bisection over their bits, which reads the row from the cache some dozens of times and needs no memory.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if is_truncated(slot_params, slot, vocab_size) == 0:
        return
    row_logits = logits + row * row_stride
    temperature = tl.maximum(param(slot_params, slot, TEMPERATURE), _SMALLEST_TEMPERATURE)
    top_k = tl.load(slot_params + slot * _NUM_PARAMS + TOP_K)
    top_p = param(slot_params, slot, TOP_P)
    min_p = param(slot_params, slot, MIN_P)
    lanes = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        lanes = tl.maximum(lanes, tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf")))
    largest = tl.max(lanes, 0)
    key = tl.full([], 0, tl.uint32)
    num_tied = vocab_size + tl.full([], 0, tl.int32)
    if (top_k > 0) & (top_k < vocab_size):
        key = _find_key(row_logits, vocab_size, largest, temperature, min_p, top_k.to(tl.float32), True, BLOCK)
        num_above, _ = _above(row_logits, vocab_size, largest, temperature, min_p, key, BLOCK)
        num_tied = top_k - num_above
    if top_p < 1.0:
        _, mass = _above(row_logits, vocab_size, largest, temperature, min_p, key, BLOCK)
        if key > 0:
            tied_prob = tl.exp((_score_of(key) - largest) / temperature)
            mass += tl.where(tied_prob >= min_p, tied_prob, 0.0) * num_tied.to(tl.float32)
        wanted = mass * top_p
        top_p_key = _find_key(row_logits, vocab_size, largest, temperature, min_p, wanted, False, BLOCK)
        _, mass_above = _above(row_logits, vocab_size, largest, temperature, min_p, top_p_key, BLOCK)
        tied_prob = tl.exp((_score_of(top_p_key) - largest) / temperature)
        num_wanted = tl.ceil((wanted - mass_above) / tl.maximum(tied_prob, 1e-38))
        num_wanted = tl.minimum(tl.maximum(num_wanted, 1.0), vocab_size.to(tl.float32)).to(tl.int32)
        num_tied = tl.where(top_p_key > key, num_wanted,
                            tl.where(top_p_key == key, tl.minimum(num_tied, num_wanted), num_tied))
        key = tl.maximum(key, top_p_key)
    seed = tl.load(seeds + slot)
    position = tl.load(positions + row)
    best = tl.full([], -1.0, tl.float32)
    token = tl.full([], _NO_TOKEN, tl.int32)
    num_seen = tl.full([], 0, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keys, probs = _load_probs(row_logits, start, vocab_size, largest, temperature, min_p, BLOCK)
        is_tied = (keys == key) & (ids < vocab_size)
        order = num_seen + tl.cumsum(is_tied.to(tl.int32), 0)
        is_kept = (keys > key) | (is_tied & (order <= num_tied))
        num_seen += tl.sum(is_tied.to(tl.int32), 0)
        words = vocab_words(seed, position, start, BLOCK)
        scores = tl.where(is_kept, probs / exponentials(words), -1.0)
        chunk_best, chunk_token = best_of(scores, ids)
        if chunk_best > best:
            best = chunk_best
            token = chunk_token
    tl.store(kept_ids + row, token)
