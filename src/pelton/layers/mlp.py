"""The gated MLP of a decoder layer."""

from __future__ import annotations

from torch import Tensor

from pelton.config import ModelConfig
from pelton.kernels.registry import Ops
from pelton.layers.linear import Linear, RowParallelLinear
from pelton.layers.weights import WeightSource
from pelton.parallel.collectives import Group


class GatedMlp:
    """down(act(gate(x)) · up(x)), gate and up as one product."""

    def __init__(self, config: ModelConfig, weights: WeightSource, prefix: str, *, ops: Ops, group: Group):
        bias = config.mlp_bias
        self.gate_up = Linear(weights.take(f"{prefix}.gate_up.weight"),
                              weights.take_if(f"{prefix}.gate_up.bias", bias), ops)
        self.down = RowParallelLinear(weights.take(f"{prefix}.down.weight"),
                                      weights.take_if(f"{prefix}.down.bias", bias), ops, group)
        self._kind = config.activation
        self._act_mul = ops.activation.act_mul

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, D] to [T, D]."""
        return self.down(self._act_mul(self.gate_up(x), self._kind))
