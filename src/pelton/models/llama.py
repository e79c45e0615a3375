"""Llama 2, 3, 3.1, 3.2, 3.3, TinyLlama and whatever else says LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from pelton.config import ModelConfig
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.weights import decoder_weights


def _parse(hf: dict[str, Any]) -> ModelConfig:
    fields = Fields(hf)
    bias = fields.flag("attention_bias", False)
    return decoder_config(fields, max_positions=2048, attention_bias=bias, output_bias=bias,
                          mlp_bias=fields.flag("mlp_bias", False))


ARCHITECTURE = Architecture(name="LlamaForCausalLM", parse_config=_parse, weights=decoder_weights)
