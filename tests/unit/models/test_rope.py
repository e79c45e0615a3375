"""Rotary parameters in both spellings, and the angles of every kind against transformers' own."""

from __future__ import annotations

import pytest
import torch

from pelton.errors import CheckpointError
from pelton.layers.rotary import RotaryEmbedding
from pelton.models.registry import parse_config
from pelton.models.rope import is_length_dependent, rope_length, rope_salt

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
LONG = [1.0 + i / 8 for i in range(32)]
SHORT = [1.0 + i / 64 for i in range(32)]
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 1024},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn ramp": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0,
                  "beta_slow": 2.0, "truncate": False},
    "yarn mscale": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 1024, "mscale": 0.7,
                    "mscale_all_dim": 1.0},
    "yarn attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
                       "attention_factor": 0.8},
    "longrope": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                 "original_max_position_embeddings": 1024},
    "longrope factor": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 16.0,
                        "original_max_position_embeddings": 1024},
}


def parse(**fields):
    return parse_config({**SHAPE, **fields})


def theirs(parameters: dict, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [T, R / 2], from a fresh transformers module that sees these positions at once."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    fields = {name: value for name, value in SHAPE.items() if name != "architectures"}
    module = LlamaRotaryEmbedding(LlamaConfig(**fields, rope_parameters={"rope_theta": 10000.0, **parameters}))
    cos, sin = module(torch.zeros(1, dtype=torch.float32), positions[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("last", [100, 1023, 1024, 4095, 9000])
def test_angles_equal_transformers(name, last):
    config = parse(rope_parameters={"rope_theta": 10000.0, **KINDS[name]})
    positions = torch.arange(max(0, last - 300), last + 1)
    ours = RotaryEmbedding(config.rope, config.head_dim)(positions, torch.full_like(positions, last + 1))
    for got, want in zip(ours, theirs(KINDS[name], positions), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", KINDS)
def test_old_spelling_reads_the_same(name):
    new = parse(rope_parameters={"rope_theta": 3e4, **KINDS[name]})
    scaling = dict(KINDS[name])
    kind = scaling.pop("rope_type")
    assert parse(rope_theta=3e4, rope_scaling={"rope_type": kind, **scaling}) == new
    assert parse(rope_theta=3e4, rope_scaling={"type": kind, **scaling}) == new
    assert new.rope.theta == 3e4


def test_nothing_said_is_the_plain_embedding():
    assert parse(rope_scaling=None).rope == parse().rope == parse(rope_parameters={"rope_theta": 10000.0}).rope
    assert parse().rope.kind == "default"


def test_nested_by_layer_type():
    inner = {"rope_theta": 5e5, **KINDS["linear"]}
    config = parse(rope_parameters={"full_attention": inner, "sliding_attention": dict(inner)})
    assert config.rope == parse(rope_parameters=inner).rope
    other = {**inner, "factor": 2.0}
    with pytest.raises(CheckpointError, match="different rotary embeddings per layer type"):
        parse(rope_parameters={"full_attention": inner, "sliding_attention": other})
    used = parse(rope_parameters={"full_attention": inner, "sliding_attention": other},
                 layer_types=["full_attention"] * 2)
    assert used.rope == config.rope
    with pytest.raises(CheckpointError, match="no parameters"):
        parse(rope_parameters={"full_attention": None})


def test_a_top_level_original_length_wins():
    scaling = {**KINDS["yarn"], "original_max_position_embeddings": 999}
    assert parse(rope_scaling=scaling, original_max_position_embeddings=1024).rope == parse(
        rope_scaling=KINDS["yarn"]).rope


@pytest.mark.parametrize(("scaling", "message"), [
    ({"rope_type": "proportional", "factor": 2.0}, r"rope_scaling\.rope_type: 'proportional' is not supported.*yarn"),
    ({"type": "mrope", "mrope_section": [1]}, r"rope_scaling\.rope_type: 'mrope'"),
    ({"rope_type": "default", "mrope_section": [1]}, "mrope_section"),
    ({"rope_type": "linear"}, r"rope_scaling\.factor: missing"),
    ({"rope_type": "linear", "factor": 0}, r"rope_scaling\.factor: expected a number above 0"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}, "high_freq_factor: must be"),
    ({"rope_type": "linear", "factor": "2"}, r"rope_scaling\.factor: expected a number"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, r"rope_scaling\.high_freq_factor: missing"),
    ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG[:-1]}, r"long_factor: expected 32 numbers"),
    ({"rope_type": "longrope", "short_factor": SHORT, "long_factor": [*LONG[:-1], None]}, r"long_factor: expected"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "1024"},
     "original_max_position_embeddings"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not supported"),
    ({"rope_type": "default", "partial_rotary_factor": 0.3}, "partial_rotary_factor: 0.3 of head_dim 64 rotates 19"),
    ([1, 2], "rope_scaling: expected an object"),
])
def test_bad_parameters_are_named(scaling, message):
    with pytest.raises(CheckpointError, match=message):
        parse(rope_scaling=scaling)


@pytest.mark.parametrize("theta", ["1e4", -1.0, True, 1.0, float("nan")])
def test_bad_theta(theta):
    with pytest.raises(CheckpointError, match="rope_theta"):
        parse(rope_theta=theta)


def test_longrope_takes_one_set_of_factors_per_sequence():
    rope = parse(rope_parameters=KINDS["longrope"]).rope
    rotary = RotaryEmbedding(rope, 64)
    positions = torch.tensor([5, 5, 2000])
    lens = torch.tensor([rope_length(rope, p, num_prompt_tokens=6, max_total_tokens=t)
                         for p, t in ((5, 1024), (5, 1025), (2000, 3000))])
    cos, _ = rotary(positions, lens)
    short, long = rotary(positions[:1])[0], rotary(positions[:1], torch.tensor([9999]))[0]
    assert cos[0].equal(short[0])
    assert cos[1].equal(long[0])
    assert not short.equal(long)
    assert is_length_dependent(rope)
    assert rope_salt(rope, num_prompt_tokens=6, max_total_tokens=1024) == ""
    assert rope_salt(rope, num_prompt_tokens=6, max_total_tokens=1025) == "rope:long"


def test_dynamic_keeps_a_prompt_on_one_base_and_moves_with_output():
    rope = parse(rope_parameters=KINDS["dynamic"]).rope

    def length(position: int, num_prompt_tokens: int) -> int:
        return rope_length(rope, position, num_prompt_tokens=num_prompt_tokens, max_total_tokens=9999)

    assert [length(p, 5000) for p in (0, 4999, 5000, 5001)] == [5000, 5000, 5001, 5002]
    assert rope_salt(rope, num_prompt_tokens=4096, max_total_tokens=9999) == ""
    salts = {rope_salt(rope, num_prompt_tokens=n, max_total_tokens=9999) for n in (4097, 4098, 5000)}
    assert len(salts) == 3


def test_other_kinds_do_not_depend_on_length():
    for name in ("default", "linear", "llama3", "yarn"):
        rope = parse(rope_parameters=KINDS[name]).rope
        assert not is_length_dependent(rope)
        assert rope_salt(rope, num_prompt_tokens=9000, max_total_tokens=9999) == ""
