"""Qwen 3, dense: each head of q and k is normalized before rotation, no biases by default."""

from __future__ import annotations

from typing import Any

from pelton.config import ModelConfig
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.qwen2 import window_options
from pelton.models.weights import decoder_weights


def _parse(hf: dict[str, Any]) -> ModelConfig:
    fields = Fields(hf)
    bias = fields.flag("attention_bias", False)
    return decoder_config(fields, max_positions=32768, kv_heads=32, head_dim=128, attention_bias=bias,
                          output_bias=bias, qk_norm=True, **window_options(fields))


ARCHITECTURE = Architecture(name="Qwen3ForCausalLM", parse_config=_parse, weights=decoder_weights)
