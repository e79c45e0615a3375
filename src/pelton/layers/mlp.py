"""The gated MLP of a decoder layer."""

from __future__ import annotations

from torch import Tensor

from pelton.config import ModelConfig
from pelton.kernels.linear.prologue import Norm
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

    def __call__(self, x: Tensor, *, norm: Norm | None = None, residual: Tensor | None = None) -> Tensor:
        """x: [T, D] to [T, D]: residual + mlp(norm(x)), norm and residual where given."""
        return self.down(self.gate_up(x, norm=norm, act=self._kind), residual=residual)
