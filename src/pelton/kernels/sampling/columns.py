"""The sampling parameters of the rows of one step, as columns: what a batched sampler reads."""

from __future__ import annotations

from dataclasses import dataclass, field

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

    def addends(self, vocab_size: int) -> tuple[np.ndarray, np.ndarray] | None:
        """`bias` and `banned` as what is added to logits, -inf for a ban: places [n] int64, row · V + token id, and
        values [n] float32. None where there are none."""
        places = [row * vocab_size + ids.numpy() for row, ids, _ in self.bias]
        values = [values.numpy().astype(np.float32) for _, _, values in self.bias]
        places += [row * vocab_size + ids.numpy() for row, ids in self.banned]
        values += [np.full(len(ids), -np.inf, dtype=np.float32) for _, ids in self.banned]
        return (np.concatenate(places), np.concatenate(values)) if places else None
