"""From logits to tokens and log-probabilities, with the slots' parameters. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pelton.kernels.sampling import cpu
from pelton.kernels.sampling.columns import Columns
from pelton.runner.device import HostStaging, PinnedStaging, page_locked, to_host
from pelton.runner.inputs import SampledRows
from pelton.runner.slots import Slots
from pelton.types import Masks, TokenLogprobs

_SCORED_LOGITS = 2**24  # of one pass over prompt tokens: 64 MiB of float32


@dataclass(kw_only=True)
class Scores:
    """Log-probabilities of n tokens and of the k likeliest ones in their places."""

    token_ids: torch.Tensor
    """[n, 1 + k] int64, the token itself first."""
    logprobs: torch.Tensor
    """[n, 1 + k] float32."""
    ranks: torch.Tensor
    """[n] int64."""

    @classmethod
    def of(cls, columns: tuple[torch.Tensor, ...]) -> Scores:
        """From the samplers' triple."""
        return cls(token_ids=columns[0], logprobs=columns[1], ranks=columns[2])

    def to_host(self) -> Scores:
        """Where `to_entries` can read it once the device has got there."""
        return Scores(token_ids=to_host(self.token_ids), logprobs=to_host(self.logprobs), ranks=to_host(self.ranks))

    def to_entries(self, num_top: list[int]) -> list[TokenLogprobs]:
        """One entry per token, with as many likeliest ones as it asked for. num_top: n counts of at most k."""
        columns = (self.token_ids.tolist(), self.logprobs.tolist(), self.ranks.tolist())
        return [TokenLogprobs(ids[:1 + top], values[:1 + top], rank)
                for ids, values, rank, top in zip(*columns, num_top, strict=True)]


@dataclass(kw_only=True)
class Drawn:
    """What was drawn for R rows."""

    tokens: torch.Tensor
    """[R] int64."""
    scored_rows: list[int]
    """Rows that asked for log-probabilities."""
    num_top: list[int]
    """Likeliest tokens that each of them asked for."""
    scores: Scores | None

    def logprobs(self) -> list[TokenLogprobs | None] | None:
        """One entry per row; None where the row asked for none, and none at all if no row did."""
        if self.scores is None:
            return None
        entries: list[TokenLogprobs | None] = [None] * len(self.tokens)
        for row, entry in zip(self.scored_rows, self.scores.to_entries(self.num_top), strict=True):
            entries[row] = entry
        return entries


def draw(logits: torch.Tensor, slots: Slots, sampled: SampledRows, masks: Masks | None) -> Drawn:
    """Draws the next token of each sampled row of a step, records it in its slot, and sends it to the host.

    Args:
        logits: [R, V] float32; may be changed.
    """
    rows = sampled.slots
    num_logprobs = slots.num_logprobs[rows]
    scored_rows = np.flatnonzero(num_logprobs >= 0)
    columns = slots.columns(rows, sampled.positions, masks)
    if slots.device_params is not None:
        tokens, scores = _draw_on_device(logits, slots, sampled, columns, scored_rows, int(num_logprobs.max()))
    else:
        # Log-probabilities are those of the model's own logits, and sampling adjusts logits in place.
        raw = logits[scored_rows] if len(scored_rows) else None
        tokens = cpu.sample(logits, columns)
        slots.record(rows, tokens)
        scores = None if raw is None else Scores.of(
            cpu.logprobs(raw, tokens[scored_rows], int(num_logprobs.max())))
    return Drawn(tokens=tokens, scored_rows=scored_rows.tolist(), num_top=num_logprobs[scored_rows].tolist(),
                 scores=scores)


def _draw_on_device(logits: torch.Tensor, slots: Slots, sampled: SampledRows, columns: Columns, scored_rows: np.ndarray,
                    num_top: int) -> tuple[torch.Tensor, Scores | None]:
    """Tokens [R] where the host can read them once the device has got there, and the scores of the rows that want
    them."""
    from pelton.kernels.sampling import triton as sampler

    vocab_size = logits.shape[1]
    rows = slots.device_params.rows(sampled.slot_index, sampled.position_index)
    scored = slots.staging.put(scored_rows)[0] if len(scored_rows) else None
    raw, index = logits, scored
    if columns.is_adjusted:
        if scored is not None:
            raw, index = logits[scored], torch.arange(len(scored_rows), device=logits.device)
        addends = columns.addends(vocab_size)
        sampler.adjust(logits, rows, addends=addends and tuple(slots.staging.put(*addends)),
                       has_penalties=columns.has_penalties)
    # The last kernel of a draw writes the tokens to the host itself: a copy would cost another 7 us of every step.
    host = page_locked(len(logits), torch.int64, num_rows_kept=slots.num_slots)
    truncates = bool(columns.truncates(vocab_size).any())
    if scored is None:
        return sampler.sample(logits, rows, truncates=truncates, out=host), None
    tokens = sampler.sample(logits, rows, truncates=truncates)
    chosen = tokens if len(scored_rows) == len(tokens) else tokens[scored]
    scores = Scores.of(sampler.logprobs(raw, index, chosen, num_top)).to_host()
    return host.copy_(tokens, non_blocking=True), scores


def score_prompt(hidden: torch.Tensor, targets: np.ndarray, num_top: int, vocab_size: int,
                 head: Callable[[torch.Tensor], torch.Tensor], staging: HostStaging | PinnedStaging) -> Scores:
    """Log-probabilities of known tokens, in passes of bounded memory.

    Args:
        hidden: [n, D], the states before each target.
        targets: [n] int64.
        head: hidden states to logits, [r, D] -> [r, V] float32.
    """
    ids = staging.put(targets)[0]
    at_once = max(1, _SCORED_LOGITS // vocab_size)
    parts = [_score(head(hidden[start:start + at_once]), ids[start:start + at_once], num_top)
             for start in range(0, len(ids), at_once)]
    return Scores.of(tuple(torch.cat(column) for column in zip(*parts, strict=True))).to_host()


def _score(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> tuple[torch.Tensor, ...]:
    if logits.device.type == "cpu":
        return cpu.logprobs(logits, tokens, num_top)
    from pelton.kernels.sampling import triton as sampler

    return sampler.logprobs(logits, torch.arange(len(tokens), device=logits.device), tokens, num_top)
