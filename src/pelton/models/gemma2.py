"""Gemma 2: soft caps, sliding and full layers in turn, norms on both sides of each block, scaled embeddings."""

from __future__ import annotations

from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.weights import decoder_weights


def _parse(hf: dict[str, Any]) -> ModelConfig:
    fields = Fields(hf)
    fields.refuse("use_bidirectional_attention")
    num_layers = fields.num_layers
    kinds = fields.layer_types([("sliding_attention", "full_attention")[i % 2] for i in range(num_layers)])
    window = fields.optional_count("sliding_window", 4096)
    if window is None and "sliding" in kinds:
        raise CheckpointError("sliding_window: null, but layer_types has 'sliding_attention'")
    bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        max_positions=8192,
        kv_heads=4,
        head_dim=256,
        tied=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        attention_bias=bias,
        output_bias=bias,
        norm_weight_offset=1.0,
        sandwich_norm=True,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping", 50.0),
        logits_softcap=fields.optional_number("final_logit_softcapping", 30.0),
        embedding_scale=fields.count("hidden_size") ** 0.5,
        sliding_window=window if "sliding" in kinds else None,
        layer_kinds=kinds if "sliding" in kinds else (),
    )


ARCHITECTURE = Architecture(name="Gemma2ForCausalLM", parse_config=_parse, weights=decoder_weights)
