"""Root-mean-square norm (Zhang and Sennrich 2019), alone and fused with the residual sum before it."""

from __future__ import annotations

import torch
from torch import Tensor


def prepare_weight(weight: Tensor, offset: float) -> Tensor:
    """The weight [D] as the norm uses it: float32, with the offset that the checkpoint leaves out added."""
    return weight.float() + offset


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dim, computed in float32; [..., D] in x's type."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual and that sum, [T, D] each. Neither argument is used again by the caller."""
    total = x + residual
    return rms_norm(total, weight, eps), total
