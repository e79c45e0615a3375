"""Reading Hugging Face configs of every architecture, in both spellings, and refusing what is not supported."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from pelton.errors import CheckpointError
from pelton.models.registry import get_architecture, parse_config, supported

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def parse(architecture: str = "LlamaForCausalLM", **fields):
    """Parses the small shape with fields changed; a value of None leaves the field out."""
    config = {"architectures": [architecture], **SHAPE, **fields}
    return parse_config({name: value for name, value in config.items() if value is not None})


def test_all_six_are_there_and_nothing_imports_torch():
    code = ("import sys; from pelton.models import registry; "
            "[registry.get_architecture(name) for name in registry.supported()]; print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert supported() == ["Gemma2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM",
                           "Qwen2ForCausalLM", "Qwen3ForCausalLM"]


def test_unknown_architecture_lists_the_known():
    with pytest.raises(CheckpointError, match=r"'BertModel' is not supported.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        get_architecture("BertModel")


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", [3]])
def test_missing_architectures(value):
    with pytest.raises(CheckpointError, match="architectures"):
        parse_config({**SHAPE, "architectures": value})


def test_llama():
    config = parse(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_theta=5e5)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, 2, 16)
    assert (config.q_size, config.kv_size) == (64, 32)
    assert config.attention_bias
    assert config.output_bias
    assert config.mlp_bias
    assert config.tie_word_embeddings
    assert config.rope.theta == 5e5
    assert config.norm_eps == 1e-5
    assert config.dtype == "bfloat16"
    assert (config.bos_id, config.eos_ids) == (1, (2,))
    assert config.layer_kinds == ()


def test_llama_defaults_are_those_of_transformers():
    config = parse(num_key_value_heads=None, rms_norm_eps=None, dtype=None, max_position_embeddings=None,
                   eos_token_id=None)
    assert config.num_kv_heads == 4
    assert config.norm_eps == 1e-6
    assert config.dtype == "float32"
    assert config.max_position_embeddings == 2048
    assert config.eos_ids == ()
    assert not config.tie_word_embeddings
    assert config.rope.theta == 10000.0


def test_several_end_ids():
    assert parse(eos_token_id=[2, 7, 9]).eos_ids == (2, 7, 9)


@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float16", "torch.float16"])
def test_dtype_spellings(spelling, value):
    assert parse(**{"dtype": None, spelling: value}).dtype == "float16"


def test_mistral_window_covers_every_layer_or_none():
    assert parse("MistralForCausalLM", sliding_window=24).window(3) == 24
    assert parse("MistralForCausalLM").window(0) == 4096
    config = parse_config({"architectures": ["MistralForCausalLM"], **SHAPE, "sliding_window": None})
    assert config.window(0) is None
    assert config.sliding_window is None
    with pytest.raises(CheckpointError, match="layer_types"):
        parse("MistralForCausalLM", sliding_window=24, layer_types=["full_attention", "sliding_attention"] * 2)


def test_qwen2_window_needs_its_switch():
    assert parse("Qwen2ForCausalLM", sliding_window=24, max_window_layers=2).layer_kinds == ()
    config = parse("Qwen2ForCausalLM", sliding_window=24, max_window_layers=2, use_sliding_window=True)
    assert config.layer_kinds == ("full", "full", "sliding", "sliding")
    assert config.window(1) is None
    assert config.window(2) == 24
    assert config.attention_bias
    assert not config.output_bias
    config = parse("Qwen2ForCausalLM", sliding_window=24, use_sliding_window=True,
                   layer_types=["sliding_attention"] + ["full_attention"] * 3)
    assert config.layer_kinds == ("sliding", "full", "full", "full")
    with pytest.raises(CheckpointError, match=r"layer_types.*use_sliding_window"):
        parse("Qwen2ForCausalLM", layer_types=["sliding_attention"] * 4)


def test_qwen3():
    config = parse("Qwen3ForCausalLM", head_dim=32)
    assert config.qk_norm
    assert config.head_dim == 32
    assert not config.attention_bias
    assert parse("Qwen3ForCausalLM").head_dim == 128


def test_gemma2():
    config = parse("Gemma2ForCausalLM", sliding_window=24, query_pre_attn_scalar=64, head_dim=32)
    assert config.layer_kinds == ("sliding", "full", "sliding", "full")
    assert config.sandwich_norm
    assert config.norm_weight_offset == 1.0
    assert config.tie_word_embeddings
    assert config.activation == "gelu_tanh"
    assert config.scale == 0.125
    assert (config.attention_softcap, config.logits_softcap) == (50.0, 30.0)
    assert config.embedding_scale == 8.0
    hf = {"architectures": ["Gemma2ForCausalLM"], **SHAPE, "attn_logit_softcapping": None}
    assert parse_config(hf).attention_softcap is None
    with pytest.raises(CheckpointError, match="use_bidirectional_attention"):
        parse("Gemma2ForCausalLM", use_bidirectional_attention=True)


def test_phi3():
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    for kind in ("longrope", "su", "yarn"):
        config = parse("Phi3ForCausalLM", original_max_position_embeddings=128, partial_rotary_factor=0.75,
                       rope_scaling={"type": kind, **factors})
        assert config.rope.kind == "longrope"
        assert config.rope.rotary_dim == 12
        assert config.rope.original_max_position_embeddings == 128
        assert config.rope.factor == 4.0
        assert config.rope.long_factor == (2.0,) * 6
    assert parse("Phi3ForCausalLM").sliding_window is None
    assert parse("Phi3ForCausalLM", sliding_window=24).window(1) == 24
    with pytest.raises(CheckpointError, match=r"rope_scaling\.rope_type.*'linear'"):
        parse("Phi3ForCausalLM", rope_scaling={"type": "linear", "factor": 2.0})


@pytest.mark.parametrize(("fields", "message"), [
    ({"hidden_size": None}, "hidden_size: missing"),
    ({"hidden_size": "64"}, "hidden_size: expected a positive integer"),
    ({"hidden_size": 63}, "hidden_size: 63 is not a multiple of num_attention_heads"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 2**30}, "num_hidden_layers: expected a positive integer of at most 10000"),
    ({"vocab_size": 2**40}, "vocab_size: expected a positive integer"),
    ({"num_attention_heads": True}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_kv_heads must be a divisor of num_heads"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"hidden_act": "relu"}, "hidden_act: activation 'relu'"),
    ({"dtype": "float64"}, "dtype: 'float64'"),
    ({"dtype": 3}, "dtype: 3"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
])
def test_bad_fields_are_named(fields, message):
    with pytest.raises(CheckpointError, match=message):
        parse(**fields)


@pytest.mark.parametrize(("architecture", "fields", "message"), [
    ("Qwen2ForCausalLM", {"max_window_layers": -2}, "max_window_layers"),
    ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types: expected a list of 4"),
    ("Qwen3ForCausalLM", {"layer_types": ["linear_attention"] * 4}, "layer_types: 'linear_attention'"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window"),
])
def test_bad_fields_of_one_architecture(architecture, fields, message):
    with pytest.raises(CheckpointError, match=message):
        parse(architecture, **fields)


@pytest.mark.parametrize("architecture", supported())
def test_nonsense_in_any_field_is_read_or_refused_but_never_crashes(architecture):
    base = {"architectures": [architecture], **SHAPE, "head_dim": 16, "sliding_window": 8, "use_sliding_window": True,
            "layer_types": ["full_attention"] * 4, "max_window_layers": 2, "hidden_act": "silu", "rope_theta": 1e4,
            "rope_scaling": {"rope_type": "default"}, "tie_word_embeddings": False, "attention_bias": False,
            "mlp_bias": False, "partial_rotary_factor": 1.0, "original_max_position_embeddings": 64,
            "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, "hidden_activation": "gelu"}
    nonsense = [None, "x", "", -1, 0, 1.5, 10**30, True, float("nan"), float("inf"), [], [1], ["x"], [[]], [None] * 4,
                {}, {"a": 1}, {"type": []}, {"rope_type": "yarn", "factor": {}}, {"full_attention": 3}]
    for field in base:
        for value in nonsense:
            with contextlib.suppress(CheckpointError):
                parse_config({**base, field: value})
