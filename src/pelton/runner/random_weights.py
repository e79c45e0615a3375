"""Weights made up from a config's shapes, so that any public shape can be measured without a download.

Normal and different in every tensor. Matrices have variance 1 / inputs, so that they keep the size of what they are
given; those that write to the residual stream are smaller by the root of their number, so that it does not grow with
depth. Activations stay finite in every type, and logits have a standard deviation near 1.
"""

from __future__ import annotations

import torch

from pelton.config import ModelConfig
from pelton.models.registry import get_architecture
from pelton.models.weights import WeightSpec

_SMALL = 0.02  # standard deviation of biases and of norm weights around 1


def make_random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu",
                        seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of a model under their canonical names, whole. The same arguments give the same weights.

    Raises:
        CheckpointError: the architecture is not supported.
    """
    generator = torch.Generator(device).manual_seed(seed)
    return {spec.name: _make(spec, config, torch.empty(spec.shape, dtype=dtype, device=device), generator)
            for spec in get_architecture(config.architecture).weights(config)}


def _make(spec: WeightSpec, config: ModelConfig, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    kind = spec.name.split(".")[-2]  # "layers.3.attn_norm.weight" -> "attn_norm"
    if spec.name.endswith(".bias"):
        return tensor.normal_(0.0, _SMALL, generator=generator)
    if kind.endswith("norm"):
        return tensor.normal_(1.0 - config.norm_weight_offset, _SMALL, generator=generator)
    spread = spec.shape[1] ** -0.5
    if kind in ("o", "down"):
        spread *= (2 * config.num_layers) ** -0.5
    return tensor.normal_(0.0, spread, generator=generator)
