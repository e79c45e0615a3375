"""Matrix product with a stored weight, and what may be fused before and after it, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pelton.kernels.activation.reference import act_mul
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.norm.reference import rms_norm


def prepare_weight(weight: Tensor) -> Tensor:
    """Lays a weight [N, K] out for `linear`; called once, when the model is loaded."""
    return weight


def is_relaid(dtype: torch.dtype) -> bool:
    """Whether `prepare_weight` of this type makes a copy in another layout or type."""
    return False


def prepared_bytes(num_elements: int, dtype: torch.dtype) -> int:
    """What a prepared weight takes."""
    return num_elements * dtype.itemsize


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Norm | None = None,
           act: str | None = None, residual: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """residual + act(rms_norm(x) Wᵀ + bias), each part but the product optional.

    Every intermediate is rounded to x's type here. An implementation that fuses may keep them in float32 and round
    once, at the end; the residual stream itself is held in x's type by all.

    Args:
        x: [M, K].
        weight: a prepared weight [N, K].
        bias: [N].
        norm: taken of x first.
        act: silu, gelu or gelu_tanh: the first N / 2 outputs are gates, the result is act(gate) · the rest.
        residual: [M, N], or [M, N / 2] with act; may be overwritten, with the result too.
        out_dtype: of the result; None is x's.

    Returns:
        [M, N], or [M, N / 2] with act.
    """
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    out = F.linear(x, weight, bias)
    if act is not None:
        out = act_mul(out, act)
    if residual is not None:
        out = out + residual
    return out if out_dtype is None else out.to(out_dtype)
