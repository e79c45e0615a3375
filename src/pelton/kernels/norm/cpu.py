"""Root-mean-square norm on a CPU: torch's own for one type throughout, else widened to float32 around it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def prepare_weight(weight: Tensor, offset: float) -> Tensor:
    """The weight [D] as the norm uses it. 1 + weight needs more digits than bfloat16 has, so it is held as float32."""
    return weight.float() + offset if offset else weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dim, computed in float32; [..., D] in x's type."""
    if x.dtype == weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual and that sum, [T, D] each. The sum takes x's place in memory."""
    total = x.add_(residual)
    return rms_norm(total, weight, eps), total
