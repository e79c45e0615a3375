"""CUDA graphs of decode steps: one per padded number of rows, over fixed buffers, captured before the engine is ready.

A step of B rows replays the smallest graph of at least B; rows that pad it have length 0 and write no keys. All graphs
share one memory pool, and each overwrites what another left there: nothing of a step outlives it but its logits, which
are read before the next step is launched.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pelton.cache.pool import KvPool
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.decode_rows import triton as decode_rows
from pelton.kernels.decode_rows.reference import DecodeBuffers
from pelton.kernels.registry import load_ops
from pelton.models.rope import is_length_dependent
from pelton.runner.inputs import DecodeRows, SampledRows
from pelton.runner.padding import padded, row_sizes
from pelton.runner.slots import Slots


class DecodeGraphs:
    """The graphs of one model over one pool.

    Args:
        decoder: the model; its kernels must read lengths from the device alone.
        max_batch_size: the most rows of a step.
    """

    def __init__(self, decoder, pool: KvPool, slots: Slots, max_batch_size: int):
        self.sizes = row_sizes(max_batch_size)
        self._decoder, self._pool, self._slots = decoder, pool, slots
        config, device = decoder.config, slots.device
        self._buffers = DecodeBuffers.empty(max_batch_size, slots.block_tables.shape[1], device)
        self._query_start = torch.arange(max_batch_size + 1, dtype=torch.int32, device=device)
        self._rope_lens = None
        if is_length_dependent(config.rope):
            self._rope_lens = torch.zeros(max_batch_size, dtype=torch.int64, device=device)
        attention = load_ops(device.type).attention
        self._workspace = torch.empty(
            attention.workspace_bytes(max_batch_size, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
                                      head_dim=config.head_dim, device=device), dtype=torch.uint8, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: dict[int, torch.Tensor] = {}

    def capture(self, memory: Any) -> None:
        """Captures every size, largest first, so that the others find its memory. Call it once, under inference mode,
        on the stream of the steps.

        Args:
            memory: handle of the memory pool of all graphs.
        """
        for size in reversed(self.sizes):
            self._graphs[size], self._logits[size] = capture_graph(lambda size=size: self._run(size), memory)

    def replay(self, rows: DecodeRows) -> tuple[torch.Tensor, SampledRows]:
        """Runs one decode step. Returns logits [B, V] float32, valid until the next replay, and whose they are."""
        arrays = (rows.slots, rows.positions.astype(np.int32))
        slot_index, positions, *rest = self._slots.staging.put(
            *arrays, *(() if rows.rope_lens is None else (rows.rope_lens,)))
        num_rows = len(rows.slots)
        size = padded(num_rows, self.sizes)
        decode_rows.fill(self._buffers, slot_index, positions, self._slots.last_tokens, self._slots.device_tables,
                         num_padded=size, tokens_per_block=self._slots.tokens_per_block)
        if rest:
            self._rope_lens[:num_rows].copy_(rest[0])
        self._graphs[size].replay()
        # A token's length is the position of the next one, which is the one to be drawn.
        sampled = SampledRows(slots=rows.slots, positions=rows.positions + 1, slot_index=slot_index,
                              position_index=self._buffers.seq_lens[:num_rows])
        return self._logits[size][:num_rows], sampled

    def _run(self, size: int) -> torch.Tensor:
        """The step over the first rows of the buffers; [size, V] float32."""
        buffers = self._buffers
        meta = AttentionMetadata.decodes(
            self._query_start[:size + 1], buffers.seq_lens[:size], buffers.block_tables[:size],
            buffers.slot_mapping[:size], workspace=self._workspace,
            rope_lens=None if self._rope_lens is None else self._rope_lens[:size])
        hidden = self._decoder.forward(buffers.token_ids[:size], buffers.positions[:size], self._pool, meta)
        return self._decoder.logits(hidden)


def capture_graph(run: Callable[[], torch.Tensor], memory: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Captures what `run` launches on the current stream, and its result, whose memory the graphs captured later may
    use too.

    torch.cuda.graph does the same, but waits for the device and gives cached memory back each time: steps that are no
    graphs would have to ask for memory anew.

    Args:
        memory: handle of the memory pool of all graphs.
    """
    run()  # compiles, and lets libraries set themselves up
    graph = torch.cuda.CUDAGraph()
    is_collecting = gc.isenabled()
    gc.disable()  # what it would free meanwhile may be a graph
    try:
        graph.capture_begin(pool=memory, capture_error_mode="thread_local")
        try:
            result = run()
        finally:
            graph.capture_end()
    finally:
        if is_collecting:
            gc.enable()
    graph.replay()  # the first time takes longer: the driver brings the graph to the device
    return graph, _alias(result)


class _Memory:
    """Device memory that somebody else owns, as the CUDA array interface (numba, version 3) describes it."""

    def __init__(self, tensor: torch.Tensor):
        self.__cuda_array_interface__ = {
            "shape": (tensor.nbytes,), "strides": None, "typestr": "|u1", "version": 3,
            "data": (tensor.data_ptr(), False)}


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory without owning it."""
    assert tensor.is_contiguous()
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype).view(tensor.shape)
