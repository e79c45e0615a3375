"""Qwen 2 and 2.5: biases on q, k and v; a sliding window in the upper layers when switched on."""

from __future__ import annotations

from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.weights import decoder_weights


def window_options(fields: Fields) -> dict[str, Any]:
    """`sliding_window` and `layer_kinds` from use_sliding_window, max_window_layers and layer_types."""
    window = fields.optional_count("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    num_layers = fields.num_layers
    first = fields.hf.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise CheckpointError(f"max_window_layers: expected a count of layers, got {first!r}")
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers)]
    kinds = fields.layer_types(default)
    if "sliding" not in kinds:
        return {}
    if window is None:
        raise CheckpointError("layer_types: 'sliding_attention' needs use_sliding_window and sliding_window")
    return {"sliding_window": window, "layer_kinds": kinds}


def _parse(hf: dict[str, Any]) -> ModelConfig:
    fields = Fields(hf)
    return decoder_config(fields, max_positions=32768, kv_heads=32, attention_bias=True, **window_options(fields))


ARCHITECTURE = Architecture(name="Qwen2ForCausalLM", parse_config=_parse, weights=decoder_weights)
