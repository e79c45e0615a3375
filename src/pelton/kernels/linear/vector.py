"""Product of one row: the weight goes from memory into registers, without shared memory or tensor cores.

Many small programs, so that those of the next kernel start, and ask for their weight, while the last of this one still
compute (programmatic dependent launch). A program asks for its first block of the weight before it waits for its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.kernels.activation.triton import activate
from pelton.kernels.launch import launch as launch_kernel
from pelton.kernels.linear.prologue import Norm


@triton.jit
def _fold(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] to [ROWS, COLUMNS / 8], sums of what lies in one thread."""
    return tl.sum(tl.reshape(x, [ROWS, COLUMNS // 8, 8]), 2)


@triton.jit
def _load_step(pointers, k, START: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, POLICY: tl.constexpr):
    """BLOCK_K elements along K from START; what lies past K is zero."""
    if START + BLOCK_K <= K:
        values = tl.load(pointers + START, eviction_policy=POLICY)
    else:
        values = tl.load(pointers + START, mask=k < K - START, other=0.0, eviction_policy=POLICY)
    return values


@triton.jit(do_not_specialize=["num_outputs"])
def vector_kernel(x, weight, norm_weight, bias, residual, out, num_outputs, eps, K: tl.constexpr,
                  ROWS: tl.constexpr, BLOCK_K: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr,
                  HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, IS_DEPENDENT: tl.constexpr):
    """ROWS rows of the weight; with ACT half of them gates and half the rows that they gate, in turn."""
    if IS_DEPENDENT:
        gdc_launch_dependents()
    lanes = tl.arange(0, ROWS)
    if ACT is not None:
        rows = tl.program_id(0) * (ROWS // 2) + lanes // 2
        is_inside = rows < num_outputs
        rows += (lanes % 2) * num_outputs
    else:
        rows = tl.program_id(0) * ROWS + lanes
        is_inside = rows < num_outputs
    NUM_STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    k = tl.arange(0, BLOCK_K)
    # Rows past the last are read as the last, and not stored.
    last = tl.where(lanes % 2 == 1, 2 * num_outputs, num_outputs) - 1 if ACT is not None else num_outputs - 1
    pointers = weight + tl.minimum(rows, last)[:, None].to(tl.int64) * K + k[None, :]
    w = _load_step(pointers, k[None, :], 0, K, BLOCK_K, "evict_first")
    if HAS_NORM:
        scales = _load_step(norm_weight + k, k, 0, K, BLOCK_K, "evict_last")
    if IS_DEPENDENT:
        gdc_wait()
    values = _load_step(x + k, k, 0, K, BLOCK_K, "evict_last")
    acc = tl.zeros([ROWS, BLOCK_K // 8], tl.float32)
    squares = tl.zeros([1, BLOCK_K // 8], tl.float32)
    for step in tl.static_range(NUM_STEPS):
        # Everything that the next step reads is asked for before this one's products wait for anything.
        if step + 1 < NUM_STEPS:
            w_next = _load_step(pointers, k[None, :], (step + 1) * BLOCK_K, K, BLOCK_K, "evict_first")
            values_next = _load_step(x + k, k, (step + 1) * BLOCK_K, K, BLOCK_K, "evict_last")
            if HAS_NORM:
                scales_next = _load_step(norm_weight + k, k, (step + 1) * BLOCK_K, K, BLOCK_K, "evict_last")
        wide = values.to(tl.float32)
        if HAS_NORM:
            squares += _fold((wide * wide)[None, :], 1, BLOCK_K)
            wide *= scales.to(tl.float32)
        acc += _fold(w.to(tl.float32) * wide[None, :], ROWS, BLOCK_K)
        if step + 1 < NUM_STEPS:
            w = w_next
            values = values_next
            if HAS_NORM:
                scales = scales_next
    y = tl.sum(acc, 1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    if HAS_BIAS:
        y += tl.load(bias + rows, mask=is_inside, other=0.0).to(tl.float32)
    if ACT is not None:
        gate, up = tl.split(tl.reshape(y, [ROWS // 2, 2]))
        y = activate(gate, ACT) * up
        columns = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    else:
        columns = rows
    mask = columns < num_outputs
    if HAS_RESIDUAL:
        y += tl.load(residual + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + columns, y.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class VectorConfig:
    """How `vector_kernel` is cut."""

    rows: int = 8
    block_k: int = 2048
    num_warps: int = 8


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, act: str | None,
           residual: Tensor | None, out: Tensor, config: VectorConfig, *, is_dependent: bool) -> None:
    """Runs the product of x [1, K] on the current stream; `out` may be `residual`."""
    num_outputs, k_size = out.shape[1], x.shape[1]
    tile = config.rows // (2 if act is not None else 1)
    options = {"launch_pdl": True} if is_dependent else {}
    launch_kernel(
        vector_kernel, (triton.cdiv(num_outputs, tile),),
        x, weight, None if norm is None else norm.weight, bias, residual, out, num_outputs,
        0.0 if norm is None else norm.eps, K=k_size, ROWS=config.rows, BLOCK_K=config.block_k,
        HAS_NORM=norm is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACT=act,
        IS_DEPENDENT=is_dependent, num_warps=config.num_warps, **options)
