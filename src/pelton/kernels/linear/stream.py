"""Products of few rows on Hopper: the weight streamed once through shared memory, everything else fused round it.

Written in Gluon, because the order of the first loads matters. A product of few rows is bound by reading its weight;
what is lost against the memory's rate is lost between kernels, while one drains and the next fills. So each program
starts copying its part of the weight into a ring in shared memory before it waits for the kernel before it
(programmatic dependent launch), and uses at most half of a multiprocessor's shared memory, so that the ring of one
kernel fills while the kernel before still computes.

The work is cut into (tile of outputs, step along K) pairs, dealt out to one program per multiprocessor in equal runs
("stream-K", Osama et al. 2023). A tile whose steps fell to several programs is put together by the last of them to
arrive, which adds the partial sums in the order of K: the result does not depend on who was last.

The tensor cores take the weight as their left operand, 64 rows at once, and the input's rows as columns, so that
eight rows cost no more than one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.kernels.launch import launch as launch_kernel
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.linear.workspace import Workspace

# Triton 3.6 and 3.7 name it differently.
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def _copy_weight(w_desc, w_ring, ready, slot, step, num_k_steps, half_stride, is_gated: gl.constexpr,
                 halves: gl.constexpr, rows: gl.constexpr, block_k: gl.constexpr, stage_bytes: gl.constexpr):
    """Starts the copy of one step's weight rows, and says how much will arrive in this slot in all."""
    tile = step // num_k_steps
    k = (step % num_k_steps) * block_k
    bar = ready.index(slot)
    mbarrier.expect(bar, stage_bytes)
    # With an activation the second half of a tile is the `up` rows of the same columns, else the next rows.
    row = tile * rows if is_gated else tile * (rows * halves)
    for half in gl.static_range(halves):
        tma.async_copy_global_to_shared(w_desc, [row + half * half_stride, k], bar, w_ring.index(slot * halves + half))


@gluon.jit
def _copy_input(x_desc, norm_desc, x_ring, norm_ring, ready, slot, step, num_k_steps, block_k: gl.constexpr,
                has_norm: gl.constexpr):
    k = (step % num_k_steps) * block_k
    bar = ready.index(slot)
    tma.async_copy_global_to_shared(x_desc, [0, k], bar, x_ring.index(slot))
    if has_norm:
        tma.async_copy_global_to_shared(norm_desc, [k], bar, norm_ring.index(slot))


@gluon.jit
def _sigmoid(x):
    return 1.0 / (1.0 + gl.exp(-x))


@gluon.jit
def _activate(gate, act: gl.constexpr):
    if act == "silu":
        return gate * _sigmoid(gate)
    elif act == "gelu_tanh":
        return gate * _sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        return 0.5 * gate * (1.0 + gl.erf(gate * 0.7071067811865476))


@gluon.jit
def _finish(acc, first_row, scale, bias, residual, out, num_rows, num_outputs, layout: gl.constexpr,
            rows: gl.constexpr, pad_m: gl.constexpr, has_norm: gl.constexpr, has_bias: gl.constexpr,
            has_residual: gl.constexpr):
    """Scales a tile [rows, pad_m], adds bias and residual, and stores it as [M, N]."""
    n = first_row + gl.arange(0, rows, gl.SliceLayout(1, layout))
    m = gl.arange(0, pad_m, gl.SliceLayout(0, layout))
    if has_norm:
        acc = acc * scale[None, :]
    if has_bias:
        acc += gl.load(bias + n, mask=n < num_outputs, other=0.0).to(gl.float32)[:, None]
    offsets = m[None, :].to(gl.int64) * num_outputs + n[:, None]
    mask = (m < num_rows)[None, :] & (n < num_outputs)[:, None]
    if has_residual:
        acc += gl.load(residual + offsets, mask=mask, other=0.0).to(gl.float32)
    gl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


@gluon.jit
def _sum_parts(parts, stride: gl.constexpr, num_parts: gl.constexpr):
    """Sums what so many programs left `stride` apart, in order; all of it is asked for before the first sum."""
    total = gl.load(parts, cache_modifier=".cg")
    for other in gl.static_range(1, num_parts):
        total += gl.load(parts + other * stride, cache_modifier=".cg")
    return total


@gluon.jit(do_not_specialize=["num_rows", "num_outputs", "k_size", "num_tiles", "num_k_steps"])
def stream_kernel(x_desc, w_desc, norm_desc, bias, residual, out, partials, sums, arrivals, num_rows, num_outputs,
                  k_size, num_tiles, num_k_steps, eps, pad_m: gl.constexpr, halves: gl.constexpr, block_k: gl.constexpr,
                  num_stages: gl.constexpr, num_splits: gl.constexpr, has_norm: gl.constexpr, has_bias: gl.constexpr,
                  has_residual: gl.constexpr, act: gl.constexpr):
    """One program's run of steps. `num_outputs` counts columns of the result: with `act` half the weight's rows.

    `num_splits` programs share every tile, where it is not 0.
    """
    num_warps: gl.constexpr = gl.num_warps()
    rows: gl.constexpr = 16 * num_warps
    dtype: gl.constexpr = w_desc.dtype
    stage_bytes: gl.constexpr = ((rows * halves + pad_m) * block_k * 2
                                 + (block_k * norm_desc.dtype.primitive_bitwidth // 8 if has_norm else 0))
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, pad_m, 16])
    x_vec: gl.constexpr = 4 if pad_m == 8 else 8
    x_layout: gl.constexpr = gl.BlockedLayout([1, x_vec], [x_vec * 32 // 64, 64 // x_vec], [num_warps, 1], [1, 0])
    gdc_launch_dependents()
    w_ring = gl.allocate_shared_memory(dtype, [num_stages * halves, rows, block_k], w_desc.layout)
    x_ring = gl.allocate_shared_memory(dtype, [num_stages, pad_m, block_k], x_desc.layout)
    if has_norm:
        norm_ring = gl.allocate_shared_memory(norm_desc.dtype, [num_stages, block_k], norm_desc.layout)
    else:
        norm_ring = x_ring
    ready = gl.allocate_shared_memory(gl.int64, [num_stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(num_stages):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    _barrier()

    program, num_programs = gl.program_id(0), gl.num_programs(0)
    num_steps = num_tiles * num_k_steps
    start = (program * num_steps) // num_programs
    stop = ((program + 1) * num_steps) // num_programs
    half_stride = num_outputs if act is not None else rows
    for i in gl.static_range(num_stages):
        if start + i < stop:
            _copy_weight(w_desc, w_ring, ready, i, start + i, num_k_steps, half_stride, act is not None, halves, rows,
                         block_k, stage_bytes)
    gdc_wait()
    for i in gl.static_range(num_stages):
        if start + i < stop:
            _copy_input(x_desc, norm_desc, x_ring, norm_ring, ready, i, start + i, num_k_steps, block_k, has_norm)

    acc0 = gl.zeros([rows, pad_m], gl.float32, layout)
    acc1 = gl.zeros([rows, pad_m], gl.float32, layout)
    squares = gl.zeros([pad_m, block_k], gl.float32, x_layout)
    scale = gl.zeros([pad_m], gl.float32, gl.SliceLayout(0, layout))
    for step in range(start, stop):
        slot = (step - start) % num_stages
        mbarrier.wait(ready.index(slot), ((step - start) // num_stages) & 1)
        x_tile = x_ring.index(slot)
        if has_norm:
            x = x_tile.load(x_layout).to(gl.float32)
            squares += x * x
            weight = norm_ring.index(slot).load(gl.SliceLayout(0, x_layout)).to(gl.float32)
            x_tile.store((x * weight[None, :]).to(dtype))
            fence_async_shared()
            _barrier()
        x_columns = x_tile.permute((1, 0))
        acc0 = warpgroup_mma(w_ring.index(slot * halves), x_columns, acc0, is_async=True)
        if halves == 2:
            acc1 = warpgroup_mma(w_ring.index(slot * halves + 1), x_columns, acc1, is_async=True)
            acc0, acc1 = warpgroup_mma_wait(0, deps=(acc0, acc1))
        else:
            acc0 = warpgroup_mma_wait(0, deps=(acc0,))
        _barrier()
        if step + num_stages < stop:
            _copy_weight(w_desc, w_ring, ready, slot, step + num_stages, num_k_steps, half_stride, act is not None,
                         halves, rows, block_k, stage_bytes)
            _copy_input(x_desc, norm_desc, x_ring, norm_ring, ready, slot, step + num_stages, num_k_steps, block_k,
                        has_norm)
        tile = step // num_k_steps
        tile_start = tile * num_k_steps
        tile_stop = tile_start + num_k_steps
        if (step + 1 == tile_stop) | (step + 1 == stop):
            is_last = True
            if has_norm:
                scale = gl.convert_layout(gl.sum(squares, 1), gl.SliceLayout(0, layout))
            if (start > tile_start) | (step + 1 < tile_stop):
                # Of the programs that share this tile only the first began it, and has its other half in slot 1.
                first = ((tile_start + 1) * num_programs - 1) // num_steps
                last = (tile_stop * num_programs - 1) // num_steps
                n = gl.arange(0, rows, gl.SliceLayout(1, layout))
                m = gl.arange(0, pad_m, gl.SliceLayout(0, layout))
                inner = n[:, None] * pad_m + m[None, :]
                part_size: gl.constexpr = rows * halves * pad_m
                if num_splits > 1:
                    part = program
                else:
                    part = 2 * program + (program == first).to(gl.int32)
                gl.store(partials + part * part_size + inner, acc0)
                if halves == 2:
                    gl.store(partials + part * part_size + rows * pad_m + inner, acc1)
                if has_norm:
                    gl.store(sums + part * pad_m + m, scale)
                _barrier()
                is_last = gl.atomic_add(arrivals + tile, 1, sem="acq_rel") == last - first
                if is_last:
                    if num_splits > 1:
                        parts = partials + first * part_size + inner
                        acc0 = _sum_parts(parts, part_size, num_splits)
                        if halves == 2:
                            acc1 = _sum_parts(parts + rows * pad_m, part_size, num_splits)
                        if has_norm:
                            scale = _sum_parts(sums + first * pad_m + m, pad_m, num_splits)
                    else:
                        acc0 = gl.zeros([rows, pad_m], gl.float32, layout)
                        acc1 = gl.zeros([rows, pad_m], gl.float32, layout)
                        scale = gl.zeros([pad_m], gl.float32, gl.SliceLayout(0, layout))
                        for other in range(first, last + 1):
                            part = 2 * other + (other == first).to(gl.int32)
                            parts = partials + part * part_size + inner
                            acc0 += gl.load(parts, cache_modifier=".cg")
                            if halves == 2:
                                acc1 += gl.load(parts + rows * pad_m, cache_modifier=".cg")
                            if has_norm:
                                scale += gl.load(sums + part * pad_m + m, cache_modifier=".cg")
                    gl.store(arrivals + tile, 0)
            if is_last:
                if has_norm:
                    scale = gl.rsqrt(scale / k_size + eps)
                if act is not None:
                    value = acc0
                    other_value = acc1
                    if has_norm:
                        value = value * scale[None, :]
                        other_value = other_value * scale[None, :]
                    if has_bias:
                        n = tile * rows + gl.arange(0, rows, gl.SliceLayout(1, layout))
                        inside = n < num_outputs
                        value += gl.load(bias + n, mask=inside, other=0.0).to(gl.float32)[:, None]
                        other_value += gl.load(bias + num_outputs + n, mask=inside,
                                               other=0.0).to(gl.float32)[:, None]
                    _finish(_activate(value, act) * other_value, tile * rows, scale, bias, residual, out, num_rows,
                            num_outputs, layout, rows, pad_m, False, False, has_residual)
                else:
                    _finish(acc0, tile * rows * halves, scale, bias, residual, out, num_rows, num_outputs, layout,
                            rows, pad_m, has_norm, has_bias, has_residual)
                    if halves == 2:
                        _finish(acc1, tile * rows * halves + rows, scale, bias, residual, out, num_rows, num_outputs,
                                layout, rows, pad_m, has_norm, has_bias, has_residual)
            acc0 = gl.zeros([rows, pad_m], gl.float32, layout)
            acc1 = gl.zeros([rows, pad_m], gl.float32, layout)
            squares = gl.zeros([pad_m, block_k], gl.float32, x_layout)


@dataclass(frozen=True)
class StreamConfig:
    """How `stream_kernel` is cut."""

    halves: int = 2
    """Sub-tiles of 16 · num_warps weight rows each that one program works on; 2 where there is an activation."""
    block_k: int = 64
    num_stages: int = 6
    num_warps: int = 4
    num_splits: int = 0
    """Programs that share a tile, each with its own stretch of K; 0 deals all steps out to one per multiprocessor."""

    @property
    def rows(self) -> int:
        """Weight rows of one copy, and of each tensor-core product."""
        return 16 * self.num_warps

    def shared_bytes(self, pad_m: int) -> int:
        """Shared memory of one program, at most."""
        return self.num_stages * ((self.rows * self.halves + pad_m) * self.block_k * 2 + self.block_k * 4 + 8) + 1024


_MATRIX = gl.NVMMASharedLayout(128, 16, 2)
_VECTORS = {torch.bfloat16: gl.NVMMASharedLayout(0, 16, 1), torch.float16: gl.NVMMASharedLayout(0, 16, 1),
            torch.float32: gl.NVMMASharedLayout(0, 32, 1)}


def pad_rows(num_rows: int) -> int:
    """Columns of the tensor-core product that hold `num_rows` input rows."""
    return max(8, triton.next_power_of_2(num_rows))


def describe(matrix: Tensor, rows: int, block_k: int) -> TensorDescriptor:
    """A matrix [R, K] as the copy engine reads it, a block of rows and 128-byte columns at a time."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, block_k], _MATRIX)


def launch(x: Tensor, w_desc: TensorDescriptor, bias: Tensor | None, norm: Norm | None, act: str | None,
           residual: Tensor | None, out: Tensor, workspace: Workspace, config: StreamConfig) -> None:
    """Runs the product of x [M, K], its rows 16-byte aligned, on the current stream; `out` may be `residual`."""
    num_rows, k_size = x.shape
    pad_m = pad_rows(num_rows)
    num_outputs = out.shape[1]
    tile_rows = config.rows if act is not None else config.rows * config.halves
    num_tiles, num_k_steps = triton.cdiv(num_outputs, tile_rows), triton.cdiv(k_size, config.block_k)
    num_splits = min(config.num_splits, num_k_steps)
    while num_splits > 1 and not workspace.has_room(2 * num_tiles * num_splits, config.rows * config.halves * pad_m,
                                                    pad_m):
        num_splits -= 1
    # A program without a step would be waited for by the tile that it falls in.
    num_programs = num_tiles * num_splits or min(workspace.num_sms, num_tiles * num_k_steps)
    norm_desc = None
    if norm is not None:
        norm_desc = TensorDescriptor(norm.weight, [k_size], [1], [config.block_k], _VECTORS[norm.weight.dtype])
    launch_kernel(
        stream_kernel, (num_programs,),
        describe(x, pad_m, config.block_k), w_desc, norm_desc, bias, residual, out, workspace.partials, workspace.sums,
        workspace.arrivals, num_rows, num_outputs, k_size, num_tiles, num_k_steps, 0.0 if norm is None else norm.eps,
        pad_m=pad_m, halves=config.halves, block_k=config.block_k, num_stages=config.num_stages,
        num_splits=num_splits, has_norm=norm is not None, has_bias=bias is not None, has_residual=residual is not None,
        act=act, num_warps=config.num_warps, launch_pdl=True)
