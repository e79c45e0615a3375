"""CUDA graphs of steps with prompts, and few tokens in all: one per padded number of tokens.

Launching a step's kernels one by one takes the host longer than a few tokens take the GPU. All that a graph reads of
its step but the last tokens of rows that decode is known on the host, and goes to fixed buffers in one copy. Rows that
decode are tiles of one query to attention, like any chunk of a prompt, as long as their sequences are short. Tokens
that pad a step have negative slots and write no keys; their hidden states mean nothing. Rows that pad it have no tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pelton.cache.pool import KvPool
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.integers import ceil_div
from pelton.kernels.registry import load_ops
from pelton.models.rope import is_length_dependent
from pelton.runner.device import pack, pack_places, unpack
from pelton.runner.graphs import capture_graph
from pelton.runner.inputs import Layout, SampledRows
from pelton.runner.padding import padded, row_sizes, token_sizes
from pelton.runner.slots import Slots

MAX_TOKENS = 1024
"""From here on the GPU takes longer than the host needs to launch a step's kernels."""
MAX_DECODED_LEN = 512
"""Beyond it, a sequence's keys are too many for the one program per key head that a tile gets."""
_LEAST_ROWS = 4
_MOST_ROWS = 64
_TOKENS_PER_ROW = 8
_TABLES = "block_tables"


def max_rows(size: int) -> int:
    """The most sequences in a step that is padded to `size` tokens."""
    return min(_MOST_ROWS, max(_LEAST_ROWS, size // _TOKENS_PER_ROW))


class _Buffers:
    """What the graph of one size reads, by name, and where it lies on the device.

    Args:
        padding: what it reads where a step has nothing; block tables come last, as those of rows that pad a step are
            not read, and are not written either.
        target: [n] uint8 on the device, of which it takes the beginning.
    """

    def __init__(self, padding: dict[str, np.ndarray], target: torch.Tensor):
        arrays = tuple(padding.values())
        places, num_bytes = pack_places(arrays)
        self._padding = np.zeros(num_bytes, dtype=np.uint8)
        pack(arrays, places, self._padding)
        self._places = dict(zip(padding, places, strict=True))
        self._target = target
        self.device = dict(zip(padding, unpack(target, arrays, places), strict=True))

    def write(self, columns: dict[str, np.ndarray], staging: Any) -> None:
        """Copies a step's columns to the device, padded."""
        num_bytes = self._places[_TABLES]
        if _TABLES in columns:
            num_bytes += columns[_TABLES].nbytes

        def fill(out: np.ndarray) -> None:
            out[:] = self._padding[:num_bytes]
            for name, column in columns.items():
                place = self._places[name]
                out[place:place + column.nbytes].view(column.dtype)[:] = column.reshape(-1)

        staging.write_into(self._target, num_bytes, fill)


class PromptGraphs:
    """The graphs of one model over one pool.

    Args:
        decoder: the model; its kernels must read what differs between steps from the device alone.
        max_num_tokens: the most tokens of a step.
    """

    def __init__(self, decoder: Any, pool: KvPool, slots: Slots, max_num_tokens: int):
        self.sizes = token_sizes(min(max_num_tokens, MAX_TOKENS))
        self._row_sizes = row_sizes(slots.num_slots)
        self._decoder, self._pool, self._slots = decoder, pool, slots
        self._attention = load_ops(slots.device.type).attention
        self._queries_per_tile = self._attention.queries_per_tile(pool.data, decoder.config.num_heads)
        self._has_rope_lens = is_length_dependent(decoder.config.rope)
        # Of a single prompt, whose tiles are the last ones of the longest's.
        self._tiles = self._attention.cut_tiles([self.sizes[-1]], [self.sizes[-1]], 0, self._queries_per_tile)
        paddings = {size: self._padding(size) for size in self.sizes}
        num_bytes = max(pack_places(tuple(padding.values()))[1] for padding in paddings.values())
        memory = torch.zeros(num_bytes, dtype=torch.uint8, device=slots.device)
        self._buffers = {size: _Buffers(padding, memory) for size, padding in paddings.items()}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._hidden: dict[int, torch.Tensor] = {}

    def takes(self, layout: Layout) -> bool:
        """Whether `replay` can run the step."""
        if layout.num_tokens > self.sizes[-1] or len(layout.slots) > max_rows(self._size_of(layout)):
            return False
        return not layout.num_decodes or int(layout.seq_lens[:layout.num_decodes].max()) <= MAX_DECODED_LEN

    def capture(self, memory: Any) -> None:
        """Captures every size, largest first, so that the others find its memory. Call it once, under inference mode,
        on the stream of the steps.

        Args:
            memory: handle of the memory pool of all graphs.
        """
        for size in reversed(self.sizes):
            self._buffers[size].write({}, self._slots.staging)
            self._graphs[size], self._hidden[size] = capture_graph(lambda size=size: self._run(size), memory)

    def replay(self, layout: Layout) -> tuple[torch.Tensor, SampledRows, torch.Tensor]:
        """Runs one step. Returns hidden states [T, D], valid until the next replay of any graph, the sampled rows, and
        which of the hidden states are theirs, [R] int64, and some more that mean nothing."""
        size = self._size_of(layout)
        buffers = self._buffers[size]
        buffers.write(self._columns(layout), self._slots.staging)
        on_device = buffers.device
        if layout.num_decodes:
            decoding = slice(0, layout.num_decodes)
            torch.index_select(self._slots.last_tokens, 0, on_device["slots"][decoding],
                               out=on_device["token_ids"][decoding])
        self._graphs[size].replay()
        num_sampled = len(layout.sampled_slots)
        sampled = layout.sampled(on_device["slot_index"][:num_sampled], on_device["position_index"][:num_sampled])
        row_index = on_device["row_index"][:padded(num_sampled, self._row_sizes)]
        return self._hidden[size][:layout.num_tokens], sampled, row_index

    def _size_of(self, layout: Layout) -> int:
        return padded(layout.num_tokens, self.sizes)

    def _columns(self, layout: Layout) -> dict[str, np.ndarray]:
        """What a graph reads of a step."""
        known = layout.known_tokens
        if layout.num_decodes:
            known = np.concatenate((np.zeros(layout.num_decodes, dtype=np.int64), known))
        columns = {
            "token_ids": known, "positions": layout.positions, "slot_mapping": layout.slot_mapping,
            "query_start": layout.query_start, "seq_lens": layout.seq_lens, "slots": layout.slots,
            "tiles": self._cut_tiles(layout), "slot_index": layout.sampled_slots,
            "position_index": layout.sampled_positions, "row_index": layout.row_index}
        if layout.rope_lens is not None:
            columns["rope_lens"] = layout.rope_lens
        return {**columns, _TABLES: self._slots.block_tables[layout.slots]}

    def _cut_tiles(self, layout: Layout) -> np.ndarray:
        """[tiles, 2] int32."""
        if len(layout.query_lens) == 1:
            return self._tiles[-ceil_div(layout.num_tokens, self._queries_per_tile):]
        return self._attention.cut_tiles(layout.query_lens, layout.seq_lens.tolist(), 0, self._queries_per_tile)

    def _padding(self, size: int) -> dict[str, np.ndarray]:
        """The columns of a step without tokens, in their full lengths."""
        num_rows = max_rows(size)
        num_tiles = size // self._queries_per_tile + num_rows  # each row's last tile may be cut short

        def zeros(*shape: int, dtype: type = np.int64) -> np.ndarray:
            return np.zeros(shape, dtype=dtype)

        padding = {
            "token_ids": zeros(size), "positions": zeros(size), "slot_mapping": zeros(size) - 1,
            "query_start": zeros(num_rows + 1, dtype=np.int32), "seq_lens": zeros(num_rows, dtype=np.int32),
            "slots": zeros(num_rows),
            "tiles": zeros(num_tiles, 2, dtype=np.int32) - 1, "slot_index": zeros(num_rows),
            "position_index": zeros(num_rows, dtype=np.int32), "row_index": zeros(num_rows)}
        if self._has_rope_lens:
            padding["rope_lens"] = zeros(size)
        return {**padding, _TABLES: zeros(num_rows, self._slots.block_tables.shape[1], dtype=np.int32)}

    def _run(self, size: int) -> torch.Tensor:
        """The step over the buffers; [size, D]."""
        on_device = self._buffers[size].device
        meta = AttentionMetadata(
            num_decodes=0, query_start=on_device["query_start"], seq_lens=on_device["seq_lens"],
            block_tables=on_device[_TABLES], slot_mapping=on_device["slot_mapping"], query_lens_host=[],
            seq_lens_host=[], rope_lens=on_device.get("rope_lens"), prefill_tiles=on_device["tiles"])
        return self._decoder.forward(on_device["token_ids"], on_device["positions"], self._pool, meta)
