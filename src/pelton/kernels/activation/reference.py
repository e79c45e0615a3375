"""The gated activation between the two products of an MLP (Shazeer 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def act_mul(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) · up, computed in float32.

    Args:
        gate_up: [T, 2 I], gate first.
        kind: silu, gelu or gelu_tanh.

    Returns:
        [T, I] in the input's type.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (_activate(gate, kind) * up).to(gate_up.dtype)


def _activate(gate: Tensor, kind: str) -> Tensor:
    if kind == "silu":
        return F.silu(gate)
    assert kind in ("gelu", "gelu_tanh"), kind
    return F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
