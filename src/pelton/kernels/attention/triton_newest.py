"""The newest token of a decode row, within decode attention: its queries and key are normed and rotated where they are
needed, and its key and value go to the pool and, past it, into the softmax.

The program whose keys end with the newest token takes that token's key and value from the product's output. It writes
them to the pool, from which nothing in the same launch reads them: the sums of the softmax begin with them, and the
tiles of keys leave the newest token out.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from pelton.kernels.attention.triton_pages import LOWEST, capped
from pelton.kernels.rotary.triton import turned


@triton.jit
def begin_with_newest(qkv, cos_ptr, sin_ptr, slots, q_norm, k_norm, pool, row, head, is_newest, heads_per_token,
                      run, runs_per_block, scale, softcap, factor, eps, NUM_KV_HEADS: tl.constexpr,
                      GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
                      HALF_DIM: tl.constexpr, HAS_NORM: tl.constexpr, TOKENS_PER_BLOCK: tl.constexpr,
                      HAS_SOFTCAP: tl.constexpr, IS_DEPENDENT: tl.constexpr):
    """Queries [GROUP_PAD, DIM_PAD] of one (row, kv head), and the softmax's sums, its largest score and its weights'
    sum after the newest token, or after nothing where `is_newest` is not set.

    Args:
        qkv: [rows, heads_per_token, HEAD_DIM]: query heads, key heads, value heads, as the product left them.
        cos_ptr, sin_ptr: [rows, HALF_DIM] float32.
        slots: [rows] int64; negative: the pool is left alone.
        q_norm, k_norm: [HEAD_DIM] float32, or None.
        run: the run of the layer's keys of this head within a block.
    """
    ROWS: tl.constexpr = triton.next_power_of_2(GROUP)
    group = tl.arange(0, ROWS)[:, None]
    dims = tl.arange(0, DIM_PAD)[None, :]
    is_dim = dims < HEAD_DIM
    is_turned = dims < 2 * HALF_DIM
    partners = (dims + HALF_DIM) % (2 * HALF_DIM)
    angle = row.to(tl.int64) * HALF_DIM + dims % HALF_DIM
    cos = tl.load(cos_ptr + angle, mask=is_turned, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=is_turned, other=0.0)
    sin = tl.where(dims < HALF_DIM, -sin, sin)
    slot = tl.load(slots + row)
    if IS_DEPENDENT:
        gdc_wait()  # before the product is read, and before anything is written: what came before may still use it
    queries = qkv + (row.to(tl.int64) * heads_per_token + head * GROUP + group) * HEAD_DIM
    key = qkv + (row.to(tl.int64) * heads_per_token + NUM_KV_HEADS * GROUP + head) * HEAD_DIM
    is_query = (group < GROUP) & is_dim
    is_key = is_newest & is_dim
    q = tl.load(queries + dims, mask=is_query, other=0.0)
    q_partner = tl.load(queries + partners, mask=is_query & is_turned, other=0.0)
    k = tl.load(key + dims, mask=is_key, other=0.0)
    k_partner = tl.load(key + partners, mask=is_key & is_turned, other=0.0)
    v = tl.load(key + NUM_KV_HEADS * HEAD_DIM + dims, mask=is_key, other=0.0).to(pool.dtype.element_ty)
    q = _rotated(q, q_partner, q_norm, dims, partners, is_dim, is_turned, cos, sin, eps, HEAD_DIM, HAS_NORM)
    k = _rotated(k, k_partner, k_norm, dims, partners, is_dim, is_turned, cos, sin, eps, HEAD_DIM, HAS_NORM)
    k = k.to(pool.dtype.element_ty)
    block = slot // TOKENS_PER_BLOCK
    at = pool + ((block * runs_per_block + run) * TOKENS_PER_BLOCK + slot % TOKENS_PER_BLOCK) * HEAD_DIM + dims
    tl.store(at, k, mask=is_key & (slot >= 0))
    tl.store(at + NUM_KV_HEADS * TOKENS_PER_BLOCK * HEAD_DIM, v, mask=is_key & (slot >= 0))
    scores = capped(tl.sum(q.to(tl.float32) * k.to(tl.float32), 1), scale, softcap, HAS_SOFTCAP)
    largest = _repeated(tl.where(is_newest, scores * factor, LOWEST)[:, None], GROUP_PAD)
    total = tl.full([GROUP_PAD], 0.0, tl.float32) + is_newest.to(tl.float32)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32) + v.to(q.dtype).to(tl.float32)
    return _repeated(q, GROUP_PAD), acc, tl.sum(largest, 1), total


@triton.jit
def _repeated(x, NUM_ROWS: tl.constexpr):
    """x [n, m] over and over, to NUM_ROWS rows: those that pad a group may hold anything."""
    REPEATS: tl.constexpr = NUM_ROWS // x.shape[0]
    return tl.reshape(tl.broadcast_to(x[None, :, :], [REPEATS, x.shape[0], x.shape[1]]), [NUM_ROWS, x.shape[1]])


@triton.jit
def _rotated(x, partner, weights, dims, partners, is_dim, is_turned, cos, sin, eps, HEAD_DIM: tl.constexpr,
             HAS_NORM: tl.constexpr):
    """Heads [n, DIM_PAD], and the same with the dimensions exchanged that turn together, normed and rotated."""
    wide, wide_partner = x.to(tl.float32), partner.to(tl.float32)
    if HAS_NORM:
        inverse_rms = tl.rsqrt(tl.sum(wide * wide, 1) / HEAD_DIM + eps)[:, None]
        weight = tl.load(weights + dims, mask=is_dim, other=0.0)
        partner_weight = tl.load(weights + partners, mask=is_turned, other=0.0)
        wide = (wide * inverse_rms * weight).to(x.dtype).to(tl.float32)
        wide_partner = (wide_partner * inverse_rms * partner_weight).to(x.dtype).to(tl.float32)
    return turned(wide, wide_partner, cos, sin).to(x.dtype)
