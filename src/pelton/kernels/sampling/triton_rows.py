"""What the sampler's kernels share: a slot's parameters, the order of logits, and how a chunk of a row is laid out.

A chunk is 8 runs of 128 lanes with 4 neighbouring tokens each: a lane's 32 tokens lie in one thread, each four in one
load and one evaluation of the random stream. Probabilities are those of the temperature, 1 for the likeliest token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pelton.kernels.sampling.triton_random import exp2

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

NUM_RUNS = 8
NUM_LANES = 128
CHUNK = NUM_RUNS * NUM_LANES * 4
_RUNS = tl.constexpr(NUM_RUNS)
_LANES = tl.constexpr(NUM_LANES)
NO_TOKEN = tl.constexpr(2147483647)
_SMALLEST_TEMPERATURE = tl.constexpr(1e-30)


@triton.jit
def param(slot_params, slot, COLUMN: tl.constexpr):
    """One float of a slot's parameters."""
    return tl.load(slot_params + slot * _NUM_PARAMS + COLUMN).to(tl.float32, bitcast=True)


@triton.jit
def int_param(slot_params, slot, COLUMN: tl.constexpr):
    """One integer of them."""
    return tl.load(slot_params + slot * _NUM_PARAMS + COLUMN)


@triton.jit
def has_top_k(slot_params, slot, vocab_size):
    top_k = int_param(slot_params, slot, TOP_K)
    return (top_k > 0) & (top_k < vocab_size)


@triton.jit
def is_truncated(slot_params, slot, vocab_size):
    """Whether a slot draws at random from less than all tokens."""
    is_cut = has_top_k(slot_params, slot, vocab_size) | (param(slot_params, slot, TOP_P) < 1.0)
    return (is_cut | (param(slot_params, slot, MIN_P) > 0.0)) & (param(slot_params, slot, TEMPERATURE) > 0.0)


@triton.jit
def sharpness(slot_params, slot):
    """What turns differences of logits into differences of log2 probabilities; 1 where a slot is greedy."""
    temperature = param(slot_params, slot, TEMPERATURE)
    return tl.where(temperature > 0.0, 1.4426950408889634 / tl.maximum(temperature, _SMALLEST_TEMPERATURE), 1.0)


@triton.jit
def probs_of(scores, largest, sharp, min_p):
    """Probabilities, 0 below min_p."""
    probs = exp2((scores - largest) * sharp)
    return tl.where(probs >= min_p, probs, 0.0)


@triton.jit
def keys_of(scores):
    """float32 to uint32 that sort alike."""
    bits = (scores + 0.0).to(tl.uint32, bitcast=True)  # -0 becomes 0
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)


@triton.jit
def score_of(key):
    """The float32 of a key."""
    return tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def finite(x):
    """0 in place of -inf, for what is subtracted from scores that may be -inf themselves."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def best_of(scores, ids):
    """The largest score and the lowest id that has it; no score beats no number."""
    best = tl.max(scores, 0)
    return best, tl.min(tl.where(scores == best, ids, NO_TOKEN), 0)


@triton.jit
def chunk_offsets():
    """[runs, lanes, 4] int32: where a chunk's tokens lie in it."""
    runs = tl.arange(0, _RUNS)[:, None, None] * (4 * _LANES)
    return runs + tl.arange(0, _LANES)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
