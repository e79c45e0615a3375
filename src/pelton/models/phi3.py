"""Phi-3 and 3.5: q, k, v and gate, up come fused; long contexts through longrope; part of a head may be rotated."""

from __future__ import annotations

from functools import partial
from typing import Any

from pelton.config import ModelConfig
from pelton.errors import CheckpointError
from pelton.models.architecture import Architecture
from pelton.models.fields import Fields, decoder_config
from pelton.models.weights import decoder_weights

_OLD_NAMES = ("su", "yarn")
"""What the first releases called longrope."""


def _parse(hf: dict[str, Any]) -> ModelConfig:
    hf = {"original_max_position_embeddings": 4096, **hf}
    for field in ("rope_scaling", "rope_parameters"):
        scaling = hf.get(field)
        if not isinstance(scaling, dict) or not scaling:
            continue
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind in _OLD_NAMES:
            kind = "longrope"
        if kind not in ("default", "longrope"):
            raise CheckpointError(f"{field}.rope_type: {kind!r} is not supported for Phi3ForCausalLM; "
                                  "supported are default, longrope")
        hf[field] = {**scaling, "rope_type": kind}
    fields = Fields(hf)
    window = fields.optional_count("sliding_window")
    kinds = ("sliding",) * fields.num_layers if window else ()
    return decoder_config(fields, max_positions=4096, norm_eps=1e-5, can_be_partial=True, sliding_window=window,
                          layer_kinds=kinds)


ARCHITECTURE = Architecture(
    name="Phi3ForCausalLM",
    parse_config=_parse,
    weights=partial(decoder_weights, qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
)
