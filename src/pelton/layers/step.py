"""What the layers of one forward pass share: the cache, the rows, and what was prepared once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ForwardStep:
    """One forward pass over T tokens of B rows."""

    pool: Tensor
    """[block, layer, 2, kv_head, token, dim]."""
    angles: Any
    """Of the rotary op, for the step's positions."""
    plans: dict[int | None, Any]
    """Of the attention op, per sliding window that occurs among the layers."""
