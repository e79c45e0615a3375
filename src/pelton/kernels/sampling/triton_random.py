"""The random stream of `random.py` in Triton: the same integers, so the same draw on a GPU as on a CPU."""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, k0, k1):
    """Philox4x32-10 of the counter (c0, c1, 0, 0), uint32 each. Four words."""
    c2 = c0 * 0
    c3 = c0 * 0
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, c0 * 0 + _MULTIPLIER_0)
        high_1 = tl.umulhi(c2, c2 * 0 + _MULTIPLIER_1)
        low_0 = c0 * _MULTIPLIER_0
        low_1 = c2 * _MULTIPLIER_1
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 = k0 + _WEYL_0
        k1 = k1 + _WEYL_1
    return c0, c1, c2, c3


@triton.jit
def vocab_words(seed, position, first_token, NUM_TOKENS: tl.constexpr):
    """Random words of tokens [first_token, first_token + NUM_TOKENS), both multiples of 4: [NUM_TOKENS] uint32."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    block = (first_token // 4 + tl.arange(0, NUM_TOKENS // 4)).to(tl.uint32)
    w0, w1, w2, w3 = philox(block, block * 0 + position.to(tl.uint32), block * 0 + k0, block * 0 + k1)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [n, i, j] is word 2i + j
    return tl.reshape(words, [NUM_TOKENS])


@triton.jit
def exponentials(words):
    """Exponential variates of random words; the integers decide, rounding aside."""
    v = words.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2**-32, 2**-33
    v = tl.minimum(v, 0.999999940395355)  # 1 - 2**-24
    # -log(1 - v) by its series where 1 - v would round the small variates, which win, away.
    series = v * (1.0 + v * (1 / 2 + v * (1 / 3 + v * (1 / 4 + v * (1 / 5 + v * (1 / 6 + v * (1 / 7)))))))
    return tl.where(v < 0.0625, series, -_log(1.0 - v))


@triton.jit
def _log(x):
    """Natural logarithm of positive normal numbers, within 2e-7 of itself: 20 instructions, where the library's takes
    40 for the sake of numbers that do not occur here.

    x = 2**e · (1 + f) with f between -1/3 and 1/3; the polynomial is log(1 + f) fitted at Chebyshev nodes.
    """
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) >> 23  # of 2/3: what is below goes with the power of two before
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    tail = 0.333333198 + f * (-0.249999431 + f * (0.200038354 + f * (-0.166733983 + f * (
        0.141169779 + f * (-0.122872365 + f * (0.134337748 + f * -0.124298663))))))
    square = f * f
    return exponent.to(tl.float32) * 0.6931471805599453 + (f - 0.5 * square + square * f * tail)
