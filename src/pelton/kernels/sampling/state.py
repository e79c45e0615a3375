"""The sampling parameters and memories of all slots on a GPU: what its sampler reads by slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pelton.kernels.sampling.triton import DeviceRows
from pelton.kernels.sampling.triton_rows import NUM_PARAMS
from pelton.types import SamplingParams


class SlotParams:
    """Tensors over `num_slots` slots.

    Attributes:
        params: [slots, NUM_PARAMS] int32, see triton_rows.py.
        seeds, last_tokens: [slots] int64.
        counts: [slots, V] int32, as in Columns.counts.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device):
        self.params = torch.zeros(num_slots, NUM_PARAMS, dtype=torch.int32, device=device)
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=device)

    @staticmethod
    def pack(params: Sequence[SamplingParams]) -> np.ndarray:
        """[n, NUM_PARAMS] int32: the rows of `params` for some sequences."""
        floats = np.array([[p.temperature, 0.0, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty,
                            p.presence_penalty, 0.0] for p in params], dtype=np.float32).reshape(-1, NUM_PARAMS)
        packed = floats.view(np.int32)
        packed[:, 1] = [p.top_k for p in params]
        packed[:, 7] = [p.needs_counts for p in params]
        return packed

    def rows(self, slots: Tensor, positions: Tensor) -> DeviceRows:
        """R rows to draw for. slots: [R] int64, positions: [R] int32, both on the device."""
        return DeviceRows(slots=slots, positions=positions, params=self.params, seeds=self.seeds,
                          last_tokens=self.last_tokens, counts=self.counts)
