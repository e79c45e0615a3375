"""Matrix product with a stored weight, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prepare_weight(weight: Tensor) -> Tensor:
    """Lays a weight [N, K] out for `linear`; called once, when the model is loaded."""
    return weight


def is_relaid(dtype: torch.dtype) -> bool:
    """Whether `prepare_weight` of this type makes a copy in another layout or type."""
    return False


def prepared_bytes(num_elements: int, dtype: torch.dtype) -> int:
    """What a prepared weight takes."""
    return num_elements * dtype.itemsize


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times the transpose of a prepared weight [N, K], plus bias [N]: [M, N] in x's type."""
    return F.linear(x, weight, bias)
