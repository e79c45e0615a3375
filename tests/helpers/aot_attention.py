"""Launches of the attention and rotary ops at the shapes of public models, to be compiled ahead of time."""

from __future__ import annotations

from functools import partial

import torch

from pelton.kernels.attention import triton as attention
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.rotary import triton as rotary


def launch(heads: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16, *, tokens_per_block: int = 64,
           window: int | None = None, softcap: float | None = None, rotary_dim: int | None = None,
           head_norm: bool = False, num_decodes: int = 1, prompt_len: int = 9) -> None:
    """A mixed step of decode rows and one prompt, and the same decode rows by themselves if there are any: heads are
    (query heads, kv heads, head_dim)."""
    num_heads, num_kv_heads, head_dim = heads
    pool = torch.empty(4, 2, 2, num_kv_heads, tokens_per_block, head_dim, dtype=dtype)
    table = [0] * -(-prompt_len // tokens_per_block)
    meta = AttentionMetadata.from_rows([3] * num_decodes + [0], [1] * num_decodes + [prompt_len],
                                       [table] * (num_decodes + 1), num_decodes=num_decodes,
                                       tokens_per_block=tokens_per_block)
    num_tokens = num_decodes + prompt_len
    qkv = torch.empty(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    angles = rotary.prepare_angles(*torch.empty(2, num_tokens, (rotary_dim or head_dim) // 2))
    norm = torch.empty(head_dim) if head_norm else None
    q, kv = rotary.rotate_and_store(qkv, angles, pool, 1, meta, num_heads=num_heads, q_norm=norm, k_norm=norm)
    plan = attention.plan(meta, pool, num_heads=num_heads, window=window)
    attention.attend(q, kv, pool, 1, plan, scale=head_dim**-0.5, softcap=softcap)
    if not num_decodes:
        return
    alone = AttentionMetadata.decodes(meta.query_start, meta.seq_lens[:num_decodes], meta.block_tables[:num_decodes],
                                      meta.slot_mapping[:num_decodes])
    plan = attention.plan(alone, pool, num_heads=num_heads, window=window)
    attention.rotate_and_attend(qkv[:num_decodes], angles, pool, 1, plan, num_heads=num_heads, scale=head_dim**-0.5,
                                softcap=softcap, q_norm=norm, k_norm=norm)


CASES = {
    "llama-3.1-8b": partial(launch, (32, 8, 128)),
    "llama-3.1-8b, many rows, float16, blocks of 16": partial(launch, (32, 8, 128), torch.float16, num_decodes=20,
                                                              tokens_per_block=16),
    "qwen3 with head norm, window": partial(launch, (16, 8, 128), head_norm=True, window=4096),
    "gemma2-9b": partial(launch, (16, 8, 256), window=4096, softcap=50.0),
    "phi-3, head_dim 96": partial(launch, (32, 32, 96), rotary_dim=72),
    "float32, head_dim 256": partial(launch, (16, 8, 256), torch.float32),
    "qwen2.5-7b, long prompt": partial(launch, (28, 4, 128), prompt_len=900),
    "mistral-7b, long prompt, blocks of 16": partial(launch, (32, 8, 128), window=4096, tokens_per_block=16,
                                                     num_decodes=0, prompt_len=900),
    "llama-3.2-1b, long prompt, float16": partial(launch, (32, 8, 64), torch.float16, tokens_per_block=128,
                                                  num_decodes=0, prompt_len=900),
    "gemma2-27b, long prompt": partial(launch, (32, 16, 128), window=4096, softcap=50.0, num_decodes=0, prompt_len=900),
}
FEW = ("llama-3.1-8b", "gemma2-9b", "float32, head_dim 256")
