"""Attention over the paged KV cache on a CPU, by batched matrix products.

Rows that decode are gathered into groups of similar length, padded to the longest of the group: one gather, two
products and a softmax serve the whole group. Prompts run one by one, in chunks of queries against all keys before
them. torch's own fused attention is twice as slow at these shapes (measured with AVX-512 bfloat16).

Scores come out of a bfloat16 product rounded to 8 bits of mantissa, which at a score of 50 is off by a tenth. So they
are computed twice: once to find each query's largest, then again less that. What is rounded then is the distance from
the largest, and an error in it matters the less the larger the distance is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.cpu_features import native_dtype
from pelton.kernels.rotary import cpu as rotary

_QUERY_CHUNK = 64
"""Queries of a prompt at a time: measured best of 32 to 256; scores then stay in the cache."""
_MAX_SCORES = 2**22
"""Scores of one chunk over all heads; longer contexts take smaller chunks."""
_GROUP_WASTE_BLOCKS = 12
"""Padding blocks that cost as much as running one more group."""
_HIDDEN = float("-inf")


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with one query each, padded to one number of blocks."""

    rows: Tensor | None
    """Rows of the step in the group's order; None when the group is all decoding rows, in order."""
    gather: Tensor
    """[2 · n · Hkv · blocks] indices of (block, layer 0, k/v, head) runs in the pool."""
    shape: tuple[int, ...]
    """(2, n · Hkv, blocks · tokens_per_block, D) of what is gathered."""
    mask: Tensor
    """[n · Hkv, 1, tokens] added to scores: 0 or -inf."""
    tail: Tensor
    """Rows of D in what is gathered that lie past a sequence's end, where another's leftovers may stand."""


@dataclass(frozen=True)
class PromptRow:
    """A row with several queries."""

    start: int
    """Its first query among the step's tokens."""
    num_queries: int
    first_key: int
    """The first position any query of it sees, at a block's border."""
    seq_len: int
    gather: Tensor | None
    """[2 · Hkv · blocks] indices as in DecodeGroup; None when all its keys are this step's own."""


@dataclass(frozen=True)
class Plan:
    """How one step's attention runs, for all layers of one window."""

    meta: AttentionMetadata
    num_decodes: int
    groups: list[DecodeGroup]
    prompts: list[PromptRow]
    mask: Tensor | None
    """[chunk, keys] of 0 and -inf for the last `chunk` of so many positions; every chunk of a prompt uses its last rows
    and columns. Without a window only the last columns, one per query, can be hidden, and it is square."""
    window: int | None
    dtype: torch.dtype
    """The type products run in."""


def plan(meta: AttentionMetadata, pool: Tensor, *, num_heads: int, window: int | None) -> Plan:
    """As the reference's: what all layers of one window share, made once per step."""
    dtype = native_dtype(pool.dtype)
    if window is not None and window >= max(meta.seq_lens_host):
        window = None
    tokens_per_block, num_decodes = pool.shape[4], meta.num_decodes
    lens = meta.seq_lens_host[:num_decodes]
    groups = []
    for rows in _group_by_length(lens, tokens_per_block, window):
        is_all = rows == list(range(num_decodes))
        groups.append(_plan_group(meta.block_tables, lens, None if is_all else rows, pool, window, dtype))
    prompts = _plan_prompts(meta, pool, window)
    return Plan(meta, num_decodes, groups, prompts, _causal_mask(window, dtype) if prompts else None, window, dtype)


def attend(q: Tensor, kv: Tensor, pool: Tensor, layer: int, plan: Plan, *, scale: float,
           softcap: float | None = None) -> Tensor:
    """As the reference's: q [T, num_heads, head_dim] over the cache to [T, num_heads · head_dim]."""
    options = {"scale": scale, "softcap": softcap}
    if not plan.prompts and plan.groups[0].rows is None:
        return _attend_group(q, pool, layer, plan.groups[0], plan.dtype, **options)
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    for group in plan.groups:
        if group.rows is None:
            out[: plan.num_decodes] = _attend_group(q[: plan.num_decodes], pool, layer, group, plan.dtype, **options)
        else:
            out[group.rows] = _attend_group(q[group.rows], pool, layer, group, plan.dtype, **options)
    for row in plan.prompts:
        _attend_prompt(q, kv, pool, layer, row, plan, out, **options)
    return out


def rotate_and_attend(qkv: Tensor, angles: rotary.Angles, pool: Tensor, layer: int, plan: Plan, *, num_heads: int,
                      scale: float, softcap: float | None = None, q_norm: Tensor | None = None,
                      k_norm: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """As the reference's."""
    q, kv = rotary.rotate_and_store(qkv, angles, pool, layer, plan.meta, num_heads=num_heads, q_norm=q_norm,
                                    k_norm=k_norm, eps=eps)
    return attend(q, kv, pool, layer, plan, scale=scale, softcap=softcap)


def _group_by_length(lens: Sequence[int], tokens_per_block: int, window: int | None) -> list[list[int]]:
    """Rows in groups whose padding costs less than running them apart; one group in order where that is all."""
    longest = window + tokens_per_block if window is not None else max(lens, default=0)
    num_blocks = [-(-min(n, longest) // tokens_per_block) for n in lens]
    order = sorted(range(len(lens)), key=num_blocks.__getitem__)
    groups: list[list[int]] = []
    waste = 0
    for row in order:
        if groups:
            waste += len(groups[-1]) * (num_blocks[row] - num_blocks[groups[-1][-1]])
        if not groups or waste > _GROUP_WASTE_BLOCKS:
            groups.append([])
            waste = 0
        groups[-1].append(row)
    return [sorted(group) for group in groups]


def _plan_group(tables: Tensor, lens: Sequence[int], rows: list[int] | None, pool: Tensor, window: int | None,
                dtype: torch.dtype) -> DecodeGroup:
    num_kv_heads, tokens_per_block, head_dim = pool.shape[3:]
    index = None if rows is None else torch.tensor(rows)
    ends = torch.tensor(lens if rows is None else [lens[row] for row in rows])  # [n]
    tables = tables[: len(lens)] if index is None else tables[index]
    first = torch.zeros_like(ends) if window is None else (ends - window).clamp_(min=0) // tokens_per_block
    last = (ends - 1) // tokens_per_block
    num_blocks = int((last - first).max()) + 1
    columns = first[:, None] + torch.arange(num_blocks)  # [n, blocks], past the end for shorter rows
    blocks = tables.gather(1, torch.minimum(columns, last[:, None])).long()
    positions = (columns[:, :, None] * tokens_per_block + torch.arange(tokens_per_block)).flatten(1)  # [n, tokens]
    is_past = positions >= ends[:, None]
    is_hidden = is_past if window is None else is_past | (positions < ends[:, None] - window)
    n, tokens = positions.shape
    mask = torch.zeros(n, tokens, dtype=dtype).masked_fill_(is_hidden, _HIDDEN)
    mask = mask[:, None].expand(n, num_kv_heads, tokens).reshape(n * num_kv_heads, 1, tokens)
    tail = is_past[None, :, None].expand(2, n, num_kv_heads, tokens).flatten().nonzero().flatten()
    shape = (2, n * num_kv_heads, tokens, head_dim)
    return DecodeGroup(index, _runs(blocks[:, None], pool), shape, mask, tail)


def _plan_prompts(meta: AttentionMetadata, pool: Tensor, window: int | None) -> list[PromptRow]:
    prompts, start, tokens_per_block = [], meta.num_decodes, pool.shape[4]
    for row in range(meta.num_decodes, meta.num_rows):
        num_queries, seq_len = meta.query_lens_host[row], meta.seq_lens_host[row]
        first_key, gather = 0, None
        if seq_len > num_queries:
            first_block = 0
            if window is not None:
                first_block = max(0, seq_len - num_queries - window + 1) // tokens_per_block
            first_key = first_block * tokens_per_block
            blocks = meta.block_tables[row, first_block : -(-seq_len // tokens_per_block)].long()
            gather = _runs(blocks, pool)
        prompts.append(PromptRow(start, num_queries, first_key, seq_len, gather))
        start += num_queries
    return prompts


def _runs(blocks: Tensor, pool: Tensor) -> Tensor:
    """Indices of each block's runs of [token, D] of layer 0, in the order (k/v, leading dims of blocks, head, block).

    blocks is [blocks] or [n, 1, blocks].
    """
    _, num_layers, _, num_kv_heads, _, _ = pool.shape
    parts = torch.arange(2).view(2, *[1] * blocks.dim())
    if blocks.dim() == 1:
        blocks, parts = blocks[None], parts[..., None]
    heads = torch.arange(num_kv_heads)[:, None]
    return ((blocks * num_layers * 2 + parts) * num_kv_heads + heads).flatten()


def _gather(pool: Tensor, layer: int, runs: Tensor) -> Tensor:
    """The runs of a layer, [len(runs), token · D]."""
    num_kv_heads, tokens_per_block, head_dim = pool.shape[3:]
    return pool.view(-1, tokens_per_block * head_dim).index_select(0, runs + layer * 2 * num_kv_heads)


def _attend_group(q: Tensor, pool: Tensor, layer: int, group: DecodeGroup, dtype: torch.dtype, *, scale: float,
                  softcap: float | None) -> Tensor:
    """q [n, H, D] to [n, H · D]."""
    num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
    kv = _gather(pool, layer, group.gather)
    kv.view(-1, head_dim).index_fill_(0, group.tail, 0.0)  # a hidden NaN would still spoil the sum: 0 · NaN is NaN
    keys, values = kv.view(group.shape).to(dtype)  # [n · Hkv, L, D] each
    queries = q.reshape(-1, q.shape[1] // num_kv_heads, head_dim).to(dtype)  # [n · Hkv, G, D]
    weights = _weights(queries, keys.transpose(1, 2), group.mask, scale, softcap)
    return torch.bmm(weights, values).view(q.shape[0], -1).to(q.dtype)


def _attend_prompt(q: Tensor, kv: Tensor, pool: Tensor, layer: int, row: PromptRow, plan: Plan, out: Tensor, *,
                   scale: float, softcap: float | None) -> None:
    """One row of several queries, chunk by chunk, into its part of out [T, H · D]."""
    num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
    num_heads, stop = q.shape[1], row.start + row.num_queries
    group = num_heads // num_kv_heads
    if row.gather is None:
        keys, values = kv[row.start : stop].permute(1, 2, 0, 3).to(plan.dtype).contiguous()  # [Hkv, L, D] each
    else:
        gathered = _gather(pool, layer, row.gather).view(2, num_kv_heads, -1, head_dim)
        keys, values = gathered[:, :, : row.seq_len - row.first_key].to(plan.dtype)
    keys = keys.transpose(1, 2)
    num_keys = keys.shape[2]
    chunk = max(8, min(_QUERY_CHUNK, _MAX_SCORES // (num_heads * num_keys)))
    for first in range(row.start, stop, chunk):
        size = min(chunk, stop - first)
        key_stop = num_keys - (stop - first - size)  # keys up to the chunk's last query
        key_start = 0 if plan.window is None else max(0, key_stop - size - plan.window + 1)
        queries = q[first : first + size].view(size, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
        queries = queries.reshape(num_kv_heads, group * size, head_dim).to(plan.dtype)
        num_masked = size if plan.window is None else key_stop - key_start
        mask = plan.mask[-size:, -num_masked:]
        weights = _weights(queries, keys[:, :, key_start:key_stop], mask, scale, softcap)
        result = torch.bmm(weights, values[:, key_start:key_stop]).view(num_kv_heads, group, size, head_dim)
        out[first : first + size].view(size, num_kv_heads, group, head_dim).copy_(result.permute(2, 0, 1, 3))


@functools.lru_cache(maxsize=8)
def _causal_mask(window: int | None, dtype: torch.dtype) -> Tensor:
    num_keys = _QUERY_CHUNK if window is None else _QUERY_CHUNK + window - 1
    key_at = torch.arange(num_keys)
    query_at = key_at[num_keys - _QUERY_CHUNK :, None]
    is_hidden = key_at > query_at
    if window is not None:
        is_hidden |= key_at <= query_at - window
    return torch.zeros(_QUERY_CHUNK, num_keys, dtype=dtype).masked_fill_(is_hidden, _HIDDEN)


def _weights(q: Tensor, keys: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Softmax of the masked scores.

    Args:
        q: [b, m, D].
        keys: [b, D, L].
        mask: [b, 1, L], or [n, masked] for the last keys, where the m queries are n of each of several heads.
    """
    if softcap is not None:
        scores = torch.bmm(q.float(), keys.float()).mul_(scale / softcap).tanh_().mul_(softcap)
        return _add_mask(scores, mask).softmax(-1).to(q.dtype)
    if q.dtype is torch.float32:
        return _add_mask(torch.bmm(q, keys).mul_(scale), mask).softmax(-1)
    largest = _add_mask(torch.bmm(q, keys), mask).amax(-1, keepdim=True)
    scores = torch.baddbmm(largest.mul_(-scale), q, keys, alpha=scale)
    return _add_mask(scores, mask).softmax(-1)


def _add_mask(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dim() == 3:
        return scores.add_(mask)
    size, num_masked = mask.shape
    scores.view(scores.shape[0], -1, size, scores.shape[-1])[..., -num_masked:].add_(mask)
    return scores
