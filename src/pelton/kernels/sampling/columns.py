"""The sampling parameters of the rows of one step, as columns: what a batched sampler reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(kw_only=True)
class Columns:
    """R rows; every array is [R] unless it says otherwise. Host arrays, so that choosing a path reads no device."""

    temperature: np.ndarray
    """float32; 0 is greedy."""
    top_k: np.ndarray
    """int32; 0 or less keeps all."""
    top_p: np.ndarray
    """float64, likewise min_p: thresholds are compared as the caller wrote them."""
    min_p: np.ndarray
    seed: np.ndarray
    """int64."""
    position: np.ndarray
    """int64; index in its sequence of the token being drawn."""
    repetition: np.ndarray
    """float32, likewise frequency and presence."""
    frequency: np.ndarray
    presence: np.ndarray
    counts: dict[int, torch.Tensor] = field(default_factory=dict)
    """Row -> [V] int32, for rows with penalties: twice the token's occurrences in the output, plus 1 if it is in the
    prompt."""
    bias: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(row, token ids [n] int64, added to their logits [n] float32)."""
    banned: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    """(row, token ids [n] int64)."""
    has_penalties: bool = False
    """Whether any row has penalties; `counts` may be left out where they stay on a device."""

    @property
    def is_greedy(self) -> bool:
        """Whether no row draws at random."""
        return not self.temperature.any()

    @property
    def is_adjusted(self) -> bool:
        """Whether any row's logits change before the temperature."""
        return bool(self.counts or self.bias or self.banned or self.has_penalties)

    def truncates(self, vocab_size: int) -> np.ndarray:
        """[R] bool: rows that draw at random from less than all tokens."""
        is_cut = (self.top_k > 0) & (self.top_k < vocab_size) | (self.top_p < 1) | (self.min_p > 0)
        return is_cut & (self.temperature > 0)

    def flat_adjustments(self, vocab_size: int) -> dict[str, Any]:
        """`bias` as (places [n] int64, values [n] float32) and `banned` as places, where a place is row · V + token id;
        None where there are none."""
        bias = banned = None
        if self.bias:
            places = np.concatenate([row * vocab_size + ids.numpy() for row, ids, _ in self.bias])
            bias = (places, np.concatenate([values.numpy() for _, _, values in self.bias]).astype(np.float32))
        if self.banned:
            banned = np.concatenate([row * vocab_size + ids.numpy() for row, ids in self.banned])
        return {"bias": bias, "banned": banned}
