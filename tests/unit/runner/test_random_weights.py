"""Made-up weights: every tensor, its own numbers, sizes that keep activations finite."""

import math
import threading

import pytest
import torch

import pelton.runner.runner as runner_module
from pelton.config import ModelConfig
from pelton.manifest import Limits
from pelton.models.registry import get_architecture
from pelton.runner.random_weights import make_random_weights
from pelton.runner.runner import Runner
from pelton.types import Batch, SamplingParams, SlotInit


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


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_activations_stay_finite_and_logits_usable(architecture):
    """Sixteen layers in bfloat16, through the runner: log-probabilities neither equal nor far apart."""
    is_gemma = architecture == "Gemma2ForCausalLM"
    config = make_config(architecture=architecture, num_layers=16, sandwich_norm=is_gemma, tie_word_embeddings=is_gemma,
                         norm_weight_offset=float(is_gemma), embedding_scale=8.0 if is_gemma else 1.0)
    limits = Limits(max_batch_size=1, max_seq_len=64, max_input_len=63, max_num_tokens=64, tokens_per_block=16)
    runner = Runner.from_weights(config, make_random_weights(config, torch.bfloat16), limits, num_blocks=4)
    try:
        new = [SlotInit(0, list(range(40)), 40, [0, 1, 2], SamplingParams(logprobs=20), 0, ())]
        step = runner.forward(Batch(0, [0], [0], [40], [True], 0, new, [], []))
        runner.sample(step, None)
        output = step.result()
    finally:
        runner.close()
    assert all(math.isfinite(value) for value in output.logprobs[0].logprobs)
    spread = max(output.logprobs[0].logprobs) - min(output.logprobs[0].logprobs)
    assert 0.2 < spread < 10


def test_a_cpu_runner_does_all_parallel_work_on_its_own_thread(monkeypatch):
    """Helpers that another thread's operators leave behind slow every step down where cores are few (CpuQueue)."""
    seen, load = [], runner_module.load_decoder_class

    def remember(config):
        decoder_class = load(config)

        def make(*args):
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            return decoder_class(*args)

        return make

    monkeypatch.setattr(runner_module, "load_decoder_class", remember)
    before = torch.get_num_threads()
    config = make_config()
    limits = Limits(max_batch_size=1, max_seq_len=64, max_input_len=63, max_num_tokens=64, tokens_per_block=16)
    Runner.from_weights(config, make_random_weights(config, torch.float32), limits, num_blocks=4, num_threads=3).close()
    assert seen == [("pelton-runner", 3)]
    assert torch.get_num_threads() == before


def test_a_runner_that_cannot_be_made_leaves_no_thread(monkeypatch):
    monkeypatch.setattr(runner_module, "load_decoder_class", lambda config: pytest.fail)
    config = make_config()
    limits = Limits(max_batch_size=1, max_seq_len=64, max_input_len=63, max_num_tokens=64, tokens_per_block=16)
    with pytest.raises(TypeError):
        Runner.from_weights(config, make_random_weights(config, torch.float32), limits, num_blocks=4)
    assert "pelton-runner" not in {thread.name for thread in threading.enumerate()}
