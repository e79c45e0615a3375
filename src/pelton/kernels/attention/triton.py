"""Attention over the paged KV cache on a GPU: rows that decode in one launch, rows of several queries in another.

Nothing here waits for the device or reads a length from it. Decode rows need device tensors alone, so their launches
can be captured in a CUDA graph and replayed with other lengths and blocks in the same buffers; rows past the real ones
are padded with length 0 and come out as zeros. Tiles of prompts are cut on the host, from the `_host` lists, or come in
a device buffer, padded with row -1, for steps with prompts that are captured too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pelton.kernels.attention import hopper_prefill
from pelton.kernels.attention.hopper_prefill import HopperConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.attention.triton_decode import WORK_WIDTH, assign_kernel, decode_kernel
from pelton.kernels.attention.triton_prefill import prefill_kernel
from pelton.kernels.gpu_features import LARGE_SHARED_BYTES, GpuFeatures, gpu_features
from pelton.kernels.integers import next_power_of_2
from pelton.kernels.launch import launch
from pelton.kernels.rotary import triton as rotary

_MAX_PROGRAMS_PER_PROCESSOR = 4
_LEAST_SIGNAL_ROWS = 2
"""Rows from which decode lets the product after it start early. The product of one row reads through the cache whose
room the tiles in shared memory take: multiprocessors that are never empty in between keep it that small, and steps of
one row took 13 % longer."""
_MOST_ROTATED_ROWS = 8
"""Rows up to which decode attention rotates. Beyond, programs that have less to wait for do more."""


@dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel is compiled and launched."""

    tile: int
    """Tokens per step of the online softmax."""
    num_warps: int
    num_stages: int
    """Depth of the pipeline of tiles on their way from memory."""
    programs_per_processor: int
    """How many run at once."""
    segment_cost: int = 1
    """What the start and end of one (row, head) cost, in tiles."""
    slack: int = 8
    """How many tiles longer a share may be for every program to serve one (row, head) alone."""
    hands_out: bool = True
    """Whether there are more programs than run at once where there are more (row, head)."""
    starts_early: bool = True
    """Whether it may start before the kernel before it has ended."""
    max_registers: int | None = None
    """Per thread, where it is to fit more programs than the compiler would have."""
    rotates: bool = True
    """Whether `rotate_and_attend` is one launch where all rows decode."""


@dataclass(frozen=True)
class PrefillConfig:
    """How the prefill kernel is compiled."""

    block_m: int
    """Queries times heads of a group in a program."""
    tile: int
    """Keys per step of the online softmax."""
    num_warps: int
    num_stages: int
    use_descriptor: bool
    """Load tiles by the bulk copy engine (compute capability 9.0)."""


_CAPPED = PrefillConfig(block_m=hopper_prefill.BLOCK_M, tile=64, num_warps=8, num_stages=2, use_descriptor=False)
"""For a soft cap, which hopper_prefill.py has not, over tiles that were cut for it; its speed was not measured."""


@dataclass(frozen=True)
class Shape:
    """What the kernels are compiled for, besides the window and the soft cap."""

    num_kv_heads: int
    group: int
    """Query heads per kv head."""
    head_dim: int
    tokens_per_block: int
    dtype: torch.dtype

    @property
    def dim_pad(self) -> int:
        return max(16, next_power_of_2(self.head_dim))

    @property
    def group_pad(self) -> int:
        return max(16, next_power_of_2(self.group))

    @classmethod
    def of(cls, pool: Tensor, num_heads: int) -> Shape:
        num_kv_heads, tokens_per_block, head_dim = pool.shape[3:]
        assert num_heads % num_kv_heads == 0
        return cls(num_kv_heads, num_heads // num_kv_heads, head_dim, tokens_per_block, pool.dtype)


@dataclass(frozen=True)
class DecodePlan:
    """Shares of the decode rows, in device buffers that a graph may replay."""

    num_rows: int
    config: DecodeConfig
    work: Tensor
    """[programs, WORK_WIDTH] int32, made by the device."""
    counters: Tensor
    """[rows · kv heads] int32."""
    sums: Tensor
    """[2 · programs, group, head_dim] float32."""
    stats: Tensor
    """[2 · programs, 2, group] float32."""


@dataclass(frozen=True)
class _Rotation:
    """What queries and keys are rotated by, as the rotary op takes it."""

    cos: Tensor
    """[rows, half] float32."""
    sin: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float


@dataclass(frozen=True)
class PrefillPlan:
    """Tiles of the rows with several queries."""

    config: PrefillConfig | HopperConfig
    tiles: Tensor
    """[tiles, 2] int32: row and first query."""
    descriptor: TensorDescriptor | hopper_prefill.TensorDescriptor | None
    """The pool as the copy engine reads it."""


@dataclass(frozen=True)
class Plan:
    """How one step's attention runs, for all layers of one window."""

    meta: AttentionMetadata
    shape: Shape
    window: int
    """0 for none."""
    decode: DecodePlan | None
    prefill: PrefillPlan | None


def workspace_bytes(max_rows: int, *, num_heads: int, num_kv_heads: int, head_dim: int,
                    device: torch.device | str) -> int:
    """Bytes that `AttentionMetadata.workspace` must have for steps of up to max_rows decode rows."""
    group = num_heads // num_kv_heads
    pieces = 2 * _MAX_PROGRAMS_PER_PROCESSOR * gpu_features(torch.device(device)).num_processors
    return 4 * (pieces * group * (head_dim + 2) + max_rows * num_kv_heads)


def plan(meta: AttentionMetadata, pool: Tensor, *, num_heads: int, window: int | None,
         decode_config: DecodeConfig | None = None,
         prefill_config: PrefillConfig | HopperConfig | None = None) -> Plan:
    """As the reference's. Launches one small kernel when rows decode, which shares them out by the lengths on the
    device; partial sums go to `meta.workspace`, or to memory of its own when there is none."""
    shape = Shape.of(pool, num_heads)
    features = gpu_features(pool.device)
    decode = prefill = None
    if meta.num_decodes:
        config = decode_config or decode_config_for(shape, features, meta.num_decodes)
        decode = _plan_decode(meta, shape, window or 0, config)
    if meta.num_rows > meta.num_decodes:
        prefill = _plan_prefill(meta, pool, shape, prefill_config or _prefill_config_of(meta, shape, features))
    return Plan(meta, shape, window or 0, decode, prefill)


def attend(q: Tensor, kv: Tensor, pool: Tensor, layer: int, plan: Plan, *, scale: float,
           softcap: float | None = None) -> Tensor:
    """As the reference's; all keys and values are read from the pool. q may be a view with other heads behind each
    token's, as the rotary op returns it."""
    assert q.stride()[1:] == (plan.shape.head_dim, 1), "each token's heads lie in one run"
    assert q.stride(0) % plan.shape.head_dim == 0
    out = _empty_out(q, plan)
    if plan.decode is not None:
        _launch_decode(q, None, pool, out, layer, plan, plan.decode, scale, softcap)
    if plan.prefill is not None:
        _launch_prefill(q, pool, out, layer, plan, plan.prefill, scale, softcap)
    return out


def rotate_and_attend(qkv: Tensor, angles: rotary.Angles, pool: Tensor, layer: int, plan: Plan, *, num_heads: int,
                      scale: float, softcap: float | None = None, q_norm: Tensor | None = None,
                      k_norm: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """As the reference's. Where few rows decode and no others are there it is one launch, which leaves qkv as it is;
    otherwise rotary has a launch of its own, which overwrites qkv."""
    if plan.decode is None or plan.prefill is not None or not plan.decode.config.rotates:
        q, kv = rotary.rotate_and_store(qkv, angles, pool, layer, plan.meta, num_heads=num_heads, q_norm=q_norm,
                                        k_norm=k_norm, eps=eps)
        return attend(q, kv, pool, layer, plan, scale=scale, softcap=softcap)
    assert qkv.is_contiguous()
    assert qkv.shape[1] == (num_heads + 2 * plan.shape.num_kv_heads) * plan.shape.head_dim
    assert num_heads == plan.shape.num_kv_heads * plan.shape.group
    out = _empty_out(qkv, plan)
    _launch_decode(qkv, _Rotation(*angles, q_norm, k_norm, eps), pool, out, layer, plan, plan.decode, scale, softcap)
    return out


def _empty_out(tokens: Tensor, plan: Plan) -> Tensor:
    width = plan.shape.num_kv_heads * plan.shape.group * plan.shape.head_dim
    return torch.empty(tokens.shape[0], width, dtype=tokens.dtype, device=tokens.device)


def decode_config_for(shape: Shape, features: GpuFeatures, num_rows: int) -> DecodeConfig:
    """The launch for a shape on a device; measured on an H200 at head_dim 128, elsewhere by equal bytes.

    Few (row, head) are spread thin over programs with large tiles, which take less time per token one after another;
    many short ones want more, smaller programs at once.
    """
    is_large = features.shared_bytes >= LARGE_SHARED_BYTES
    is_few = is_large and num_rows * shape.num_kv_heads <= 2 * features.num_processors
    tile_bytes = 16 * 1024 if is_few else 8 * 1024
    tile = max(16, min(64, tile_bytes // (shape.dim_pad * shape.dtype.itemsize)))
    return DecodeConfig(tile=tile, num_warps=4 if is_few else 2, num_stages=3,
                        programs_per_processor=4 if is_large and not is_few else 2,
                        rotates=num_rows <= _MOST_ROTATED_ROWS)


def prefill_config_for(shape: Shape, features: GpuFeatures) -> PrefillConfig:
    """The launch for a shape on a device, whatever the lengths."""
    is_wide = shape.dim_pad > 128
    if shape.dtype.itemsize > 2:
        return PrefillConfig(block_m=32, tile=16 if is_wide else 32, num_warps=4, num_stages=1, use_descriptor=False)
    if features.shared_bytes < LARGE_SHARED_BYTES:
        return PrefillConfig(block_m=64, tile=32, num_warps=4, num_stages=2, use_descriptor=False)
    tile = 32 if is_wide else 64
    has_descriptors = features.capability >= 90 and tile <= shape.tokens_per_block
    return PrefillConfig(block_m=64, tile=tile, num_warps=4, num_stages=3, use_descriptor=has_descriptors)


def queries_per_tile(pool: Tensor, num_heads: int) -> int:
    """Queries in one of `cut_tiles`, for who fills `AttentionMetadata.prefill_tiles`."""
    shape = Shape.of(pool, num_heads)
    return prefill_config_for(shape, gpu_features(pool.device)).block_m // shape.group


def cut_tiles(query_lens: list[int], seq_lens: list[int], num_decodes: int, queries_per_tile: int) -> np.ndarray:
    """[tiles, 2] int32 (row, first query) of the rows that do not decode, those with most keys to read first."""
    if len(query_lens) == num_decodes + 1:  # the same in fewer calls: a single prompt waits for each
        first = np.arange(0, query_lens[-1], queries_per_tile, dtype=np.int32)[::-1]
        return np.stack((np.full_like(first, num_decodes), first), axis=1)
    lens = np.asarray(query_lens[num_decodes:], dtype=np.int64)
    prefixes = np.asarray(seq_lens[num_decodes:], dtype=np.int64) - lens
    counts = -(-lens // queries_per_tile)
    rows = np.repeat(np.arange(len(lens)), counts)
    first = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * queries_per_tile
    order = np.argsort(-(prefixes[rows] + first), kind="stable")
    return np.stack((rows + num_decodes, first), axis=1)[order].astype(np.int32)


def _plan_decode(meta: AttentionMetadata, shape: Shape, window: int, config: DecodeConfig) -> DecodePlan:
    device, num_rows = meta.seq_lens.device, meta.num_decodes
    assert config.programs_per_processor <= _MAX_PROGRAMS_PER_PROCESSOR
    num_resident = config.programs_per_processor * gpu_features(device).num_processors
    num_programs = max(num_resident, num_rows * shape.num_kv_heads) if config.hands_out else num_resident
    sizes = {"sums": 2 * num_resident * shape.group * shape.head_dim, "stats": 4 * num_resident * shape.group,
             "counters": num_rows * shape.num_kv_heads}
    words = sum(sizes.values())
    workspace = meta.workspace
    if workspace is None:
        workspace = torch.empty(4 * words, dtype=torch.uint8, device=device)
    assert workspace.numel() >= 4 * words, "the workspace is too small: workspace_bytes says how much it takes"
    parts = workspace[:4 * words].view(torch.float32).split(list(sizes.values()))
    work = torch.empty(num_programs, WORK_WIDTH, dtype=torch.int32, device=device)
    decode = DecodePlan(num_rows, config, work, parts[2].view(torch.int32), parts[0], parts[1])
    launch(
        assign_kernel, (num_programs,), meta.seq_lens, meta.block_tables, work, meta.block_tables.stride(0), num_rows,
        num_programs, num_resident, config.slack, NUM_KV_HEADS=shape.num_kv_heads,
        TOKENS_PER_BLOCK=shape.tokens_per_block, TILE=config.tile, WINDOW=window, SEGMENT_COST=config.segment_cost,
        num_warps=4)
    # Decode may start before the kernel before it has ended and reads its share then. A fill does not start early, so
    # what follows it finds the shares written.
    decode.counters.zero_()
    return decode


def _prefill_config_of(meta: AttentionMetadata, shape: Shape, features: GpuFeatures) -> PrefillConfig | HopperConfig:
    """The launch for a step: Hopper's kernel where it can and pays, as far as the host knows the lengths."""
    if features.capability == 90 and meta.prefill_tiles is None \
            and hopper_prefill.can_attend(shape.head_dim, shape.tokens_per_block, shape.dtype) \
            and hopper_prefill.pays(meta.query_lens_host[meta.num_decodes:], meta.seq_lens_host[meta.num_decodes:]):
        return HopperConfig()
    return prefill_config_for(shape, features)


def _plan_prefill(meta: AttentionMetadata, pool: Tensor, shape: Shape,
                  config: PrefillConfig | HopperConfig) -> PrefillPlan:
    tiles = meta.prefill_tiles
    if tiles is None:
        array = cut_tiles(meta.query_lens_host, meta.seq_lens_host, meta.num_decodes, config.block_m // shape.group)
        tiles = torch.from_numpy(array) if meta.put is None else meta.put(array)
        if tiles.device != pool.device:
            tiles = tiles.pin_memory().to(pool.device, non_blocking=True)
    descriptor = None
    if isinstance(config, HopperConfig):
        descriptor = hopper_prefill.describe(pool)
    elif config.use_descriptor:
        descriptor = TensorDescriptor.from_tensor(pool.view(-1, shape.head_dim), [config.tile, shape.dim_pad])
    return PrefillPlan(config, tiles, descriptor)


def _launch_decode(tokens: Tensor, rotation: _Rotation | None, pool: Tensor, out: Tensor, layer: int, plan: Plan,
                   decode: DecodePlan, scale: float, softcap: float | None) -> None:
    """tokens: queries [rows, heads, head_dim], or qkv [rows, heads · head_dim] with the rotation still to be done."""
    meta, shape, config = plan.meta, plan.shape, decode.config
    can_signal = decode.num_rows >= _LEAST_SIGNAL_ROWS
    is_dependent = gpu_features(tokens.device).can_launch_early and config.starts_early \
        and (can_signal or rotation is not None)
    options: dict[str, int] = {"launch_pdl": True} if is_dependent else {}
    if config.max_registers is not None:
        options["maxnreg"] = config.max_registers
    half_dim, has_norm, eps = 0, False, 0.0
    cos = sin = slots = q_norm = k_norm = None
    if rotation is not None:
        cos, sin, slots, eps = rotation.cos, rotation.sin, meta.slot_mapping, rotation.eps
        half_dim = cos.shape[1]
        has_norm = rotation.q_norm is not None and rotation.k_norm is not None
        if has_norm:
            q_norm, k_norm = rotation.q_norm, rotation.k_norm
    runs_per_block = pool.shape[1] * 2 * shape.num_kv_heads
    launch(
        decode_kernel, (decode.work.shape[0],),
        tokens, cos, sin, slots, q_norm, k_norm, pool, out, decode.work, meta.seq_lens, meta.block_tables,
        decode.counters, decode.sums, decode.stats, tokens.stride(0) // shape.head_dim, meta.block_tables.stride(0),
        runs_per_block, layer * 2 * shape.num_kv_heads, decode.num_rows, scale, softcap or 0.0, eps,
        NUM_KV_HEADS=shape.num_kv_heads, GROUP=shape.group, GROUP_PAD=shape.group_pad, HEAD_DIM=shape.head_dim,
        DIM_PAD=shape.dim_pad, TOKENS_PER_BLOCK=shape.tokens_per_block, TILE=config.tile, WINDOW=plan.window,
        HAS_SOFTCAP=softcap is not None, SEGMENT_COST=config.segment_cost, STAGES=config.num_stages,
        HALF_DIM=half_dim, HAS_NORM=has_norm, IS_DEPENDENT=is_dependent, SIGNALS=is_dependent and can_signal,
        num_warps=config.num_warps, **options)


def _launch_prefill(q: Tensor, pool: Tensor, out: Tensor, layer: int, plan: Plan, prefill: PrefillPlan, scale: float,
                    softcap: float | None) -> None:
    meta, shape, config, descriptor = plan.meta, plan.shape, prefill.config, prefill.descriptor
    if isinstance(config, HopperConfig):
        if softcap is None:
            hopper_prefill.launch(q, pool, descriptor, out, layer, meta, prefill.tiles, config, group=shape.group,
                                  window=plan.window, scale=scale)
            return
        config, descriptor = _CAPPED, None
    runs_per_block = pool.shape[1] * 2 * shape.num_kv_heads
    launch(
        prefill_kernel, (prefill.tiles.shape[0] * shape.num_kv_heads,),
        q, pool, descriptor, out, prefill.tiles, meta.query_start, meta.seq_lens, meta.block_tables,
        q.stride(0) // shape.head_dim, meta.block_tables.stride(0), runs_per_block, layer * 2 * shape.num_kv_heads,
        scale, softcap or 0.0,
        NUM_KV_HEADS=shape.num_kv_heads, GROUP=shape.group, HEAD_DIM=shape.head_dim, DIM_PAD=shape.dim_pad,
        TOKENS_PER_BLOCK=shape.tokens_per_block, BLOCK_M=config.block_m, TILE=config.tile, WINDOW=plan.window,
        HAS_SOFTCAP=softcap is not None, STAGES=config.num_stages, USE_DESCRIPTOR=config.use_descriptor,
        num_warps=config.num_warps)
