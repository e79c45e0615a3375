"""A batch and the slots become the tensors that one forward pass reads. Arrays throughout: no loop over tokens."""

from __future__ import annotations

from dataclasses import dataclass

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
class Inputs:
    """What a forward pass reads, and which of its rows are wanted after it."""

    token_ids: torch.Tensor
    """[T] int64."""
    positions: torch.Tensor
    """[T] int64."""
    meta: AttentionMetadata
    sampled_slots: np.ndarray
    """[R] int64."""
    sampled_rows: np.ndarray
    """[R] int64, of the hidden states [T, D]: the last token of each sampled row."""
    sampled_positions: np.ndarray
    """[R] int64: index in its sequence of each token to be drawn."""
    prompt_rows: list[PromptRows]


def make_inputs(batch: Batch, slots: Slots, rope: RopeConfig) -> Inputs:
    """Lays out the step's tokens row after row. The batch's changes have been applied to the slots.

    Args:
        rope: the model's; some kinds turn tokens by an angle that depends on the sequence's length.
    """
    rows = np.array(batch.slots, dtype=np.int64)  # [B]
    starts = np.array(batch.starts, dtype=np.int64)
    lengths = np.array(batch.num_tokens, dtype=np.int64)
    stops = starts + lengths
    _check(batch, slots, rows, lengths, stops)
    query_start = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=query_start[1:])
    positions = np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)  # [T]
    meta = _metadata(batch, slots, rows, lengths, stops, query_start, positions)
    if is_length_dependent(rope):
        meta.rope_lens = torch.from_numpy(_rope_lens(rope, slots, np.repeat(rows, lengths), positions)).to(slots.device)
    is_sampled = np.array(batch.is_sampled, dtype=bool)
    return Inputs(
        token_ids=_token_ids(batch, slots, rows), positions=torch.from_numpy(positions).to(slots.device),
        meta=meta, sampled_slots=rows[is_sampled], sampled_rows=query_start[1:][is_sampled] - 1,
        sampled_positions=stops[is_sampled], prompt_rows=_prompt_rows(batch, slots, rows, query_start))


def _check(batch: Batch, slots: Slots, rows: np.ndarray, lengths: np.ndarray, stops: np.ndarray) -> None:
    num_decodes = batch.num_decodes
    assert len(rows), "a step without rows"
    assert (lengths > 0).all(), "a row without tokens"
    assert (lengths[:num_decodes] == 1).all(), "a decode row runs one token"
    assert slots.is_taken[rows].all(), "a row names a slot that holds no sequence"
    is_known = stops <= slots.num_known_tokens[rows]
    assert is_known[num_decodes:].all(), "a row runs tokens that were not handed over"
    assert (stops <= slots.num_blocks[rows] * slots.tokens_per_block).all(), "a row runs past its blocks"


def _token_ids(batch: Batch, slots: Slots, rows: np.ndarray) -> torch.Tensor:
    """[T] int64. Decode rows read the device's own last tokens: the host may not know them yet."""
    num_decodes = batch.num_decodes
    decoded = slots.last_tokens[torch.from_numpy(rows[:num_decodes]).to(slots.device)]
    if num_decodes == batch.num_rows:
        return decoded
    known = [slots.token_ids[slot][start:start + num] for slot, start, num in zip(
        batch.slots[num_decodes:], batch.starts[num_decodes:], batch.num_tokens[num_decodes:], strict=True)]
    return torch.cat((decoded, torch.from_numpy(np.concatenate(known)).to(slots.device)))


def _metadata(batch: Batch, slots: Slots, rows: np.ndarray, lengths: np.ndarray, stops: np.ndarray,
              query_start: np.ndarray, positions: np.ndarray) -> AttentionMetadata:
    size = slots.tokens_per_block
    num_blocks = -(-stops // size)  # [B]
    tables = slots.block_tables[rows, :int(num_blocks.max())]  # [B, M]
    token_rows = np.repeat(np.arange(len(rows)), lengths)
    slot_mapping = tables[token_rows, positions // size].astype(np.int64) * size + positions % size
    device = slots.device
    return AttentionMetadata(
        num_decodes=batch.num_decodes, query_start=torch.from_numpy(query_start.astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(stops.astype(np.int32)).to(device), block_tables=torch.from_numpy(tables).to(device),
        slot_mapping=torch.from_numpy(slot_mapping).to(device), query_lens_host=batch.num_tokens,
        seq_lens_host=stops.tolist(), block_tables_host=None)


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
