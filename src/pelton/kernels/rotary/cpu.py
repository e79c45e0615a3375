"""Rotary embedding, head norm and KV write on a CPU: one pass over q and k together, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from pelton.kernels.attention.metadata import AttentionMetadata

Angles = tuple[Tensor, Tensor]


def prepare_angles(cos: Tensor, sin: Tensor) -> Angles:
    """[T, R / 2] cosines and sines as [T, 1, R]: (cos, cos) and (-sin, sin), so that turning is x·c + swap(x)·s."""
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def rotate_and_store(qkv: Tensor, angles: Angles, pool: Tensor, layer: int, meta: AttentionMetadata, *,
                     num_heads: int, q_norm: Tensor | None = None, k_norm: Tensor | None = None,
                     eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """As the reference's; the results are views into `qkv`, which is overwritten."""
    num_tokens, num_kv_heads, head_dim = qkv.shape[0], pool.shape[3], pool.shape[5]
    heads = qkv.view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    qk = heads[:, : num_heads + num_kv_heads]
    x = qk.float()
    if q_norm is not None and k_norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        x[:, :num_heads] *= q_norm
        x[:, num_heads:] *= k_norm
    cos, sin = angles
    rotary_dim = cos.shape[-1]
    if rotary_dim < head_dim:
        qk[..., rotary_dim:] = x[..., rotary_dim:]
        x, qk = x[..., :rotary_dim], qk[..., :rotary_dim]
    turned = x * cos
    turned.addcmul_(x.roll(rotary_dim // 2, -1), sin)
    qk.copy_(turned)
    kv = heads[:, num_heads:].view(num_tokens, 2, num_kv_heads, head_dim)
    blocks, offsets = meta.slots(pool.shape[4])
    pool[:, layer][blocks, :, :, offsets] = kv
    return heads[:, :num_heads], kv
