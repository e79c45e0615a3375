"""CUDA graphs of steps that run prompts alone, and few tokens of them: one per padded number of tokens.

Launching a step's kernels one by one takes the host longer than a short prompt takes the GPU. All that a graph reads of
its step is known on the host, so it goes to fixed buffers in one copy. Tokens that pad a step have negative slots and
write no keys; their hidden states mean nothing. Rows that pad it have no tiles in attention.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import torch

from pelton.cache.pool import KvPool
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.registry import load_ops
from pelton.models.rope import is_length_dependent
from pelton.runner.device import pack_places, unpack
from pelton.runner.graphs import capture_graph
from pelton.runner.inputs import Layout, SampledRows
from pelton.runner.slots import Slots

MAX_TOKENS = 1024
"""From here on the GPU takes longer than the host needs to launch a step's kernels."""
_LEAST_ROWS = 4
_TOKENS_PER_ROW = 32


def prompt_graph_sizes(max_num_tokens: int) -> list[int]:
    """Padded numbers of tokens: 6 % apart at most from 256 on, where every token costs time."""
    sizes = [*range(16, 257, 16), *range(288, 513, 32), *range(576, MAX_TOKENS + 1, 64)]
    most = min(max_num_tokens, MAX_TOKENS)
    return [size for size in sizes if size < most] + [most]


def max_rows(size: int) -> int:
    """The most sequences in a step that is padded to `size` tokens."""
    return max(_LEAST_ROWS, size // _TOKENS_PER_ROW)


class PromptGraphs:
    """The graphs of one model over one pool.

    Args:
        decoder: the model; its kernels must read what differs between steps from the device alone.
        max_num_tokens: the most tokens of a step.
    """

    def __init__(self, decoder: Any, pool: KvPool, slots: Slots, max_num_tokens: int):
        self.sizes = prompt_graph_sizes(max_num_tokens)
        self._decoder, self._pool, self._slots = decoder, pool, slots
        self._attention = load_ops(slots.device.type).attention
        self._queries_per_tile = self._attention.queries_per_tile(pool.data, decoder.config.num_heads)
        self._has_rope_lens = is_length_dependent(decoder.config.rope)
        num_bytes = max(pack_places(tuple(self._pad(size, {}).values()))[1] for size in self.sizes)
        self._buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=slots.device)
        self._views: dict[int, dict[str, torch.Tensor]] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._hidden: dict[int, torch.Tensor] = {}

    def takes(self, layout: Layout) -> bool:
        """Whether `replay` can run the step."""
        if layout.num_decodes or layout.num_tokens > self.sizes[-1]:
            return False
        return len(layout.slots) <= max_rows(self._size_of(layout))

    def capture(self, stream: torch.cuda.Stream, memory: Any) -> None:
        """Captures every size, largest first, so that the others find its memory. Call it once, under inference mode
        with `stream` as the current one.

        Args:
            memory: handle of the memory pool of all graphs.
        """
        for size in reversed(self.sizes):
            arrays = self._pad(size, {})
            views = unpack(self._buffer, tuple(arrays.values()), pack_places(tuple(arrays.values()))[0])
            self._views[size] = dict(zip(arrays, views, strict=True))
            self._slots.staging.put_into(self._buffer, *arrays.values())
            self._graphs[size], self._hidden[size] = capture_graph(lambda size=size: self._run(size), stream, memory)

    def replay(self, layout: Layout) -> tuple[torch.Tensor, SampledRows, torch.Tensor]:
        """Runs one step. Returns hidden states [T, D], valid until the next replay of any graph, the sampled rows, and
        which of the hidden states are theirs, [R] int64."""
        size = self._size_of(layout)
        columns = {
            "token_ids": layout.known_tokens, "positions": layout.positions, "slot_mapping": layout.slot_mapping,
            "query_start": layout.query_start, "seq_lens": layout.seq_lens,
            "block_tables": self._slots.block_tables[layout.slots],
            "tiles": self._attention.cut_tiles(layout.query_lens, layout.seq_lens.tolist(), 0, self._queries_per_tile),
            "slot_index": layout.sampled_slots, "position_index": layout.sampled_positions,
            "row_index": layout.row_index, "rope_lens": layout.rope_lens}
        self._slots.staging.put_into(self._buffer, *self._pad(size, columns).values())
        self._graphs[size].replay()
        num_sampled = len(layout.sampled_slots)
        slot_index, position_index, row_index = (
            self._views[size][name][:num_sampled] for name in ("slot_index", "position_index", "row_index"))
        return self._hidden[size][:layout.num_tokens], layout.sampled(slot_index, position_index), row_index

    def _size_of(self, layout: Layout) -> int:
        return self.sizes[bisect_left(self.sizes, layout.num_tokens)]

    def _pad(self, size: int, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a graph reads, in the order of its memory; a column that is not given pads all through."""
        num_rows = max_rows(size)
        num_tiles = size // self._queries_per_tile + num_rows  # each row's last tile may be cut short
        table = self._slots.block_tables.shape[1]
        shapes: dict[str, tuple[tuple[int, ...], type, int]] = {
            "token_ids": ((size,), np.int64, 0), "positions": ((size,), np.int64, 0),
            "slot_mapping": ((size,), np.int64, -1), "query_start": ((num_rows + 1,), np.int32, 0),
            "seq_lens": ((num_rows,), np.int32, 0), "block_tables": ((num_rows, table), np.int32, 0),
            "tiles": ((num_tiles, 2), np.int32, -1), "slot_index": ((num_rows,), np.int64, 0),
            "position_index": ((num_rows,), np.int32, 0), "row_index": ((num_rows,), np.int64, 0)}
        if self._has_rope_lens:
            shapes["rope_lens"] = ((size,), np.int64, 0)
        padded = {}
        for name, (shape, dtype, value) in shapes.items():
            padded[name] = np.full(shape, value, dtype=dtype)
            column = columns.get(name)
            if column is not None:
                padded[name][:len(column)] = column
        return padded

    def _run(self, size: int) -> torch.Tensor:
        """The step over the buffers; [size, D]."""
        views = self._views[size]
        meta = AttentionMetadata(
            num_decodes=0, query_start=views["query_start"], seq_lens=views["seq_lens"],
            block_tables=views["block_tables"], slot_mapping=views["slot_mapping"], query_lens_host=[],
            seq_lens_host=[], rope_lens=views.get("rope_lens"), prefill_tiles=views["tiles"])
        return self._decoder.forward(views["token_ids"], views["positions"], self._pool, meta)
