"""What a product may do to its input first."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """RMSNorm of the product's input."""

    weight: Tensor
    """[K], of the norm op's `prepare_weight`."""
    eps: float
