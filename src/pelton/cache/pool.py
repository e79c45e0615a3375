"""The tensor behind the paged KV cache. It knows layers, heads and bytes, not which sequence owns a block."""

from __future__ import annotations

import math

import numpy as np
import torch

_ALIGN_BYTES = 64  # a cache line


class KvPool:
    """All blocks of keys and values of one rank.

    One block holds `tokens_per_block` tokens of every layer in one contiguous run, so that offload and transfer move
    a block with one copy. The memory starts as zeros, which on a CPU costs nothing until a block is first used.

    Attributes:
        data: [block, layer, 2 (key, value), kv_head, token, dim].
    """

    def __init__(self, num_blocks: int, num_layers: int, num_kv_heads: int, tokens_per_block: int, head_dim: int,
                 dtype: torch.dtype, device: torch.device | str = "cpu"):
        shape = (num_blocks, num_layers, 2, num_kv_heads, tokens_per_block, head_dim)
        self.data = _zeros(shape, dtype, torch.device(device))

    @property
    def num_blocks(self) -> int:
        return self.data.shape[0]

    @property
    def num_layers(self) -> int:
        return self.data.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.data.shape[3]

    @property
    def tokens_per_block(self) -> int:
        return self.data.shape[4]

    @property
    def head_dim(self) -> int:
        return self.data.shape[5]

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """torch.zeros writes every page of a CPU tensor; numpy asks the system for pages that are zero when first used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = np.zeros(num_bytes + _ALIGN_BYTES, dtype=np.uint8)
    start = -pages.ctypes.data % _ALIGN_BYTES
    return torch.from_numpy(pages[start:start + num_bytes]).view(dtype).view(shape)
