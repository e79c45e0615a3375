"""From logits to tokens and log-probabilities, with the slots' parameters. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pelton.kernels.sampling import cpu
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


def draw(logits: torch.Tensor, slots: Slots, rows: np.ndarray, positions: np.ndarray, masks: Masks | None) -> Drawn:
    """Draws each row's next token and records it in its slot.

    Args:
        logits: [R, V] float32; may be changed.
        rows: [R] int64, slots.
        positions: [R] int64, index in its sequence of each token to be drawn.
    """
    num_logprobs = slots.num_logprobs[rows]
    scored_rows = np.flatnonzero(num_logprobs >= 0)
    columns = slots.columns(rows, positions, masks)
    # Log-probabilities are those of the model's own logits, and sampling adjusts logits in place.
    raw = logits[scored_rows] if len(scored_rows) else None
    tokens = cpu.sample(logits, columns)
    slots.record(rows, tokens)
    scores = None if raw is None else _score(raw, tokens[scored_rows], int(num_logprobs.max()))
    return Drawn(tokens=tokens, scored_rows=scored_rows.tolist(), num_top=num_logprobs[scored_rows].tolist(),
                 scores=scores)


def score_prompt(hidden: torch.Tensor, targets: np.ndarray, num_top: int, vocab_size: int,
                 head: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """Log-probabilities of known tokens, in passes of bounded memory.

    Args:
        hidden: [n, D], the states before each target.
        targets: [n] int64.
        head: hidden states to logits, [r, D] -> [r, V] float32.
    """
    ids = torch.from_numpy(targets).to(hidden.device)
    at_once = max(1, _SCORED_LOGITS // vocab_size)
    parts = [_score(head(hidden[start:start + at_once]), ids[start:start + at_once], num_top)
             for start in range(0, len(ids), at_once)]
    return Scores(token_ids=torch.cat([part.token_ids for part in parts]),
                  logprobs=torch.cat([part.logprobs for part in parts]),
                  ranks=torch.cat([part.ranks for part in parts]))


def _score(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> Scores:
    token_ids, logprobs, ranks = cpu.logprobs(logits, tokens, num_top)
    return Scores(token_ids=token_ids, logprobs=logprobs, ranks=ranks)
