"""Matrix product with a stored weight on a CPU: oneDNN over weights packed once.

F.linear lets oneDNN reorder a row-major weight into its tile layout on every call, which at few rows costs as much as
the product itself; float32 goes to MKL, slow on CPUs that are not Intel's. Packing at load halves the time of both.
The product of few rows is then bound by reading the weight once.

Types that the CPU cannot multiply natively (float16 nearly everywhere, bfloat16 before AVX-512) are held as float32,
exactly, at twice the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pelton.kernels.activation.cpu import act_mul
from pelton.kernels.cpu_features import can_pack, native_dtype
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.norm.cpu import rms_norm


@dataclass(frozen=True)
class PackedWeight:
    """A weight in oneDNN's layout for this CPU."""

    data: Tensor
    """Opaque to torch's other operations."""
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.dtype.itemsize


def prepare_weight(weight: Tensor) -> PackedWeight | Tensor:
    """Packs a weight [N, K]; a copy, so the caller may drop the row-major one.

    Where torch has no oneDNN the weight stays as it is.
    """
    dtype = native_dtype(weight.dtype)
    if not can_pack():
        return weight.to(dtype)
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous()), dtype)


def is_relaid(dtype: torch.dtype) -> bool:
    """Whether `prepare_weight` of this type makes a copy in another layout or type."""
    return can_pack() or native_dtype(dtype) != dtype


def prepared_bytes(num_elements: int, dtype: torch.dtype) -> int:
    """What a prepared weight takes."""
    return num_elements * native_dtype(dtype).itemsize


def linear(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None = None, *, norm: Norm | None = None,
           act: str | None = None, residual: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """As the reference's; the residual's sum takes the product's memory."""
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    out = _product(x, weight, bias)
    if act is not None:
        out = act_mul(out, act)
    if residual is not None:
        out = out.add_(residual)
    return out if out_dtype is None else out.to(out_dtype)


def _product(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias in x's type, computed in the weight's."""
    wide = x.dtype != weight.dtype
    inputs = x.to(weight.dtype) if wide else x
    if wide and bias is not None:
        bias = bias.to(weight.dtype)
    if isinstance(weight, PackedWeight):
        out = torch.ops.mkldnn._linear_pointwise(inputs, weight.data, bias, "none", [], "")
    else:
        out = F.linear(inputs, weight, bias)
    return out.to(x.dtype) if wide else out
