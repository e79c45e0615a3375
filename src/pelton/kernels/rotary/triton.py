"""Rotary embedding, head norm and KV write on a GPU: one kernel, one pass over a token's heads, in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.integers import ceil_div, next_power_of_2
from pelton.kernels.launch import launch

Angles = tuple[Tensor, Tensor]
_HEADS_PER_PROGRAM = 16


def prepare_angles(cos: Tensor, sin: Tensor) -> Angles:
    """[T, R / 2] float32 each, as they are."""
    return cos.contiguous(), sin.contiguous()


def rotate_and_store(qkv: Tensor, angles: Angles, pool: Tensor, layer: int, meta: AttentionMetadata, *,
                     num_heads: int, q_norm: Tensor | None = None, k_norm: Tensor | None = None,
                     eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """As the reference's; the results are views into `qkv`, which is overwritten. A token whose slot is negative (one
    that pads a CUDA graph's batch) is not written to the pool."""
    num_tokens, num_kv_heads, tokens_per_block, head_dim = qkv.shape[0], *pool.shape[3:]
    num_all_heads = num_heads + 2 * num_kv_heads
    assert qkv.is_contiguous()
    assert qkv.shape[1] == num_all_heads * head_dim
    cos, sin = angles
    half_dim = cos.shape[1]
    half_pad = next_power_of_2(half_dim)
    rest_dim = head_dim - 2 * half_dim
    grid = (num_tokens * ceil_div(num_all_heads, _HEADS_PER_PROGRAM),)
    is_dependent = gpu_features(qkv.device).can_launch_early
    options = {"launch_pdl": True} if is_dependent else {}
    launch(
        rotate_and_store_kernel, grid,
        qkv, cos, sin, pool, meta.slot_mapping, q_norm, k_norm, pool.shape[1] * 2 * num_kv_heads,
        layer * 2 * num_kv_heads, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF_DIM=half_dim, HALF_PAD=half_pad,
        REST_PAD=next_power_of_2(rest_dim) if rest_dim else 0, TOKENS_PER_BLOCK=tokens_per_block,
        HEADS=_HEADS_PER_PROGRAM, HAS_NORM=q_norm is not None and k_norm is not None, IS_DEPENDENT=is_dependent,
        num_warps=4, **options)
    heads = qkv.view(num_tokens, num_all_heads, head_dim)
    return heads[:, :num_heads], heads[:, num_heads:].view(num_tokens, 2, num_kv_heads, head_dim)


@triton.jit(do_not_specialize=["slots", "runs_per_block", "first_run"])
def rotate_and_store_kernel(qkv, cos_ptr, sin_ptr, pool, slots, q_norm, k_norm, runs_per_block, first_run, eps,
                            NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                            HALF_DIM: tl.constexpr, HALF_PAD: tl.constexpr, REST_PAD: tl.constexpr,
                            TOKENS_PER_BLOCK: tl.constexpr, HEADS: tl.constexpr, HAS_NORM: tl.constexpr,
                            IS_DEPENDENT: tl.constexpr):
    """HEADS heads of one token; programs that run together have the same token's.

    Args:
        qkv: [T, NUM_HEADS + 2 NUM_KV_HEADS, HEAD_DIM], overwritten.
        cos_ptr, sin_ptr: [T, HALF_DIM] float32.
        pool: [block, layer, 2, kv_head, token, dim]; a run is its [token, dim].
        slots: [T] int64; negative: the pool is left alone.
        q_norm, k_norm: [HEAD_DIM] float32, or None.
    """
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()  # before anything is read or written: what came before may still be using it
    NUM_GROUPS: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS + HEADS - 1) // HEADS
    token = (tl.program_id(0) // NUM_GROUPS).to(tl.int64)
    head = tl.program_id(0) % NUM_GROUPS * HEADS + tl.arange(0, HEADS)
    is_head = head < NUM_HEADS + 2 * NUM_KV_HEADS
    is_value = head >= NUM_HEADS + NUM_KV_HEADS
    dims = tl.arange(0, HALF_PAD)
    x = qkv + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head[:, None]) * HEAD_DIM
    mask = is_head[:, None] & (dims < HALF_DIM)[None, :]
    first_raw = tl.load(x + dims[None, :], mask=mask, other=0.0)
    second_raw = tl.load(x + HALF_DIM + dims[None, :], mask=mask, other=0.0)
    first, second = first_raw.to(tl.float32), second_raw.to(tl.float32)
    if REST_PAD > 0:
        rest_dims = 2 * HALF_DIM + tl.arange(0, REST_PAD)
        rest_mask = is_head[:, None] & (rest_dims < HEAD_DIM)[None, :]
        rest_raw = tl.load(x + rest_dims[None, :], mask=rest_mask, other=0.0)
        rest = rest_raw.to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if REST_PAD > 0:
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)
        first = _normed(first, scale, q_norm, k_norm, head, dims, dims < HALF_DIM, NUM_HEADS, first_raw)
        second = _normed(second, scale, q_norm, k_norm, head, HALF_DIM + dims, dims < HALF_DIM, NUM_HEADS, first_raw)
        if REST_PAD > 0:
            rest = _normed(rest, scale, q_norm, k_norm, head, rest_dims, rest_dims < HEAD_DIM, NUM_HEADS, first_raw)
            rest = tl.where(is_value[:, None], rest_raw, rest.to(rest_raw.dtype))
            tl.store(x + rest_dims[None, :], rest, mask=rest_mask & (is_value == 0)[:, None])
    cos = tl.load(cos_ptr + token * HALF_DIM + dims, mask=dims < HALF_DIM, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * HALF_DIM + dims, mask=dims < HALF_DIM, other=0.0)[None, :]
    turned_first = tl.where(is_value[:, None], first_raw, turned(first, second, cos, -sin).to(first_raw.dtype))
    turned_second = tl.where(is_value[:, None], second_raw, turned(second, first, cos, sin).to(first_raw.dtype))
    mask_turned = mask & (is_value == 0)[:, None]
    tl.store(x + dims[None, :], turned_first, mask=mask_turned)
    tl.store(x + HALF_DIM + dims[None, :], turned_second, mask=mask_turned)
    slot = tl.load(slots + token)
    is_stored = is_head & (head >= NUM_HEADS) & (slot >= 0)
    block = slot // TOKENS_PER_BLOCK
    run = block * runs_per_block + first_run + head - NUM_HEADS  # values follow keys in heads and in runs alike
    at = pool + (run[:, None] * TOKENS_PER_BLOCK + slot % TOKENS_PER_BLOCK) * HEAD_DIM
    tl.store(at + dims[None, :], turned_first.to(pool.dtype.element_ty), mask=mask & is_stored[:, None])
    tl.store(at + HALF_DIM + dims[None, :], turned_second.to(pool.dtype.element_ty), mask=mask & is_stored[:, None])
    if REST_PAD > 0:
        at += rest_dims[None, :]
        kept = rest if HAS_NORM else rest_raw
        tl.store(at, kept.to(pool.dtype.element_ty), mask=rest_mask & is_stored[:, None])


@triton.jit
def turned(x, partner, cos, sin):
    """x after a turn with the dimension that turns with it; sin is negative for those of the first half. One rounding
    of the product and one of the sum, spelt out: kernels that rotate elsewhere get the same bits."""
    return tl.fma(x, cos, partner * sin)


@triton.jit
def _normed(x, scale, q_norm, k_norm, head, dims, is_dim, NUM_HEADS: tl.constexpr, like):
    """x [HEADS, n] of the dimensions `dims`, scaled and weighted, rounded as a tensor like `like` would be."""
    q_weight = tl.load(q_norm + dims, mask=is_dim, other=0.0)[None, :]
    k_weight = tl.load(k_norm + dims, mask=is_dim, other=0.0)[None, :]
    normed = x * scale[:, None] * tl.where((head < NUM_HEADS)[:, None], q_weight, k_weight)
    return normed.to(like.dtype).to(tl.float32)
