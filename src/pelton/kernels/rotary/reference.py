"""Rotary embedding (Su et al. 2021) with the optional norm of each head before it, and the write into the KV pool."""

from __future__ import annotations

import torch
from torch import Tensor

from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.norm.reference import rms_norm

Angles = tuple[Tensor, Tensor]


def prepare_angles(cos: Tensor, sin: Tensor) -> Angles:
    """Brings the step's cosines and sines, [T, R / 2] float32 each, into the form `rotate_and_store` reads."""
    return cos, sin


def rotate_and_store(qkv: Tensor, angles: Angles, pool: Tensor, layer: int, meta: AttentionMetadata, *,
                     num_heads: int, q_norm: Tensor | None = None, k_norm: Tensor | None = None,
                     eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Normalizes and rotates q and k, and writes k and v where `meta.slot_mapping` says.

    Dimension i of the first half of the rotated ones turns with dimension i of the second half.

    Args:
        qkv: [T, (num_heads + 2 num_kv_heads) head_dim]; not used again by the caller.
        angles: of `prepare_angles`.
        pool: [block, layer, 2, num_kv_heads, token, head_dim].
        layer: the layer of the pool that keys and values go to.
        meta: the step's rows.
        num_heads: query heads.
        q_norm, k_norm: prepared norm weights [head_dim] of models that normalize each head.
        eps: of these norms.

    Returns:
        q [T, num_heads, head_dim] and kv [T, 2, num_kv_heads, head_dim], this step's keys and values.
    """
    num_tokens, num_kv_heads, head_dim = qkv.shape[0], pool.shape[3], pool.shape[5]
    heads = qkv.view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    q, k = _rotate(q, *angles), _rotate(k, *angles)
    kv = torch.stack([k, v], dim=1)
    blocks, offsets = meta.slots(pool.shape[4])
    pool[:, layer][blocks, :, :, offsets] = kv
    return q, kv


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, D], cos and sin [T, R / 2]; dimensions from R on pass unchanged."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)
