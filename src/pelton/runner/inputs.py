"""A batch and the slots become the tensors that one forward pass reads. Arrays throughout: no loop over tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pelton.config import RopeConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.models.rope import is_length_dependent
from pelton.runner.slots import Slots
from pelton.types import Batch


@dataclass(kw_only=True)
class PromptRows:
    """Tokens of one row whose followers in the prompt are to be scored."""

    slot: int
    first_row: int
    """Of the hidden states; the others come after it."""
    targets: np.ndarray
    """[n] int64: the followers."""
    num_top: int


@dataclass(kw_only=True)
class SampledRows:
    """The R rows of a step that end at their sequence's last token, in the order of the batch."""

    slots: np.ndarray
    """[R] int64."""
    positions: np.ndarray
    """[R] int64: index in its sequence of each token to be drawn."""
    slot_index: torch.Tensor
    """`slots` on the device."""
    position_index: torch.Tensor
    """[R] int32: `positions` on the device."""


@dataclass(kw_only=True)
class Layout:
    """The tokens of a step's B rows, row after row, as host arrays; R of the rows are sampled."""

    num_decodes: int
    query_lens: list[int]
    slots: np.ndarray
    """[B] int64."""
    query_start: np.ndarray
    """[B + 1] int32."""
    seq_lens: np.ndarray
    """[B] int32."""
    positions: np.ndarray
    """[T] int64."""
    slot_mapping: np.ndarray
    """[T] int64: where in the pool each token's key and value go."""
    known_tokens: np.ndarray
    """[T - num_decodes] int64: of the rows that do not decode."""
    sampled_slots: np.ndarray
    """[R] int64."""
    sampled_positions: np.ndarray
    """[R] int32, of the tokens to be drawn."""
    row_index: np.ndarray
    """[R] int64, the last token of each sampled row."""
    rope_lens: np.ndarray | None
    """[T] int64, for models whose rotation depends on it."""
    prompt_rows: list[PromptRows]

    @property
    def num_tokens(self) -> int:
        return len(self.positions)

    def padded(self, num_tokens: int, num_sampled: int) -> Layout:
        """With tokens that belong to no row and write no keys, num_tokens in all, and `row_index` with num_sampled
        entries. What comes of the tokens and entries that are added means nothing."""
        zeros = np.zeros(num_tokens - self.num_tokens, dtype=np.int64)
        entries = np.zeros(num_sampled - len(self.row_index), dtype=np.int64)
        return replace(
            self, row_index=np.concatenate((self.row_index, entries)),
            positions=np.concatenate((self.positions, zeros)),
            slot_mapping=np.concatenate((self.slot_mapping, zeros - 1)),
            known_tokens=np.concatenate((self.known_tokens, zeros)),
            rope_lens=None if self.rope_lens is None else np.concatenate((self.rope_lens, zeros)))

    def sampled(self, slot_index: torch.Tensor, position_index: torch.Tensor) -> SampledRows:
        """The sampled rows, given their slots and positions on the device."""
        return SampledRows(slots=self.sampled_slots, positions=self.sampled_positions.astype(np.int64),
                           slot_index=slot_index, position_index=position_index)


@dataclass(kw_only=True)
class Inputs:
    """What a forward pass reads, and which of its rows are wanted after it."""

    token_ids: torch.Tensor
    """[T] int64."""
    positions: torch.Tensor
    """[T] int64."""
    meta: AttentionMetadata
    sampled: SampledRows
    row_index: torch.Tensor
    """[R] int64, of the hidden states [T, D]: the last token of each sampled row."""


@dataclass(kw_only=True)
class DecodeRows:
    """B rows that run their slots' last tokens, as host arrays."""

    slots: np.ndarray
    """[B] int64."""
    positions: np.ndarray
    """[B] int64, of the tokens that run."""
    rope_lens: np.ndarray | None
    """[B] int64, for models whose rotation depends on it."""


def decode_rows(batch: Batch, slots: Slots, rope: RopeConfig) -> DecodeRows | None:
    """The rows of a batch of which all decode and are sampled; None for any other batch."""
    if batch.num_decodes < batch.num_rows or not all(batch.is_sampled):
        return None
    rows = np.array(batch.slots, dtype=np.int64)
    starts = np.array(batch.starts, dtype=np.int64)
    _check(batch, slots, rows, np.ones(len(rows), dtype=np.int64), starts + 1)
    rope_lens = _rope_lens(rope, slots, rows, starts) if is_length_dependent(rope) else None
    return DecodeRows(slots=rows, positions=starts, rope_lens=rope_lens)


def lay_out(batch: Batch, slots: Slots, rope: RopeConfig) -> Layout:
    """Lays a step's tokens out. The batch's changes have been applied to the slots.

    Args:
        rope: the model's; some kinds turn tokens by an angle that depends on the sequence's length.
    """
    if batch.num_rows == 1 and not batch.num_decodes:
        return _lay_out_one(batch, slots, rope)
    return _lay_out_rows(batch, slots, rope)


def _lay_out_rows(batch: Batch, slots: Slots, rope: RopeConfig) -> Layout:
    """Of any batch."""
    rows = np.array(batch.slots, dtype=np.int64)  # [B]
    starts = np.array(batch.starts, dtype=np.int64)
    lengths = np.array(batch.num_tokens, dtype=np.int64)
    stops = starts + lengths
    _check(batch, slots, rows, lengths, stops)
    query_start = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=query_start[1:])
    positions = np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)  # [T]
    is_sampled = np.array(batch.is_sampled, dtype=bool)
    rope_lens = None
    if is_length_dependent(rope):
        rope_lens = _rope_lens(rope, slots, np.repeat(rows, lengths), positions)
    return Layout(
        num_decodes=batch.num_decodes, query_lens=batch.num_tokens, slots=rows,
        query_start=query_start.astype(np.int32), seq_lens=stops.astype(np.int32), positions=positions,
        slot_mapping=_slot_mapping(slots, rows, lengths, positions), known_tokens=_known_tokens(batch, slots),
        sampled_slots=rows[is_sampled], sampled_positions=stops[is_sampled].astype(np.int32),
        row_index=query_start[1:][is_sampled] - 1, rope_lens=rope_lens,
        prompt_rows=_prompt_rows(batch, slots, rows, query_start))


def _lay_out_one(batch: Batch, slots: Slots, rope: RopeConfig) -> Layout:
    """The same of a single prompt, or a chunk of it, with a third of the calls: who is alone waits for each of them."""
    slot, start, num_tokens, size = batch.slots[0], batch.starts[0], batch.num_tokens[0], slots.tokens_per_block
    stop = start + num_tokens
    _check_row(slots, slot, num_tokens, stop)
    numbers = np.array((slot, 0, num_tokens, stop, num_tokens - 1), dtype=np.int64)
    short = numbers.astype(np.int32)
    rows, query_start, num_sampled = numbers[:1], numbers[1:3], int(batch.is_sampled[0])
    blocks = slots.block_tables[slot, start // size:(stop - 1) // size + 1] * np.int64(size)
    slot_mapping = (blocks[:, None] + slots.positions[:size]).reshape(-1)[start % size:start % size + num_tokens]
    rope_lens = None
    if is_length_dependent(rope):
        rope_lens = _rope_lens(rope, slots, np.repeat(rows, num_tokens), slots.positions[start:stop])
    return Layout(
        num_decodes=0, query_lens=batch.num_tokens, slots=rows, query_start=short[1:3], seq_lens=short[3:4],
        positions=slots.positions[start:stop], slot_mapping=slot_mapping,
        known_tokens=slots.token_ids[slot][start:stop], sampled_slots=rows[:num_sampled],
        sampled_positions=short[3:3 + num_sampled], row_index=numbers[4:4 + num_sampled], rope_lens=rope_lens,
        prompt_rows=_prompt_rows(batch, slots, rows, query_start) if slots.num_prompt_logprobs[slot] >= 0 else [])


def make_inputs(layout: Layout, slots: Slots) -> Inputs:
    """Brings a layout to the device. The slots' changes have been pushed."""
    row_slots, query_start, seq_lens, positions, slot_mapping, known, slot_index, position_index, row_index, *rest = \
        slots.staging.put(
            layout.slots, layout.query_start, layout.seq_lens, layout.positions, layout.slot_mapping,
            layout.known_tokens, layout.sampled_slots, layout.sampled_positions, layout.row_index,
            *(() if layout.rope_lens is None else (layout.rope_lens,)))
    num_blocks = -(-int(layout.seq_lens.max()) // slots.tokens_per_block)
    meta = AttentionMetadata(
        num_decodes=layout.num_decodes, query_start=query_start, seq_lens=seq_lens,
        block_tables=slots.gather_tables(layout.slots, row_slots, num_blocks), slot_mapping=slot_mapping,
        query_lens_host=layout.query_lens, seq_lens_host=layout.seq_lens.tolist(),
        rope_lens=rest[0] if rest else None, put=lambda array: slots.staging.put(array)[0])
    return Inputs(token_ids=_token_ids(layout.num_decodes, slots, row_slots, known), positions=positions, meta=meta,
                  sampled=layout.sampled(slot_index, position_index), row_index=row_index)


def _check(batch: Batch, slots: Slots, rows: np.ndarray, lengths: np.ndarray, stops: np.ndarray) -> None:
    num_decodes = batch.num_decodes
    assert len(rows), "a step without rows"
    assert (lengths > 0).all(), "a row without tokens"
    assert (lengths[:num_decodes] == 1).all(), "a decode row runs one token"
    assert slots.is_taken[rows].all(), "a row names a slot that holds no sequence"
    is_known = stops <= slots.num_known_tokens[rows]
    assert is_known[num_decodes:].all(), "a row runs tokens that were not handed over"
    assert (stops <= slots.num_blocks[rows] * slots.tokens_per_block).all(), "a row runs past its blocks"


def _check_row(slots: Slots, slot: int, num_tokens: int, stop: int) -> None:
    """`_check` of a row that does not decode."""
    assert num_tokens > 0, "a row without tokens"
    assert slots.is_taken[slot], "a row names a slot that holds no sequence"
    assert stop <= slots.num_known_tokens[slot], "a row runs tokens that were not handed over"
    assert stop <= slots.num_blocks[slot] * slots.tokens_per_block, "a row runs past its blocks"


def _known_tokens(batch: Batch, slots: Slots) -> np.ndarray:
    """[n] int64: the tokens of the rows that do not decode."""
    num_decodes = batch.num_decodes
    known = [slots.token_ids[slot][start:start + num] for slot, start, num in zip(
        batch.slots[num_decodes:], batch.starts[num_decodes:], batch.num_tokens[num_decodes:], strict=True)]
    return np.concatenate(known) if known else np.empty(0, dtype=np.int64)


def _token_ids(num_decodes: int, slots: Slots, row_slots: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[T] int64. Decode rows read the device's own last tokens: the host may not know them yet."""
    if not num_decodes:
        return known
    decoded = slots.last_tokens.index_select(0, row_slots[:num_decodes])
    return torch.cat((decoded, known)) if len(known) else decoded


def _slot_mapping(slots: Slots, rows: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[T] int64: where in the pool each token's key and value go."""
    size = slots.tokens_per_block
    return slots.block_tables[np.repeat(rows, lengths), positions // size].astype(np.int64) * size + positions % size


def _rope_lens(rope: RopeConfig, slots: Slots, token_slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`models.rope.rope_length` of each token. token_slots, positions: [T] -> [T] int64."""
    if rope.kind == "dynamic":
        return np.maximum(slots.num_prompt_tokens[token_slots], positions + 1)
    return slots.max_total_tokens[token_slots]


def _prompt_rows(batch: Batch, slots: Slots, rows: np.ndarray, query_start: np.ndarray) -> list[PromptRows]:
    wanted = []
    for row in np.flatnonzero(slots.num_prompt_logprobs[rows] >= 0).tolist():
        slot, start = batch.slots[row], batch.starts[row]
        stop = min(start + batch.num_tokens[row] + 1, int(slots.num_prompt_tokens[slot]))
        targets = slots.token_ids[slot][start + 1:stop]
        if len(targets):
            wanted.append(PromptRows(slot=slot, first_row=int(query_start[row]), targets=targets,
                                     num_top=int(slots.num_prompt_logprobs[slot])))
    return wanted
