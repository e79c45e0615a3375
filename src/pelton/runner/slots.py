"""Slots: what the runner remembers of each running sequence, so that a batch need only say what changed.

A slot holds its sequence's known tokens, block table, last sampled token, sampling parameters and, where penalties ask
for them, token counts. What a launched step reads or writes before its tokens are known on the host (last tokens,
counts) lives in tensors on the device; the rest in host arrays, of which a GPU has copies of those that its kernels
read by slot (block tables, parameters). Knows no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pelton.kernels.sampling.columns import Columns
from pelton.runner.device import make_staging
from pelton.types import Batch, Masks, SamplingParams, SlotInit

if TYPE_CHECKING:
    from pelton.kernels.sampling.state import SlotParams

_COLUMNS = {  # column -> (type, field of SamplingParams)
    "temperature": (np.float32, "temperature"), "top_k": (np.int32, "top_k"), "top_p": (np.float64, "top_p"),
    "min_p": (np.float64, "min_p"), "repetition": (np.float32, "repetition_penalty"),
    "frequency": (np.float32, "frequency_penalty"), "presence": (np.float32, "presence_penalty"),
}


class Slots:
    """State of `num_slots` sequences.

    Args:
        max_seq_len: prompt plus output tokens of one sequence.
        tokens_per_block: tokens in one block of the KV cache.
        vocab_size: ids at or above it cannot be drawn, so a bias on them or a ban of them is dropped.
    """

    def __init__(self, *, num_slots: int, max_seq_len: int, tokens_per_block: int, vocab_size: int,
                 device: torch.device):
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len
        self.tokens_per_block = tokens_per_block
        self.vocab_size = vocab_size
        self.device = device
        self.block_tables = np.zeros((num_slots, -(-max_seq_len // tokens_per_block)), dtype=np.int32)
        self.num_blocks = np.zeros(num_slots, dtype=np.int64)
        self.positions = np.arange(self.block_tables.shape[1] * tokens_per_block)  # 0, 1, ..., of any sequence
        self.is_taken = np.zeros(num_slots, dtype=bool)
        self.num_prompt_tokens = np.zeros(num_slots, dtype=np.int64)
        self.num_known_tokens = np.zeros(num_slots, dtype=np.int64)
        self.max_total_tokens = np.zeros(num_slots, dtype=np.int64)  # prompt plus the most that may be generated
        self.token_ids: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * num_slots
        self.num_logprobs = np.full(num_slots, -1, dtype=np.int64)  # -1: none wanted
        self.num_prompt_logprobs = np.full(num_slots, -1, dtype=np.int64)
        self.staging = make_staging(device, self._staging_bytes())
        self.last_tokens: torch.Tensor  # [num_slots] int64
        self.counts: torch.Tensor | None = None  # [num_slots, V] int32, as in Columns.counts
        self.device_tables: torch.Tensor | None = None  # as block_tables, where kernels read them
        self.device_params: SlotParams | None = None  # likewise the columns
        if device.type == "cuda":
            self._make_device_state()
        else:
            self.last_tokens = torch.zeros(num_slots, dtype=torch.int64)
        self._columns = {name: np.zeros(num_slots, dtype=dtype) for name, (dtype, _) in _COLUMNS.items()}
        self._columns["seed"] = np.zeros(num_slots, dtype=np.int64)
        self._is_counted = np.zeros(num_slots, dtype=bool)
        self._min_tokens = np.zeros(num_slots, dtype=np.int64)
        self._is_adjusted = np.zeros(num_slots, dtype=bool)  # needs more than the columns
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._end_ids: dict[int, torch.Tensor] = {}

    def apply(self, batch: Batch) -> None:
        """Takes in what changed, in the order that `Batch` gives: freed, new, new blocks. `push` has to follow, but
        only before tokens are drawn: the device need not wait for what sampling alone reads."""
        for slot in batch.freed:
            self._free(slot)
        for init in batch.new:
            self._take(init)
        for slot, block_ids in batch.new_blocks:
            assert self.is_taken[slot], f"blocks for slot {slot}, which holds no sequence"
            self._append_blocks(slot, block_ids)

    def push(self, batch: Batch) -> None:
        """Takes in how new sequences are sampled, and brings all of what changed to the device, before anything there
        reads tables, parameters or last tokens."""
        for init in batch.new:
            self._take_sampling(init)
        if self.device_tables is not None:
            self._push_blocks(batch)
            self._push_parameters(batch.new)

    def columns(self, slots: np.ndarray, positions: np.ndarray, masks: Masks | None) -> Columns:
        """The sampling parameters of some slots' sequences. slots, positions: [R] int64."""
        columns = Columns(position=positions, **{name: values[slots] for name, values in self._columns.items()})
        if masks or self._is_adjusted[slots].any():
            self._add_adjustments(columns, slots, masks or {})
        return columns

    def record(self, slots: np.ndarray, tokens: torch.Tensor) -> None:
        """The tokens just drawn become the last ones and are counted: on a CPU; a GPU's sampler does it itself.

        slots: [R], tokens: [R] int64.
        """
        index = torch.from_numpy(slots)
        self.last_tokens[index] = tokens
        is_counted = self._is_counted[slots]
        if is_counted.any():
            rows = torch.from_numpy(is_counted)
            self.counts[index[rows], tokens[rows]] += 2

    def gather_tables(self, slots: np.ndarray, slot_index: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """[R, num_blocks] int32 on the device: the block tables of some slots, given on the host and there."""
        if self.device_tables is not None:
            return self.device_tables[:, :num_blocks].index_select(0, slot_index)
        return torch.from_numpy(self.block_tables[slots, :num_blocks])

    def _staging_bytes(self) -> int:
        """Enough for the largest change of the tables, and some steps."""
        return 16 * self.block_tables.size + 2**22

    def _make_device_state(self) -> None:
        from pelton.kernels.sampling.state import SlotParams

        self.device_tables = torch.zeros(self.block_tables.shape, dtype=torch.int32, device=self.device)
        self.device_params = SlotParams(self.num_slots, self.vocab_size, self.device)
        self.last_tokens, self.counts = self.device_params.last_tokens, self.device_params.counts

    def _push_blocks(self, batch: Batch) -> None:
        width = self.block_tables.shape[1]
        places: list[int] = []
        for init in batch.new:
            places += range(init.slot * width, init.slot * width + len(init.block_ids))
        for slot, block_ids in batch.new_blocks:
            stop = slot * width + int(self.num_blocks[slot])
            places += range(stop - len(block_ids), stop)
        if places:
            index = np.array(places, dtype=np.int64)
            index, blocks = self.staging.put(index, self.block_tables.reshape(-1)[index])
            self.device_tables.view(-1).index_copy_(0, index, blocks)

    def _push_parameters(self, new: list[SlotInit]) -> None:
        if new:
            slots = np.array([init.slot for init in new], dtype=np.int64)
            index, params, seeds, tokens = self.staging.put(
                slots, self.device_params.pack([init.sampling for init in new]), self._columns["seed"][slots],
                np.array([init.token_ids[-1] for init in new], dtype=np.int64))
            self.device_params.params.index_copy_(0, index, params)
            self.device_params.seeds.index_copy_(0, index, seeds)
            self.last_tokens.index_copy_(0, index, tokens)

    def _free(self, slot: int) -> None:
        assert self.is_taken[slot], f"slot {slot} was freed but holds no sequence"
        self.is_taken[slot] = False
        self.token_ids[slot] = np.empty(0, dtype=np.int64)
        self._bias.pop(slot, None)
        self._end_ids.pop(slot, None)

    def _take(self, init: SlotInit) -> None:
        slot, params = init.slot, init.sampling
        assert not self.is_taken[slot], f"slot {slot} was given away twice"
        self.is_taken[slot] = True
        self.token_ids[slot] = np.array(init.token_ids, dtype=np.int64)
        self.num_known_tokens[slot] = len(init.token_ids)
        self.num_prompt_tokens[slot] = init.num_prompt_tokens
        max_total = self.max_seq_len if params.max_tokens is None else init.num_prompt_tokens + params.max_tokens
        self.max_total_tokens[slot] = min(self.max_seq_len, max_total)
        if self.device_tables is None:
            self.last_tokens[slot] = init.token_ids[-1]
        self.num_blocks[slot] = 0
        self._append_blocks(slot, init.block_ids)
        self.num_prompt_logprobs[slot] = -1 if params.prompt_logprobs is None else params.prompt_logprobs

    def _take_sampling(self, init: SlotInit) -> None:
        slot, params = init.slot, init.sampling
        for name, (_, field) in _COLUMNS.items():
            self._columns[name][slot] = getattr(params, field)
        self._columns["seed"][slot] = init.seed
        self.num_logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self._take_adjustments(init, params)

    def _take_adjustments(self, init: SlotInit, params: SamplingParams) -> None:
        slot = init.slot
        self._min_tokens[slot] = params.min_tokens
        bias = {token: value for token, value in (params.logit_bias or {}).items() if token < self.vocab_size}
        if bias:
            self._bias[slot] = (self._ids(list(bias)), torch.tensor(list(bias.values()), dtype=torch.float32))
        if params.min_tokens and init.end_ids:
            self._end_ids[slot] = self._ids(init.end_ids)
        self._is_counted[slot] = params.needs_counts
        if params.needs_counts:
            self._count(slot, self.token_ids[slot], init.num_prompt_tokens)
        self._is_adjusted[slot] = bool(bias) or params.needs_counts or slot in self._end_ids

    def _count(self, slot: int, token_ids: np.ndarray, num_prompt_tokens: int) -> None:
        if self.counts is None:  # numpy's zeros take up memory only where they are written
            self.counts = torch.from_numpy(np.zeros((self.num_slots, self.vocab_size), dtype=np.int32))
        known = token_ids[token_ids < self.vocab_size]
        num_prompt_tokens -= int((token_ids[:num_prompt_tokens] >= self.vocab_size).sum())
        output, occurrences = np.unique(known[num_prompt_tokens:], return_counts=True)
        prompt, output, doubled = self.staging.put(known[:num_prompt_tokens], output,
                                                   (2 * occurrences).astype(np.int32))
        row = self.counts[slot].zero_()
        row.index_fill_(0, prompt, 1)
        row.index_add_(0, output, doubled)

    def _append_blocks(self, slot: int, block_ids: list[int]) -> None:
        start = int(self.num_blocks[slot])
        self.block_tables[slot, start:start + len(block_ids)] = block_ids
        self.num_blocks[slot] = start + len(block_ids)

    def _add_adjustments(self, columns: Columns, slots: np.ndarray, masks: Masks) -> None:
        num_output = columns.position - self.num_prompt_tokens[slots]
        is_short = num_output < self._min_tokens[slots]
        for row, slot in enumerate(slots.tolist()):
            if slot in self._bias:
                columns.bias.append((row, *self._bias[slot]))
            if slot in self._end_ids and is_short[row]:
                columns.banned.append((row, self._end_ids[slot]))
            if masks.get(slot):
                columns.banned.append((row, self._ids(masks[slot])))
            if self._is_counted[slot]:
                columns.has_penalties = True
                if self.device_params is None:
                    columns.counts[row] = self.counts[slot]

    def _ids(self, token_ids: list[int] | tuple[int, ...] | np.ndarray) -> torch.Tensor:
        """On the host: those that can be drawn."""
        ids = torch.as_tensor(np.asarray(token_ids, dtype=np.int64))
        return ids[ids < self.vocab_size]
