"""Attention over the paged KV cache, row by row in float32: slow, obvious, the oracle of the fast ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.rotary import reference as rotary


@dataclass(frozen=True)
class Plan:
    """The step's rows and the sliding window of the layers it is for."""

    meta: AttentionMetadata
    window: int | None


def plan(meta: AttentionMetadata, pool: Tensor, *, num_heads: int, window: int | None) -> Plan:
    """Prepares what all layers of one window share; called once per step and window.

    Args:
        meta: the step's rows.
        pool: [block, layer, 2, num_kv_heads, token, head_dim].
        num_heads: query heads.
        window: tokens a query sees, itself included; None for all.
    """
    return Plan(meta, window)


def attend(q: Tensor, kv: Tensor, pool: Tensor, layer: int, plan: Plan, *, scale: float,
           softcap: float | None = None) -> Tensor:
    """Causal attention of the step's queries over their sequences' cached keys and values.

    Args:
        q: [T, num_heads, head_dim], rotated.
        kv: [T, 2, num_kv_heads, head_dim], this step's keys and values, which the pool already holds too.
        pool, layer: the cache and the layer in it.
        plan: of `plan`.
        scale: multiplier of q·k.
        softcap: c in c·tanh(score / c), None for none.

    Returns:
        [T, num_heads · head_dim] in q's type.
    """
    out = torch.empty_like(q)
    meta, start = plan.meta, 0
    for row, (num_queries, seq_len) in enumerate(zip(meta.query_lens_host, meta.seq_lens_host, strict=True)):
        keys, values = _gather(pool, layer, meta.block_tables[row], seq_len)
        queries = slice(start, start + num_queries)
        out[queries] = _attend_row(q[queries], keys, values, plan.window, scale, softcap).to(q.dtype)
        start += num_queries
    return out.flatten(1)


def rotate_and_attend(qkv: Tensor, angles: rotary.Angles, pool: Tensor, layer: int, plan: Plan, *, num_heads: int,
                      scale: float, softcap: float | None = None, q_norm: Tensor | None = None,
                      k_norm: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """The rotary op's `rotate_and_store`, which describes the arguments, and `attend` of what it returns."""
    q, kv = rotary.rotate_and_store(qkv, angles, pool, layer, plan.meta, num_heads=num_heads, q_norm=q_norm,
                                    k_norm=k_norm, eps=eps)
    return attend(q, kv, pool, layer, plan, scale=scale, softcap=softcap)


def _gather(pool: Tensor, layer: int, table: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """The first seq_len keys and values of a sequence, [Hkv, L, D] each."""
    num_blocks = -(-seq_len // pool.shape[4])
    blocks = pool[:, layer][table[:num_blocks].long()]  # [n, 2, Hkv, token, D]
    keys, values = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :seq_len]
    return keys, values


def _attend_row(q: Tensor, keys: Tensor, values: Tensor, window: int | None, scale: float,
                softcap: float | None) -> Tensor:
    """q [n, H, D] are the last n tokens of the sequence whose keys and values are [Hkv, L, D]."""
    group = q.shape[1] // keys.shape[0]
    keys = keys.float().repeat_interleave(group, dim=0)
    values = values.float().repeat_interleave(group, dim=0)
    scores = torch.einsum("nhd,hld->hnl", q.float(), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seq_len, num_queries = keys.shape[1], q.shape[0]
    key_at = torch.arange(seq_len, device=q.device)
    query_at = key_at[seq_len - num_queries :, None]
    is_hidden = key_at > query_at
    if window is not None:
        is_hidden |= key_at <= query_at - window
    weights = scores.masked_fill(is_hidden, float("-inf")).softmax(-1)
    return torch.einsum("hnl,hld->nhd", weights, values)
