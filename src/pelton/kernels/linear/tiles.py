"""Products of few rows on any GPU: tiles of the weight against all rows at once, split along K where tiles are few.

The parts of a tile that several programs worked on are added up by the last of them to arrive, in the order of K: the
result does not depend on who was last.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from pelton.kernels.activation.triton import activate
from pelton.kernels.launch import launch as launch_kernel
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.workspace import Workspace

MAX_ROWS = 64
"""Most input rows of `tile_kernel`."""


@triton.jit
def _scale_and_bias(acc, scale, bias, columns, num_outputs, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A tile [PAD_M, BLOCK_N] times the norm's scale of each row, plus bias."""
    if HAS_NORM:
        acc = acc * scale[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=columns < num_outputs, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["num_rows", "num_outputs", "num_splits", "k_steps_per_split"])
def tile_kernel(x, weight, norm_weight, bias, residual, out, partials, sums, arrivals, num_rows, num_outputs,
                num_splits, k_steps_per_split, eps, K: tl.constexpr, PAD_M: tl.constexpr, BLOCK_N: tl.constexpr,
                BLOCK_K: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
                ACT: tl.constexpr):
    """One part along K of one tile of BLOCK_N outputs; with ACT of as many gates and the outputs they gate."""
    tile, split = tl.program_id(0), tl.program_id(1)
    dtype = weight.dtype.element_ty
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, PAD_M)
    k = split * k_steps_per_split * BLOCK_K + tl.arange(0, BLOCK_K)
    x_pointers = x + rows[:, None].to(tl.int64) * K + k[None, :]
    w_pointers = weight + tl.minimum(columns, num_outputs - 1)[None, :].to(tl.int64) * K + k[:, None]
    up_pointers = w_pointers + tl.cast(num_outputs, tl.int64) * K
    acc = tl.zeros([PAD_M, BLOCK_N], tl.float32)
    up = tl.zeros([PAD_M, BLOCK_N], tl.float32)
    squares = tl.zeros([PAD_M], tl.float32)
    for step in range(k_steps_per_split):
        inside = k + step * BLOCK_K < K
        values = tl.load(x_pointers + step * BLOCK_K, mask=(rows < num_rows)[:, None] & inside[None, :], other=0.0)
        if HAS_NORM:
            wide = values.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            scale_k = tl.load(norm_weight + k + step * BLOCK_K, mask=inside, other=0.0).to(tl.float32)
            values = (wide * scale_k[None, :]).to(dtype)
        w = tl.load(w_pointers + step * BLOCK_K, mask=inside[:, None], other=0.0, eviction_policy="evict_first")
        acc = tl.dot(values, w, acc, input_precision="ieee")
        if ACT is not None:
            w = tl.load(up_pointers + step * BLOCK_K, mask=inside[:, None], other=0.0, eviction_policy="evict_first")
            up = tl.dot(values, w, up, input_precision="ieee")
    is_last = True
    if num_splits > 1:
        inner = rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        size: tl.constexpr = PAD_M * BLOCK_N
        halves: tl.constexpr = 1 if ACT is None else 2
        first = tile * num_splits
        tl.store(partials + (first + split) * halves * size + inner, acc)
        if ACT is not None:
            tl.store(partials + (first + split) * halves * size + size + inner, up)
        if HAS_NORM:
            tl.store(sums + (first + split) * PAD_M + rows, squares)
        tl.debug_barrier()
        is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == num_splits - 1
        if is_last:
            acc = tl.zeros([PAD_M, BLOCK_N], tl.float32)
            up = tl.zeros([PAD_M, BLOCK_N], tl.float32)
            squares = tl.zeros([PAD_M], tl.float32)
            for other in range(first, first + num_splits):
                acc += tl.load(partials + other * halves * size + inner, cache_modifier=".cg")
                if ACT is not None:
                    up += tl.load(partials + other * halves * size + size + inner, cache_modifier=".cg")
                if HAS_NORM:
                    squares += tl.load(sums + other * PAD_M + rows, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
    if is_last:
        scale = squares
        if HAS_NORM:
            scale = tl.rsqrt(squares / K + eps)
        y = _scale_and_bias(acc, scale, bias, columns, num_outputs, HAS_NORM, HAS_BIAS)
        if ACT is not None:
            up_bias = bias
            if HAS_BIAS:
                up_bias = bias + num_outputs
            up = _scale_and_bias(up, scale, up_bias, columns, num_outputs, HAS_NORM, HAS_BIAS)
            y = activate(y, ACT) * up
        offsets = rows[:, None].to(tl.int64) * num_outputs + columns[None, :]
        mask = (rows < num_rows)[:, None] & (columns < num_outputs)[None, :]
        if HAS_RESIDUAL:
            y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class TileConfig:
    """How `tile_kernel` is cut."""

    block_n: int = 32
    block_k: int = 128
    num_splits: int = 1
    num_warps: int = 4
    num_stages: int = 4


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm | None, act: str | None,
           residual: Tensor | None, out: Tensor, workspace: Workspace, config: TileConfig) -> None:
    """Runs the product of x [M, K] with at most 64 rows on the current stream; `out` may be `residual`."""
    num_rows, k_size = x.shape
    num_outputs = out.shape[1]
    pad_m = max(16, triton.next_power_of_2(num_rows))
    num_tiles = triton.cdiv(num_outputs, config.block_n)
    num_steps = triton.cdiv(k_size, config.block_k)
    part_size = pad_m * config.block_n * (2 if act is not None else 1)
    num_splits = min(config.num_splits, num_steps)
    while num_splits > 1 and not workspace.has_room(num_tiles * num_splits, part_size, pad_m):
        num_splits -= 1
    steps_per_split = triton.cdiv(num_steps, num_splits)
    num_splits = triton.cdiv(num_steps, steps_per_split)
    assert num_splits == 1 or num_tiles <= workspace.arrivals.numel()
    launch_kernel(
        tile_kernel, (num_tiles, num_splits),
        x, weight, None if norm is None else norm.weight, bias, residual, out, workspace.partials, workspace.sums,
        workspace.arrivals, num_rows, num_outputs, num_splits, steps_per_split, 0.0 if norm is None else norm.eps,
        K=k_size, PAD_M=pad_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACT=act, num_warps=config.num_warps,
        num_stages=config.num_stages)
