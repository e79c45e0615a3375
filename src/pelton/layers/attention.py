"""Self-attention over the paged cache as a layer: projections around the rotary and attention ops."""

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
        self._rotary = {"num_heads": config.num_heads // group.size, "eps": config.norm_eps}
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                weight = weights.take(f"{prefix}.{name}.weight")
                self._rotary[name] = ops.norm.prepare_weight(weight, config.norm_weight_offset)
        self._attend = {"scale": config.scale, "softcap": config.attention_softcap}

    def __call__(self, x: Tensor, step: ForwardStep, *, norm: Norm | None = None,
                 residual: Tensor | None = None) -> Tensor:
        """x: [T, D] to [T, D]: residual + attention(norm(x)), norm and residual where given. Writes the step's keys
        and values into the pool."""
        rotary, attention = self._ops.rotary, self._ops.attention
        q, kv = rotary.rotate_and_store(self.qkv(x, norm=norm), step.angles, step.pool, self._cache_layer, step.meta,
                                        **self._rotary)
        out = attention.attend(q, kv, step.pool, self._cache_layer, step.plans[self.window], **self._attend)
        return self.o(out, residual=residual)
