"""The gated activation on a GPU, alone and for kernels that end with it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pelton.kernels.integers import ceil_div, next_power_of_2
from pelton.kernels.launch import launch


@triton.jit
def activate(gate, KIND: tl.constexpr):
    """act(gate), float32."""
    if KIND == "silu":
        return gate / (1.0 + tl.exp(-gate))
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh u) is the logistic function of 2 u.
        return gate / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    else:
        tl.static_assert(KIND == "gelu")
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def act_mul_kernel(gate_up, out, num_columns, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one row; programs that run together read neighbouring blocks.

    The number of columns is a model's own, so it may be compiled for: that 16 divides it lets rows be read 16 bytes at
    a time.
    """
    num_blocks = (num_columns + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    columns = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    gate = tl.load(gate_up + row * 2 * num_columns + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * num_columns + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * num_columns + columns, (activate(gate, KIND) * up).to(out.dtype.element_ty), mask=mask)


def act_mul(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) · up, computed in float32; gate_up [T, 2 I] with gate first, the result [T, I] in its type."""
    assert gate_up.is_contiguous()
    num_rows, num_columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, num_columns, dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, next_power_of_2(num_columns))
    grid = (num_rows * ceil_div(num_columns, block),)
    launch(act_mul_kernel, grid, gate_up, out, num_columns, KIND=kind, BLOCK=block)
    return out
