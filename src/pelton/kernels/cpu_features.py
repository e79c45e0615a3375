"""What this CPU and this torch build can do."""

from __future__ import annotations

import functools

import torch


@functools.cache
def can_pack() -> bool:
    """Whether oneDNN's packed matrix product is there (the operators that torch's own inference graphs use)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def native_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to multiply in: `dtype` where the CPU has instructions for it, else float32, which holds it exactly."""
    if dtype is torch.bfloat16 and can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    return torch.float32
