"""Random attention problems over a paged pool, with everything that must not be read left as NaN."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pelton.kernels.attention import reference
from pelton.kernels.attention.metadata import AttentionMetadata

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of `relative_error`."""


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got - want‖ / ‖want‖; NaN and infinity come out as NaN, which no bound admits."""
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())


class Case:
    """Rows of (cached tokens, new tokens), decodes first, with random q, k and v.

    The queries are a view of a wider tensor, as the rotary op returns them. Sequences lie in shuffled blocks; slots of
    the pool that hold no token, and the other layers, are NaN.
    """

    def __init__(self, rows: list[tuple[int, int]], *, heads: tuple[int, int, int] = (6, 2, 32),
                 tokens_per_block: int = 16, dtype: torch.dtype = torch.float32, spread: float = 1.0,
                 num_layers: int = 2, layer: int = 1, device: str = "cpu"):
        num_heads, num_kv_heads, head_dim = heads
        self.num_heads, self.layer = num_heads, layer
        lens = [cached + new for cached, new in rows]
        num_blocks = [-(-length // tokens_per_block) for length in lens]
        ids = random.sample(range(sum(num_blocks) + 3), sum(num_blocks))
        tables = [[ids.pop() for _ in range(n)] for n in num_blocks]
        self.pool = torch.full((sum(num_blocks) + 3, num_layers, 2, num_kv_heads, tokens_per_block, head_dim),
                               float("nan"), dtype=dtype, device=device)
        new_kv = []
        for (cached, _), length, table in zip(rows, lens, tables, strict=True):
            kv = torch.randn(length, 2, num_kv_heads, head_dim, device=device).mul(spread).to(dtype)
            slots = torch.arange(length, device=device)
            blocks = torch.tensor(table, device=device)[slots // tokens_per_block]
            self.pool[:, layer][blocks, :, :, slots % tokens_per_block] = kv
            new_kv.append(kv[cached:])
        self.kv = torch.cat(new_kv)
        wide = torch.randn(self.kv.shape[0], num_heads + 2 * num_kv_heads, head_dim, device=device)
        self.q = wide.mul(spread).to(dtype)[:, :num_heads]
        self.meta = AttentionMetadata.from_rows(
            [cached for cached, _ in rows], [new for _, new in rows], tables,
            num_decodes=sum(new == 1 for _, new in rows), tokens_per_block=tokens_per_block, device=device)

    def run(self, module: ModuleType, *, window: int | None = None, softcap: float | None = None,
            **plan_options: Any) -> Tensor:
        plan = module.plan(self.meta, self.pool, num_heads=self.num_heads, window=window, **plan_options)
        return module.attend(self.q, self.kv, self.pool, self.layer, plan, scale=self.q.shape[-1] ** -0.5,
                             softcap=softcap)

    def reference(self, *, window: int | None = None, softcap: float | None = None, **_: Any) -> Tensor:
        return self.run(reference, window=window, softcap=softcap)
