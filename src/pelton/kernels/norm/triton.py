"""Root-mean-square norm on a GPU, alone and with the residual sum before it: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.kernels.gpu_features import gpu_features
from pelton.kernels.integers import next_power_of_2
from pelton.kernels.launch import launch


def prepare_weight(weight: Tensor, offset: float) -> Tensor:
    """The weight [D] as the norm uses it. 1 + weight needs more digits than bfloat16 has, so it is held as float32."""
    return weight.float() + offset if offset else weight


@triton.jit
def rms_norm_kernel(x, residual, weight, out, total, width, x_stride, eps, BLOCK: tl.constexpr,
                    HAS_RESIDUAL: tl.constexpr, IS_DEPENDENT: tl.constexpr):
    """A row of [R, width], its rows `x_stride` apart; residual, out and total are contiguous.

    The width is a model's own, so it may be compiled for: that 16 divides it lets rows be read 16 bytes at a time.
    """
    if IS_DEPENDENT:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    scales = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if IS_DEPENDENT:
        gdc_wait()
    values = tl.load(x + row * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + row * width + columns, mask=mask, other=0.0).to(tl.float32)
        # The norm is of the sum as it is stored, as where the two are not fused.
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * width + columns, rounded, mask=mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + eps)
    tl.store(out + row * width + columns, (values * scale * scales).to(out.dtype.element_ty), mask=mask)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor, total: Tensor | None) -> None:
    width = weight.shape[0]
    num_rows = x.numel() // width
    block = next_power_of_2(width)
    is_dependent = gpu_features(x.device).can_launch_early
    options = {"launch_pdl": True} if is_dependent else {}
    launch(rms_norm_kernel, (num_rows,), x, residual, weight, out, total, width, x.stride(0), eps, BLOCK=block,
           HAS_RESIDUAL=residual is not None, IS_DEPENDENT=is_dependent, num_warps=min(16, max(1, block // 512)),
           **options)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dim, computed in float32; [..., D] in x's type."""
    x = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, weight.shape[0])
    shape = x.shape
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out, None)
    return out.view(shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual and that sum, [T, D] each. The sum takes the residual's place in memory."""
    assert x.is_contiguous()
    assert residual.is_contiguous()
    out = torch.empty_like(x)
    _launch(x, residual, weight, eps, out, residual)
    return out, residual
