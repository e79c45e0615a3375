"""The gated activation on a CPU: in the input's own type, the product into the activation's memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def act_mul(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) · up; gate_up is [T, 2 I] with gate first, the result [T, I] in its type."""
    gate, up = gate_up.chunk(2, dim=-1)
    if kind == "silu":
        return F.silu(gate).mul_(up)
    assert kind in ("gelu", "gelu_tanh"), kind
    return F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none").mul_(up)
