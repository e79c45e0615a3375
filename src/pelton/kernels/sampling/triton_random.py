"""The random stream of `random.py` in Triton: the same integers, so the same draw on a GPU as on a CPU.

Variates are wanted as logarithms: the draw argmax(p / exponential) is made as argmax(log2 p - log2 exponential).
"""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def log2(x):
    """Base-2 logarithm of non-negative normal numbers, within 2**-22 of 1 or, outside (0.5, 2), of itself: one
    instruction, where the library's takes five for the sake of numbers that do not occur here."""
    if _IS_INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True,
                                         pack=1)


@triton.jit
def exp2(x):
    """2**x, within 2**-22 of itself; 0 below the normal numbers."""
    if _IS_INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True,
                                         pack=1)


@triton.jit
def _multiply(a, FACTOR: tl.constexpr):
    """High and low word of a 64-bit product."""
    product = a.to(tl.uint64) * FACTOR
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox(block, position, seed):
    """Philox4x32-10 of the counters (block, position, 0, 0) under the key `seed`: four words per block.

    Args:
        block: tensor of uint32.
        position, seed: scalars.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    # The first round, of whose second factor the product is 0.
    high, low = _multiply(block, _MULTIPLIER_0)
    c0 = position.to(tl.uint32) ^ k0
    c1 = tl.zeros_like(block)
    c2 = high ^ k1
    c3 = low
    for _ in tl.static_range(9):
        k0 += _WEYL_0
        k1 += _WEYL_1
        high_0, low_0 = _multiply(c0, _MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, _MULTIPLIER_1)
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0 + tl.zeros_like(block)  # of the same shape as the others after the first of these rounds
    return c0, c1, c2, c3


@triton.jit
def block_words(block, position, seed):
    """Random words of the four tokens of each block: [N] uint32 -> [N, 4]."""
    w0, w1, w2, w3 = philox(block, position, seed)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [n, i, j] is word 2i + j
    return tl.reshape(words, [block.shape[0], 4])


@triton.jit
def token_words(ids, position, seed):
    """Random words of any tokens: [N] int32 -> [N] uint32."""
    w0, w1, w2, w3 = philox((ids >> 2).to(tl.uint32), position, seed)
    word = ids & 3
    return tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3))


@triton.jit
def uniforms(words):
    """(0, 1] in float32; small ones keep their full relative precision, and it is those that win."""
    return words.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2**-32, 2**-33


@triton.jit
def log2_exponentials(words):
    """log2 of exponential variates, -log1p(-v) of the uniform v, within 1e-5 of itself; at least log2(v)."""
    v = tl.minimum(uniforms(words), 0.999999940395355)  # 1 - 2**-24
    # -log2(1 - v): where 1 - v would round small variates away, v times a cubic fitted at Chebyshev nodes.
    cubic = 1.44269431 + v * (0.721525013 + v * (0.47397536 + v * 0.444954693))
    return log2(tl.where(v < 0.125, v * cubic, -log2(1.0 - v))) - 0.528766373  # log2(log2(e)): back to base e
