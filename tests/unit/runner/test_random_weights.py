"""Made-up weights: every tensor, its own numbers, sizes that keep activations finite."""

import pytest
import torch

from pelton.config import ModelConfig
from pelton.models.registry import get_architecture
from pelton.runner.random_weights import make_random_weights


def make_config(**changes):
    fields = {"architecture": "LlamaForCausalLM", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160,
              "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    return ModelConfig(**fields | changes)


@pytest.mark.parametrize("changes", [{}, {"architecture": "Qwen2ForCausalLM", "attention_bias": True},
                                     {"architecture": "Qwen3ForCausalLM", "qk_norm": True},
                                     {"architecture": "Gemma2ForCausalLM", "sandwich_norm": True,
                                      "norm_weight_offset": 1.0, "tie_word_embeddings": True}])
def test_every_tensor_in_its_shape(changes):
    config = make_config(**changes)
    weights = make_random_weights(config, torch.bfloat16, seed=3)
    specs = {spec.name: spec.shape for spec in get_architecture(config.architecture).weights(config)}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == specs
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    norm = weights["layers.0.attn_norm.weight"].float()
    assert abs(norm.mean() + config.norm_weight_offset - 1) < 0.02
    matrix = weights["layers.1.qkv.weight"].float()
    assert matrix.std() == pytest.approx(64**-0.5, rel=0.05)


def test_seed_and_layer_decide():
    config = make_config()
    first, again, other = (make_random_weights(config, torch.float32, seed=seed) for seed in (1, 1, 2))
    name = "layers.0.down.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["layers.1.down.weight"])
