"""What the Triton attention kernels share: tiles of keys and values in the paged pool, scores, and online softmax.

The pool is [block, layer, 2, kv_head, token, dim]. A run is the [token, dim] of one block, layer, k/v and head; runs
are counted from the start of the pool, in 64 bits once multiplied out: a pool holds more than 2³¹ elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)
"""Stands for "nothing seen yet" in a running maximum: finite, so that a row without keys makes no NaN."""


@triton.jit
def tile_blocks(table, tile, end, TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Block ids of a tile of tokens before `end`, block 0 for others: one, or [TILE] where a tile spans several.

    Kernels ask two tiles ahead. The pipeline then finds the ids in registers; a load that depends on a load of the same
    turn would take half of the pipeline's stages for the ids.
    """
    if TILE <= TOKENS_PER_BLOCK:
        return tl.load(table + tile * TILE // TOKENS_PER_BLOCK, mask=tile * TILE < end, other=0,
                       eviction_policy="evict_last")
    else:
        token = tile * TILE + tl.arange(0, TILE)
        return tl.load(table + token // TOKENS_PER_BLOCK, mask=token < end, other=0, eviction_policy="evict_last")


@triton.jit
def tile_offsets(blocks, tile, run, runs_per_block, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
                 TOKENS_PER_BLOCK: tl.constexpr, TILE: tl.constexpr):
    """[TILE, DIM_PAD] int64 offsets into the pool of a tile of tokens.

    Args:
        blocks: of `tile_blocks`.
        run: the run of the layer, k/v and head within a block.
        runs_per_block: layers · 2 · kv heads.
    """
    tokens = tl.arange(0, TILE)
    dims = tl.arange(0, DIM_PAD)
    start = (blocks.to(tl.int64) * runs_per_block + run) * (TOKENS_PER_BLOCK * HEAD_DIM)
    if TILE <= TOKENS_PER_BLOCK:
        start += tile * TILE % TOKENS_PER_BLOCK * HEAD_DIM
        return start + (tokens[:, None] * HEAD_DIM + dims[None, :])
    else:
        return start[:, None] + ((tokens % TOKENS_PER_BLOCK)[:, None] * HEAD_DIM + dims[None, :])


@triton.jit
def scores_of(q, k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scores of q [M, D] and k [N, D] but for a factor, `score_factor`: [M, N]."""
    k = k.to(q.dtype)
    if _IS_INTERPRETED:  # the interpreter multiplies bfloat16 as the integers it keeps them in
        q, k = q.to(tl.float32), k.to(tl.float32)
    return capped(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, softcap, HAS_SOFTCAP)


@triton.jit
def capped(products, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scores as `scores_of` gives them, of products q·k."""
    if HAS_SOFTCAP:
        products = 2.0 * tl.sigmoid(products * (2.0 * scale / softcap)) - 1.0  # tanh
    return products


@triton.jit
def score_factor(scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """What `scores_of` are multiplied by to be in units of log2(e), so that exp2 is the softmax's exp."""
    if HAS_SOFTCAP:
        return softcap * LOG2_E
    else:
        return scale * LOG2_E


@triton.jit
def accumulate(scores, factor, v, acc, largest, total):
    """One step of the online softmax (Milakov and Gimelshein 2018): scores [M, N] · factor and v [N, D] into the sums.

    The factor, which is positive, is applied after the maximum: one multiply-add per score.
    """
    new_largest = tl.maximum(largest, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - new_largest[:, None])
    shrink = tl.exp2(largest - new_largest)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    weights = weights.to(v.dtype)
    if _IS_INTERPRETED:
        weights, v = weights.to(tl.float32), v.to(tl.float32)
    acc = tl.dot(weights, v, acc, input_precision="ieee")
    return acc, new_largest, total
