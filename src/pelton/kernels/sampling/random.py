"""The random stream: a pure function of (seed, position, token id), in integers, equal on every device.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the
64-bit seed, low word first. The counter is (token id // 4, position, 0, 0); token id % 4 picks the output word. So a
token's random word does not depend on the vocabulary's size, on which other tokens are candidates, or on what else is
in the batch, and a block of four neighbouring tokens costs one evaluation. The last two counter words are free for
other streams.

A word w maps to v = w * 2**-32 + 2**-33 in float32, at most 1 - 2**-24, and on to the exponential variate
-log1p(-v). Small v keep full relative precision there, and it is the small variates that win: a draw is
argmax(p / exponential), which is argmax(logit + Gumbel) as Gumbel = -log(exponential). 24 bits would not do: over a
flat vocabulary of 152k, one draw in 110 would have a token in the smallest cell, where variates cannot be told apart.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Words = TypeVar("Words", int, np.ndarray, torch.Tensor)

ROUNDS = 10
WORD_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LARGEST = 1.0 - 2.0**-24
_CHUNK_BLOCKS = 16384  # counters evaluated at once: the temporaries stay in the second-level cache


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words], rounds: int = ROUNDS) -> tuple:
    """Four random 32-bit words per counter.

    Words are non-negative and below 2**32, held in Python integers, numpy uint64 or torch int64; shapes broadcast.
    A 64-bit product that wraps in torch's signed type has the right bits, and the masks take off the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0 = c0 * _MULTIPLIER_0
        p1 = c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = ((p1 >> 32) & WORD_MASK) ^ c1 ^ k0, p1 & WORD_MASK, ((p0 >> 32) & WORD_MASK) ^ c3 ^ k1, \
            p0 & WORD_MASK
        k0 = (k0 + _WEYL_0) & WORD_MASK
        k1 = (k1 + _WEYL_1) & WORD_MASK
    return c0, c1, c2, c3


def token_word(seed: int, position: int, token_id: int) -> int:
    """The random word of one token, in Python integers: the definition that the array forms are tested against."""
    key = (seed & WORD_MASK, (seed >> 32) & WORD_MASK)
    return philox((token_id // 4, position, 0, 0), key)[token_id % 4]


def token_words(seeds: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Random words of some tokens per row.

    Args:
        seeds, positions: [R] int64.
        token_ids: [R, K] int64.

    Returns:
        [R, K] uint64, each below 2**32.
    """
    ids = token_ids.astype(np.uint64)
    words = philox(_counters(positions, ids >> 2), _keys(seeds))
    lane = ids & 3
    return np.where(lane < 2, np.where(lane == 0, words[0], words[1]), np.where(lane == 2, words[2], words[3]))


def vocab_words(seeds: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    """Random words of the whole vocabulary.

    Args:
        seeds, positions: [R] int64.

    Returns:
        [R, vocab_size] uint32.
    """
    num_rows = len(seeds)
    num_blocks = -(-vocab_size // 4)
    words = np.empty((num_rows, num_blocks, 4), dtype=np.uint32)
    rows_at_once = max(1, _CHUNK_BLOCKS // num_blocks)
    for row in range(0, num_rows, rows_at_once):
        rows = slice(row, row + rows_at_once)
        keys = _keys(seeds[rows])
        for block in range(0, num_blocks, _CHUNK_BLOCKS):
            blocks = np.arange(block, min(block + _CHUNK_BLOCKS, num_blocks), dtype=np.uint64)[None, :]
            for lane, lane_words in enumerate(philox(_counters(positions[rows], blocks), keys)):
                words[rows, block:block + _CHUNK_BLOCKS, lane] = lane_words
    return words.reshape(num_rows, num_blocks * 4)[:, :vocab_size]


def exponentials(words: np.ndarray) -> torch.Tensor:
    """Random words, any shape -> exponential variates of rate 1, float32, all positive and finite."""
    v = torch.from_numpy(words.astype(np.float32))
    v.mul_(2.0**-32).add_(2.0**-33).clamp_(max=_LARGEST)
    return v.neg_().log1p_().neg_()


def _counters(positions: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
    zero = np.zeros((1, 1), dtype=np.uint64)
    return blocks, positions.astype(np.uint64)[:, None], zero, zero


def _keys(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = seeds.astype(np.int64).view(np.uint64)[:, None]
    return bits & WORD_MASK, bits >> 32
