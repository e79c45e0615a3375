"""Self-attention over the paged cache as a layer: projections around the attention op, which rotates too."""

from __future__ import annotations

from torch import Tensor

from pelton.config import ModelConfig
from pelton.kernels.linear.prologue import Norm
from pelton.kernels.registry import Ops
from pelton.layers.linear import Linear, RowParallelLinear
from pelton.layers.step import ForwardStep
from pelton.layers.weights import WeightSource
from pelton.parallel.collectives import Group


class Attention:
    """Grouped-query attention with q, k and v as one product.

    Args:
        config: the whole model's shape.
        weights: this rank's tensors.
        prefix: "layers.3".
        layer: index of the layer in the model, which says its window.
        cache_layer: index of the layer in this stage's pool.
    """

    def __init__(self, config: ModelConfig, weights: WeightSource, prefix: str, *, layer: int, cache_layer: int,
                 ops: Ops, group: Group):
        self.window = config.window(layer)
        self.qkv = Linear(weights.take(f"{prefix}.qkv.weight"),
                          weights.take_if(f"{prefix}.qkv.bias", config.attention_bias), ops)
        self.o = RowParallelLinear(weights.take(f"{prefix}.o.weight"),
                                   weights.take_if(f"{prefix}.o.bias", config.output_bias), ops, group)
        self._ops = ops
        self._cache_layer = cache_layer
        self._options = {"num_heads": config.num_heads // group.size, "eps": config.norm_eps, "scale": config.scale,
                         "softcap": config.attention_softcap}
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                weight = weights.take(f"{prefix}.{name}.weight")
                self._options[name] = ops.norm.prepare_weight(weight, config.norm_weight_offset)

    def __call__(self, x: Tensor, step: ForwardStep, *, norm: Norm | None = None,
                 residual: Tensor | None = None) -> Tensor:
        """x: [T, D] to [T, D]: residual + attention(norm(x)), norm and residual where given. Writes the step's keys
        and values into the pool."""
        out = self._ops.attention.rotate_and_attend(self.qkv(x, norm=norm), step.angles, step.pool, self._cache_layer,
                                                    step.plans[self.window], **self._options)
        return self.o(out, residual=residual)
