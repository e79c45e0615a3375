"""Mistral 7B and its successors: Llama with a sliding window over every layer, or none."""

from __future__ import annotations

from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.weights import decoder_weights


def _parse(hf: dict[str, Any]) -> ModelConfig:
    fields = Fields(hf)
    window = fields.optional_count("sliding_window", 4096)
    num_layers = fields.num_layers
    kinds = ("sliding",) * num_layers if window else ()
    default = ["sliding_attention" if window else "full_attention"] * num_layers
    if set(fields.layer_types(default)) != {"sliding" if window else "full"}:
        raise CheckpointError("layer_types: layers of different kinds are not supported for MistralForCausalLM")
    return decoder_config(fields, max_positions=131072, kv_heads=8, sliding_window=window, layer_kinds=kinds)


ARCHITECTURE = Architecture(name="MistralForCausalLM", parse_config=_parse, weights=decoder_weights)
